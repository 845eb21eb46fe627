"""Memory of bodies is lent where it fits, and only where nobody looks at it any more."""

import numpy as np
import pytest

from engine.errors import OverloadedError
from engine.rest.budget import LEAST_SPARE_BYTES, MAX_SPARE_BYTES, BodyBudget

SIZE = LEAST_SPARE_BYTES


def keeping(*sizes):
    budget = BodyBudget(1 << 30)
    for size in sizes:
        budget.keep([bytearray(size)])
    return budget


def test_bytes_are_held_up_to_the_bound():
    budget = BodyBudget(10)
    budget.take(6)
    with pytest.raises(OverloadedError, match="QUEUE_MAX_BYTES=10"):
        budget.take(5)
    budget.give_back(6)
    budget.take(10)


@pytest.mark.parametrize(
    ("wanted", "is_lent"),
    [(2 * SIZE, True), (SIZE + 7, True), (SIZE, True), (2 * SIZE + 1, False), (SIZE - 1, False)],
)
def test_memory_is_lent_for_what_fills_at_least_half_of_it(wanted, is_lent):
    lent = keeping(2 * SIZE).lend(wanted)

    assert (lent is not None) == is_lent
    assert lent is None or len(lent) == wanted


def test_it_is_lent_to_one_at_a_time():
    budget = keeping(SIZE, SIZE)

    assert budget.lend(SIZE) is not budget.lend(SIZE)
    assert budget.lend(SIZE) is None


@pytest.mark.parametrize("look", [memoryview, lambda body: np.frombuffer(body, np.uint8), list])
def test_it_is_not_kept_while_anybody_looks_at_it(look):
    budget = BodyBudget(1 << 30)
    bodies = [bytearray(SIZE)]
    seen = look(bodies[0]) if look is not list else bodies[0]
    budget.keep(bodies)

    assert budget.lend(SIZE) is None
    del seen
    budget.keep(bodies)
    assert budget.lend(SIZE) is not None


def test_small_ones_are_not_kept_nor_more_than_the_bound():
    assert keeping(SIZE - 1).lend(SIZE - 1) is None
    budget = keeping(MAX_SPARE_BYTES, SIZE)
    assert budget.lend(SIZE) is None
    assert budget.lend(MAX_SPARE_BYTES) is not None
    budget.keep([bytearray(SIZE)])
    assert budget.lend(SIZE) is not None


def test_what_nobody_needed_since_the_last_sweep_is_let_go():
    budget = keeping(SIZE, SIZE)
    budget.sweep()
    budget.keep([budget.lend(SIZE)])
    budget.sweep()  # one of them was needed
    assert budget.lend(SIZE) is not None
    assert budget.lend(SIZE) is None

    budget = keeping(SIZE)
    budget.sweep()
    budget.sweep()
    assert budget.lend(SIZE) is None
    budget.keep([bytearray(MAX_SPARE_BYTES)])
    assert budget.lend(MAX_SPARE_BYTES) is not None
