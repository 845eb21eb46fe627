"""The Helm chart, rendered by a real helm over a matrix of values and held against the schemas."""

import base64
import json
import os
import pathlib
import shlex
import shutil
import subprocess

import pytest
from support.containers import EXAMPLE, answers, wait_until
from support.docker_registry import PASSWORD, USER

CHART = pathlib.Path(__file__).parents[2] / "charts" / "engine"
HELM = os.environ.get("HELM") or shutil.which("helm")
REQUIRED = {
    "ociRegistry": {"registry": "registry.example.com", "username": "edge", "password": "s3cret"},
    "engine": {"pipelineUrl": "registry.example.com/pipelines/house:1"},
}
BUNDLE = base64.b64encode(b"export EDGE_NAME=edge-1").decode()

pytestmark = pytest.mark.skipif(HELM is None, reason="no helm: set HELM or put it on PATH")


def merged(base, extra):
    result = dict(base)
    for key, value in extra.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def run_helm(*arguments, values=None, tmp_path):
    command = [HELM, *arguments]
    if values is not None:
        path = tmp_path / "values.json"
        path.write_text(json.dumps(values))
        command += ["--values", str(path)]
    homes = {f"HELM_{name}_HOME": str(tmp_path / "helm") for name in ("CACHE", "CONFIG", "DATA")}
    return subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=60, env=os.environ | homes
    )


@pytest.fixture
def render(tmp_path):
    """Render the chart with the required values and ``extra``; manifests by (kind, name)."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

    def rendered(extra=None, base=REQUIRED):
        values = merged(base, extra or {})
        done = run_helm("template", "rel", str(CHART), values=values, tmp_path=tmp_path)
        assert done.returncode == 0, done.stderr
        manifests = [document for document in yaml.safe_load_all(done.stdout) if document]
        return {(m["kind"], m["metadata"]["name"]): m for m in manifests}

    return rendered


def container(manifests, name="engine"):
    return manifests["Deployment", name]["spec"]["template"]["spec"]["containers"][0]


def environment(manifests):
    entries = container(manifests)["env"]
    variables = {entry["name"]: entry for entry in entries}
    assert len(variables) == len(entries), "a variable is set twice"
    return variables


MATRIX = {
    "documented": {},
    "edge bundle": {"edgeBundle": BUNDLE, "ociRegistry": {"email": "ops@example.com"}},
    "own secret": {"ociRegistry": {"existingSecret": "mine"}},
    "own claim": {"persistence": {"existingClaim": "mine"}},
    "storage class": {"persistence": {"storageClass": "fast", "annotations": {"a": "b"}}},
    "no volume": {"persistence": {"enabled": False}},
    "replicas": {
        "replicas": 3,
        "podDisruptionBudget": {"enabled": True},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
        ],
    },
    "autoscaling": {
        "autoscaling": {
            "enabled": True,
            "metrics": [
                {
                    "type": "Pods",
                    "pods": {
                        "metric": {"name": "rows"},
                        "target": {"type": "AverageValue", "averageValue": "100"},
                    },
                }
            ],
        },
        "podDisruptionBudget": {"enabled": True, "maxUnavailable": "25%"},
    },
    "gpu": {"gpu": {"enabled": True, "runtimeClassName": "nvidia"}},
    "gpu, own resources": {
        "gpu": {"enabled": True, "count": 2},
        "resources": {"limits": {"memory": "8Gi"}, "requests": {"cpu": "500m"}},
    },
    "network": {
        "networkPolicy": {
            "enabled": True,
            "from": [{"podSelector": {"matchLabels": {"app": "caller"}}}],
            "metricsFrom": [{"namespaceSelector": {}}],
            "egress": [{"ports": [{"port": 443}]}],
        },
        "ingress": {
            "enabled": True,
            "className": "nginx",
            "tls": [{"secretName": "tls", "hosts": ["chart-example.local"]}],
        },
        "service": {"type": "NodePort", "port": 80, "headless": False},
    },
    "no flight": {"flight": {"enabled": False}, "networkPolicy": {"enabled": True}},
    "scheduling": {
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "podAnnotations": {"a": "1"},
        "podLabels": {"team": "edge"},
        "priorityClassName": "high",
        "imagePullSecrets": [{"name": "other"}],
    },
    "variables": {
        "engine": {
            "cpus": 0.5,
            "debug": True,
            "extraEnv": [
                {"name": "MAX_BODY_BYTES", "value": 1000000},
                {"name": "API_TOKEN_FILE", "value": "/run/tokens/list"},
                {"name": "WHERE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
            ],
        },
        "extraVolumes": [{"name": "tokens", "secret": {"secretName": "tokens"}}],
        "extraVolumeMounts": [{"name": "tokens", "mountPath": "/run/tokens"}],
        "probes": {"scheme": "HTTPS"},
    },
    "mutual TLS": {"probes": {"scheme": "TCP"}},
    "renamed": {"fullnameOverride": "house-price", "edgeBundle": BUNDLE},
    "monitored": {"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
}


@pytest.mark.parametrize("extra", MATRIX.values(), ids=MATRIX)
def test_every_manifest_is_valid_for_kubernetes(render, extra):
    validator = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed"
    )
    for (kind, _), manifest in render(extra).items():
        if kind == "ServiceMonitor":  # a custom resource: no schema in Kubernetes itself
            assert manifest["spec"]["endpoints"] == [
                {"port": "metrics", "path": "/metrics", "interval": "15s"}
            ]
            continue
        for version in ("1.25", "1.37"):
            validator.validate(manifest, version, strict=True)


@pytest.mark.parametrize("extra", MATRIX.values(), ids=MATRIX)
def test_lint_is_clean(tmp_path, extra):
    done = run_helm(
        "lint", "--strict", str(CHART), values=merged(REQUIRED, extra), tmp_path=tmp_path
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_probes_of_mutual_tls_ask_only_whether_the_port_is_open(render):
    """The kubelet has no certificate: asked for a page, the pod would never be ready."""
    manifests = render(MATRIX["mutual TLS"])
    engine = container(manifests)

    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert engine[probe]["tcpSocket"] == {"port": "http-inference"}
        assert "httpGet" not in engine[probe]
    (ready,) = manifests["Pod", "engine-test"]["spec"]["containers"]
    assert ready["args"] == ["tcp://engine-svc:8080/healthz"]


def test_documented_names_ports_environment_and_probes(render):
    manifests = render()

    assert set(manifests) == {
        ("Deployment", "engine"),
        ("Service", "engine-svc"),
        ("Secret", "oci-registry"),
        ("Secret", "oci-registry-docker"),
        ("PersistentVolumeClaim", "engine-persist"),
        ("Pod", "engine-test"),
    }
    service = manifests["Service", "engine-svc"]["spec"]
    assert (service["type"], service["clusterIP"]) == ("ClusterIP", "None")
    assert {port["name"]: port["port"] for port in service["ports"]} == {
        "http-inference": 8080,
        "metrics": 9000,
        "flight": 8815,
    }
    engine = container(manifests)
    assert {port["containerPort"] for port in engine["ports"]} == {8080, 8815, 9000}
    assert engine["readinessProbe"]["httpGet"]["path"] == "/healthz"
    assert engine["readinessProbe"]["initialDelaySeconds"] == 2
    assert engine["readinessProbe"]["periodSeconds"] == 10
    assert engine["livenessProbe"]["httpGet"]["path"] == "/livez"
    secret_keys = {
        name: entry["valueFrom"]["secretKeyRef"]
        for name, entry in environment(manifests).items()
        if "valueFrom" in entry
    }
    assert secret_keys == {
        "OCI_REGISTRY": {"name": "oci-registry", "key": "URI"},
        "OCI_USERNAME": {"name": "oci-registry", "key": "USERNAME"},
        "OCI_PASSWORD": {"name": "oci-registry", "key": "PASSWORD"},
    }
    values = {n: e["value"] for n, e in environment(manifests).items() if "value" in e}
    assert values == {
        "DEBUG": "false",
        "RUST_LOG": "info",
        "PIPELINE_URL": "registry.example.com/pipelines/house:1",
        "CONFIG_CPUS": "4",
        "CONFIG_MEMORY": "3Gi",
        "FLIGHT_PORT": "8815",
        "METRICS_PORT": "9000",
    }
    assert engine["resources"]["limits"] == {"cpu": "4", "memory": "3Gi"}
    annotations = manifests["Deployment", "engine"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == "9000"


def test_the_values_in_the_documentation(render):
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    text = (CHART.parents[1] / "docs" / "containers.md").read_text()
    manifests = render(base=yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0]))

    assert container(manifests)["image"] == "registry.example.com/sagitta:0.1.0"
    assert environment(manifests)["CONFIG_CPUS"]["value"] == "2"
    url = environment(manifests)["PIPELINE_URL"]["value"]
    assert url == "registry.example.com/pipelines/house-price:1"


def test_registry_credentials_are_whole_in_both_secrets(render):
    manifests = render({"ociRegistry": {"password": 'p"a:$$\n s', "email": "o@example.com"}})

    plain = manifests["Secret", "oci-registry"]["data"]
    assert base64.b64decode(plain["PASSWORD"]).decode() == 'p"a:$$\n s'
    docker = manifests["Secret", "oci-registry-docker"]
    assert docker["type"] == "kubernetes.io/dockerconfigjson"
    login = json.loads(base64.b64decode(docker["data"][".dockerconfigjson"]))["auths"]
    assert login["registry.example.com"]["password"] == 'p"a:$$\n s'
    assert base64.b64decode(login["registry.example.com"]["auth"]).decode() == 'edge:p"a:$$\n s'


def test_the_pod_runs_as_an_ordinary_user_with_nothing_to_spare(render):
    pod = render()["Deployment", "engine"]["spec"]["template"]["spec"]

    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == 10001
    rules = pod["containers"][0]["securityContext"]
    assert rules["readOnlyRootFilesystem"] is True
    assert rules["allowPrivilegeEscalation"] is False
    assert rules["capabilities"] == {"drop": ["ALL"]}


def volume(manifests):
    pod = manifests["Deployment", "engine"]["spec"]["template"]["spec"]
    return next(v for v in pod["volumes"] if v["name"] == "persist")


def test_one_replica_keeps_a_claim_and_is_never_doubled(render):
    manifests = render({"edgeBundle": BUNDLE})

    assert volume(manifests)["persistentVolumeClaim"] == {"claimName": "engine-persist"}
    assert manifests["Deployment", "engine"]["spec"]["strategy"] == {"type": "Recreate"}
    claim = manifests["PersistentVolumeClaim", "engine-persist"]
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert environment(manifests)["EDGE_BUNDLE"]["valueFrom"]["secretKeyRef"] == {
        "name": "edge-bundle",
        "key": "EDGE_BUNDLE",
    }
    data = manifests["Secret", "edge-bundle"]["data"]
    assert base64.b64decode(data["EDGE_BUNDLE"]).decode() == BUNDLE


@pytest.mark.parametrize(
    ("extra", "kind"),
    [
        ({"replicas": 2}, "ephemeral"),
        ({"autoscaling": {"enabled": True}}, "ephemeral"),
        ({"persistence": {"enabled": False}}, "emptyDir"),
    ],
)
def test_pods_without_the_claim_roll_as_documented(render, extra, kind):
    manifests = render(extra)

    assert kind in volume(manifests)
    assert ("PersistentVolumeClaim", "engine-persist") not in manifests
    assert manifests["Deployment", "engine"]["spec"]["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": "100%", "maxUnavailable": "50%"},
    }


def test_autoscaler_owns_the_replica_count(render):
    manifests = render(MATRIX["autoscaling"])

    assert "replicas" not in manifests["Deployment", "engine"]["spec"]
    scaler = manifests["HorizontalPodAutoscaler", "engine"]["spec"]
    assert scaler["scaleTargetRef"]["name"] == "engine"
    assert [metric["type"] for metric in scaler["metrics"]] == ["Resource", "Pods"]


def test_gpu_is_asked_for_and_never_silently_absent(render):
    manifests = render(MATRIX["gpu, own resources"])

    assert container(manifests)["resources"]["limits"] == {"memory": "8Gi", "nvidia.com/gpu": "2"}
    assert environment(manifests)["ACCELERATOR"]["value"] == "cuda"
    assert container(manifests)["image"].endswith("-gpu")


def test_variables_stay_text_and_keep_their_source(render):
    variables = environment(render(MATRIX["variables"]))

    assert variables["MAX_BODY_BYTES"]["value"] == "1000000"
    assert variables["CONFIG_CPUS"]["value"] == "0.5"
    assert variables["DEBUG"]["value"] == "true"
    assert variables["WHERE"]["valueFrom"]["fieldRef"]["fieldPath"] == "spec.nodeName"


def test_a_variable_of_ones_own_takes_the_place_of_the_charts(render):
    extra = [{"name": "RUST_LOG", "value": "debug"}, {"name": "CONFIG_MEMORY", "value": "1Gi"}]
    variables = environment(render({"engine": {"extraEnv": extra}}))

    assert variables["RUST_LOG"]["value"] == "debug"
    assert variables["CONFIG_MEMORY"]["value"] == "1Gi"
    assert variables["CONFIG_CPUS"]["value"] == "4"


def test_a_changed_secret_replaces_the_pod(render):
    def checksum(password):
        pod = render({"ociRegistry": {"password": password}})["Deployment", "engine"]["spec"]
        return pod["template"]["metadata"]["annotations"]["checksum/secrets"]

    assert checksum("one") != checksum("two")
    assert checksum("one") == checksum("one")


def test_an_image_is_named_by_tag_or_digest(render):
    digest = "sha256:" + "0" * 64

    assert container(render())["image"] == "sagitta:0.1.0"
    assert container(render({"image": {"tag": digest}}))["image"] == f"sagitta@{digest}"


NEEDS = (
    "ociRegistry.{} is required: ociRegistry.registry, ociRegistry.username and "
    "ociRegistry.password name the registry"
)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"ociRegistry": {"registry": ""}}, NEEDS.format("registry")),
        ({"ociRegistry": {"username": ""}}, NEEDS.format("username")),
        ({"ociRegistry": {"password": ""}}, NEEDS.format("password")),
        ({"engine": {"pipelineUrl": ""}}, "engine.pipelineUrl is required"),
        ({"edgeBundle": BUNDLE, "replicas": 2}, "edgeBundle is one edge"),
        ({"edgeBundle": BUNDLE, "autoscaling": {"enabled": True}}, "edgeBundle is one edge"),
        ({"persistence": {"existingClaim": "x"}, "replicas": 2}, "serves one pod"),
        ({"service": {"port": 80}}, "service.headless"),
        ({"engine": {"cpus": 0}}, "engine.cpus"),
        ({"edgebundle": BUNDLE}, "edgebundle is not allowed"),
        ({"replicas": "two"}, "replicas: Invalid type"),
    ],
)
def test_values_that_cannot_work_are_refused_with_the_reason(tmp_path, extra, message):
    values = merged(REQUIRED, extra)

    done = run_helm("template", "rel", str(CHART), values=values, tmp_path=tmp_path)

    assert done.returncode != 0
    assert message in done.stderr


def test_a_bundle_alone_names_the_pipeline(render):
    manifests = render({"edgeBundle": BUNDLE, "engine": {"pipelineUrl": ""}})

    assert "PIPELINE_URL" not in environment(manifests)


@pytest.fixture
def render_notes(tmp_path):
    """Render NOTES.txt, which helm prints only after an install, as a value of a manifest."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    chart = tmp_path / "engine"
    shutil.copytree(CHART, chart)
    notes = (chart / "templates" / "NOTES.txt").read_text()
    (chart / "templates" / "_notes.tpl").write_text(
        f'{{{{- define "notes" }}}}{notes}{{{{ end }}}}'
    )
    (chart / "templates" / "notes.yaml").write_text('notes: {{ include "notes" . | quote }}')

    def rendered(extra):
        done = run_helm(
            *("template", "rel", str(chart), "-n", "ccfraud01", "-s", "templates/notes.yaml"),
            values=merged(REQUIRED, extra),
            tmp_path=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        return yaml.safe_load(done.stdout)["notes"]

    return rendered


def test_notes_print_the_documented_port_forward_line(render_notes):
    notes = render_notes({})

    assert "kubectl port-forward svc/engine-svc -n ccfraud01 8080 --address 0.0.0.0" in notes
    assert "curl http://localhost:8080/pipelines" in notes
    assert "kubectl port-forward svc/engine-svc -n ccfraud01 8815" in notes
    assert "8815" not in render_notes({"flight": {"enabled": False}})


def test_notes_warn_where_the_spent_token_has_no_volume(render_notes):
    assert "WARNING" not in render_notes({"edgeBundle": BUNDLE})
    assert "the token spent" in render_notes(
        {"edgeBundle": BUNDLE, "persistence": {"enabled": False}}
    )


def test_package_push_and_pull(registry, tmp_path):
    """As ``helm`` itself carries the chart through a registry with a password."""
    address = registry.address
    version = "0.0.1-3b49fba8-94d8-4fca-aecc-c75257fd16c6"
    login = ("-u", USER, "-p", PASSWORD, "--insecure")
    for arguments in (
        ("package", str(CHART), "--version", version, "-d", str(tmp_path)),
        ("registry", "login", address, *login),
        ("push", str(tmp_path / f"engine-{version}.tgz"), f"oci://{address}/charts"),
        (
            "pull",
            f"oci://{address}/charts/engine",
            "--version",
            version,
            "-d",
            f"{tmp_path}/pulled",
        ),
    ):
        (tmp_path / "pulled").mkdir(exist_ok=True)
        done = run_helm(*arguments, tmp_path=tmp_path)
        assert done.returncode == 0, done.stderr

    pulled = tmp_path / "pulled" / f"engine-{version}.tgz"
    values = merged(REQUIRED, {})
    done = run_helm("template", "rel", str(pulled), values=values, tmp_path=tmp_path)
    assert "kind: Deployment" in done.stdout


def test_the_rendered_container_serves(render, podman, registry, tmp_path):
    """The pod that the chart asks for, run as it says: variables, user, rights, volumes, probes."""
    address = podman.registry_address(registry)
    manifests = render(
        {
            "ociRegistry": {"registry": address, "username": USER, "password": PASSWORD},
            "engine": {
                "pipelineUrl": f"{address}/pipelines/house-price:v1",
                "cpus": 1,
                "extraEnv": [{"name": "OCI_PLAIN_HTTP", "value": True}],
            },
        }
    )
    pod = manifests["Deployment", "engine"]["spec"]["template"]["spec"]
    engine = pod["containers"][0]
    user = pod["securityContext"]["runAsUser"]
    volume = tmp_path / "claim"
    volume.mkdir()
    os.chown(volume, user, pod["securityContext"]["fsGroup"])
    mounts = {mount["name"]: mount["mountPath"] for mount in engine["volumeMounts"]}
    flags = [f"--user={user}", "--security-opt=no-new-privileges", f"--tmpfs={mounts['tmp']}"]
    flags += [f"--cap-drop={name}" for name in engine["securityContext"]["capabilities"]["drop"]]
    flags += [f"--read-only={engine['securityContext']['readOnlyRootFilesystem']}"]
    flags += [f"--volume={volume}:{mounts['persist']}"]
    for entry in engine["env"]:
        value = entry.get("value")
        if value is None:
            key = entry["valueFrom"]["secretKeyRef"]
            value = base64.b64decode(manifests["Secret", key["name"]]["data"][key["key"]]).decode()
        flags += ["-e", f"{entry['name']}={value}"]

    running = podman.run(*flags)

    def probe(name):
        request = engine[f"{name}Probe"]["httpGet"]
        ports = {port["name"]: port["containerPort"] for port in engine["ports"]}
        assert ports[request["port"]] == 8080  # the port that ``run`` publishes
        return answers(f"{running.url}{request['path']}")

    wait_until(lambda: probe("startup") == 200, "the startup probe answers")
    wait_until(lambda: probe("readiness") == 200, "the readiness probe answers")
    assert probe("liveness") == 200
    test_pod = manifests["Pod", "engine-test"]["spec"]["containers"][0]
    own_url = test_pod["args"][0].replace("engine-svc", "127.0.0.1")
    running.exec(*test_pod["command"], own_url)  # `helm test`, from inside
    assert running.stop() == 0


def test_a_publish_brings_its_chart(podman, registry, tmp_path):
    """``sagitta publish --chart`` of the image: what it prints is what helm then finds."""
    target = f"{podman.registry_address(registry)}/demo/pipelines/house-price"
    credentials = ("-e", f"OCI_USERNAME={USER}", "-e", f"OCI_PASSWORD={PASSWORD}")
    printed = podman(
        *("run", "--rm", *podman.network, *credentials, "-e", "OCI_PLAIN_HTTP=true"),
        *("-v", f"{EXAMPLE}:/example:ro", podman.image, "publish", "/example/house-price.onnx"),
        *("--tensor-fields=tensor", f"--to={target}", "--chart", "--image=registry.test/sagitta"),
    ).stdout
    line = next(line for line in printed.splitlines() if line.startswith("helm install"))
    words = shlex.split(line)
    version = words[words.index("--version") + 1]
    chart = words[4].replace(podman.registry_address(registry), registry.address)
    assert words[:4] == ["helm", "install", "--atomic", "$NAME"]
    assert words[-4:] == [
        *("--set", "ociRegistry.username=$OCI_USERNAME"),
        *("--set", "ociRegistry.password=$OCI_PASSWORD"),
    ]

    (tmp_path / "pulled").mkdir()
    pulled = str(tmp_path / "pulled" / f"house-price-{version}.tgz")
    given = ("--set", f"ociRegistry.username={USER},ociRegistry.password={PASSWORD}")
    for arguments in (
        ("registry", "login", registry.address, "-u", USER, "-p", PASSWORD, "--insecure"),
        ("pull", chart, "--version", version, "-d", str(tmp_path / "pulled")),
        ("lint", "--strict", pulled, *given),
        ("template", "rel", pulled, *given),
    ):
        done = run_helm(*arguments, tmp_path=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    uuid = version.removeprefix("0.0.1-")
    assert f'value: "{target}:{uuid}"' in done.stdout
    assert 'image: "registry.test/sagitta:' in done.stdout
