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

import pyarrow as pa

from engine.logring.context import LogContext
from engine.logring.contexts import number_key
from engine.logring.decode import Piece, copy_piece, read_columns, to_batch
from engine.logring.header import RecordHeader, read_header
from engine.logring.pages import LogPage, PageQuery
from engine.logring.store import (
    ROW_KEY_BASE,
    Store,
    first_row,
    row_key,
    row_of,
    stop_row,
    to_last,
    to_next,
    to_previous,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lmdb import Cursor

    from engine.logring.store import Txn

__all__ = ["read_batches", "read_page"]

log = logging.getLogger("sagitta")

_COPY_BYTES = 4 << 20  # a read transaction ends after this much
_SCAN_RECORDS = 20_000  # or after this many records
_KNOWN_CONTEXTS = 256
_DAMAGES_TOLD = 100
_STREAM_ROWS = 1 << 16
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
            with self._store.reads.entered(), self._store.env.begin(buffers=True) as txn:
                status = self._gather(txn)
        pieces = self._pieces[::-1] if self._query.descending else self._pieces
        batch = to_batch(pieces) if pieces else None
        if batch is not None and self._query.descending:
            order = range(batch.num_rows - 1, -1, -1)
            batch = batch.take(pa.array(order, pa.int64()))
        return LogPage(batch, status, self._row or 0)

    def _gather(self, txn: Txn) -> str | None:
        """Copy rows out: the page's status once it is complete, None to go on later."""
        cursor = txn.cursor()
        oldest = first_row(txn)
        if self._pieces and not self._query.descending and (oldest or 0) > (self._row or 0):
            return "RecordLimited"  # evicted since the last transaction: a page has no hole
        if oldest is None or not self._seek(txn, cursor, oldest):
            return "All"
        step = to_previous if self._query.descending else to_next
        bytes_before = self._bytes_left
        for _ in range(_SCAN_RECORDS):
            try:
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

    def _seek(self, txn: Txn, cursor: Cursor[memoryview], oldest: int) -> bool:
        """Move to the record that the next row is in; False where there is none."""
        if self._query.descending:
            self._row = min(stop_row(txn), ROW_KEY_BASE if self._row is None else self._row)
            return self._row > 0 and _find(cursor, self._row - 1, forward=False)
        self._row = max(oldest, self._row or 0)
        if self._query.time_range_ms is not None:
            self._row = max(self._row, self._earliest(cursor, oldest, stop_row(txn)))
        return _find(cursor, self._row, forward=True)

    def _earliest(self, cursor: Cursor[memoryview], low: int, high: int) -> int:
        """A row before which none is in the time range."""
        start_ms, _ = self._query.time_range_ms or (0, 0)
        while low < high and _find(cursor, (low + high) // 2, forward=True):
            first = row_of(cursor)
            header = _header(cursor)
            if header is None:
                break
            if header.time_ms < start_ms - self._store.disorder_ms:
                low = first + header.rows
            else:
                high = min(first, (low + high) // 2)
        return low

    def _take(self, txn: Txn, cursor: Cursor[memoryview]) -> str | None:
        """Take what the page has room for out of one record."""
        value = cursor.value()
        header = read_header(value)
        first = row_of(cursor)
        start, stop = first, first + header.rows
        if self._query.descending:
            stop = min(stop, self._row or 0)
        else:
            start = max(start, self._row or 0)
        if self._query.time_range_ms is not None:
            low_ms, high_ms = self._query.time_range_ms
            if header.time_ms > high_ms + self._store.disorder_ms:
                return "All"
            if not low_ms <= header.time_ms <= high_ms:
                self._row = stop
                return None
        context = self._known_context(txn, header)
        if not self._fits(context):
            return "SchemaChange"
        row_bytes = max(1, sum(context.strides) or len(value) // header.rows)
        room = (
            self._bytes_left // row_bytes if self._pieces else max(1, self._bytes_left // row_bytes)
        )
        count = min(stop - start, self._rows_left, room)
        limited = "RecordLimited" if self._rows_left < min(stop - start, room) else "ByteLimited"
        whole = count == stop - start
        if count > 0:
            start, stop = (stop - count, stop) if self._query.descending else (start, start + count)
            columns = read_columns(txn, row_key(first), value, header, context)
            piece = copy_piece(value, header, context, columns, slice(start - first, stop - first))
            self._pieces.append(piece)
            self._context = context
            self._rows_left -= count
            self._bytes_left -= count * row_bytes
            self._row = start if self._query.descending else stop
        return None if whole else limited

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
            blob = txn.get(number_key(number), db=self._store.contexts)
            if blob is None:
                raise ValueError(f"the log has lost the schema number {number}")
            if len(known) >= _KNOWN_CONTEXTS:
                known.clear()
            context = known[number] = LogContext.parse(bytes(blob))
        return context


def _header(cursor: Cursor[memoryview]) -> RecordHeader | None:
    """The header of the record that the cursor is at; None where it is damaged."""
    try:
        return read_header(cursor.value())
    except ValueError:
        return None


def _find(cursor: Cursor[memoryview], row: int, *, forward: bool) -> bool:
    """Move to the record with this row; where it is in a gap, to the next or the one before."""
    key = row_key(row)
    found = cursor.set_range(key)  # the first record that starts at the row or later
    if found and bytes(cursor.key()) == key:
        return True
    if to_previous(cursor) if found else to_last(cursor):
        header = _header(cursor)
        if not forward or (header is not None and row_of(cursor) + header.rows > row):
            return True
        return to_next(cursor)
    return forward and bool(cursor.set_range(key))
