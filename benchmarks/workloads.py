"""The workloads: what each of them sends to which model, at what load.

Golden models and inputs are used where ``SAGITTA_GOLDEN`` (default ``../shared/golden``) holds
them, generated ones of the same shapes otherwise; the report says which.
"""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks import models

GOLDEN = Path(os.environ.get("SAGITTA_GOLDEN", "../shared/golden"))
ARROW = "application/vnd.apache.arrow.file"
RECORDS = "application/json; format=pandas-records"
COLUMN = "tensor"  # every request's only column, whatever the model calls its input


@dataclasses.dataclass(frozen=True)
class Workload:
    """One request, repeated by so many connections.

    ``limit`` is how much of the bare loop's CPU the engine may use; ``artifact`` is the directory
    that the engine serves, ``model`` the same model's file for the bare loop and the bare run.
    """

    name: str
    text: str
    artifact: Path
    model: Path
    tensor: np.ndarray
    body: bytes
    content_type: str
    connections: int
    limit: float = 1.10

    @property
    def rows(self):
        return len(self.tensor)


def make_workloads(folder):
    """All workloads by name; models and artifacts are written under ``folder``."""
    fraud = publish(folder, "ccfraud", models.save_dense)
    trees = publish(folder, "rf_model", models.save_trees)
    image = publish(folder, "convolution", models.save_convolution)
    one, thousand, ten_thousand = (fraud_rows(rows) for rows in (1, 1_000, 10_000))
    houses = house_rows()
    pixels = np.random.default_rng(4).random((1, 3, 224, 224), np.float32)
    small = (*fraud, one, compact_records(one), RECORDS)
    made = (
        Workload("W1 c1", "1 row, JSON", *small, 1, limit=0.70),
        Workload("W1 c16", "1 row, JSON", *small, 16, limit=0.70),
        Workload("W2j", "1,000 rows, JSON", *fraud, thousand, records(thousand), RECORDS, 4),
        Workload("W2b", "1,000 rows, Arrow", *fraud, thousand, arrow_file(thousand), ARROW, 4),
        Workload("W2t", "1,000 rows, trees", *trees, houses, arrow_file(houses), ARROW, 4),
        Workload("W3", "10,000 rows", *fraud, ten_thousand, arrow_file(ten_thousand), ARROW, 2),
        Workload("W4", "one image", *image, pixels, arrow_file(pixels), ARROW, 4),
    )
    return {workload.name: workload for workload in made}


def uses_golden():
    return (GOLDEN / "models").is_dir()


def fraud_rows(rows):
    """float32 ``[rows, 29]``: card transactions, repeated as often as it takes."""
    path = GOLDEN / "inputs" / "cc_data_1k.arrow"
    return _repeat(_read(path) if path.is_file() else _random(1_000, 29), rows)


def house_rows(rows=1_000):
    """float32 ``[rows, 18]``."""
    path = GOLDEN / "inputs" / "normal-inputs.df.json"
    if path.is_file():
        values = [row["tensor"] for row in json.loads(path.read_bytes())]
        return _repeat(np.array(values, np.float32), rows)
    return _repeat(_random(1_000, 18), rows)


def compact_records(tensor):
    """Pandas records of float32 values in full, as ``json.dumps`` writes them."""
    return json.dumps([{COLUMN: row.tolist()} for row in tensor]).encode()


def records(tensor):
    """Pandas records as the product's own clients write them: indented, some 800 bytes a row."""
    rows = [{COLUMN: [round(value, 10) for value in row.tolist()]} for row in tensor]
    return json.dumps(rows, indent=4).encode()


def arrow_file(tensor):
    """An uncompressed Arrow file with one batch and one fixed-size list column."""
    width = int(np.prod(tensor.shape[1:]))
    column = pa.FixedSizeListArray.from_arrays(pa.array(tensor.ravel()), width)
    field = pa.field(
        COLUMN, column.type, metadata={"tensor_type": json.dumps({"shape": tensor.shape[1:]})}
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, pa.schema([field])) as writer:
        writer.write_batch(pa.record_batch([column], schema=pa.schema([field])))
    return sink.getvalue().to_pybytes()


def publish(folder, name, save):
    """A plain directory that the engine can serve; returns it and the model's file in it."""
    artifact = folder / name
    artifact.mkdir()
    model = artifact / f"{name}.onnx"
    golden = GOLDEN / "models" / model.name
    if golden.is_file():
        shutil.copy(golden, model)
    else:
        save(model)
    named = {"name": name}
    definition = {
        "id": name.replace("_", "-"),
        "steps": [{"ModelInference": {"models": [named]}}],
        "models": [{**named, "runtime": "onnx", "tensor_fields": [COLUMN]}],
    }
    (artifact / "pipeline.json").write_text(json.dumps(definition))
    return artifact, model


def _read(path):
    with pa.ipc.open_file(path) as reader:
        column = reader.read_all().column(0).combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)


def _random(rows, width):
    return np.random.default_rng(0).normal(0, 1, (rows, width)).astype(np.float32)


def _repeat(values, rows):
    return np.resize(values, (rows, values.shape[1]))
