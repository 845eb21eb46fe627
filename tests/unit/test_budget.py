"""The bytes of requests that are held at a time."""

import pytest

from engine.budget import ByteBudget
from engine.errors import OverloadedError


def test_bytes_are_held_up_to_the_bound():
    budget = ByteBudget(10)
    budget.take(6)
    with pytest.raises(OverloadedError, match=r"hold 6 bytes .*QUEUE_MAX_BYTES=10"):
        budget.take(5)
    assert budget.held_bytes == 6
    budget.take(4)
    budget.give_back(10)
    budget.take(10)


def test_what_is_alone_is_taken_and_nothing_beside_it():
    budget = ByteBudget(10)
    budget.take(11)
    with pytest.raises(OverloadedError):
        budget.take(1)


def test_what_its_taker_is_done_with_does_not_count():
    budget = ByteBudget(10)
    budget.take(8)
    budget.take(8, own_bytes=8)
    with pytest.raises(OverloadedError, match="hold 8 bytes"):
        budget.take(3, own_bytes=8)
    assert budget.held_bytes == 16
