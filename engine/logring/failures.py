"""The second log: requests that failed, without their payload.

Rules that hold here:
- A failure is remembered in memory and written by the log's own thread: a flood of bad requests
  costs no write each, and what comes faster than it can be written is counted as lost.
- It is bounded apart from the rows, and small: it never displaces them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections import deque
from typing import TYPE_CHECKING

import pyarrow as pa

from engine.logring.layout import HEADER, pack, runs
from engine.logring.segment import EvictedError

if TYPE_CHECKING:
    from engine.logring.layout import Run
    from engine.logring.segments import SegmentRing

__all__ = ["FAILURE_SCHEMA", "Failure", "FailureLog", "read_failures"]

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
_TEXT_CHARACTERS = 2_000  # at most 4 bytes each: a segment of the smallest log holds one
_NAME_CHARACTERS = 200


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

    def write(self, ring: SegmentRing) -> None:
        """Write what waits, the oldest out where room is needed.

        Raises:
            OSError: the disk refuses; what was not written still waits.
        """
        while self._waiting:
            self._write(ring, _text(self._waiting[0]))
            self._waiting.popleft()
            self.kept += 1

    def _write(self, ring: SegmentRing, text: bytes) -> None:
        plain = text + b" " * (-len(text) % 8)
        length = HEADER.size + len(plain)
        segment = ring.live[-1] if ring.live else None
        if segment is None or segment.tail[0] + length > segment.file.size_bytes:
            segment = ring.advance(ring.stop_row)
        end, number = segment.tail
        fields = (length, number, 0, 0, 1, length, 0, 0)
        parts = b"".join((*pack(fields, plain, (), segment.salt), plain))
        segment.write([parts], (end + length, number + 1))


def _text(failure: Failure) -> bytes:
    row = {
        "time": failure.time_ms,
        "error": failure.error[:_TEXT_CHARACTERS],
        "metadata": {
            "pipeline_version": failure.pipeline_version[:_NAME_CHARACTERS],
            "partition": failure.partition[:_NAME_CHARACTERS],
        },
    }
    return json.dumps(row, ensure_ascii=False).encode(errors="replace")


def read_failures(ring: SegmentRing, start: int, limit: int) -> pa.RecordBatch:
    """Failures from a number on, oldest first, at most ``limit``."""
    rows: list[object] = []
    with contextlib.suppress(EvictedError):  # the oldest left while they were read
        for segment in ring.live:
            for number in range(len(segment.blocks())):
                for run in runs(segment.read(number)):
                    rows += _rows(run, start)[: limit - len(rows)]
    return pa.RecordBatch.from_pylist(rows, schema=FAILURE_SCHEMA)


def _rows(run: Run, start: int) -> list[object]:
    texts = run.matrix()[max(0, start - run.header.row) :, HEADER.size :]
    return [json.loads(text.tobytes()) for text in texts]
