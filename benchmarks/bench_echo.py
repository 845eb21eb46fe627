"""Inference beside a raw echo of the same tables, over Flight and over HTTP, in alternated runs.

What the echo costs is what the transport costs. Over Flight there is a third server, the least that
Python can do with ``pyarrow.flight``: the echo with the model in between, and none of what the
engine promises, with the one setting of gRPC that makes it cheaper.
"""

import json
import os
import statistics
import subprocess
import sys
import time

import numpy as np
import onnxruntime as ort
import pytest

from benchmarks import serving, workloads
from benchmarks.workloads import Workload

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "4"))
SECONDS = int(os.environ.get("BENCH_SECONDS", "3")) / 3  # there are many of these
GRPC = {"GRPC_EXPERIMENTS": "-event_engine_listener"}  # one thread wakes for a message, not two
TABLES = pytest.mark.parametrize("rows", [1, 100, 1_000, 10_000, 100_000])
CLIENTS = pytest.mark.parametrize("clients", [1, 4])


@TABLES
@CLIENTS
@pytest.mark.benchmark(group="Flight echo")
def test_flight(benchmark, workloads, tmp_path, rows, clients):
    workload = _workload(workloads, rows, clients)
    path = tmp_path / "batch.arrow"
    path.write_bytes(workload.body)
    with (
        serving.Server(["benchmarks.flight_echo"], 1) as echo,
        serving.Server(["benchmarks.flight_echo", workload.model], 1, **GRPC) as least,
        serving.engine(workload.artifact, FLIGHT_PORT="0") as engine,
    ):
        servers = {"echo": echo, "least": least, "engine": engine}

        def drive(server):
            return _drive_flight(server, path, rows, clients)

        _compare(benchmark, "Flight", workload, servers, drive)


@TABLES
@CLIENTS
@pytest.mark.benchmark(group="HTTP echo")
def test_http(benchmark, workloads, tmp_path, rows, clients):
    """Arrow in, and out what the endpoint answers by default."""
    workload = _workload(workloads, rows, clients)
    with (
        serving.Server(["benchmarks.http_echo"], 1) as echo,
        serving.engine(workload.artifact) as engine,
    ):

        def drive(server):
            load = serving.drive(server, workload, tmp_path, max(1, round(SECONDS)))
            return {
                "rows_per_s": load.requests_per_s * rows,
                "cpu_s_per_million_rows": load.cpu_s_per_million_rows(rows),
                "p50_us": load.p50_ms * 1e3,
            }

        _compare(benchmark, "HTTP", workload, {"echo": echo, "engine": engine}, drive)


def _workload(made, rows, clients):
    tensor = workloads.fraud_rows(rows)
    fraud = made["W2b"]
    body = workloads.arrow_file(tensor)
    return Workload("echo", "", fraud.artifact, fraud.model, tensor, body, workloads.ARROW, clients)


def _compare(benchmark, transport, workload, servers, drive):
    taken = {who: [] for who in servers}
    run_s = []

    def one_round():
        for who, server in servers.items():
            taken[who].append(drive(server))
        run_s.append(_bare_run_s(workload))

    for server in servers.values():
        drive(server)  # warms up
    benchmark.pedantic(one_round, rounds=ROUNDS, iterations=1)
    run_us = statistics.median(run_s) * 1e6

    def median(figure, who="engine"):
        return statistics.median(
            figure(ours, echo, run * 1e6)
            for ours, echo, run in zip(taken[who], taken["echo"], run_s, strict=True)
        )

    benchmark.extra_info.update(
        transport=transport,
        rows=workload.rows,
        clients=workload.connections,
        run_us=run_us,
        share_of_echo=median(lambda ours, echo, _: ours["rows_per_s"] / echo["rows_per_s"]),
        extra_us=median(lambda ours, echo, run: ours["p50_us"] - echo["p50_us"] - run),
    )
    for who, loads in taken.items():
        figures = {key: statistics.median(load[key] for load in loads) for key in loads[0]}
        if who != "echo":
            figures["multiple"] = median(_multiple(workload.rows), who)
        benchmark.extra_info[who] = figures


def _multiple(rows):
    """CPU as a multiple of that of the echo and the bare run."""
    key = "cpu_s_per_million_rows"
    return lambda ours, echo, run_us: ours[key] / (echo[key] + run_us / rows)


def _drive_flight(server, path, rows, clients):
    """Clients in processes of their own, each with one open stream."""
    command = [sys.executable, "-m", "benchmarks.flight_client", str(server.flight_port), str(path)]
    running = [
        subprocess.Popen(
            [*command, str(SECONDS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(clients)
    ]
    for client in running:
        assert client.stdout.readline() == "ready\n"
    cpu_s = server.cpu_s()
    for client in running:
        client.stdin.write("go\n")
        client.stdin.flush()
    told = [json.loads(client.stdout.readline()) for client in running]
    cpu_s = server.cpu_s() - cpu_s
    for client in running:
        client.communicate()
    total = sum(report["batches"] for report in told) * rows
    return {
        "rows_per_s": total / max(report["seconds"] for report in told),
        "cpu_s_per_million_rows": cpu_s / total * 1e6,
        "p50_us": statistics.median(trip for report in told for trip in report["trips_us"]),
    }


def _bare_run_s(workload, seconds=0.2):
    """CPU seconds of one run of the whole tensor, alone in a process that does nothing else."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    session = ort.InferenceSession(workload.model, options, providers=["CPUExecutionProvider"])
    feeds = {session.get_inputs()[0].name: np.ascontiguousarray(workload.tensor)}
    session.run(None, feeds)
    count, started = 0, time.process_time()
    while (spent := time.process_time() - started) < seconds:
        session.run(None, feeds)
        count += 1
    return spent / count
