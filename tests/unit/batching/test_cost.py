"""What a run is expected to take."""

from engine.batching.cost import LONG_NS, RunCost


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
