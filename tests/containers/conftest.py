"""Fixtures of the container tests: the built image, a real registry, both runtimes.

``.ci/containers`` builds the image and names it in SAGITTA_IMAGE; without it these tests skip.
"""

import json
import os

import numpy as np
import pytest
from support.containers import EXAMPLE, Docker, Podman, Registry, closing, missing
from support.docker_registry import PASSWORD, USER


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
    archive = folder / "image.tar"
    podman("save", "--format", "docker-archive", "-q", "-o", str(archive), image, timeout=300)
    with closing(Docker(folder, image, archive)) as runtime:
        archive.unlink()
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
