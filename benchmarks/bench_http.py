"""End to end over loopback: the engine, a bare ASGI loop and a bare ``session.run``, in turns.

Both servers are up all the time and are loaded alternately, so that what else the machine does
falls on both. What is timed is a round of all three; the figures are in ``extra_info``.
"""

import os
import statistics
import time

import numpy as np
import onnxruntime as ort
import orjson
import pytest

from benchmarks.serving import bare_loop, drive, engine

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "4"))
SECONDS = int(os.environ.get("BENCH_SECONDS", "3"))
WARM_UP_SECONDS = 1


@pytest.mark.benchmark(group="http")
@pytest.mark.parametrize("name", ["W1 c1", "W1 c16", "W2j", "W2b", "W2t", "W3", "W4"])
def test_one_load(benchmark, workloads, tmp_path, name):
    workload = workloads[name]
    run = _bare_run(workload)
    loads = {"engine": [], "bare": []}
    run_cpu_s = []
    with engine(workload.artifact) as served, bare_loop(workload.model) as bare:
        servers = {"engine": served, "bare": bare}
        for server in servers.values():
            _assert_answer(server.post(workload), run())
            drive(server, workload, tmp_path, WARM_UP_SECONDS)

        def one_round():
            for who, server in servers.items():
                loads[who].append(drive(server, workload, tmp_path, SECONDS))
            run_cpu_s.append(_cpu_s_of(run))

        benchmark.pedantic(one_round, rounds=ROUNDS, iterations=1)

    benchmark.extra_info.update(
        workload=name,
        what=f"{workload.text}, {len(workload.body):,} bytes, {workload.connections} at a time",
        limit=workload.limit,
        run_cpu_s_per_million_rows=statistics.median(run_cpu_s) / workload.rows * 1e6,
    )
    for who, taken in loads.items():
        benchmark.extra_info[who] = {
            "cpu_s_per_million_rows": statistics.median(
                load.cpu_s_per_million_rows(workload.rows) for load in taken
            ),
            "requests_per_s": statistics.median(load.requests_per_s for load in taken),
            "p50_ms": statistics.median(load.p50_ms for load in taken),
            "p99_ms": statistics.median(load.p99_ms for load in taken),
        }


def _bare_run(workload):
    """The model and nothing else, with the options that everybody starts with."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(workload.model, options, providers=["CPUExecutionProvider"])
    feeds = {session.get_inputs()[0].name: workload.tensor}
    return lambda: session.run(None, feeds)[0]


def _cpu_s_of(run, seconds=0.5):
    """CPU seconds of one call, of this process's every thread."""
    calls = 0
    started_s, cpu_started_s = time.perf_counter(), time.process_time()
    while time.perf_counter() - started_s < seconds:
        run()
        calls += 1
    return (time.process_time() - cpu_started_s) / calls


def _assert_answer(text, expected):
    output = orjson.loads(text)[0]["outputs"][0]["Float"]
    got = np.array(output["data"], np.float32).reshape(output["dim"])
    np.testing.assert_array_equal(got, expected)
