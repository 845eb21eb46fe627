"""What a run is expected to take."""

from engine.batching.cost import LONG_NS, WARY_RUNS, RunCost


def learned(*runs, rows=1):
    cost = RunCost()
    for run_ns in runs:
        cost.learn(rows, run_ns)
    return cost


def test_nothing_is_known_before_the_first_run():
    assert RunCost().estimate_ns(1) is None


def test_it_follows_the_present():
    cost = learned(*[10_000] * 5, *[40_000] * 60)

    assert 39_000 < cost.estimate_ns(1) <= 40_000


def test_a_short_interruption_changes_little():
    assert learned(*[10_000] * 20, LONG_NS).estimate_ns(1) < 12_000


def test_nothing_is_guessed_from_other_numbers_of_rows():
    cost = learned(10_000, rows=4)

    assert cost.estimate_ns(4) == cost.estimate_ns(7) == 10_000
    assert cost.estimate_ns(8) is None
    assert cost.estimate_ns(3) is None


def test_after_a_long_run_nothing_is_known_for_a_while():
    """A model that loops takes as long as its values say: it has shown both."""
    cost = RunCost()
    for _ in range(100):
        cost.learn(1, 20_000)
    assert cost.least_ns(1) == 20_000

    cost.learn(1, 2 * LONG_NS)
    for _ in range(WARY_RUNS):
        assert cost.least_ns(1) is None
        assert cost.estimate_ns(1) is None
        cost.learn(1, 20_000)

    assert cost.least_ns(1) < 1_000_000
    assert cost.least_ns(2) is None
