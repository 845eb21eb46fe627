"""Reading rows out of the ring: one page, in short transactions.

Rules that hold here:
- Rows are copied out and a transaction ends after a few MB: a reader that stays pins pages, and a
  ring whose freed pages are pinned runs full.
- A page has at least one row if there is one, however large the row is.
- Rows are found by time in a few steps, not by reading all: times grow but for the largest step
  back that the ring has ever seen (``Store.disorder_ms``), and the search allows for that.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from engine.logring.context import LogContext
from engine.logring.contexts import read_context
from engine.logring.decode import (
    Piece,
    copy_piece,
    packed_piece,
    read_columns,
    to_batch,
)
from engine.logring.header import HEADER, PACKED, RecordHeader, read_header
from engine.logring.pages import LogPage, PageQuery
from engine.logring.pieces import whole_record
from engine.logring.rows import (
    ROW_KEY_BASE,
    RowCursor,
    first_row,
    header_of,
    row_key,
    row_of,
    stop_row,
    to_next,
    to_previous,
    to_row,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from engine.logring.rows import AnyCursor
    from engine.logring.store import Store, Txn

__all__ = ["read_batches", "read_page"]

log = logging.getLogger("sagitta")

_COPY_BYTES = 4 << 20  # a read transaction ends after this much
_SCAN_RECORDS = 20_000  # or after this many records
_KIND_BYTES = 8  # of a header: its form, steps and context
_KNOWN_CONTEXTS = 256
_DAMAGES_TOLD = 100
_STREAM_ROWS = 1 << 17
_STREAM_BYTES = 1 << 20


def read_page(store: Store, query: PageQuery) -> LogPage:
    """Read one page.

    Args:
        store: open, and kept open meanwhile.
        query: which rows.

    Returns:
        The page; its rows are memory of its own. Rows that are damaged on disk are left out.
    """
    return _PageReader(store, query).read()


def read_batches(
    read: Callable[[PageQuery], LogPage], query: PageQuery, stop: int
) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Rows as a stream of record batches, about as they are stored.

    Args:
        read: reads a page.
        query: where to start and which times; always ascending. Its limits are not looked at.
        stop: the row to end before, or a little after.

    Yields:
        Record batches of about 1 MB, each with the row to go on from; their schemas may differ.
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
        self._row = query.start_row

    def read(self) -> LogPage:
        status = None
        while status is None:
            newest = self._store.pack.snapshot()  # before the transaction, which may have it too
            with self._store.reads.entered(), self._store.env.begin(buffers=True) as txn:
                status = self._gather(txn, newest)
        pieces = self._pieces[::-1] if self._query.descending else self._pieces
        batch = to_batch(pieces) if pieces else None
        if batch is not None and self._query.descending:
            order = range(batch.num_rows - 1, -1, -1)
            batch = batch.take(pa.array(order, pa.int64()))
        return LogPage(batch, status, self._row or 0)

    def _gather(self, txn: Txn, newest: tuple[int, int, bytes] | None) -> str | None:
        """Copy rows out: the page's status once it is complete, None to go on later."""
        cursor = txn.cursor() if newest is None else RowCursor(txn, newest)
        oldest = first_row(cursor)
        if self._pieces and not self._query.descending and (oldest or 0) > (self._row or 0):
            return "RecordLimited"  # evicted since the last transaction: a page has no hole
        if oldest is None or not self._seek(cursor, oldest):
            return "All"
        step = to_previous if self._query.descending else to_next
        bytes_before = self._bytes_left
        for _ in range(_SCAN_RECORDS):
            try:
                if not self._take_packs(txn, cursor):
                    return "All"
                status = self._take(txn, cursor)
            except ValueError as error:
                status = None
                self._pass_over(row_of(cursor), error)
            if status is None and not step(cursor):
                status = "All"
            if status is not None:
                return status
            if self._store.reads.is_paused or bytes_before - self._bytes_left > _COPY_BYTES:
                break
        return None

    def _seek(self, cursor: AnyCursor, oldest: int) -> bool:
        """Move to the record that the next row is in; False where there is none."""
        if self._query.descending:
            self._row = min(stop_row(cursor), ROW_KEY_BASE if self._row is None else self._row)
            return self._row > 0 and to_row(cursor, self._row - 1, forward=False)
        self._row = max(oldest, self._row or 0)
        if self._query.time_range_ms is not None:
            self._row = max(self._row, self._earliest(cursor, oldest, stop_row(cursor)))
        return to_row(cursor, self._row, forward=True)

    def _earliest(self, cursor: AnyCursor, low: int, high: int) -> int:
        """A row before which none is in the time range."""
        start_ms, _ = self._query.time_range_ms or (0, 0)
        earliest = low
        while low < high and to_row(cursor, (low + high) // 2, forward=True):
            first = row_of(cursor)
            header = header_of(cursor)
            if header is None:
                break
            if header.time_ms < start_ms - self._store.disorder_ms:
                earliest, low = first, first + header.rows  # its later rows may be in the range
            else:
                high = min(first, (low + high) // 2)
        return earliest

    def _take_packs(self, txn: Txn, cursor: AnyCursor) -> bool:
        """Take whole packs that are alike, all of them at once; False where none is behind them."""
        value, row = cursor.value(), row_of(cursor)
        header = read_header(value)
        is_in_order = not self._query.descending and self._query.time_range_ms is None
        if header.form != PACKED or row != self._row or not is_in_order:
            return True
        context = self._known_context(txn, header)
        if not self._fits(context):
            return True
        item_bytes = context.packed_bytes(header.steps)
        row_bytes = max(1, sum(context.strides))
        room = min(self._rows_left, self._bytes_left // row_bytes, _COPY_BYTES // item_bytes)
        kind, parts, has_more = bytes(value[:_KIND_BYTES]), [], True
        while has_more and value[:_KIND_BYTES] == kind and row_of(cursor) == row:
            rows = HEADER.unpack_from(value)[3]
            if rows > room or len(value) != HEADER.size + rows * item_bytes:
                break
            parts.append(value[HEADER.size :])
            row, room = row + rows, room - rows
            has_more = to_next(cursor)
            value = cursor.value()
        count = row - self._row
        if count:
            piece = packed_piece(context, header.steps, parts, count)
            self._add(piece, count * row_bytes, row)
        return has_more

    def _take(self, txn: Txn, cursor: AnyCursor) -> str | None:
        """Take what the page has room for out of one record."""
        value, first = cursor.value(), row_of(cursor)
        header = read_header(value)
        value = whole_record(txn, row_key(first), value)
        spans = [(first, first + header.rows)]
        if self._query.time_range_ms is not None:
            if header.time_ms > self._query.time_range_ms[1] + self._store.disorder_ms:
                return "All"
            spans = self._in_time(value, header, first)
        for start, stop in spans:
            if self._query.descending:
                rows = slice(start - first, min(stop, self._row or 0) - first)
            else:
                rows = slice(max(start, self._row or 0) - first, stop - first)
            status = self._take_rows(txn, value, header, first, rows)
            if status is not None:
                return status
        if not spans:
            self._row = first + header.rows
        return None

    def _in_time(
        self, value: memoryview, header: RecordHeader, first: int
    ) -> list[tuple[int, int]]:
        """The rows of a record that were answered in the range of times."""
        low_ms, high_ms = self._query.time_range_ms or (0, 0)
        times = header.times_ms(value)
        inside = np.concatenate(([False], (times >= low_ms) & (times <= high_ms), [False]))
        if len(times) == 1:
            return [(first, first + header.rows)] if inside[1] else []
        edges = (np.flatnonzero(inside[1:] != inside[:-1]) + first).tolist()
        return list(zip(edges[::2], edges[1::2], strict=True))

    def _take_rows(
        self, txn: Txn, value: memoryview, header: RecordHeader, first: int, rows: slice
    ) -> str | None:
        """Take some rows of a record: the page's status where it is complete with them."""
        wanted = rows.stop - rows.start
        if wanted <= 0:
            return None
        context = self._known_context(txn, header)
        if not self._fits(context):
            return "SchemaChange"
        row_bytes = max(1, sum(context.strides) or len(value) // header.rows)
        room = self._bytes_left // row_bytes
        if not self._pieces:
            room = max(1, room)
        count = min(wanted, self._rows_left, room)
        if count > 0:
            if self._query.descending:
                rows = slice(rows.stop - count, rows.stop)
            else:
                rows = slice(rows.start, rows.start + count)
            columns = read_columns(txn, row_key(first), value, header, context)
            piece = copy_piece(value, header, context, columns, rows)
            row = rows.start if self._query.descending else rows.stop
            self._add(piece, count * row_bytes, first + row)
        if count == wanted:
            return None
        return "RecordLimited" if self._rows_left + count < min(wanted, room) else "ByteLimited"

    def _add(self, piece: Piece, size_bytes: int, row: int) -> None:
        """Add rows to the page, which goes on at a row."""
        self._pieces.append(piece)
        self._context = piece.context
        self._rows_left -= piece.rows
        self._bytes_left -= size_bytes
        self._row = row

    def _pass_over(self, first: int, error: ValueError) -> None:
        """Leave a damaged record out: one bad page of a disk must not hide all rows behind it."""
        self._row = first if self._query.descending else first + 1
        damaged = self._store.damaged_rows
        if first not in damaged and len(damaged) < _DAMAGES_TOLD:
            damaged.add(first)
            log.error("the inference log is damaged at row %d: %s", first, error)

    def _fits(self, context: LogContext) -> bool:
        """Whether rows of this context have the schema of the page."""
        page = self._context
        return page is None or page is context or page.schema.equals(context.schema, True)

    def _known_context(self, txn: Txn, header: RecordHeader) -> LogContext:
        known = self._store.known_contexts
        number = header.context_number
        context = known.get(number)
        if context is None:
            blob = read_context(txn, self._store.contexts, number)
            if blob is None:
                raise ValueError(f"the log has lost the schema number {number}")
            if len(known) >= _KNOWN_CONTEXTS:
                known.clear()
            context = known[number] = LogContext.parse(blob)
        return context
