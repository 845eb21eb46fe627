"""Writing rows into an open store: number, evict, append, in one transaction.

Rules that hold here:
- Called under the ring's lock; the thread that begins a transaction commits it.
- What a transaction did counts only once it is committed: fields change after that.
- Live pages stay at half of the map: LMDB copies pages before it changes them, freed ones come
  back two commits later, and a map with less room to spare can be full even for a delete.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import lmdb

from engine.logring.contexts import ContextTable
from engine.logring.pack import Pack
from engine.logring.store import Store, evict, first_row, pages, row_key, stop_row

if TYPE_CHECKING:
    from engine.logring.counters import Counters
    from engine.logring.header import Record
    from engine.logring.store import Txn

__all__ = ["RowWriter"]

_RECORD_SHARE = 16  # no record takes more than this part of the map
_PORTION_SHARE = 8  # no transaction writes more than this part of the map
_MAP_FULL_TRIES = 6
_AHEAD_PAGES = 64  # evict a little ahead, so that most appends need not evict at all
_NODE_BYTES = 24  # what LMDB adds to a small value: key, node and slot
_PACK_BYTES = 64  # of half a page that are not a pack's: LMDB's own, the key and the header
_UPLOADED_TO = b"uploaded_to"
_DISORDER_MS = b"disorder_ms"
_PATIENCE_S = 1.0  # for readers to leave
_JITTER_MS = 1_000  # answers are logged in about the order of their times


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
        self._contexts = ContextTable()
        self._pack: Pack | None = None
        self._most_packed_bytes = store.page_bytes // 2 - _PACK_BYTES
        self._budget_pages = store.budget_pages
        self._portion_pages = store.map_bytes // store.page_bytes // _PORTION_SHARE
        with store.env.begin(buffers=True) as txn:
            stop, oldest = stop_row(txn), first_row(txn)
            self.next_row = max(stop, store.floor_row)
            self.first_row = self.next_row if oldest is None else oldest
            self._contexts.load(txn, store.contexts, self.next_row)
            self.uploaded_to = _mark(txn, store, _UPLOADED_TO)
            store.disorder_ms = _mark(txn, store, _DISORDER_MS) or _JITTER_MS
            self._newest_ms = 0
            counters.live_pages = pages(txn) + self._contexts.pages

    @property
    def largest_record_bytes(self) -> int:
        """A record with more bytes is not kept."""
        return self.store.map_bytes // _RECORD_SHARE

    def portions(self, records: list[Record]) -> list[list[Record]]:
        """Records as portions that fit one transaction each; nearly always it is one.

        What a transaction evicts is free two transactions later, so what it writes has to find
        room beside the live pages and those that the one before it gave up.
        """
        most = self._portion_pages
        if _pages(records, self.store.page_bytes) <= most:
            return [records]
        portions: list[list[Record]] = [[]]
        for record in records:
            if portions[-1] and _pages([*portions[-1], record], self.store.page_bytes) > most:
                portions.append([])
            portions[-1].append(record)
        return portions

    def append(self, records: Sequence[Record]) -> None:
        """Append a portion of records, oldest rows out where room is needed.

        Args:
            records: at least one, none larger than ``largest_record_bytes``.

        Raises:
            lmdb.MapFullError: there is no room even after evicting a few times.
            lmdb.Error: the disk refuses; nothing was written.
        """
        try:
            self._commit(records)
        except lmdb.MapFullError:
            self.store.synced.give_up()
            # a reader that the machine has put to sleep may be pinning what was freed meanwhile
            with self.store.reads.paused(timeout_s=_PATIENCE_S):
                self._commit_in_full_map(records)

    def _commit_in_full_map(self, records: Sequence[Record]) -> None:
        for left in reversed(range(_MAP_FULL_TRIES)):
            try:
                self._commit(records)
            except lmdb.MapFullError:
                if not left:
                    raise
                self._evict_apart()
            else:
                return

    def _commit(self, records: Sequence[Record]) -> None:
        try:
            self._write(records)
        except BaseException:
            self._contexts.roll_back()
            self._pack = None
            raise

    def _write(self, records: Sequence[Record]) -> None:
        store = self.store
        first = self.first_row
        stop = self.next_row + sum([record.rows for record in records])
        need = _pages(records, store.page_bytes)
        live = self._counters.live_pages + need  # at most: most rows share a page with others
        with store.env.begin(write=True, buffers=True) as txn:
            if live > self._budget_pages:
                live, first = self._evict(txn, need)
            self._note_disorder(txn, records)
            self._put(txn, records, stop, first)
        self._contexts.commit()
        if first != self.first_row:
            self._counters.evicted(self.first_row, first, self.uploaded_to)
            self.first_row = first
        self._counters.live_pages = live
        self.next_row = stop

    def _put(self, txn: Txn, records: Sequence[Record], stop: int, first: int) -> None:
        """Write records up to row ``stop``; rows before ``first`` are not there any more."""
        contexts, row, most_bytes = self.store.contexts, self.next_row, self._most_packed_bytes
        pack, self._pack = self._pack, None  # dropped where this fails
        has_new = False  # rows of the pack that are to be written
        if pack is not None and pack.first_row < first:
            pack = None
        context, number = None, 0
        for record in records:
            if record.context is not context:  # answers of one run share theirs
                context = record.context
                number = self._contexts.number(txn, contexts, context, stop)
            is_small = record.is_row and record.size < most_bytes
            if pack is None or not (is_small and pack.add(record, row, number, most_bytes)):
                if pack is not None and has_new:
                    pack.put(txn)
                pack = Pack(record, row, number) if is_small else None
            has_new = is_small
            if not is_small:
                key = row_key(row)
                txn.put(key, record.value(number), append=True)
                for ending, column in record.large():
                    txn.put(key + ending, column, append=True)
            row += record.rows
        if pack is not None and has_new:
            pack.put(txn)
        self._pack = pack

    def _evict(self, txn: Txn, need: int) -> tuple[int, int]:
        """Measure, and evict until there is room and a little more: live pages, first row."""
        store = self.store
        ahead = min(max(_AHEAD_PAGES, 4 * need), self._budget_pages // 64)
        while True:
            live = pages(txn) + self._contexts.pages + need
            excess = live - self._budget_pages
            if excess <= 0 or not evict(txn, excess + ahead, store.page_bytes):
                break
        oldest = first_row(txn)
        first = self.next_row if oldest is None else oldest
        self._contexts.forget(txn, store.contexts, first)
        return live, first

    def _evict_apart(self) -> None:
        """Give a full map room to breathe, in a transaction as small as can be."""
        store = self.store
        first = None
        with (
            contextlib.suppress(lmdb.MapFullError),
            store.env.begin(write=True, buffers=True) as txn,
        ):
            evict(txn, 1, store.page_bytes)
            first = first_row(txn)
        if first is not None and first != self.first_row:
            self._counters.evicted(self.first_row, first, self.uploaded_to)
            self.first_row = first

    def _note_disorder(self, txn: Txn, records: Sequence[Record]) -> None:
        """Keep the largest step back of the clock: finding rows by time depends on it."""
        store = self.store
        for record in records:
            step_back_ms = self._newest_ms - record.time_ms
            if step_back_ms <= 0:
                self._newest_ms = record.time_ms
            elif step_back_ms > store.disorder_ms:
                store.disorder_ms = step_back_ms
                txn.put(_DISORDER_MS, step_back_ms.to_bytes(8, "big"), db=store.about)

    def mark_uploaded(self, row: int) -> None:
        """Note the row that an uploader sends next.

        Raises:
            lmdb.Error: the disk refuses.
        """
        with self.store.env.begin(write=True) as txn:
            txn.put(_UPLOADED_TO, row.to_bytes(8, "big"), db=self.store.about)
        self.uploaded_to = row


def _mark(txn: Txn, store: Store, name: bytes) -> int | None:
    value = txn.get(name, db=store.about)
    return None if value is None else int.from_bytes(value, "big")


def _pages(records: Sequence[Record], page_bytes: int) -> int:
    """Pages that records may take at most, the ones that hold their keys included."""
    small = large = 0
    for record in records:
        size = record.size
        if size < page_bytes // 2:
            small += size + _NODE_BYTES
        else:
            large += -(-(size + _NODE_BYTES) // page_bytes) + len(record.body)
    return large + small // page_bytes + 2
