"""The second log: requests that failed, without their payload.

Rules that hold here:
- A failure is remembered in memory and written by the ring's own thread: a flood of bad requests
  costs no commit each, and what comes faster than it can be written is counted as lost.
- It is bounded apart from the rows, and small: it never displaces them.
"""

from __future__ import annotations

import dataclasses
import json
from collections import deque
from typing import TYPE_CHECKING

import pyarrow as pa

from engine.logring.rows import ROW_KEY
from engine.logring.store import pages

if TYPE_CHECKING:
    from engine.logring.store import Database, Store, Txn

__all__ = ["FAILURE_SCHEMA", "Failure", "FailureLog"]

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


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """One request that failed.

    Attributes:
        time_ms: when, ms since the epoch.
        error: the error's text.
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
        """Remember a failure; it is on disk about a second later."""
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
        number = ROW_KEY.unpack(cursor.key())[0] + 1 if cursor.last() else 0
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


def read_failures(txn: Txn, db: Database, start: int, limit: int) -> pa.RecordBatch:
    """Failures from a number on, oldest first, at most ``limit``."""
    cursor = txn.cursor(db=db)
    rows: list[object] = []
    found = cursor.set_range(ROW_KEY.pack(start))
    while found and len(rows) < limit:
        rows.append(json.loads(bytes(cursor.value())))
        found = cursor.next()
    return pa.RecordBatch.from_pylist(rows, schema=FAILURE_SCHEMA)
