"""The engine's own counters."""

from engine.metrics import Histogram, Metrics


def test_a_value_counts_in_the_first_bucket_that_holds_it():
    histogram = Histogram((1, 5, 10))
    for value in (0, 1, 2, 5, 10, 11, 1000):
        histogram.observe(value)

    assert histogram.cumulative() == [("1", 2), ("5", 4), ("10", 5), ("+Inf", 7)]
    assert histogram.total == 1029


def test_a_sample_counts_once_everywhere():
    metrics = Metrics()

    metrics.record(rows=3, latency_ns=40, queue_ns=0, run_ns=0)
    metrics.sort_samples()
    metrics.record_error("decode_error")
    metrics.record_error("decode_error")
    metrics.record_cancelled()

    assert (metrics.latency_ns.total, metrics.request_rows.total) == (40, 3)
    assert sum(metrics.queue_ns.counts) == sum(metrics.run_ns.counts) == 1
    assert metrics.errors == {"decode_error": 2}
    assert metrics.cancelled == 1
