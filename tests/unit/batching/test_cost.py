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


def test_a_run_that_no_interruption_explains_counts_in_full():
    assert learned(*[10_000] * 20, LONG_NS + 1).estimate_ns(1) > LONG_NS / 8


def test_more_rows_are_estimated_from_fewer():
    cost = learned(10_000, rows=1)

    assert cost.estimate_ns(1) == 10_000
    assert cost.estimate_ns(8) == 80_000
    assert learned(10_000, rows=8).estimate_ns(1) is None


def test_after_a_long_run_the_least_is_not_known_for_a_while():
    """A model that loops takes as long as its values say: it has shown both."""
    cost = RunCost()
    for _ in range(100):
        cost.learn(1, 20_000)
    assert cost.least_ns(1) == 20_000

    cost.learn(1, 2 * LONG_NS)
    for _ in range(WARY_RUNS):
        assert cost.least_ns(1) is None
        assert cost.estimate_ns(1) is not None
        cost.learn(1, 20_000)

    assert cost.least_ns(1) < 1_000_000
    assert cost.least_ns(2) is None
