"""Answers of an engine, made by hand: what the log keeps."""

import numpy as np
import pyarrow as pa

from engine.values import Frame, InferResult, ModelIdentity, Output, PipelineIdentity

MODEL = ModelIdentity("house-price", "1d2b6d3a-0000-4000-8000-000000000001", "e2" * 32)
PIPELINE = PipelineIdentity("house-price-pipeline", "93b30c7d-d8fb-43ea-82e4-db31179fce1a")
TIME_MS = 1_752_681_130_155


def answer(columns, rows, *, outputs=None, row_shapes=None, has_literals=True, **fields):
    """An answer with these request columns; ``outputs`` defaults to a float32 [rows, 1]."""
    values = np.arange(rows, dtype=np.float32).reshape(rows, 1)
    defaults = {
        "time_ms": TIME_MS,
        "elapsed_ns": (305_045, 818_254),
        "model": MODEL,
        "pipeline": PIPELINE,
        "partition": "edge-1",
    }
    return InferResult(
        frame=Frame(rows, columns, row_shapes=row_shapes or {}, has_literals=has_literals),
        outputs=(Output("variable", values, per_row=True),) if outputs is None else outputs,
        **{**defaults, **fields},
    )


def numbered(first, rows, *, width=4, **fields):
    """An Arrow answer whose rows are told apart by their first value, ``first`` and up."""
    values = np.zeros((rows, width), np.float64)
    values[:, 0] = np.arange(first, first + rows)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), width)
    return answer({"tensor": column}, rows, row_shapes={"tensor": (width,)}, **fields)


def numbers(batch):
    """The numbers that ``numbered`` gave the rows of a batch."""
    rows = batch.column("in").field("tensor")
    values = rows.flatten().to_numpy()
    return values[:: len(values) // len(rows)].astype(int).tolist()
