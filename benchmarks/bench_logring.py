"""What the inference log costs: an append, a page, an export, and requests with it and without.

The end-to-end figures are of two engines that are up all the time and are loaded in turns, so that
what else the machine does falls on both.
"""

import os
import statistics
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.serving import drive, drive_flight, engine
from engine.codecs.pandas_records import write_batch_records
from engine.codecs.record_batch import record_batch
from engine.logring import LogRing, PageQuery
from engine.values import Frame, InferResult, ModelIdentity, Output, PipelineIdentity

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "4"))
SECONDS = int(os.environ.get("BENCH_SECONDS", "3"))
WIDTH = 18
RING_BYTES = 64 << 20
EXPORT_RING_BYTES = 1 << 30
MODEL = ModelIdentity("house-price", "1", "e2" * 32)
PIPELINE = PipelineIdentity("house-price", "93b30c7d-d8fb-43ea-82e4-db31179fce1a")


def answer(rows, *, from_json=False):
    values = np.random.default_rng(rows).random((rows, WIDTH), np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), WIDTH)
    if from_json:
        column = values.astype(float).tolist()
    output = Output("variable", values[:, :1].copy(), per_row=True)
    frame = Frame(rows, {"tensor": column}, has_literals=not from_json)
    return InferResult(
        frame, (output,), 1_752_681_130_155, (305_045, 818_254), MODEL, PIPELINE, "edge-1"
    )


@pytest.fixture
def ring(tmp_path):
    ring = LogRing(tmp_path / "log", RING_BYTES, record_batch)
    ring.start()
    yield ring
    ring.close()


def fill(ring, rows):
    """Append answers of so many rows until the oldest leave."""
    result = answer(rows, from_json=rows == 1)
    results = [result] * (500 if rows == 1 else 1)
    while not ring.stats().rows_evicted:
        ring.append(results)


@pytest.mark.benchmark(group="log append")
@pytest.mark.parametrize("rows", [1, 100, 1_000, 10_000])
def test_append_to_a_full_ring(benchmark, ring, rows):
    """One answer in one commit: JSON for a single row, Arrow for more."""
    fill(ring, rows)
    results = [answer(rows, from_json=rows == 1)]
    assert ring.append(results) == rows

    benchmark.pedantic(
        ring.append, (results,), rounds=50, iterations=200 if rows == 1 else 4, warmup_rounds=5
    )

    benchmark.extra_info["rows_per_s"] = rows / benchmark.stats.stats.median
    assert not ring.stats().rows_not_kept


@pytest.mark.benchmark(group="log append")
@pytest.mark.parametrize("answers", [8, 16])
def test_append_of_answers_that_arrived_together(benchmark, ring, answers):
    """Several single rows in one commit, as requests of one turn of the event loop have it."""
    fill(ring, 1)
    results = [answer(1, from_json=True)] * answers

    benchmark.pedantic(ring.append, (results,), rounds=50, iterations=100, warmup_rounds=5)

    benchmark.extra_info["rows_per_s"] = answers / benchmark.stats.stats.median


@pytest.mark.benchmark(group="log page")
@pytest.mark.parametrize("rows", [1, 10_000])
@pytest.mark.parametrize("what", ["arrow", "json"])
def test_page_of_a_full_ring(benchmark, ring, rows, what):
    """1,000 rows, which were answered one by one or all at once, as Arrow or as JSON."""
    fill(ring, rows)
    query = PageQuery(start_row=(ring.stats().first_row + ring.stats().next_row) // 2)

    def page():
        batch = ring.page(query).batch
        return write_batch_records(batch) if what == "json" else batch

    assert ring.page(query).batch.num_rows == 1000
    cpu_s = []

    def timed():
        started_s = time.process_time()
        page()
        cpu_s.append(time.process_time() - started_s)

    benchmark.pedantic(timed, rounds=30, iterations=1, warmup_rounds=5)

    benchmark.extra_info["cpu_ms"] = statistics.median(cpu_s) * 1e3


@pytest.mark.benchmark(group="log export")
@pytest.mark.parametrize("rows", [1, 10_000])
def test_export_of_a_full_ring(benchmark, ring, rows):
    """Everything as record batches, oldest first."""
    fill(ring, rows)
    sizes = []

    def export():
        sizes.append(sum(batch.nbytes for batch, _ in ring.batches(PageQuery())))

    benchmark.pedantic(export, rounds=5, iterations=1, warmup_rounds=1)

    benchmark.extra_info["gigabytes_per_s"] = sizes[-1] / benchmark.stats.stats.median / 1e9


@pytest.mark.benchmark(group="log export")
@pytest.mark.parametrize("rows", [1, 10_000])
def test_export_by_the_command(benchmark, tmp_path, rows):
    """``sagitta logs --format arrow`` of a stopped engine's log, start of the command included."""
    ring = LogRing(tmp_path / "log", EXPORT_RING_BYTES, record_batch)
    fill(ring, rows)
    ring.close()
    target = tmp_path / "log.arrow"
    command = [sys.executable, "-m", "engine", "logs", str(tmp_path), "--output", str(target)]
    sizes = []

    def export():
        subprocess.run(command, check=True, capture_output=True)
        sizes.append(target.stat().st_size)

    benchmark.pedantic(
        export, setup=lambda: target.unlink(missing_ok=True), rounds=4, warmup_rounds=1
    )

    benchmark.extra_info["gigabytes"] = sizes[-1] / 1e9
    benchmark.extra_info["gigabytes_per_s"] = sizes[-1] / benchmark.stats.stats.median / 1e9


@pytest.mark.benchmark(group="log on and off")
@pytest.mark.parametrize("transport", ["HTTP", "Flight"])
@pytest.mark.parametrize("name", ["W1 c1", "W1 c16", "W2j", "W2b", "W3"])
def test_requests_with_the_log_and_without(benchmark, workloads, tmp_path, name, transport):
    """Over Flight only tables, on one stream."""
    if transport == "Flight" and name not in {"W2b", "W3"}:
        pytest.skip("JSON is not sent over Flight")
    workload = workloads[name]
    send = drive if transport == "HTTP" else drive_flight
    loads = {"off": [], "on": []}
    common = {"FLIGHT_PORT": "0" if transport == "Flight" else ""}
    variables = {"LOCAL_INFERENCE_STORAGE": "256Mi", "PLATEAU_PAGE_SIZE": "1000"}
    variables["PERSIST_DIR"] = os.environ.get("BENCH_PERSIST_DIR", str(tmp_path))
    with (
        engine(workload.artifact, **common) as off,
        engine(workload.artifact, **common, **variables) as on,
    ):
        for server in (off, on):
            send(server, workload, tmp_path, 1)

        def one_round():
            for who, server in (("off", off), ("on", on)):
                loads[who].append(send(server, workload, tmp_path, SECONDS))

        benchmark.pedantic(one_round, rounds=ROUNDS, iterations=1)

    rates, costs = (
        {who: statistics.median(figure(load) for load in taken) for who, taken in loads.items()}
        for figure in (
            lambda load: load.requests_per_s,
            lambda load: load.cpu_s_per_million_rows(workload.rows),
        )
    )
    benchmark.extra_info.update(
        workload=name,
        transport=transport,
        requests_per_s=rates,
        cpu_s_per_million_rows=costs,
        throughput_ratio=rates["on"] / rates["off"],
        cpu_ratio=costs["on"] / costs["off"],
    )
