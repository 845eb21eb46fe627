"""What stands in the line: one caller's rows, and how they may be run together with others."""

from __future__ import annotations

import dataclasses

__all__ = ["BatchPolicy", "Entry"]


@dataclasses.dataclass(frozen=True, slots=True)
class BatchPolicy:
    """How entries of one kind are run together.

    Attributes:
        max_rows: most rows of a batch of several entries.
        target_rows: rows that are not held back any longer.
        delay_ns: how long the first entry is held back for company while a slot is free.
    """

    max_rows: int
    target_rows: int = 1
    delay_ns: int = 0


class Entry:
    """One caller's rows on their way to a run.

    Attributes:
        rows: how many, or an upper estimate before they are decoded.
        size_bytes: size of the request.
        policy: how it may be run together with others; None where it must not.
        key: entries of equal keys may share a run; means nothing without a policy.
        queued_ns: monotonic time when it came into the line; 0 where it never had to.
        is_abandoned: its caller has stopped waiting.
    """

    rows = 0
    size_bytes = 0
    policy: BatchPolicy | None = None
    key: object = None
    queued_ns = 0
    is_abandoned = False
