"""The Flight examples, each run as its head says, against an engine that serves house-price."""

import ast
import shutil
import subprocess
import sys

import numpy as np
import onnxruntime as ort
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.engine import DEADLINE_S, ROOT, Engine

EXAMPLES = ROOT / "examples" / "flight"
HOUSE_PRICE = ROOT / "examples" / "house-price"
HOUSES = HOUSE_PRICE / "houses.arrow"
WIDTH = 8
RUN = 10_000  # rows of a batch of score_parquet.py


@pytest.fixture(scope="module")
def engine():
    pipeline = f"oci-layout:{HOUSE_PRICE / 'pipeline'}:v1"
    engine = Engine({"PIPELINE_URL": pipeline, "FLIGHT_PORT": "0"}).ready()
    yield engine
    engine.stop()


def prices(houses):
    """What the published model alone says, float32 as numbers."""
    blobs = (HOUSE_PRICE / "pipeline" / "blobs" / "sha256").iterdir()
    (model,) = (blob for blob in blobs if not blob.read_bytes().startswith(b"{"))
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {session.get_inputs()[0].name: houses.astype(np.float32)})
    return answer.ravel().tolist()


def example_houses():
    with pa.ipc.open_file(HOUSES) as file:
        return file.read_all()["tensor"].combine_chunks().flatten().to_numpy().reshape(-1, WIDTH)


def run(*command, **options):
    done = subprocess.run(
        [str(part) for part in command],
        check=False,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        **options,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def location(engine):
    return f"grpc://127.0.0.1:{engine.flight_port}"


def test_one_batch(engine):
    printed = run(sys.executable, EXAMPLES / "one_batch.py", HOUSES, location(engine))

    rows = [ast.literal_eval(line) for line in printed.splitlines()]
    assert [row["out.price"] for row in rows] == [[price] for price in prices(example_houses())]


def test_many_rows_with_several_requests_in_flight(engine):
    printed = run(sys.executable, EXAMPLES / "many_rows.py", location(engine), 50_000)

    assert printed.startswith("60,000 rows in ")  # whole batches of 10,000 on both streams


def test_a_directory_of_parquet_files(engine, tmp_path):
    rng = np.random.default_rng(8)
    sent = {}
    (tmp_path / "in").mkdir()
    for name, rows in (("a.parquet", 3), ("b.parquet", 12_345)):
        sent[name] = rng.uniform(0, 10, size=(rows, WIDTH))
        columns = {"id": pa.array(range(rows)), "tensor": pa.array(sent[name].tolist())}
        pq.write_table(pa.table(columns), tmp_path / "in" / name)

    script = EXAMPLES / "score_parquet.py"
    printed = run(sys.executable, script, tmp_path / "in", tmp_path / "out", location(engine))

    assert printed == "a.parquet: 3 rows\nb.parquet: 12345 rows\n"
    for name, houses in sent.items():
        scored = pq.read_table(tmp_path / "out" / name)
        assert scored.column_names == ["id", "tensor", "out.price"]
        assert scored["id"].to_pylist() == list(range(len(houses)))
        given = scored["out.price"].combine_chunks().flatten().to_pylist()
        runs = [prices(houses[first : first + RUN]) for first in range(0, len(houses), RUN)]
        assert given == [price for run in runs for price in run]


def test_one_batch_from_javascript(engine, tmp_path):
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    for name in ("package.json", "one_batch.mjs"):
        shutil.copy(EXAMPLES / name, tmp_path)
    install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"]
    done = subprocess.run(
        install, cwd=tmp_path, check=False, capture_output=True, text=True, timeout=DEADLINE_S
    )
    if done.returncode:
        pytest.skip(f"npm cannot fetch the packages: {done.stderr[-200:]}")

    address = f"127.0.0.1:{engine.flight_port}"
    printed = run("node", "one_batch.mjs", HOUSES, address, cwd=tmp_path)

    rows = [orjson.loads(line) for line in printed.splitlines()]
    assert [row["out.price"] for row in rows] == [[price] for price in prices(example_houses())]
