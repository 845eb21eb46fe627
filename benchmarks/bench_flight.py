"""Arrow Flight: inference beside a raw echo of the same tables, in one alternated run.

``python -m benchmarks.bench_flight [--seconds 2] [--rounds 3]`` prints, for tables of 1 to 100,000
rows and 1 and 4 clients, rows a second of the engine as a share of the echo's, and the server's CPU
seconds per million rows as a multiple of (echo + bare ``session.run``). The server has one CPU and
the clients another. Targets: a share of at least 0.85, a multiple of at most 1.25, and for one row
over an open stream a p50 of at most that of the echo plus the run plus 60 us.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

from benchmarks import serving, workloads

ROWS = (1, 100, 1_000, 10_000, 100_000)
CLIENTS = (1, 4)


def drive(server, path, rows, clients, seconds):
    """Rows a second, CPU seconds per million rows, p50 and p99 of the round trips in us."""
    command = [sys.executable, "-m", "benchmarks.flight_client", str(server.flight_port), str(path)]
    running = [
        subprocess.Popen(
            [*command, str(seconds)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
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
    trips = sorted(trip for report in told for trip in report["trips_us"])
    total = sum(report["batches"] for report in told) * rows
    return (
        total / max(report["seconds"] for report in told),
        cpu_s / total * 1e6,
        trips[len(trips) // 2],
        trips[len(trips) * 99 // 100],
    )


def bare_run_s(model, tensor, seconds=0.3):
    """CPU seconds of one run of the whole tensor, alone in a process that does nothing else."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: tensor}
    session.run(None, feed)
    count, started = 0, time.process_time()
    while (spent := time.process_time() - started) < seconds:
        session.run(None, feed)
        count += 1
    return spent / count


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=float, default=2.0)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--rows", type=int, nargs="*", default=ROWS)
    arguments.add_argument("--clients", type=int, nargs="*", default=CLIENTS)
    asked = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workload = workloads.make_workloads(folder)["W2b"]
        with (
            serving.Server(["benchmarks.flight_echo"], 1) as echo,
            serving.engine(workload.artifact, FLIGHT_PORT="0") as engine,
        ):
            for rows in asked.rows:
                tensor = workloads.fraud_rows(rows)
                path = folder / f"{rows}.arrow"
                path.write_bytes(workloads.arrow_file(tensor))
                run_s = bare_run_s(str(workload.model), np.ascontiguousarray(tensor))
                for clients in asked.clients:
                    compare(echo, engine, path, rows, clients, run_s, asked)


def compare(echo, engine, path, rows, clients, run_s, asked):
    rounds = [
        (
            drive(echo, path, rows, clients, asked.seconds),
            drive(engine, path, rows, clients, asked.seconds),
        )
        for _ in range(asked.rounds)
    ]
    share = statistics.median(ours[0] / theirs[0] for theirs, ours in rounds)
    run_cpu = run_s / rows * 1e6
    multiple = statistics.median(ours[1] / (theirs[1] + run_cpu) for theirs, ours in rounds)
    extra_us = statistics.median(ours[2] - theirs[2] for theirs, ours in rounds) - run_s * 1e6
    theirs, ours = (
        [statistics.median(figures[who][kind] for figures in rounds) for kind in range(4)]
        for who in (0, 1)
    )
    print(
        f"{rows:>7} rows x {clients}: {share:5.2f} of the echo's rows/s ({ours[0]:,.0f} rows/s), "
        f"{multiple:4.2f} x (echo + run) CPU ({ours[1]:.3f} vs {theirs[1]:.3f} + {run_cpu:.3f} "
        f"s/1M rows), p50 {ours[2]:.0f} us = echo {theirs[2]:.0f} + run {run_s * 1e6:.0f} "
        f"{extra_us:+.0f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
