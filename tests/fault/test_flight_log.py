"""Readers of the log over Flight that are slow, go away, or are there when the engine stops."""

import contextlib

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.flight as fl
import pytest
from support import models
from support.flight import connect, exchange

WIDTH, ROWS = 256, 1_000
LOG = {"FLIGHT_PORT": "0", "LOCAL_INFERENCE_STORAGE": "100m", "PLATEAU_PAGE_SIZE": "100"}
TICKET = fl.Ticket('{"log":{}}')


def rows_from(first):
    """Rows whose first value is their number."""
    values = np.zeros((ROWS, WIDTH), np.float32)
    values[:, 0] = np.arange(first, first + ROWS)
    return pa.record_batch(
        {"x": pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), WIDTH)}
    )


@pytest.fixture
def engine(engine_process, tmp_path):
    """An engine whose log holds 20,000 rows of 2 KiB."""
    content = models.identity(shape=("N", WIDTH))
    engine = engine_process(
        PIPELINE_URL=str(models.write_pipeline(tmp_path / "pipeline", content)),
        PERSIST_DIR=str(tmp_path),
        **LOG,
    ).ready()
    exchange(connect(engine), [rows_from(first) for first in range(0, 20 * ROWS, ROWS)])
    return engine


def numbers(batch):
    column = batch.column("in").field("x")
    return column.flatten().to_numpy()[::WIDTH].astype(int).tolist()


def test_readers_that_do_not_read_cost_little_and_stop_nothing(engine):
    """Four streams stand still while the ring goes round: nothing waits for them, nothing grows."""
    before = engine.anonymous_bytes()
    clients = [connect(engine) for _ in range(4)]
    readers = [client.do_get(TICKET) for client in clients]
    firsts = [reader.read_chunk() for reader in readers]
    engine.until_metric("sagitta_flight_calls", 4)

    exchange(connect(engine), [rows_from(first) for first in range(20_000, 80_000, ROWS)])

    metrics = engine.metrics()
    assert metrics["sagitta_log_rows_kept_total"] == 80_000
    assert metrics["sagitta_log_rows_evicted_total"] > 0
    assert sum(count for name, count in metrics.items() if "log_rows_not_kept" in name) == 0
    assert engine.anonymous_bytes() - before < 64 << 20  # of 160 MB that they were promised
    for first, reader in zip(firsts, readers, strict=True):
        seen, told = numbers(first.data), [first]
        for chunk in reader:
            seen += numbers(chunk.data)
            told.append(chunk)
        assert seen == sorted(set(seen))  # in order and none twice, though some have left
        assert len(told) > 4
        last = orjson.loads(told[-1].app_metadata.to_pybytes())
        assert (last["status"], next(iter(last["next"].values())) >= 20_000) == ("All", True)


def test_a_reader_that_cancels_frees_its_call(engine):
    reader = connect(engine).do_get(TICKET)
    reader.read_chunk()
    engine.until_metric("sagitta_flight_calls", 1)

    reader.cancel()

    engine.until_metric("sagitta_flight_calls", 0)
    assert connect(engine).do_get(TICKET).read_all().num_rows == 20_000


def test_a_reader_that_does_not_read_does_not_hold_up_the_end(engine):
    reader = connect(engine).do_get(TICKET)
    seen = numbers(reader.read_chunk().data)

    engine.terminate()

    assert engine.wait() == 0
    assert "Traceback" not in engine.output
    with contextlib.suppress(fl.FlightError):
        for chunk in reader:
            seen += numbers(chunk.data)
    assert seen == list(range(len(seen)))
