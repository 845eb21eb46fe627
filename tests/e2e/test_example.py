"""The example: its committed files are what its script makes, and README's lines work on it."""

import importlib.util
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime as ort
import orjson
import pyarrow as pa
import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "house-price"
README = (ROOT / "README.md").read_text(encoding="utf-8")
CURL_LINES = re.findall(r"^curl .*localhost:8080.*$", README, re.MULTILINE)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_example", EXAMPLE / "make_example.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def engine(engine_process):
    return engine_process(PIPELINE_URL=f"oci-layout:{EXAMPLE / 'pipeline'}:v1").ready()


def committed_model():
    sessions = []
    for blob in (EXAMPLE / "pipeline" / "blobs" / "sha256").iterdir():
        if not blob.read_bytes().startswith(b"{"):
            sessions.append(ort.InferenceSession(blob, providers=["CPUExecutionProvider"]))
    (session,) = sessions
    return session


def test_the_script_makes_the_committed_requests(script, tmp_path):
    rng = np.random.default_rng(script.SEED)
    script.write_requests(tmp_path, script.make_houses(rng, script.REQUEST_ROWS)[0])

    for name in ("houses.arrow", "houses.df.json"):
        assert (tmp_path / name).read_bytes() == (EXAMPLE / name).read_bytes()


def test_the_script_makes_the_committed_model(script):
    rng = np.random.default_rng(script.SEED + 1)
    houses, prices = script.make_houses(rng, script.TRAINING_ROWS)
    model = script.build_model(script.fit(houses, prices, rng)).SerializeToString()
    made = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    rows = houses[:100].astype(np.float32)

    (expected,) = made.run(None, {"features": rows})
    (committed,) = committed_model().run(None, {"features": rows})
    np.testing.assert_allclose(committed, expected, rtol=1e-3)  # other machines add up otherwise


def test_readme_has_both_documented_kinds_of_request():
    assert any("application/vnd.apache.arrow.file" in line for line in CURL_LINES)
    assert any("format=pandas-records" in line for line in CURL_LINES)


@pytest.mark.parametrize("line", CURL_LINES)
def test_readme_curl_line_answers(engine, line):
    command = shlex.split(line.replace("localhost:8080", engine.base_url.removeprefix("http://")))
    done = subprocess.run([*command, "-sS"], cwd=ROOT, capture_output=True, check=True)
    with pa.ipc.open_file(EXAMPLE / "houses.arrow") as reader:
        rows = reader.read_all()["tensor"].combine_chunks().flatten().to_numpy().reshape(-1, 8)
    (prices,) = committed_model().run(None, {"features": rows})

    answer = orjson.loads(done.stdout)
    if "outputs" in answer[0]:
        assert answer[0]["outputs"][0]["Float"]["data"] == prices.ravel().tolist()
    else:
        assert [np.float32(row["out"]["price"][0]) for row in answer] == prices.ravel().tolist()
