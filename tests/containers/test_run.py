"""The documented command lines on podman and on docker, and what must hold inside the container."""

import base64
import json
import re

import pyarrow as pa
import pyarrow.compute
import pytest
from pyarrow import flight
from support.containers import EXAMPLE, answers, curl, wait_until
from support.docker_registry import PASSWORD, USER
from support.engine import ROOT

HARDENED = [
    *("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL"),
    *("--security-opt", "no-new-privileges"),
]
LIMITS = ["--cpus=1.25", "--memory=1536m"]
PUBLISHED = ["-p", "8080:8080", "8815:8815"]  # as documented; ``run`` takes free ones
LOG = ["-e", "LOCAL_INFERENCE_STORAGE=100m", "-e", "PLATEAU_PAGE_SIZE=100"]
JSON_HEADER = "Content-Type: application/json; format=pandas-records"


def read_logs(container):
    """Every row of ``/logs``: a page ends where the schema changes, and says where the next is."""
    rows, cursor = [], {}
    while True:
        text = curl(
            *("-i", "-X", "POST", f"{container.url}/logs", "--data", json.dumps(cursor)),
            *("-H", "Content-Type: Content-Type: application/json; format=pandas-records"),
        )
        head, _, body = text.partition("\n\n")
        page = json.loads(body)
        told = re.search(r"(?im)^x-iteration-status: (.*)$", head)
        rows += page
        if not page or told is None:
            return rows
        cursor = json.loads(told[1])["next"]


def test_documented_line_with_a_volume(
    runtime, published, volume, check_documented_requests, expected
):
    """``docker run -v … -p … -e … --cpus=1.25 --memory=1536m``, then again on the same volume."""
    line = [*published, *LOG, "-e", "CONFIG_CPUS=1.0", *LIMITS, "-v", f"{volume}:/persist"]
    container = runtime.run(*line).wait_ready()

    check_documented_requests(container.url)
    logged = [row["out"]["price"] for row in read_logs(container)]
    assert [price for (price,) in logged] == pytest.approx(expected * 3, rel=1e-7)
    status = container.process_one()
    assert set(status["Uid"]) == {"10001"}
    assert set(status["Gid"]) == {"10001"}
    assert status["CapEff"] == ["0000000000000000"]
    assert not [path for path in volume.rglob("*") if path.lstat().st_uid != 10001]
    files = [path.read_bytes() for path in volume.rglob("*") if path.is_file()]
    assert files
    assert not [content for content in files if PASSWORD.encode() in content]
    assert container.stop() == 0

    again = runtime.run(*line).wait_ready()
    assert len(read_logs(again)) == 30
    assert again.stop() == 0


def test_documented_line_without_a_volume(runtime, published, check_documented_requests):
    container = runtime.run(*published, "-e", "CONFIG_CPUS=1", "-e", "DEBUG=true").wait_ready()

    check_documented_requests(container.url)
    assert container.stop() == 0


def test_credentials_in_a_mounted_file(runtime, registry, tmp_path, check_documented_requests):
    address = runtime.registry_address(registry)
    login = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    file = tmp_path / "auth.json"
    file.write_text(json.dumps({"auths": {address: {"auth": login}}}))
    file.chmod(0o644)
    container = runtime.run(
        *("-v", f"{file}:/run/auth.json:ro", "-e", "REGISTRY_AUTH_FILE=/run/auth.json"),
        *("-e", f"PIPELINE_URL={address}/pipelines/house-price:v1", "-e", "OCI_PLAIN_HTTP=true"),
    ).wait_ready()

    check_documented_requests(container.url)
    assert container.stop() == 0


def test_documented_start_lines_in_order(runtime, published):
    container = runtime.run(*published, "-e", "CONFIG_CPUS=1").wait_ready()

    lines = [line.strip() for line in container.logs().splitlines()]
    wanted = [
        "Sagitta Engine - Standalone mode",
        "Login Succeeded",
        "Fetching manifest and config for pipeline: ",
        "Fetching model layers",
        "digest: sha256:",
        "name: house-price",
        "Fetched",
        "Starting engine",
    ]
    places = [next(i for i, line in enumerate(lines) if line.startswith(w)) for w in wanted]
    assert places == sorted(places)


def test_hardened_with_any_user(runtime, published, volume, check_documented_requests):
    volume.chmod(0o777)
    container = runtime.run(
        *(*published, *HARDENED, "--user", "12345", "-e", "CONFIG_CPUS=1"),
        *("-v", f"{volume}:/persist", *LOG, *LIMITS),
    ).wait_ready()

    check_documented_requests(container.url)
    assert len(read_logs(container)) == 30
    assert set(container.process_one()["Uid"]) == {"12345"}
    assert container.stop() == 0


def test_hardened_where_nothing_can_be_written(
    runtime, published, volume, check_documented_requests
):
    """A volume of another user's: said once, served all the same."""
    container = runtime.run(
        *published, *HARDENED, "--user", "12345", "-v", f"{volume}:/persist"
    ).wait_ready()

    check_documented_requests(container.url)
    assert "/persist" in container.logs()
    assert container.stop() == 0


def test_a_volume_that_cannot_be_given_away_keeps_nobody_root(
    runtime, published, volume, check_documented_requests
):
    container = runtime.run(*published, "-v", f"{volume}:/persist:ro").wait_ready()

    check_documented_requests(container.url)
    assert "/persist could not be given to uid 10001" in container.logs()
    assert set(container.process_one()["Uid"]) == {"10001"}
    assert container.stop() == 0


def test_root_without_capabilities_says_what_to_do_and_serves(
    runtime, published, volume, check_documented_requests
):
    container = runtime.run(
        *published, "--cap-drop", "ALL", "-v", f"{volume}:/persist", "-e", "CONFIG_CPUS=1"
    ).wait_ready()

    check_documented_requests(container.url)
    assert "running as uid 0" in container.logs()
    assert container.stop() == 0


ASK_INSIDE = """
import json, urllib.request
body = open("/example/houses.arrow", "rb").read()
request = urllib.request.Request("http://127.0.0.1:8080/infer", body)
request.add_header("Content-Type", "application/vnd.apache.arrow.file")
print(json.dumps(json.load(urllib.request.urlopen(request))[0]["outputs"][0]["Float"]["data"]))
"""


def test_a_cached_pipeline_needs_no_network(runtime, published, volume, expected):
    line = [*published, *HARDENED, "--user", "12345", "-v", f"{volume}:/persist"]
    line += ["-v", f"{EXAMPLE}:/example:ro"]
    volume.chmod(0o777)
    assert runtime.run(*line).wait_ready().stop() == 0

    offline = runtime.run(*line, network=["--network", "none"], publish=False)

    check = ("/opt/sagitta/bin/python", "-I", "/opt/sagitta/share/healthcheck.py")
    wait_until(
        lambda: runtime("exec", offline.name, *check, check=False).returncode == 0,
        "ready without a network",
    )
    assert json.loads(offline.python(ASK_INSIDE, user="12345")) == expected
    assert offline.stop() == 0


def test_flight_through_the_published_port(runtime, from_layout, expected):
    container = runtime.run(*from_layout, "-e", "CONFIG_CPUS=1").wait_ready()
    with pa.ipc.open_file(EXAMPLE / "houses.arrow") as file:
        batch = file.get_batch(0)

    with flight.connect(container.flight_url) as client:
        writer, reader = client.do_exchange(flight.FlightDescriptor.for_path("infer"))
        writer.begin(batch.schema)
        for _ in range(3):
            writer.write_batch(batch)
            price = reader.read_chunk().data.column("out.price")
            assert pa.compute.list_flatten(price).to_pylist() == expected
        assert container.stop() == 0  # with the stream still open
        with pytest.raises(flight.FlightUnavailableError):
            writer.close()


def documented_run():
    """The ``docker run`` of docs/containers.md, as one line."""
    text = (ROOT / "docs" / "containers.md").read_text()
    return text.partition("\ndocker run")[2].partition("\n```")[0].replace("\\\n", " ").split()


def test_the_line_in_the_documentation(runtime, registry, volume, check_documented_requests):
    """Word for word but for what is this machine's: addresses, ports, names."""
    address = runtime.registry_address(registry)
    here = {
        "registry.example.com/pipelines/house-price:1": f"{address}/pipelines/house-price:v1",
        "$PWD/data": str(volume),
        "$OCI_USERNAME": USER,
        "$OCI_PASSWORD": PASSWORD,
    }
    words = documented_run()
    for documented, value in here.items():
        words = [word.replace(documented, value) for word in words]
    *flags, image = (word for word in words if word not in PUBLISHED)

    container = runtime.run(*flags, "-e", "OCI_PLAIN_HTTP=true").wait_ready()

    assert image == "sagitta"
    check_documented_requests(container.url)
    assert container.stop() == 0


def test_a_missing_gpu_ends_the_start_with_the_reason(runtime, from_layout):
    container = runtime.run(*from_layout, "-e", "ACCELERATOR=cuda")

    assert container.wait_exit() == 3
    assert re.search(r"ACCELERATOR|cuda", container.logs(), re.IGNORECASE)
    assert "Traceback" not in container.logs()


def test_secrets_are_seen_nowhere(runtime, published):
    bundle = base64.b64encode(b"export EDGE_NAME=edge-1\nexport JOIN_TOKEN=tok-never-seen").decode()
    container = runtime.run(*published, "-e", "DEBUG=true").wait_ready()
    commands = container.python(
        "import glob; print([open(p).read() for p in glob.glob('/proc/[0-9]*/cmdline')])"
    )
    metrics = container.python(
        "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9000/metrics').read())"
    )
    seen = container.logs() + metrics + commands
    assert container.stop() == 0
    assert PASSWORD not in seen
    assert base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode() not in seen

    refused = runtime.run(*published, "-e", "OCI_PASSWORD=wr0ng-never-seen", "-e", "DEBUG=true")
    assert refused.wait_exit() == 3
    assert "wr0ng-never-seen" not in refused.logs()
    assert "Traceback" not in refused.logs()

    bad = runtime.run("-e", f"EDGE_BUNDLE={bundle}!", "-e", "CONFIG_CPUS=none", "-e", "DEBUG=true")
    assert bad.wait_exit() == 2
    assert bundle not in bad.logs()
    assert "tok-never-seen" not in bad.logs()


def test_a_bundle_is_read_and_never_evaluated(runtime, from_layout):
    lines = "export EDGE_NAME=$(touch /tmp/evaluated)`touch /tmp/evaluated`\nexport CONFIG_CPUS=1"
    bundle = base64.b64encode(lines.encode()).decode()
    container = runtime.run(*from_layout, "-e", f"EDGE_BUNDLE={bundle}")

    wait_until(
        lambda: (
            container.inspect("{{.State.Running}}") == "false"
            or answers(f"{container.url}/healthz") == 200
        ),
        "it serves or has ended",
    )
    changed = runtime("diff", container.name).stdout
    assert "evaluated" not in changed


def test_health_is_told_to_the_runtime(runtime, from_layout):
    container = runtime.run(*from_layout).wait_ready()

    if runtime.name == "podman":  # without systemd podman checks only when asked
        runtime("healthcheck", "run", container.name)
    wait_until(lambda: container.inspect("{{.State.Health.Status}}") == "healthy", "healthy")
    assert container.stop() == 0


def test_nothing_is_written_or_sent_that_was_not_asked_for(runtime, from_layout):
    """No device id, no telemetry database, no cache: the root file system stays as it was."""
    container = runtime.run(*from_layout, "-e", "CONFIG_CPUS=1").wait_ready()
    curl(
        *("-X", "POST", f"{container.url}/infer", "-H", JSON_HEADER),
        *("--data", f"@{EXAMPLE}/houses.df.json"),
    )

    changed = [line.split() for line in runtime("diff", container.name).stdout.splitlines()]
    allowed = ("/etc", "/run", "/tmp", "/proc", "/sys", "/dev", "/pipeline", "/persist")
    assert [path for _, path in changed if not path.startswith(allowed)] == []
    written = container.python(
        "import os; print([f for w in os.walk('/persist') for f in w[2] if 'onnxruntime' in f])"
    )
    assert written.strip() == "[]"
