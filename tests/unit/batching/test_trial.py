"""Whether rows may be run together is tried with the model itself, bit by bit."""

import numpy as np
import pytest
from support.fakes import FakeModel, spec

from engine.batching.trial import try_together
from engine.errors import InferenceFailedError
from engine.values import Output


def verdict(function, max_rows=300, inputs=None):
    model = FakeModel("m", function, inputs=inputs)
    return try_together(model.run, model.inputs, max_rows)


def test_rows_that_do_not_see_one_another_may_be_run_together():
    assert verdict(lambda x: x.sum(axis=1, keepdims=True)).max_rows == 300


def test_rows_that_see_one_another_may_not():
    found = verdict(lambda x: x - x.mean(axis=0))

    assert found.max_rows == 0
    assert "2 rows gives other bits" in found.reason


def test_the_last_bit_counts():
    def one_bit_off(x):
        return np.nextafter(x, np.float32(np.inf)) if len(x) > 1 else x

    assert verdict(one_bit_off).max_rows == 0


def test_a_kernel_that_changes_its_ways_at_some_size_sets_the_limit():
    def by_blocks(x):
        return x if len(x) < 50 else x * np.float32(1.0000001)

    found = verdict(by_blocks)

    assert 32 <= found.max_rows < 50
    assert "rows gives other bits" in found.reason


def test_nan_is_compared_by_its_bits():
    with np.errstate(invalid="ignore"):
        assert verdict(lambda x: np.log(-np.abs(x))).max_rows == 300


@pytest.mark.parametrize("kind", ["float", "double", "float16", "int64", "uint8", "bool", "string"])
def test_every_element_type_can_be_tried(kind):
    found = verdict(lambda x: x, inputs=[spec("x", kind, (None, 2, None))], max_rows=20)

    assert found.max_rows == 20


def test_a_model_that_cannot_be_tried_is_not_trusted():
    def fail(_):
        raise InferenceFailedError("an index out of range")

    found = verdict(fail)

    assert (found.max_rows, "index out of range" in found.reason) == (0, True)


def test_outputs_that_are_not_rows_cannot_be_split():
    def run(feeds, _rows):
        return (Output("y", feeds[0].sum(axis=0), per_row=False),)

    found = try_together(run, [spec("x")], 100)

    assert (found.max_rows, "'y'" in found.reason) == (0, True)


def test_large_rows_are_tried_in_small_numbers():
    sizes = []

    def run(feeds, rows):
        sizes.append(rows)
        return (Output("y", feeds[0][:, :1], per_row=True),)

    found = try_together(run, [spec("x", "float", (None, 1 << 20))], 1024)

    assert found.max_rows == max(sizes) == 16  # 64 MiB of rows
