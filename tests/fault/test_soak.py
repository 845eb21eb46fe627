"""Mixed load over both shells, bad and abandoned requests included: nothing grows.

``SAGITTA_SOAK_S=600`` makes it ten minutes; it is a few seconds by default. ``-s`` prints what was
measured.
"""

import contextlib
import itertools
import os
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl
import pytest
from support import models
from support.arrow import file_bytes
from support.engine import ARROW_FILE, inference_head
from support.flight import INFER, connect, read_reply

pytestmark = [pytest.mark.fault, pytest.mark.slow]

SOAK_S = float(os.environ.get("SAGITTA_SOAK_S", "6"))
PAUSE_S = 0.1  # between a caller's requests: a fraction of one CPU all together
SETTLE_S = 30.0
MIB = 1 << 20


def test_mixed_load_leaves_nothing_behind(engine_process, tmp_path):
    engine = engine_process(
        PIPELINE_URL=str(models.write_pipeline(tmp_path / "pipeline", models.linear())),
        FLIGHT_PORT="0",
        CONFIG_CPUS="1",
        PERSIST_DIR=str(tmp_path / "persist"),
        LOCAL_INFERENCE_STORAGE="64m",
        PLATEAU_PAGE_SIZE="1000",
    ).ready()
    load_for(engine, SOAK_S / 2)  # until every thread's heap has seen every size
    settled = until_settled(engine)

    samples = load_for(engine, SOAK_S)

    after = until_settled(engine)
    # the least of each tenth of the time: above it is what requests hold, and what they have freed
    held = [float(min(part)) for part in np.array_split(samples, 10)]
    first, last = held[0], held[-1]
    slope = np.polyfit(np.linspace(0, SOAK_S / 60, len(held)), held, 1)[0] / MIB
    told = (
        f"{SOAK_S:g} s: {answers(engine):,.0f} answers; the least MiB of each tenth: "
        f"{[round(least / MIB, 1) for least in held]}, {slope:+.2f} a minute; "
        f"threads {settled[0]} -> {after[0]}, descriptors {settled[1]} -> {after[1]}"
    )
    sys.stdout.write(f"\n{told}\n")
    assert last - first < (24 if SOAK_S >= 300 else 200) * MIB, told  # a short one warms up
    assert after[0] <= settled[0] + 2, told
    assert after[1] <= settled[1], told
    assert engine.metrics()["sagitta_slots_busy"] == 0
    assert engine.post("/infer", [{"x": [1, 2, 3, 4]}]).status == 200


def load_for(engine, seconds):
    """Every kind of caller at its own pace; resident bytes at regular times."""
    end = threading.Event()
    callers = (json_row, arrow_bodies, bad_bodies, quitters, stream, streams, bad_batches, cancels)
    samples = []
    with ThreadPoolExecutor(len(callers)) as pool:
        working = [
            pool.submit(work, caller(engine, random.Random(seed)), end)
            for seed, caller in enumerate(callers)
        ]
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not any(future.done() for future in working):
            end.wait(max(seconds / 600, 0.05))
            samples.append(engine.anonymous_bytes())
        end.set()
    for future in working:
        future.result()
    return samples


def work(steps, end):
    with contextlib.closing(steps):
        while not end.wait(PAUSE_S):
            next(steps)


def until_settled(engine):
    """Threads and descriptors once no caller is left; gRPC keeps its own for some seconds."""
    engine.until_metric("sagitta_flight_calls", 0)
    engine.until_connections_are(0)
    deadline, counts = time.monotonic() + SETTLE_S, [()]
    while time.monotonic() < deadline and counts[-20:] != counts[-1:] * 20:
        time.sleep(0.2)
        folder = Path(f"/proc/{engine.pid}")
        counts.append(tuple(len(os.listdir(folder / name)) for name in ("task", "fd")))
    return counts[-1]


def answers(engine):
    told = engine.metrics()
    return sum(value for name, value in told.items() if "request_rows_count" in name)


def table(rows, width=4):
    values = pa.array(np.arange(rows * width, dtype=np.float32) % 100)
    return pa.record_batch({"x": pa.FixedSizeListArray.from_arrays(values, width)})


def sizes(luck):
    return (luck.choice([1, 1, 10, 300, 10_000, 100_000]) for _ in itertools.count())


def json_row(engine, _luck):
    """One row over one connection, again and again."""
    body = b'[{"x": [1, 2, 3, 4]}]'
    with engine.connect() as wire:
        while True:
            wire.send(inference_head(len(body), content_type="application/json") + body)
            assert wire.receive().json[0]["outputs"][0]["Float"]["data"] == [40.0, 50.0]
            yield


def arrow_bodies(engine, luck):
    for rows in sizes(luck):
        body = file_bytes(pa.Table.from_batches([table(rows)]))
        reply = engine.post("/infer", body, ARROW_FILE, accept=ARROW_FILE)
        assert pa.ipc.open_file(reply.body).read_all().num_rows == rows
        yield


def bad_bodies(engine, luck):
    for rows in sizes(luck):
        body = file_bytes(pa.Table.from_batches([table(rows, width=3)]))
        assert engine.post("/infer", body, ARROW_FILE).status == 400
        assert engine.post("/infer", body[: len(body) // 2], ARROW_FILE).status == 400
        assert engine.post("/infer", b'[{"x": [1, null]}]').status == 400
        yield


def quitters(engine, luck):
    """Leave in the middle of the body, or before the answer."""
    for rows in sizes(luck):
        body = file_bytes(pa.Table.from_batches([table(rows)]))
        with engine.connect() as wire:
            wire.send(inference_head(len(body)) + body[: len(body) // 2])
        wire = engine.connect()
        wire.send(inference_head(len(body)) + body)
        wire.reset()
        yield


def stream(engine, luck):
    """One Flight stream for all the time."""
    client = connect(engine)
    writer, reader = client.do_exchange(INFER)
    writer.begin(table(1).schema)
    try:
        for rows in sizes(luck):
            writer.write_batch(table(rows))
            assert read_reply(reader)[0].num_rows == rows
            yield
    finally:
        writer.close()
        client.close()


def streams(engine, luck):
    """A client and a stream for each batch."""
    for rows in sizes(luck):
        batch = table(rows)
        with connect(engine) as client:
            writer, reader = client.do_exchange(INFER)
            writer.begin(batch.schema)
            writer.write_batch(batch)
            assert read_reply(reader)[0].num_rows == rows
            writer.close()
        yield


def bad_batches(engine, luck):
    for rows in sizes(luck):
        batch = table(rows, width=3)
        with connect(engine) as client:
            writer, reader = client.do_exchange(INFER)
            writer.begin(batch.schema)
            writer.write_batch(batch)
            with pytest.raises(fl.FlightServerError):
                reader.read_chunk()
            with contextlib.suppress(fl.FlightError):
                writer.close()
        yield


def cancels(engine, luck):
    """Cancel after writing, or give up after a millisecond."""
    for rows in sizes(luck):
        batch = table(rows)
        with connect(engine) as client:
            writer, reader = client.do_exchange(INFER)
            writer.begin(batch.schema)
            writer.write_batch(batch)
            reader.cancel()
            with contextlib.suppress(fl.FlightError, pa.ArrowException):
                writer.close()
            with contextlib.suppress(fl.FlightError, pa.ArrowException):
                hasty = fl.FlightCallOptions(timeout=0.001)
                writer, reader = client.do_exchange(INFER, hasty)
                writer.begin(batch.schema)
                writer.write_batch(batch)
                reader.read_chunk()
        yield
