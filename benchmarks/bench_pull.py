"""A 1 GiB model from a registry on this machine: our pull beside curl's, and the memory it takes.

Needs ``docker-registry`` and ``curl``, and 4 GiB of disk.
"""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.publish.artifact import ArtifactLayer
from engine.publish.credentials import RegistryAccess
from engine.publish.push import pack
from engine.publish.reference import parse_reference
from engine.publish.registry import RegistryClient
from engine.publish.upload import push_artifact

ROOT = Path(__file__).parents[1]
MODEL_BYTES = 1 << 30
ROUNDS = 3

# Pulls in a process of its own; prints the seconds of the pull alone and the peak of its memory.
PULL = """
import resource, sys, time
from pathlib import Path
from engine.pipeline.definition import parse_definition
from engine.publish.credentials import RegistryAccess
from engine.publish.pull import PullOptions, open_artifact
from engine.publish.reference import parse_reference
import engine.publish.remote
options = PullOptions(access=RegistryAccess(), cache_directory=Path(sys.argv[2]))
started_s = time.perf_counter()
open_artifact(
    parse_reference(sys.argv[1]),
    options=options,
    read_models=lambda document: parse_definition(document).models,
    report=lambda line: None,
)
elapsed_s = time.perf_counter() - started_s
print(elapsed_s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """An open registry; its address."""
    if shutil.which("docker-registry") is None:
        pytest.skip("docker-registry is not installed")
    folder = tmp_path_factory.mktemp("registry")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": address},
    }
    (folder / "registry.json").write_text(json.dumps(config))
    process = subprocess.Popen(["docker-registry", "serve", folder / "registry.json"])
    time.sleep(1)
    yield address
    process.terminate()
    process.wait(timeout=60)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def published(registry, tmp_path_factory):
    """A publish with one model of 1 GiB: its URL, and the URL of the model's blob."""
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    with path.open("wb") as file:
        for _ in range(MODEL_BYTES >> 20):
            file.write(os.urandom(1 << 20))
    with path.open("rb") as file:
        sha = hashlib.file_digest(file, "sha256").hexdigest()
    layer = ArtifactLayer(f"sha256:{sha}", MODEL_BYTES, sha, "m", "model", "onnx", "1", path)
    steps = [{"ModelInference": {"models": [{"name": "m", "version": "1", "sha": sha}]}}]
    packed = pack(json.dumps({"id": "big", "steps": steps}).encode(), [layer], {})
    reference = parse_reference(f"{registry}/team/big:1")
    client = RegistryClient(reference, RegistryAccess())
    push_artifact(client, packed, "1", lambda *_: None)
    path.unlink()
    return str(reference), f"http://{registry}/v2/team/big/blobs/sha256:{sha}"


def curl(url, folder):
    """Seconds that curl needs, until the file is on the disk as ours is."""
    started_s = time.perf_counter()
    subprocess.run(["curl", "-s", "-o", folder / "curl", url], check=True, timeout=600)
    subprocess.run(["sync", folder / "curl"], check=True, timeout=600)
    elapsed_s = time.perf_counter() - started_s
    assert (folder / "curl").stat().st_size == MODEL_BYTES
    (folder / "curl").unlink()
    return elapsed_s


def pull(url, folder):
    """Seconds that we need, and the peak of memory in bytes."""
    done = subprocess.run(
        [sys.executable, "-c", PULL, url, folder / "oci"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    shutil.rmtree(folder / "oci")
    elapsed_s, resident_bytes = map(float, done.stdout.split())
    return elapsed_s, resident_bytes


@pytest.mark.benchmark(group="pull")
def test_one_gibibyte(benchmark, published, tmp_path):
    url, blob_url = published
    curl_s, ours_s, resident_bytes = [], [], []

    def both():
        curl_s.append(curl(blob_url, tmp_path))
        elapsed_s, peak_bytes = pull(url, tmp_path)
        ours_s.append(elapsed_s)
        resident_bytes.append(peak_bytes)

    benchmark.pedantic(both, rounds=ROUNDS, iterations=1)
    benchmark.extra_info.update(
        curl_mib_per_s=1024 / min(curl_s),
        ours_mib_per_s=1024 / min(ours_s),
        share_of_curl=min(curl_s) / min(ours_s),
        resident_mib=max(resident_bytes) / 2**20,
    )
