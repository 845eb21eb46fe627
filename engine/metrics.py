"""What the engine counts about itself: plain numbers, written by any thread, read by a scrape.

Rules that hold here:
- Recorded once per request, as one tuple in a queue: a metrics library's own histograms cost more
  than all else that is done for a small request. The queue is sorted into the histograms by the
  request that fills it, and by a scrape.
- Exposition belongs to the shell (``rest/metrics.py``); nothing here knows a text format.
Source of the documented names: the product's Metrics tutorial (``latency_histogram_ns``,
``tensor_throughput_batch_count``); every other name is ours.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final

__all__ = ["Histogram", "Metrics"]

NS_BOUNDS: Final = tuple(
    int(step * 10**exponent) for exponent in range(4, 11) for step in (1, 2.5, 5)
)  # 10 us to 50 s
SAMPLES: Final = 64  # sorted at once, in some 50 us
ROW_BOUNDS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 100_000)


class Histogram:
    """Counts per bucket, and their sum; the owner of the object locks."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[int, ...]) -> None:
        """Make an empty histogram with these upper bounds; one more bucket takes the rest."""
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0

    def observe(self, value: int) -> None:
        """Count one value in the first bucket whose bound it does not exceed."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, int]]:
        """Upper bound, as text, and how many values do not exceed it; the last is ``+Inf``."""
        buckets: list[tuple[str, int]] = []
        seen = 0
        for bound, count in zip((*self.bounds, None), self.counts, strict=True):
            seen += count
            buckets.append(("+Inf" if bound is None else str(bound), seen))
        return buckets


class Metrics:
    """All counters of one engine; ``lock`` guards every field below it but the samples."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._samples: deque[tuple[int, int, int, int]] = deque()  # thread-safe by itself
        self.latency_ns = Histogram(NS_BOUNDS)
        self.queue_ns = Histogram(NS_BOUNDS)
        self.run_ns = Histogram(NS_BOUNDS)
        self.request_rows = Histogram(ROW_BOUNDS)
        self.batch_requests = Histogram(ROW_BOUNDS)
        self.batch_rows = Histogram(ROW_BOUNDS)
        self.errors: dict[str, int] = {}
        self.cancelled = 0
        self.flight_calls = 0  # open at the moment
        self.shadows: dict[tuple[str, str], int] = {}

    def record(self, rows: int, latency_ns: int, queue_ns: int, run_ns: int) -> None:
        """Count a request that was answered with its result."""
        self._samples.append((rows, latency_ns, queue_ns, run_ns))
        if len(self._samples) >= SAMPLES and self.lock.acquire(blocking=False):
            try:
                self._sort()
            finally:
                self.lock.release()

    def sort_samples(self) -> None:
        """Bring the histograms up to date; to be done before they are read."""
        with self.lock:
            self._sort()

    def _sort(self) -> None:
        samples = self._samples
        for _ in range(len(samples)):
            rows, latency_ns, queue_ns, run_ns = samples.popleft()
            self.request_rows.observe(rows)
            self.latency_ns.observe(latency_ns)
            self.queue_ns.observe(queue_ns)
            self.run_ns.observe(run_ns)

    def record_batch(self, requests: int, rows: int) -> None:
        """Count a run that several requests shared."""
        with self.lock:
            self.batch_requests.observe(requests)
            self.batch_rows.observe(rows)

    def record_error(self, code: str) -> None:
        """Count a request that was answered with an error of this code."""
        with self.lock:
            self.errors[code] = self.errors.get(code, 0) + 1

    def record_shadow(self, model: str, reason: str) -> int:
        """Count a request answered without a challenger's result; how many there were so far."""
        with self.lock:
            count = self.shadows.get((model, reason), 0) + 1
            self.shadows[model, reason] = count
            return count

    def record_cancelled(self) -> None:
        """Count a request whose caller went away before its answer."""
        with self.lock:
            self.cancelled += 1
