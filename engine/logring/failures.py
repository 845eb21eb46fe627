"""The second log: requests that failed, without their payload.

Rules that hold here:
- A failure is remembered in memory, and written by the ring's own thread or by who reads: a flood
  costs no commit each, and what comes faster than it can be written is counted as lost.
- It is bounded apart from the rows, and small: it never displaces them.
- Its pages are asked for and told as those of the rows are, with numbers of its own.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections import deque
from typing import TYPE_CHECKING

import pyarrow as pa

from engine.logring.pages import LogPage, PageQuery
from engine.logring.rows import ROW_KEY
from engine.logring.store import pages

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from lmdb import Cursor

    from engine.logring.store import Database, Store, Txn

__all__ = ["FAILURE_SCHEMA", "Failure", "FailureLog", "read_failures"]

log = logging.getLogger("sagitta")

FAILURE_SCHEMA = pa.schema(
    [
        pa.field("time", pa.int64(), nullable=False),
        pa.field("error", pa.string(), nullable=False),
        pa.field(
            "metadata",
            pa.struct(
                [
                    pa.field("pipeline_version", pa.string(), nullable=False),
                    pa.field("partition", pa.string(), nullable=False),
                ]
            ),
            nullable=False,
        ),
    ]
)
_WAITING = 1_000  # failures in memory
_TEXT_CHARACTERS = 2_000
_READ_AT_ONCE = 1_000
_LAST_MS = (1 << 63) - 1


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """One request that failed.

    Attributes:
        time_ms: when, ms since the epoch.
        error: what the caller was told.
        pipeline_version: version of the pipeline that ran.
        partition: name of the edge or the host.
    """

    time_ms: int
    error: str
    pipeline_version: str
    partition: str


class FailureLog:
    """Failures on their way to the disk. Any thread may add; the ring's thread writes."""

    def __init__(self) -> None:
        self._waiting: deque[Failure] = deque()
        self.kept = 0
        self.lost = 0

    def add(self, failure: Failure) -> None:
        """Remember a failure; it is on disk about a second later, or when somebody reads."""
        if len(self._waiting) >= _WAITING:
            self.lost += 1
            return
        self._waiting.append(failure)

    def __len__(self) -> int:
        """Failures that are not on disk yet."""
        return len(self._waiting)

    def keep(self, store: Store) -> None:
        """Commit what waits.

        Raises:
            lmdb.Error: the disk refuses; all of it still waits.
        """
        with store.env.begin(write=True, buffers=True) as txn:
            count = self.write(txn, store.failures, store.failure_pages)
        self.written(count)

    def write(self, txn: Txn, db: Database, limit_pages: int) -> int:
        """Write what waits, oldest out first; the caller commits, then calls ``written``."""
        cursor = txn.cursor(db=db)
        number = _stop(cursor)
        batch = list(self._waiting)
        for failure in batch:
            text = failure.error[:_TEXT_CHARACTERS]
            row = {
                "time": failure.time_ms,
                "error": text.encode(errors="replace").decode(),
                "metadata": {
                    "pipeline_version": failure.pipeline_version,
                    "partition": failure.partition,
                },
            }
            txn.put(ROW_KEY.pack(number), json.dumps(row).encode(), append=True, db=db)
            number += 1
            while pages(txn, db) > limit_pages and cursor.first():
                cursor.delete()
        return len(batch)

    def written(self, count: int) -> None:
        """Forget what is on disk."""
        for _ in range(count):
            self._waiting.popleft()
        self.kept += count


def read_failures(store: Store, query: PageQuery) -> LogPage:
    """Read one page of the failed requests.

    Args:
        store: open, and kept open meanwhile.
        query: which of them.

    Returns:
        The page; its batch is of ``FAILURE_SCHEMA`` also where it has no rows. A start behind the
        newest, as a log that was set aside leaves it, counts as the end of this one.
    """
    low_ms, high_ms = query.time_range_ms or (0, _LAST_MS)
    rows: list[object] = []
    status, bytes_left = "All", query.page_bytes
    row = _start(store, query)
    for number, value in _from(store, row, descending=query.descending):
        failure = _parse(number, value)
        if failure is not None and low_ms <= failure["time"] <= high_ms:
            if len(rows) == query.page_rows:
                status = "RecordLimited"
                break
            if rows and len(value) > bytes_left:
                status = "ByteLimited"
                break
            rows.append(failure)
            bytes_left -= len(value)
        row = number if query.descending else number + 1
    return LogPage(pa.RecordBatch.from_pylist(rows, schema=FAILURE_SCHEMA), status, row)


def _parse(number: int, value: bytes) -> dict[str, Any] | None:
    """A failure as a row; None where it is damaged: those behind it are not hidden by that."""
    try:
        row: dict[str, Any] = json.loads(value)
    except ValueError as error:
        log.error("the log of failures is damaged at number %d: %s", number, error)
        return None
    return row


def _start(store: Store, query: PageQuery) -> int:
    with store.reads.entered(), store.env.begin(buffers=True) as txn:
        stop = _stop(txn.cursor(db=store.failures))
    if query.start_row is None:
        return stop if query.descending else 0
    return min(query.start_row, stop)


def _stop(cursor: Cursor) -> int:
    """The number of the next failure."""
    number: int = ROW_KEY.unpack(cursor.key())[0] + 1 if cursor.last() else 0
    return number


def _from(store: Store, row: int, *, descending: bool) -> Iterator[tuple[int, bytes]]:
    """Failures from a number on, or those before it; as many to a transaction as take a few MB."""
    has_more = True
    while has_more:
        with store.reads.entered(), store.env.begin(buffers=True) as txn:
            cursor = txn.cursor(db=store.failures)
            has_more = cursor.set_range(ROW_KEY.pack(row))
            if descending:
                has_more = cursor.prev() if has_more else cursor.last()
            found: list[tuple[int, bytes]] = []
            while has_more and len(found) < _READ_AT_ONCE:
                found.append((ROW_KEY.unpack(cursor.key())[0], bytes(cursor.value())))
                has_more = cursor.prev() if descending else cursor.next()
        yield from found
        if found:
            row = found[-1][0] if descending else found[-1][0] + 1
