"""Memory of bodies is lent where it fits, and only where nobody looks at it any more."""

import numpy as np
import pytest

from engine.rest.spares import LEAST_SPARE_BYTES, MAX_SPARE_BYTES, Spares

SIZE = LEAST_SPARE_BYTES


def keeping(*sizes):
    spares = Spares()
    for size in sizes:
        spares.keep([bytearray(size)])
    return spares


@pytest.mark.parametrize(
    ("wanted", "is_lent"),
    [(2 * SIZE, True), (SIZE + 7, True), (SIZE, True), (2 * SIZE + 1, False), (SIZE - 1, False)],
)
def test_memory_is_lent_for_what_fills_at_least_half_of_it(wanted, is_lent):
    lent = keeping(2 * SIZE).lend(wanted)

    assert (lent is not None) == is_lent
    assert lent is None or len(lent) == wanted


def test_it_is_lent_to_one_at_a_time():
    spares = keeping(SIZE, SIZE)

    assert spares.lend(SIZE) is not spares.lend(SIZE)
    assert spares.lend(SIZE) is None


@pytest.mark.parametrize("look", [memoryview, lambda body: np.frombuffer(body, np.uint8), list])
def test_it_is_not_kept_while_anybody_looks_at_it(look):
    spares = Spares()
    bodies = [bytearray(SIZE)]
    seen = look(bodies[0]) if look is not list else bodies[0]
    spares.keep(bodies)

    assert spares.lend(SIZE) is None
    del seen
    spares.keep(bodies)
    assert spares.lend(SIZE) is not None


def test_small_ones_are_not_kept_nor_more_than_the_bound():
    assert keeping(SIZE - 1).lend(SIZE - 1) is None
    spares = keeping(MAX_SPARE_BYTES, SIZE)
    assert spares.lend(SIZE) is None
    assert spares.lend(MAX_SPARE_BYTES) is not None
    spares.keep([bytearray(SIZE)])
    assert spares.lend(SIZE) is not None


def test_what_nobody_needed_since_the_last_sweep_is_let_go():
    spares = keeping(SIZE, SIZE)
    spares.sweep()
    spares.keep([spares.lend(SIZE)])
    spares.sweep()  # one of them was needed
    assert spares.lend(SIZE) is not None
    assert spares.lend(SIZE) is None

    spares = keeping(SIZE)
    spares.sweep()
    spares.sweep()
    assert spares.lend(SIZE) is None
    spares.keep([bytearray(MAX_SPARE_BYTES)])
    assert spares.lend(MAX_SPARE_BYTES) is not None
