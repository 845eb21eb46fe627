"""Writing records into an open store: number, evict where room is needed, append.

Rules that hold here:
- Called under the log's lock.
- What one ``append`` brings is written by one call to the system where it fits into the segment:
  that call is what makes it survive the process.
- A context is stored once in each segment that needs it, ahead of its records, and so leaves with
  them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.logring.layout import HEADER, pack, padding

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine.logring.context import LogContext
    from engine.logring.counters import Counters
    from engine.logring.record import Record
    from engine.logring.segment import Segment
    from engine.logring.store import Store

__all__ = ["RowWriter"]

_MOST_PARTS = 512  # the system takes 1,024 at a time
_JOINED_BYTES = 1 << 16  # less is joined first: one copy costs less than many parts


class RowWriter:
    """The one writer of a store.

    Attributes:
        store: the open store.
        next_row: number of the next row.
        first_row: number of the oldest row; ``next_row`` where there is none.
    """

    def __init__(self, store: Store, counters: Counters) -> None:
        self.store = store
        self.next_row = store.first_new_row
        oldest = store.rows.first_row
        self.first_row = self.next_row if oldest is None else oldest
        self._counters = counters
        self._segment: Segment | None = None  # None: the next record begins one
        if oldest is not None and store.rows.stop_row == self.next_row:
            self._segment = store.rows.live[-1]
        self._places: dict[LogContext, int] = {}  # where the segment has them
        self._parts: list[bytes | memoryview] = []  # what is to be written
        self._end = self._segment.tail[0] if self._segment else 0  # of it, once that is written
        self._row = self.next_row  # the next one, once that is written

    @property
    def most_bytes(self) -> int:
        """What a record and its context may take together."""
        return self.store.rows.most_bytes

    def append(self, records: Iterable[Record]) -> int:
        """Append records, oldest rows out where room is needed.

        Args:
            records: in row order.

        Returns:
            How many rows were left out because they are larger than the log can keep.

        Raises:
            OSError: the disk refuses; rows from ``next_row`` on were not written.
        """
        left_out = 0
        try:
            for record in records:
                if not self._add(record):
                    left_out += record.rows
            self._flush()
        except OSError:
            self._parts.clear()
            self._places.clear()
            self._row = self.next_row
            self._end = self._segment.tail[0] if self._segment else 0
            raise
        return left_out

    def _add(self, record: Record) -> bool:
        """Number a record and add it to what is to be written; False where it is too large."""
        context, length = record.context, record.length
        place = self._places.get(context)
        need = length if place is not None else length + _context_bytes(context)
        segment = self._segment
        if segment is None or self._end + need > segment.file.size_bytes:
            if length + _context_bytes(context) > self.most_bytes:
                return False
            segment, place = self._advance(), None
        if place is None:
            place = self._add_context(context, segment.salt)
        plain, time_ms = record.plain, record.time_ms
        fields = (
            length,
            self._row,
            time_ms,
            place,
            record.rows,
            HEADER.size + len(plain),
            record.steps,
            0,
        )
        parts = self._parts
        parts += pack(fields, plain, record.large, segment.salt)
        parts.append(plain)
        for value in record.large:
            parts.append(value)
            if len(value) % 8:
                parts.append(padding(len(value)))
        self._end += length
        self._row += record.rows
        segment.note_time(time_ms)
        if len(parts) > _MOST_PARTS:
            self._flush()
        return True

    def _add_context(self, context: LogContext, salt: int) -> int:
        """Add a context to what is to be written: where it will be."""
        place, blob = self._end, context.blob
        plain = blob + padding(len(blob))
        length = HEADER.size + len(plain)
        fields = (length, self._row, 0, len(blob), 0, length, 0, 0)
        self._parts += pack(fields, plain, (), salt)
        self._parts.append(plain)
        self._places[context] = place
        self._end += length
        return place

    def _flush(self) -> None:
        """Write what was added."""
        parts, segment = self._parts, self._segment
        if not parts or segment is None:
            return
        if self._end - segment.tail[0] < _JOINED_BYTES:
            parts = [b"".join(parts)]
        segment.write(parts, (self._end, self._row))
        self._parts = []
        self.next_row = self._row

    def _advance(self) -> Segment:
        """Begin the next segment; the oldest rows leave where there is no other."""
        self._flush()
        self._segment = None
        self._places.clear()
        rows = self.store.rows
        try:
            segment = rows.advance(self._row)
        finally:
            first_row = rows.first_row
            first_row = self._row if first_row is None else first_row
            if first_row != self.first_row:
                self._counters.evicted(self.first_row, first_row, self.store.uploaded_to)
                self.first_row = first_row
        self._segment, self._end = segment, segment.tail[0]
        return segment


def _context_bytes(context: LogContext) -> int:
    return HEADER.size + -(-len(context.blob) // 8) * 8
