"""What validations add to a request: five checks, as in the recorded pipelines, by rows."""

import numpy as np
import pytest

from engine.pipeline.check_text import compile_text
from engine.pipeline.checks import compile_checks

CHECKS = {
    "fraud": "out.dense_1[0] > 0.9",
    "too_low": "out.dense_1[0] < 0.001",
    "in_between": "out.dense_1[0] < 0.9 and out.dense_1[0] > 0.001",
    "odd_last": "in.tensor[-1] > 0.5",
    "scaled": "out.dense_1[0] * 2 + 0.1 > 1.9",
}


@pytest.mark.benchmark(group="checks")
@pytest.mark.parametrize("rows", [1, 100, 10_000])
def test_five_checks(benchmark, rows):
    draw = np.random.default_rng(7)
    columns = {
        "in.tensor": draw.standard_normal((rows, 29), dtype=np.float32),
        "out.dense_1": draw.random((rows, 1), dtype=np.float32),
    }
    checks = compile_checks([compile_text(name, text) for name, text in CHECKS.items()])
    score, last = columns["out.dense_1"][:, 0], columns["in.tensor"][:, -1]
    half = np.float32(0.5)
    expected = {
        "fraud": score > np.float32(0.9),
        "too_low": score < np.float32(0.001),
        "in_between": (score < np.float32(0.9)) & (score > np.float32(0.001)),
        "odd_last": last > half,
        "scaled": score * np.float32(2) + np.float32(0.1) > np.float32(1.9),
    }
    result = checks.evaluate(columns, rows)
    for name, flag in expected.items():
        assert (result.flags[name] == flag).all()

    benchmark.extra_info["rows"] = rows
    benchmark.pedantic(checks.evaluate, (columns, rows), rounds=200, iterations=5, warmup_rounds=5)
