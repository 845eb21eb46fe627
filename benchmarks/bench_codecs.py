"""Codec by codec, without a server: rows/s and MB/s of the request or reply text."""

import numpy as np
import pytest

from benchmarks.workloads import COLUMN, arrow_file, fraud_rows, records
from engine.codecs.arrow_ipc import read_arrow, write_arrow_file
from engine.codecs.ipc_guard import IpcLimits, check_stream, stream_part
from engine.codecs.json_body import read_json
from engine.codecs.legacy import write_legacy
from engine.codecs.pandas_records import write_records
from engine.codecs.record_batch import record_batch
from engine.codecs.tensors import to_tensor
from engine.values import (
    ELEMENT_TYPES,
    InferResult,
    ModelIdentity,
    Output,
    PipelineIdentity,
    TensorSpec,
)

WIDTH = 29
SPEC = TensorSpec(COLUMN, ELEMENT_TYPES["float"], (None, WIDTH))
ROWS = pytest.mark.parametrize("rows", [1, 1_000, 10_000])


def read_arrow_tensor(body):
    return to_tensor(read_arrow(body), SPEC)


def read_json_tensor(body):
    """For a legacy reply, which does not repeat the values."""
    return to_tensor(read_json(body, [SPEC], is_echoed=False), SPEC)


def read_echoed_json_tensor(body):
    """For a records reply, which does."""
    return to_tensor(read_json(body, [SPEC]), SPEC)


def guard(body):
    check_stream(stream_part(memoryview(body)), IpcLimits())


def write_arrow(result):
    batch = record_batch(result)
    return write_arrow_file(batch.schema, [batch])


@ROWS
@pytest.mark.parametrize(
    ("read", "body_of"),
    [
        (read_arrow_tensor, arrow_file),
        (read_json_tensor, records),
        (read_echoed_json_tensor, records),
    ],
)
def test_read(benchmark, rows, read, body_of):
    tensor = fraud_rows(rows)
    body = body_of(tensor)
    np.testing.assert_array_equal(read(body), tensor)

    _time(benchmark, read, body, rows, len(body))


@ROWS
def test_guard(benchmark, rows):
    body = arrow_file(fraud_rows(rows))

    _time(benchmark, guard, body, rows, len(body))


@ROWS
@pytest.mark.parametrize("write", [write_legacy, write_records, write_arrow])
def test_write(benchmark, rows, write):
    result = _result(rows)
    text = write(result)
    assert len(text) > rows

    _time(benchmark, write, result, rows, len(text))


def _time(benchmark, function, argument, rows, size_bytes):
    benchmark.group = f"codec, {rows:,} rows"
    benchmark(function, argument)
    benchmark.extra_info.update(codec=function.__name__, rows=rows, bytes=size_bytes)
    if benchmark.stats is not None:  # not with --benchmark-disable
        median_s = benchmark.stats.stats.median
        benchmark.extra_info["rows_per_s"] = rows / median_s
        benchmark.extra_info["mb_per_s"] = size_bytes / median_s / 1e6


def _result(rows):
    frame = read_arrow(arrow_file(fraud_rows(rows)))
    scores = np.random.default_rng(0).random((rows, 1), np.float32)
    return InferResult(
        frame=frame,
        outputs=(Output("dense_1", scores, per_row=True),),
        time_ms=1_700_000_000_000,
        elapsed_ns=(12_345, 67_890),
        model=ModelIdentity("ccfraud", "bd6cc1a2-f9ac-4b3d-b4f0-8e6f7f5b8f4b", "0" * 64),
        pipeline=PipelineIdentity("ccfraud", "9e1a9d1c-4a7b-4ef6-a1c4-b6f3c5d3c9a1"),
        partition="edge-1",
    )
