"""Sixteen connections of single rows, requests run together and one by one, alternated.

``python -m benchmarks.bench_batching [--seconds 2] [--rounds 3]`` does so for the fraud model
(7 us a run) and for one of about 1 ms a run, of many narrow layers, where a run of sixteen rows
takes hardly longer than one. Targets: with batching no percentile is worse, and the second model
answers at least three times as many requests.
"""

import argparse
import dataclasses
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import models, serving, workloads

WIDTH, LAYERS = 16, 1_200


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=int, default=2)
    arguments.add_argument("--rounds", type=int, default=3)
    asked = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fraud = workloads.make_workloads(folder)["W1 c16"]
        artifact, model = workloads.publish(
            folder, "slow", lambda path: models.save_deep(path, WIDTH, LAYERS)
        )
        tensor = np.random.default_rng(0).normal(size=(1, WIDTH)).astype(np.float32)
        body = workloads.records(tensor)
        slow = dataclasses.replace(
            fraud, name="1 ms", artifact=artifact, model=model, tensor=tensor, body=body
        )
        for workload in (fraud, slow):
            compare(workload, folder, asked)


def compare(workload, folder, asked):
    with (
        serving.engine(workload.artifact) as together,
        serving.engine(workload.artifact, MAX_BATCH_ROWS="1") as alone,
    ):
        rounds = [
            [serving.drive(server, workload, folder, asked.seconds) for server in (together, alone)]
            for _ in range(asked.rounds)
        ]
    for index, name in enumerate(("together", "one by one")):
        loads = [loads[index] for loads in rounds]
        told = {
            kind: statistics.median(getattr(load, kind) for load in loads)
            for kind in ("requests_per_s", "p50_ms", "p99_ms")
        }
        cpu_us = statistics.median(load.cpu_s / load.requests for load in loads) * 1e6
        sys.stdout.write(
            f"{workload.name:8} {name:10} {told['requests_per_s']:8,.0f} requests/s  "
            f"p50 {told['p50_ms']:6.2f} ms  p99 {told['p99_ms']:6.2f} ms  "
            f"{cpu_us:6.1f} us of CPU a request\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
