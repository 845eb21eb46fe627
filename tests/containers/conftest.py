"""Fixtures of the container tests: the built image, a real registry, both runtimes.

``.ci/containers`` builds the image and names it in SAGITTA_IMAGE; without it these tests skip.
"""

import json
import os

import numpy as np
import pytest
from support.containers import EXAMPLE, Docker, Podman, Registry, closing, curl, missing
from support.docker_registry import PASSWORD, USER

ARROW_HEADER = "Content-Type: application/vnd.apache.arrow.file"
JSON_HEADER = "Content-Type: application/json; format=pandas-records"


@pytest.fixture(scope="session")
def image():
    name = os.environ.get("SAGITTA_IMAGE")
    if not name:
        pytest.skip("no image: .ci/containers builds one and names it in SAGITTA_IMAGE")
    return name


@pytest.fixture(scope="session")
def podman(image):
    if reason := missing("podman", "curl"):
        pytest.skip(reason)
    with closing(Podman(["podman"], image, {})) as runtime:
        yield runtime


@pytest.fixture(scope="session")
def docker(podman, image, tmp_path_factory):
    if reason := missing("docker", "dockerd", "iptables"):
        pytest.skip(reason)
    if os.geteuid() != 0:
        pytest.skip("dockerd needs root")
    folder = tmp_path_factory.mktemp("docker")
    with closing(Docker(folder, image)) as runtime:
        if reason := runtime.cannot_start():
            pytest.skip(f"dockerd does not run on this machine: {reason}")
        archive = folder / "image.tar"
        podman("save", "--format", "docker-archive", "-q", "-o", str(archive), image, timeout=300)
        runtime("load", "-q", "-i", str(archive), timeout=300)
        archive.unlink()
        if reason := runtime.cannot_run("-p", "127.0.0.1::8080"):
            pytest.skip(f"docker runs no container on this machine: {reason}")
        yield runtime


@pytest.fixture(scope="session", params=["podman", "docker"])
def runtime(request):
    """Every test that takes this runs on both runtimes."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def expected():
    """The example's answer to its own request, by ONNX Runtime alone."""
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    blobs = EXAMPLE / "pipeline" / "blobs" / "sha256"
    model = max(blobs.iterdir(), key=lambda path: b"Gemm" in path.read_bytes())
    rows = [row["tensor"] for row in json.loads((EXAMPLE / "houses.df.json").read_text())]
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"features": np.array(rows, np.float32)})[0].ravel().tolist()


@pytest.fixture(scope="session")
def check_documented_requests(expected):
    """The documented curl lines answer what the model alone gives, bit for bit."""

    def check(url):
        pipelines = json.loads(curl(f"{url}/pipelines"))["pipelines"]
        assert [(p["id"], p["status"]) for p in pipelines] == [("house-price", "Running")]
        models = json.loads(curl(f"{url}/models"))["models"]
        assert [(m["name"], m["status"]) for m in models] == [("house-price", "Running")]
        for path, header, data in (
            ("/infer", ARROW_HEADER, f"@{EXAMPLE}/houses.arrow"),
            ("/infer", JSON_HEADER, f"@{EXAMPLE}/houses.df.json"),
            ("/pipelines/house-price", JSON_HEADER, f"@{EXAMPLE}/houses.df.json"),
        ):
            answer = curl(
                *("-X", "POST", f"{url}{path}", "-H", header),
                *("-H", "Accept: application/json; format=pandas-records", "--data-binary", data),
            )
            outputs = [{"Float": {"data": expected, "dim": [10, 1], "v": 1}}]
            assert json.loads(answer)[0]["outputs"] == outputs

    return check


@pytest.fixture(scope="session")
def registry(tmp_path_factory):
    """A password-protected registry on loopback that holds the example."""
    server = Registry(tmp_path_factory.mktemp("registry"))
    try:
        server.publish_example()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def published(runtime, registry):
    """The variables of the documented line, for this runtime."""
    address = runtime.registry_address(registry)
    values = {
        "OCI_USERNAME": USER,
        "OCI_PASSWORD": PASSWORD,
        "OCI_PLAIN_HTTP": "true",  # a registry without TLS that is not on the engine's own loopback
        "PIPELINE_URL": f"{address}/pipelines/house-price:v1",
    }
    return [flag for name, value in values.items() for flag in ("-e", f"{name}={value}")]


@pytest.fixture
def volume(tmp_path):
    """A host folder of root's, as ``-v ./data:/persist`` makes one."""
    folder = tmp_path / "data"
    folder.mkdir(mode=0o755)
    return folder


@pytest.fixture
def from_layout():
    """The example without any registry: a mounted OCI layout."""
    return ["-v", f"{EXAMPLE}/pipeline:/pipeline:ro", "-e", "PIPELINE_URL=oci-layout:/pipeline:v1"]
