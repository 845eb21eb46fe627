"""The inference log's counters as metric families."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

    from engine.logring import RingStats

__all__ = ["log_families"]


def log_families(stats: RingStats) -> Iterator[Metric]:
    """Every family of the log, once."""
    from prometheus_client.metrics_core import (  # noqa: PLC0415 - by the first scrape only
        CounterMetricFamily,
        GaugeMetricFamily,
        Metric,
    )

    for name, text, value in (
        ("kept", "Rows that the inference log has committed", stats.rows_kept),
        ("evicted", "Rows that left the inference log to make room", stats.rows_evicted),
        (
            "evicted_before_upload",
            "Rows that left the inference log before they were uploaded",
            stats.rows_evicted_before_upload,
        ),
    ):
        yield CounterMetricFamily(f"sagitta_log_rows_{name}", text, value=value)
    missing = CounterMetricFamily(
        "sagitta_log_rows_not_kept", "Rows that the inference log has not kept", labels=["reason"]
    )
    for reason, rows in sorted(stats.rows_not_kept.items()):
        missing.add_metric([reason], rows)
    yield missing
    yield CounterMetricFamily(
        "sagitta_log_failures_kept",
        "Failed requests written to the log of failures",
        value=stats.failures_kept,
    )
    yield CounterMetricFamily(
        "sagitta_log_failures_lost",
        "Failed requests that came faster than they could be written",
        value=stats.failures_lost,
    )
    for name, text, value in (
        (
            "keeping",
            "Whether the log keeps rows",
            int(stats.closed is None and stats.failing is None),
        ),
        ("rows", "Rows in the log", stats.next_row - stats.first_row),
        ("used_bytes", "Bytes that the log's rows take", stats.live_bytes),
        ("budget_bytes", "Bytes that rows may take before the oldest leave", stats.budget_bytes),
    ):
        yield GaugeMetricFamily(f"sagitta_log_{name}", text, value=value)
    commits = Metric("sagitta_log_commit_ns", "Time to commit the rows of a run, ns", "histogram")
    for exponent, seen in enumerate(accumulate(stats.commit_buckets[:-1])):
        if exponent >= SMALLEST_EXPONENT:
            commits.add_sample("sagitta_log_commit_ns_bucket", {"le": str(2**exponent)}, seen)
    commits.add_sample("sagitta_log_commit_ns_bucket", {"le": "+Inf"}, stats.commit_count)
    commits.add_sample("sagitta_log_commit_ns_count", {}, stats.commit_count)
    commits.add_sample("sagitta_log_commit_ns_sum", {}, stats.commit_ns)
    yield commits


SMALLEST_EXPONENT = 12  # 4 us: no commit is faster
