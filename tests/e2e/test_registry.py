"""Publish, inspect, pull and serve through real registries, with skopeo as the second opinion."""

import hashlib
import json
import ssl
import subprocess
import sys

import numpy as np
import pytest
from support import models
from support.docker_registry import (
    PASSWORD,
    USER,
    DockerRegistry,
    TokenRealm,
    certificate,
    need,
    with_password,
)
from support.engine import DEADLINE_S, ROOT

ROWS = [{"x": [1.0, 2.0, 3.0, 4.0]}]
ANSWER = [40.0, 50.0]


class Sagitta:
    """Runs the command; yields its output and fails with what it said."""

    def __init__(self, folder):
        self.folder = folder
        self.model = folder / "Linear Model.onnx"
        self.model.write_bytes(models.linear())
        self.environ = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "PYTHONPATH": str(ROOT)}
        self.environ |= {"HTTP_PORT": "0", "METRICS_PORT": "0", "FLIGHT_PORT": ""}

    def __call__(self, *arguments, code=0, **variables):
        done = subprocess.run(
            [sys.executable, "-m", "engine", *map(str, arguments)],
            env=self.environ | variables,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert PASSWORD not in done.stdout + done.stderr
        return done.stdout if code == 0 else done.stderr

    def persisting(self, name="persist"):
        """Variables that keep what is pulled."""
        (self.folder / name).mkdir(exist_ok=True)
        return {"PERSIST_DIR": str(self.folder / name)}


@pytest.fixture
def sagitta(tmp_path):
    """The command, and a model to publish."""
    return Sagitta(tmp_path)


@pytest.fixture
def registry(tmp_path):
    """A registry that asks for a password."""
    folder = tmp_path / "registry"
    folder.mkdir()
    running = with_password(folder)
    yield running
    running.stop()


@pytest.fixture
def private_registry(tmp_path):
    """A registry behind TLS of a private CA, with tokens from a realm behind the same CA."""
    folder = tmp_path / "registry"
    folder.mkdir()
    _, _, key_file, ca_file = certificate(folder, "server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca_file, key_file)
    token_key, token_certificate, _, token_file = certificate(folder, "tokens")
    with TokenRealm(token_key, token_certificate, context) as realm:
        auth = {
            "token": {
                "realm": realm.url("/token"),
                "service": "edge-registry",
                "issuer": "edge-issuer",
                "rootcertbundle": str(token_file),
            }
        }
        tls = {"certificate": str(ca_file), "key": str(key_file)}
        running = DockerRegistry(folder, auth, tls)
        running.ca_file = ca_file
        yield running
        running.stop()


LOGIN = {"OCI_USERNAME": USER, "OCI_PASSWORD": PASSWORD}


def published_url(output):
    (line,) = [line for line in output.splitlines() if line.startswith("PIPELINE_URL=")]
    return line.removeprefix("PIPELINE_URL=")


@pytest.fixture
def keys(tmp_path):
    """A key pair, made by OpenSSL."""
    pytest.importorskip("cryptography")
    need("openssl")
    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    for command in (
        ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", private],
        ["pkey", "-in", private, "-pubout", "-out", public],
    ):
        subprocess.run(["openssl", *command], check=True, capture_output=True, timeout=DEADLINE_S)
    return private, public


def test_from_a_file_to_an_answer(sagitta, registry, engine_process):
    output = sagitta("publish", sagitta.model, "--to", f"{registry.address}/team/p", **LOGIN)
    url = published_url(output)
    assert "input   x: float [rows, 4]" in output
    assert "opset   ai.onnx 17" in output
    assert f"-e PIPELINE_URL={url} " in output

    shown = json.loads(sagitta("inspect", url, "--json", **LOGIN))
    (model,) = shown["definition"]["models"]
    assert shown["definition"]["id"] == "linear-model"
    assert model["sha"] == hashlib.sha256(models.linear()).hexdigest()
    assert url.endswith(f":{shown['definition']['version']}")

    variables = {"PIPELINE_URL": url, **sagitta.persisting(), **LOGIN}
    first = engine_process(**variables).ready()
    assert first.post("/infer", ROWS).json[0]["outputs"][0]["Float"]["data"] == ANSWER
    lines = first.output.splitlines()
    start = lines.index("Login Succeeded")
    assert lines[start : start + 10] == [
        "Login Succeeded",
        f"Fetching manifest and config for pipeline: {url}",
        "Fetching model layers",
        f"digest: sha256:{model['sha']}",
        f"  filename: {model['sha']}",
        f"  name: {model['name']}",
        "  type: model",
        "  runtime: onnx",
        f"  version: {model['version']}",
        "  Fetched",
    ]
    assert PASSWORD not in first.output
    first.stop()

    registry.stop()
    again = engine_process(**variables).ready()
    assert again.post("/infer", ROWS).json[0]["outputs"][0]["Float"]["data"] == ANSWER
    assert "is not in reach (Connection refused)" in again.output
    registry.start()


def test_a_start_without_artifact_ends_with_3(sagitta, registry):
    url = f"{registry.address}/team/absent:1"
    said = sagitta(
        "serve", code=3, PIPELINE_URL=url, PERSIST_DIR=str(sagitta.folder / "p"), **LOGIN
    )
    assert f"{url} is not in the registry" in said

    wrong = {**LOGIN, "OCI_PASSWORD": "another"}
    said = sagitta(
        "serve", code=3, PIPELINE_URL=url, PERSIST_DIR=str(sagitta.folder / "p"), **wrong
    )
    assert "refused the credentials of OCI_USERNAME" in said


def test_an_address_that_is_none_ends_with_2(sagitta):
    for url in ("ghcr.io/Bad:1", "ghcr.io/p", f"ghcr.io/p@sha256:{'A' * 64}"):
        assert "PIPELINE_URL" in sagitta("serve", code=2, PIPELINE_URL=url)


def test_tls_with_a_private_ca_and_tokens(sagitta, private_registry):
    private = {**LOGIN, "OCI_CA_FILE": str(private_registry.ca_file)}
    output = sagitta(
        "publish",
        sagitta.model,
        "--to",
        f"{private_registry.address}/team/p",
        "--tag",
        "1",
        **private,
    )
    url = published_url(output)
    said = sagitta("pull", url, **sagitta.persisting(), **private)
    assert hashlib.sha256(models.linear()).hexdigest() in said

    said = sagitta("pull", url, code=3, **sagitta.persisting("other"), **LOGIN)
    assert "CERTIFICATE_VERIFY_FAILED" in said
    assert "OCI_CA_FILE" in said
    said = sagitta(
        "pull",
        url,
        code=3,
        PERSIST_DIR=str(sagitta.folder / "p"),
        OCI_CA_FILE=private["OCI_CA_FILE"],
    )
    assert "OCI_USERNAME" in said


def test_credentials_of_docker_and_podman_are_used(sagitta, registry):
    need("skopeo")
    subprocess.run(
        [
            *("skopeo", "login", "--tls-verify=false", "--authfile", sagitta.folder / "auth.json"),
            *("-u", USER, "-p", PASSWORD, registry.address),
        ],
        check=True,
        capture_output=True,
        timeout=DEADLINE_S,
    )
    known = {"REGISTRY_AUTH_FILE": str(sagitta.folder / "auth.json")}
    target = f"{registry.address}/team/p:1"

    assert published_url(sagitta("publish", sagitta.model, "--to", target, **known)) == target
    assert "OCI_USERNAME" in sagitta("inspect", target, code=3)


def skopeo(*arguments):
    done = subprocess.run(
        ["skopeo", *arguments], capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_other_tools_read_what_we_publish_and_we_what_they_copy(sagitta, registry, engine_process):
    need("skopeo")
    layout = f"oci-layout:{sagitta.folder / 'layout'}:v1"
    sagitta("publish", sagitta.model, "--to", layout)
    skopeo(
        *("copy", "--dest-tls-verify=false", "--dest-creds", f"{USER}:{PASSWORD}"),
        f"oci:{sagitta.folder / 'layout'}:v1",
        f"docker://{registry.address}/team/copied:v1",
    )
    url = f"{registry.address}/team/copied:v1"
    found = json.loads(sagitta("inspect", url, "--json", **LOGIN))
    raw = skopeo(
        *("inspect", "--raw", "--tls-verify=false", "--creds", f"{USER}:{PASSWORD}"),
        f"docker://{url}",
    )
    assert f"sha256:{hashlib.sha256(raw.encode()).hexdigest()}" == found["digest"]

    variables = {"PIPELINE_URL": url, **sagitta.persisting(), **LOGIN}
    served = engine_process(**variables).ready()
    assert served.post("/infer", ROWS).json[0]["outputs"][0]["Float"]["data"] == ANSWER
    skopeo(
        "copy", f"oci:{sagitta.folder / 'persist' / 'oci'}:{url}", f"dir:{sagitta.folder / 'out'}"
    )


def test_a_publish_is_carried_to_where_no_network_is(sagitta, registry, keys, engine_process):
    private, public = keys
    url = f"{registry.address}/team/p:1"
    sagitta("publish", sagitta.model, "--to", url, "--sign-key", private, **LOGIN)
    output = sagitta("pull", url, "--to", f"oci-layout:{sagitta.folder / 'usb'}", **LOGIN)

    carried = published_url(output)
    assert carried == f"oci-layout:{sagitta.folder / 'usb'}:1"
    engine = engine_process(PIPELINE_URL=carried, VERIFY_KEY_FILE=str(public)).ready()
    assert engine.post("/infer", ROWS).json[0]["outputs"][0]["Float"]["data"] == ANSWER


def test_only_what_was_signed_is_served(sagitta, registry, keys, engine_process):
    private, public = keys
    signed, unsigned = f"{registry.address}/team/p:signed", f"{registry.address}/team/p:unsigned"
    sagitta("publish", sagitta.model, "--to", signed, "--sign-key", private, **LOGIN)
    sagitta("publish", sagitta.model, "--to", unsigned, **LOGIN)
    variables = {"VERIFY_KEY_FILE": str(public), **sagitta.persisting(), **LOGIN}

    said = sagitta("serve", code=3, PIPELINE_URL=unsigned, **variables)
    assert "is not signed" in said
    engine_process(PIPELINE_URL=signed, **variables).ready().stop()
    registry.stop()
    engine_process(PIPELINE_URL=signed, **variables).ready()  # checked without the registry
    registry.start()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "sent", "recorded"),
    [
        ("rf_model", "biginputs.df.json", "edge_infer_biginputs_9rows_a.json"),
        ("xgboost_ccfraud", "cc_data_1k.arrow", "ops_infer_ccfraud_xgb_1001_2025.json"),
    ],
)
def test_golden_answers_come_through_a_registry(
    sagitta, registry, engine_process, golden, model, sent, recorded
):
    request = golden / "inputs" / sent
    url = f"{registry.address}/golden/{model}:1"
    path = golden / "models" / f"{model}.onnx"
    sagitta("publish", path, "--input-schema", request, "--to", url, **LOGIN)
    engine = engine_process(PIPELINE_URL=url, **LOGIN, **sagitta.persisting()).ready()

    kind = "application/vnd.apache.arrow.file" if sent.endswith(".arrow") else "application/json"
    answer = engine.post("/infer?dataset[]=out", request.read_bytes(), kind).json
    wanted = [row["out"] for row in json.loads((golden / "recorded" / recorded).read_bytes())]

    assert [list(row) for row in answer] == [list(row) for row in wanted]
    for row, expected in zip(answer, wanted, strict=True):
        assert np.float32(row["variable"]) == np.float32(expected["variable"])
