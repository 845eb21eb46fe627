"""What the ring counts, as plain numbers; whoever serves metrics reads a snapshot.

Rules that hold here:
- A counter is written under the ring's lock and read without it: a snapshot may mix two appends.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.logring.failures import FailureLog
    from engine.logring.writer import RowWriter

__all__ = ["Counters", "RingStats", "snapshot"]

log = logging.getLogger("sagitta")

_OF_THE_ROWS = {  # reasons that lie in the rows, not in the log
    "too_large": "a row takes more than LOCAL_INFERENCE_STORAGE leaves for one",
    "no_record_form": "an output has not one value for each row",
}
LATENCY_BUCKETS = 40  # bucket n counts commits that took less than 2**n ns


@dataclasses.dataclass(frozen=True, slots=True)
class RingStats:
    """A snapshot of the ring.

    Attributes:
        closed: why the ring is closed, in one word; None while it is open.
        failing: why the log kept nothing of late, in one word; None while it keeps rows.
        rows_kept: rows committed since start.
        rows_evicted: rows that left to make room.
        rows_evicted_before_upload: of those, rows that no uploader had sent yet.
        rows_not_kept: rows that could not be kept, by reason.
        first_row: number of the oldest row.
        next_row: number of the next row.
        uploaded_to: the row that an uploader sends next; None where there never was one.
        live_bytes: bytes of the pages in use.
        budget_bytes: bytes that may be in use before rows are evicted.
        commit_count: appends that were committed.
        commit_ns: time they took, queueing for the lock included.
        commit_buckets: appends that took less than ``2**index`` ns, not cumulated.
        syncs: times that the disk was asked to make rows durable.
        failures_kept: failed requests written to the log of failures.
        failures_lost: failed requests that came faster than they could be written.
    """

    closed: str | None
    failing: str | None
    rows_kept: int
    rows_evicted: int
    rows_evicted_before_upload: int
    rows_not_kept: dict[str, int]
    first_row: int
    next_row: int
    uploaded_to: int | None
    live_bytes: int
    budget_bytes: int
    commit_count: int
    commit_ns: int
    commit_buckets: tuple[int, ...]
    syncs: int
    failures_kept: int
    failures_lost: int


@dataclasses.dataclass(slots=True)
class Counters:
    """The running numbers behind ``RingStats``."""

    rows_kept: int = 0
    rows_evicted: int = 0
    rows_evicted_before_upload: int = 0
    rows_not_kept: Counter[str] = dataclasses.field(default_factory=Counter)
    live_pages: int = 0
    commit_ns: int = 0
    commit_buckets: list[int] = dataclasses.field(default_factory=lambda: [0] * LATENCY_BUCKETS)
    syncs: int = 0
    failing: str | None = None  # why the log kept nothing of late

    def not_kept(self, rows: int, reason: str, error: object = None) -> None:
        """Count rows that could not be kept; the first ones of a kind are told.

        Rows that no log of this size, or no log at all, has a form for say nothing about the next
        ones: the log keeps on, and they are told once.
        """
        is_told = self.failing == reason
        if reason in _OF_THE_ROWS:
            is_told = self.rows_not_kept[reason] > 0
        else:
            self.failing = reason
        self.rows_not_kept[reason] += rows
        if not is_told:
            text = error or _OF_THE_ROWS.get(reason, "it is closed")
            log.error("rows are missing from the inference log (%s): %s", reason, text)

    def kept_again(self) -> None:
        """Rows are kept, whether or not the ones before them were."""
        if self.failing is not None:
            self.failing = None
            log.warning("the inference log keeps rows again")

    def committed(self, rows: int, elapsed_ns: int) -> None:
        """Count one append."""
        self.rows_kept += rows
        self.commit_ns += elapsed_ns
        self.commit_buckets[min(elapsed_ns.bit_length(), LATENCY_BUCKETS - 1)] += 1

    def evicted(self, first: int, stop: int, uploaded_to: int | None) -> None:
        """Count rows ``[first, stop)`` that left."""
        self.rows_evicted += stop - first
        if uploaded_to is not None:
            self.rows_evicted_before_upload += max(0, stop - max(first, uploaded_to))


def snapshot(
    counters: Counters,
    writer: RowWriter | None,
    failures: FailureLog,
    *,
    closed: str | None,
) -> RingStats:
    """What ``RingStats`` says, of a log that is open where it has a writer."""
    page_bytes = 0 if writer is None else writer.store.page_bytes
    buckets = tuple(counters.commit_buckets)
    return RingStats(
        closed=closed,
        failing=counters.failing,
        rows_kept=counters.rows_kept,
        rows_evicted=counters.rows_evicted,
        rows_evicted_before_upload=counters.rows_evicted_before_upload,
        rows_not_kept=dict(counters.rows_not_kept),
        first_row=0 if writer is None else writer.first_row,
        next_row=0 if writer is None else writer.next_row,
        uploaded_to=None if writer is None else writer.uploaded_to,
        live_bytes=counters.live_pages * page_bytes,
        budget_bytes=0 if writer is None else writer.store.budget_pages * page_bytes,
        commit_count=sum(buckets),
        commit_ns=counters.commit_ns,
        commit_buckets=buckets,
        syncs=counters.syncs,
        failures_kept=failures.kept,
        failures_lost=failures.lost,
    )
