"""Reading rows: one page, gathered block by block.

Rules that hold here:
- Nobody waits for a reader: rows that leave while they are read are read anew or left out.
- A page has at least one row if there is one, however large the row is.
- Segments whose rows are all outside of a time range are passed over; the others are looked
  through, since clocks step back.
"""

from __future__ import annotations

import bisect
import dataclasses
import logging
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from engine.logring.context import LogContext
from engine.logring.decode import Piece, to_batch
from engine.logring.layout import HEADER, runs
from engine.logring.pages import LogPage, PageQuery
from engine.logring.segment import EvictedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from engine.logring.layout import Run
    from engine.logring.segment import Segment
    from engine.logring.store import Store

__all__ = ["read_batches", "read_page"]

log = logging.getLogger("sagitta")

_KNOWN_CONTEXTS = 256
_STREAM_ROWS = 1 << 17
_STREAM_BYTES = 4 << 20


def read_page(store: Store, query: PageQuery) -> LogPage:
    """Read one page.

    Args:
        store: open, and kept open meanwhile.
        query: which rows.

    Returns:
        The page; its rows are memory of its own. Rows that are damaged on disk are left out.
    """
    while True:
        try:
            return _PageReader(store, query).read()
        except EvictedError:  # before there was a row
            continue


def read_batches(
    read: Callable[[PageQuery], LogPage], query: PageQuery, stop: int
) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Rows as a stream of record batches, about as they are stored.

    Args:
        read: reads a page.
        query: where to start and which times; always ascending. Its limits are not looked at.
        stop: the row to end before, or a little after.

    Yields:
        Record batches of about 4 MB, each with the row to go on from; their schemas may differ.
    """
    row, status = query.start_row or 0, ""
    while status != "All" and row < stop:
        page = read(
            dataclasses.replace(
                query, start_row=row, page_rows=_STREAM_ROWS, page_bytes=_STREAM_BYTES
            )
        )
        row, status = page.next_row, page.status
        if page.batch is not None:
            yield page.batch, row


class _PageReader:
    """Gathers one page; made for one call."""

    def __init__(self, store: Store, query: PageQuery) -> None:
        self._store = store
        self._query = query
        self._pieces: list[Piece] = []
        self._context: LogContext | None = None
        self._rows_left = query.page_rows
        self._bytes_left = query.page_bytes
        self._row = 0  # the next row wanted; descending: the one before it

    def read(self) -> LogPage:
        query, live = self._query, self._store.rows.live
        stop_row = live[-1].tail[1] if live else 0
        start_row = query.start_row
        if query.descending:
            self._row = stop_row if start_row is None else min(start_row, stop_row)
            live = live[::-1]
        elif live:
            self._row = max(start_row or 0, live[0].first_row)
        else:
            self._row = start_row or 0
        status = self._gather(live)
        pieces = self._pieces[::-1] if query.descending else self._pieces
        batch = to_batch(pieces) if pieces else None
        if batch is not None and query.descending:
            order = range(batch.num_rows - 1, -1, -1)
            batch = batch.take(pa.array(order, pa.int64()))
        return LogPage(batch, status, self._row)

    def _gather(self, live: tuple[Segment, ...]) -> str:
        """Take runs until the page is complete: its status."""
        for segment in live:
            stop_row = segment.tail[1]
            if not self._may_have(segment, stop_row):
                continue
            try:
                for run in self._runs(segment):
                    status = self._take(segment, run)
                    if status is not None:
                        return status
            except EvictedError:
                if self._query.descending:
                    break  # older rows have left as well
                if self._pieces:
                    return "RecordLimited"  # a page has no hole
                raise
            if not self._query.descending:
                self._row = max(self._row, stop_row)
        return "All"

    def _may_have(self, segment: Segment, stop_row: int) -> bool:
        """Whether a segment has rows that are wanted."""
        if self._query.descending:
            return segment.first_row < self._row
        if stop_row <= self._row:
            return False
        if self._query.time_range_ms is None:
            return True
        low_ms, high_ms = self._query.time_range_ms
        if segment.low_ms <= high_ms and segment.high_ms >= low_ms:
            return True
        self._row = stop_row
        return False

    def _runs(self, segment: Segment) -> Iterator[Run]:
        """The segment's runs from the row that is wanted on, in the page's order."""
        blocks = segment.blocks()
        if self._query.descending:
            last = bisect.bisect_left(blocks, (self._row, 0)) - 1
            for number in range(last, -1, -1):
                yield from reversed(list(runs(segment.read(number))))
            return
        number = max(0, bisect.bisect_right(blocks, (self._row, segment.file.size_bytes)) - 1)
        while number < len(blocks):
            yield from runs(segment.read(number))
            number += 1

    def _take(self, segment: Segment, run: Run) -> str | None:
        """Take what the page has room for out of a run: the page's status once it is complete."""
        descending = self._query.descending
        if not run.header.rows or (
            run.header.row >= self._row if descending else run.stop_row <= self._row
        ):
            return None
        try:
            return self._take_parts(run, self._known_context(segment, run.header.context))
        except ValueError as error:  # one bad page of a disk must not hide the rows behind it
            self._store.tell_damage(run.header.row, str(error))
            return None

    def _take_parts(self, run: Run, context: LogContext) -> str | None:
        """Take those records of a run that are wanted."""
        if context.shapes is None and run.records > 1:
            parts = [run.part(number, number + 1) for number in range(run.records)]
        elif self._query.time_range_ms is not None:
            parts = _in_range(run, *self._query.time_range_ms)
        else:
            parts = [run]
        for part in reversed(parts) if self._query.descending else parts:
            status = self._take_rows(part, context)
            if status is not None:
                return status
        return None

    def _take_rows(self, run: Run, context: LogContext) -> str | None:
        """Take rows of a run all of whose records are wanted, but for those already passed."""
        descending, first = self._query.descending, run.header.row
        start, stop = first, run.stop_row
        if descending:
            stop = min(stop, self._row)
        else:
            start = max(start, self._row)
        if stop <= start:
            return None
        if not self._fits(context):
            return "SchemaChange"
        row_bytes = max(1, sum(context.strides) or run.header.length // run.header.rows)
        room = self._bytes_left // row_bytes
        if not self._pieces:
            room = max(1, room)
        count = min(stop - start, self._rows_left, room)
        limited = "RecordLimited" if self._rows_left < min(stop - start, room) else "ByteLimited"
        whole = count == stop - start
        if count > 0:
            start, stop = (stop - count, stop) if descending else (start, start + count)
            self._pieces.append(Piece.cut(context, run, slice(start - first, stop - first)))
            self._context = context
            self._rows_left -= count
            self._bytes_left -= count * row_bytes
            self._row = start if descending else stop
        return None if whole else limited

    def _fits(self, context: LogContext) -> bool:
        """Whether rows of this context have the schema of the page."""
        page = self._context
        return page is None or page is context or page.schema.equals(context.schema, True)

    def _known_context(self, segment: Segment, place: int) -> LogContext:
        known = self._store.known_contexts
        key = segment, place
        context = known.get(key)
        if context is None:
            record = segment.read_record(place)
            header = HEADER.unpack_from(record)
            blob = record[HEADER.size : HEADER.size + header[4]]
            if header[5]:
                raise ValueError(f"rows name what is no schema, at {place}")
            context = known.get(blob)
            if len(known) >= _KNOWN_CONTEXTS:
                known.clear()
            if context is None:
                context = known[blob] = LogContext.parse(blob)
            known[key] = context
        return context


def _in_range(run: Run, low_ms: int, high_ms: int) -> list[Run]:
    """The parts of a run that were answered in a time range."""
    times = run.times_ms()
    inside = np.concatenate(([False], (times >= low_ms) & (times <= high_ms), [False]))
    edges = np.flatnonzero(inside[1:] != inside[:-1]).tolist()
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return [run.part(start, stop) for start, stop in pairs]
