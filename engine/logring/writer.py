"""Writing rows into an open store: number, evict, append.

Rules that hold here:
- Called under the ring's lock; the thread that begins a transaction commits it.
- What a transaction did counts only once it is committed: fields change after that.
- Rows of small answers go to the open pack, which becomes a value in the transaction that writes
  what comes behind it, or once it is full.
- Where the map has room, but not side by side, values are written in pieces (``pieces``).
- Live pages stay at half of the map: LMDB copies pages before it changes them, freed ones come
  back two commits later, and a map with less room to spare can be full even for a delete.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import lmdb

from engine.logring.contexts import ContextTable
from engine.logring.header import PackedRows
from engine.logring.pack import open_pack
from engine.logring.pieces import ValueWriter
from engine.logring.rows import evict, first_row, last_time_ms, row_key, stop_row
from engine.logring.store import DISORDER_MS, Store, mark, pages

if TYPE_CHECKING:
    from engine.logring.context import LogContext
    from engine.logring.counters import Counters
    from engine.logring.header import Record
    from engine.logring.store import Txn

__all__ = ["RowWriter"]

_PORTION_SHARE = 8  # no transaction writes more than this part of the map
_MAP_FULL_TRIES = 6
_AHEAD_PAGES = 64  # evict a little ahead, so that most appends need not evict at all
_AHEAD_SHARE = 16  # but no more than this part of the ring
_GROWING_BYTES = 16 << 10  # a pack with as many is not written again when rows are added
_UPLOADED_TO = b"uploaded_to"
_PATIENCE_S = 1.0  # for readers to leave


class RowWriter:
    """The one writer of a store.

    Attributes:
        store: the open store.
        next_row: number of the next row.
        first_row: number of the oldest row; ``next_row`` where there is none.
        uploaded_to: the row that an uploader sends next; None where there never was one.
    """

    def __init__(self, store: Store, counters: Counters) -> None:
        self.store = store
        self._counters = counters
        self._contexts = ContextTable(store.page_bytes)
        self._values, self._pack = ValueWriter(store.page_bytes), store.pack
        self._budget_pages = store.budget_pages
        self._portion_pages = store.map_bytes // store.page_bytes // _PORTION_SHARE
        with store.env.begin(buffers=True) as txn:
            cursor = txn.cursor()
            stop, oldest = stop_row(cursor), first_row(cursor)
            if self._pack.rows:
                stop = self._pack.stop_row
                oldest = self._pack.first_row if oldest is None else oldest
            self.next_row = max(stop, store.floor_row)
            self.first_row = self.next_row if oldest is None else oldest
            self._contexts.load(txn, store.contexts, self.next_row)
            self.uploaded_to = mark(txn, store.about, _UPLOADED_TO)
            # no row is later; a clock that was behind when the machine started is a step back too
            self._newest_ms = last_time_ms(txn, self._pack.snapshot()) + store.disorder_ms
            counters.live_pages = pages(txn) + self._contexts.pages

    def append(self, records: Sequence[Record | PackedRows]) -> None:
        """Append records, oldest rows out where room is needed; ``next_row`` says how far it came.

        Args:
            records: none larger than the store's ``largest_record_bytes``.

        Raises:
            lmdb.MapFullError: there is no room even after evicting a few times.
            lmdb.Error: the disk refuses.
        """
        waiting: list[Record | PackedRows] = []
        for record in records:
            if isinstance(record, PackedRows) and self._pack.can_hold(len(record.items)):
                self._append_portions(waiting)
                waiting = []
                if not self._add(record):
                    self._begin(record)
            else:
                waiting.append(record)
        self._append_portions(waiting)

    def add(
        self, context: LogContext, rows: int, items: bytes, oldest_ms: int, newest_ms: int
    ) -> bool:
        """Append rows, as ``PackedRows`` has them, to the open pack: committed with that.

        Returns:
            False where it takes a transaction: nothing was done.
        """
        newest_ms = newest_ms if newest_ms > self._newest_ms else self._newest_ms
        is_in_order = oldest_ms >= newest_ms - self.store.disorder_ms
        if not is_in_order or not self._pack.add(context, rows, items):
            return False
        self.next_row += rows
        self._newest_ms = newest_ms
        return True

    def _add(self, rows: PackedRows) -> bool:
        return self.add(rows.context, rows.rows, rows.items, rows.oldest_ms, rows.newest_ms)

    def _begin(self, rows: PackedRows) -> None:
        """Append rows that are not the open pack's next ones: to one that is begun with them."""
        newest_ms = max(self._newest_ms, rows.newest_ms)
        if rows.oldest_ms < newest_ms - self.store.disorder_ms:
            self._keep_disorder(newest_ms - rows.oldest_ms)
        number = self._commit_in_any_case((), rows.context)
        self._pack.begin(rows.context, number, self.next_row, rows.oldest_ms, rows.steps)
        if not self._add(rows):
            raise AssertionError("rows do not fit a pack that was begun for them. This is a bug.")

    def put_pack(self) -> bool:
        """Write the rows of the open pack into the ring, if there are new ones: whether there were.

        Raises:
            lmdb.Error: as ``append``; the rows are still in the pack.
        """
        pack = self._pack
        if not (pack.can_grow or pack.rows):  # the disk was full: it may have room now
            self._pack = self.store.pack = open_pack(self.store.directory, pack.file_bytes)
        if pack.rows == pack.stored:
            return False
        self._commit_in_any_case((), None)
        return True

    def _append_portions(self, records: list[Record | PackedRows]) -> None:
        """Append records in portions that fit one transaction each; nearly always it is one.

        What a transaction evicts is free two transactions later, so what it writes has to find
        room beside the live pages and those that the one before it gave up.
        """
        if not records:
            return
        portion: list[Record | PackedRows] = []
        most = min(self._portion_pages, self._values.most_pages)
        for record in records:
            self._newest_ms = max(self._newest_ms, record.newest_ms)
            if record.oldest_ms < self._newest_ms - self.store.disorder_ms:
                self._keep_disorder(self._newest_ms - record.oldest_ms)
            if portion and self._pages([*portion, record]) > most:
                self._commit_in_any_case(portion, None)
                portion = []
            portion.append(record)
        if portion:
            self._commit_in_any_case(portion, None)

    def _commit_in_any_case(
        self, records: Sequence[Record | PackedRows], context: LogContext | None
    ) -> int:
        """Commit, with more room made where the map is full; see ``_commit``."""
        try:
            return self._commit(records, context)
        except lmdb.MapFullError:
            if not self.store.synced.give_up():
                self._values.go_to_pieces(self.next_row)
            # a reader that the machine has put to sleep may be pinning what was freed meanwhile
            with self.store.reads.paused(timeout_s=_PATIENCE_S):
                return self._commit_in_full_map(records, context)

    def _commit_in_full_map(
        self, records: Sequence[Record | PackedRows], context: LogContext | None
    ) -> int:
        for left in reversed(range(_MAP_FULL_TRIES)):
            try:
                return self._commit(records, context)
            except lmdb.MapFullError:
                if not left:
                    raise
                self._values.go_to_pieces(self.next_row)
                self._evict_apart()
        raise AssertionError("the last try returns or raises. This is a bug.")

    def _commit(self, records: Sequence[Record | PackedRows], context: LogContext | None) -> int:
        """Write the open pack and records behind it; the number of a context for a new pack."""
        need = self._pages(records)
        started_ns = self._values.begin(self.first_row)
        try:
            number = self._write(records, context, need)
        except BaseException:
            self._contexts.roll_back()
            raise
        self._values.end(started_ns, need, self.next_row)
        return number

    def _write(
        self, records: Sequence[Record | PackedRows], context: LogContext | None, need: int
    ) -> int:
        store, pack, first = self.store, self._pack, self.first_row
        stop = self.next_row + sum([record.rows for record in records])
        live = self._counters.live_pages + need  # at most: most rows share a page with others
        with store.env.begin(write=True, buffers=True) as txn:
            if live > self._budget_pages:
                live, first = self._evict(txn, need)
            live -= self._contexts.pages
            if pack.rows != pack.stored:
                self._contexts.use(pack.header.context_number, pack.stop_row)
                key = row_key(pack.first_row)
                self._values.put_record(txn, key, pack.value(), append=not pack.stored)
            self._put(txn, records, stop)
            number = context and self._contexts.number(txn, store.contexts, context, stop + 1)
            live += self._contexts.pages
        self._contexts.commit()
        if first != self.first_row:
            self._counters.evicted(self.first_row, first, self.uploaded_to)
            self.first_row = first
        self._counters.live_pages = live
        store.written_pages += need
        self.next_row = stop
        pack.stored = pack.rows
        if records or context or pack.size >= _GROWING_BYTES:
            pack.clear()
        return number or 0

    def _put(self, txn: Txn, records: Sequence[Record | PackedRows], stop: int) -> None:
        """Write records up to row ``stop``."""
        contexts, row = self.store.contexts, self.next_row
        context, number = None, 0
        for record in records:
            if record.context is not context:  # answers of one run share theirs
                context = record.context
                number = self._contexts.number(txn, contexts, context, stop)
            key = row_key(row)
            value, large = record.values(number)
            self._values.put_record(txn, key, value)
            for ending, column in large:
                self._values.put(txn, key + ending, column)
            row += record.rows

    def _pages(self, records: Sequence[Record | PackedRows]) -> int:
        """Pages that records and the open pack may take at most, with those of their keys."""
        pack, values = self._pack, self._values
        return values.pages(records) + values.pages_of(pack.size * (pack.rows != pack.stored))

    def _evict(self, txn: Txn, need: int) -> tuple[int, int]:
        """Measure, and evict until there is room and a little more: live pages, first row."""
        store = self.store
        ahead = min(max(_AHEAD_PAGES, 8 * need), self._budget_pages // _AHEAD_SHARE)
        while True:
            live = pages(txn) + self._contexts.pages + need
            excess = live - self._budget_pages
            if excess <= 0 or not evict(txn, excess + ahead, store.page_bytes):
                break
        oldest = first_row(txn.cursor())
        if oldest is None:  # then what is about to be written is the oldest
            pack = self._pack
            oldest = self.next_row if pack.rows == pack.stored else pack.first_row
        self._contexts.forget(txn, store.contexts, oldest)
        return live, oldest

    def _evict_apart(self) -> None:
        """Give a full map room to breathe, in a transaction as small as can be."""
        store = self.store
        first = None
        with (
            contextlib.suppress(lmdb.MapFullError),
            store.env.begin(write=True, buffers=True) as txn,
        ):
            evict(txn, 1, store.page_bytes)
            first = first_row(txn.cursor())
        if first is not None and first != self.first_row:
            self._counters.evicted(self.first_row, first, self.uploaded_to)
            self.first_row = first

    def _keep_disorder(self, step_back_ms: int) -> None:
        """Keep the largest step back of the clock: finding rows by time depends on it."""
        with self.store.env.begin(write=True) as txn:
            txn.put(DISORDER_MS, step_back_ms.to_bytes(8, "big"), db=self.store.about)
        self.store.disorder_ms = step_back_ms

    def mark_uploaded(self, row: int) -> None:
        """Note the row that an uploader sends next.

        Raises:
            lmdb.Error: the disk refuses.
        """
        with self.store.env.begin(write=True) as txn:
            txn.put(_UPLOADED_TO, row.to_bytes(8, "big"), db=self.store.about)
        self.uploaded_to = row
