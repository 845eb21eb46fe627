"""``kill -9`` at any moment of a pull: the cache is whole afterwards, or mends itself."""

import contextlib
import json
import os
import random
import select
import signal
import subprocess
import sys

import pytest
from support.artifacts import definition, open_quietly, sha256
from support.engine import DEADLINE_S, ROOT
from support.registry import Registry

from engine.publish.reference import parse_reference

pytestmark = [pytest.mark.fault, pytest.mark.slow]

KILLS = 100
MODEL_BYTES = 4 << 20

# A process without threads that has imported everything; each line on its standard input is one
# pull, done in a child that the test kills. It answers with the child's process id, then its end.
PULLER = """
import os, sys
from pathlib import Path
from support.artifacts import open_quietly
from engine.publish.reference import parse_reference
import engine.publish.remote
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        open_quietly(parse_reference(line.strip()), Path(sys.argv[1]))
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture
def pulls(tmp_path):
    """Starts a pull in a process of its own; ``kill`` ends it, if need be, with its exit code."""
    puller = subprocess.Popen(
        [sys.executable, "-c", PULLER, str(tmp_path / "oci")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
    )

    def start(url):
        puller.stdin.write(f"{url}\n")
        puller.stdin.flush()
        return int(puller.stdout.readline())

    def kill(child, *, after_s):
        ended, _, _ = select.select([puller.stdout], [], [], after_s)
        if not ended:
            with contextlib.suppress(ProcessLookupError):  # it ended just now
                os.kill(child, signal.SIGKILL)
        return int(puller.stdout.readline())

    start.kill = kill
    yield start
    puller.stdin.close()
    puller.wait(timeout=DEADLINE_S)
    puller.stdout.close()


def check(cache):
    """What is under a digest is that; what the index names is all there. Returns names held."""
    blobs = cache / "blobs" / "sha256"
    for path in blobs.glob("*") if blobs.exists() else ():
        assert sha256(path.read_bytes()) == path.name
    if not (cache / "index.json").exists():
        return 0
    entries = json.loads((cache / "index.json").read_bytes())["manifests"]
    for entry in entries:
        manifest = json.loads((blobs / entry["digest"][7:]).read_bytes())
        for blob in (manifest["config"], *manifest["layers"]):
            assert (blobs / blob["digest"][7:]).stat().st_size == blob["size"]
    return len(entries)


def test_kills_in_the_middle_of_pulls(pulls, tmp_path):
    seeded = random.Random(7)
    cache = tmp_path / "oci"
    outcomes = []
    with Registry() as registry:
        for number in range(KILLS):
            if number % 5 == 0:  # the tag moves on, with a layer that stays and one that is new
                models = {"old": b"shared" * 100_000, "new": seeded.randbytes(MODEL_BYTES)}
                registry.publish(definition(models), models, "1")
            child = pulls(f"{registry.address}/team/p:1")
            outcomes.append(pulls.kill(child, after_s=seeded.uniform(0, 0.12)))
            check(cache)
        artifact = open_quietly(parse_reference(f"{registry.address}/team/p:1"), cache)

    assert [layer.path.read_bytes() for layer in artifact.layers] == list(models.values())
    assert check(cache) == 1
    assert outcomes.count(-signal.SIGKILL) > KILLS / 4  # the kills did hit pulls
    assert set(outcomes) <= {0, -signal.SIGKILL}
