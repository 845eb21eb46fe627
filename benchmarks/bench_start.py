"""From the start of the process to ready on the example, and what the idle engine holds."""

import statistics
import time
from pathlib import Path

import pytest

from benchmarks.serving import engine

EXAMPLE = Path(__file__).parents[1] / "examples" / "house-price" / "pipeline"
ROUNDS = 5


@pytest.mark.benchmark(group="start")
def test_start_on_the_example(benchmark):
    cpu_s, wall_s, resident_bytes = [], [], []

    def start():
        started_s = time.perf_counter()
        with engine(f"oci-layout:{EXAMPLE}:v1") as server:
            wall_s.append(time.perf_counter() - started_s)
            cpu_s.append(server.cpu_s())
            resident_bytes.append(server.resident_bytes())

    benchmark.pedantic(start, rounds=ROUNDS, iterations=1, warmup_rounds=1)

    benchmark.extra_info.update(
        cpu_s_to_ready=statistics.median(cpu_s),
        wall_s_to_ready=statistics.median(wall_s),
        resident_mib=statistics.median(resident_bytes) / 2**20,
    )
