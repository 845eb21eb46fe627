"""Values in pieces of one page each, for a map whose free pages lie apart from each other.

LMDB keeps a value of more than half a page in pages that lie side by side. After many small records
the free pages of a full map do not: it then looks for long, and in the end finds no room for a
large value however much is free. A piece fits into any free page.

Rules that hold here:
- The first piece stands under the value's own key; the others under that key, a zero byte and their
  number: behind the first, and before a column of the same record.
- A record in pieces says so in its header (``IN_PIECES``); of everything else it shows by what is
  there.
"""

from __future__ import annotations

import struct
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.logring.header import HEADER, IN_PIECES

if TYPE_CHECKING:
    from typing import Final

    from engine.logring.header import PackedRows, Record
    from engine.logring.store import Database, Txn

__all__ = [
    "ValueWriter",
    "delete_pieces",
    "joined",
    "piece_bytes",
    "put_pieces",
    "whole_record",
]

PAGE_HEADER_BYTES: Final = 16
NODE_BYTES: Final = 24  # what LMDB adds to a small value: key, node and slot
PIECES_A_PAGE: Final = 64  # whose keys a page holds, at least
MOST_SINGLE_PAGES: Final = 1_024
LONG_NS: Final = 4_000_000  # of CPU: LMDB has looked for pages that lie side by side
LONG_PAGE_NS: Final = 4_000  # more for each page: writing one takes less
_NUMBER: Final = struct.Struct(">BI")


def piece_bytes(page_bytes: int) -> int:
    """The largest value that takes a page of its own and no other."""
    return page_bytes - PAGE_HEADER_BYTES


def put_pieces(
    txn: Txn,
    key: bytes,
    value: bytes | memoryview,
    size: int,
    *,
    append: bool = True,
    db: Database | None = None,
) -> None:
    """Store a value.

    Args:
        txn: a write transaction.
        key: of the value.
        value: whole.
        size: most bytes of a piece.
        append: the key is the largest of all.
        db: where to; None for the rows.
    """
    for number, start in enumerate(range(0, len(value), size)):
        part = value[start : start + size]
        txn.put(_piece_key(key, number), part, append=append, db=db)


def joined(txn: Txn, key: bytes, first: memoryview, db: Database | None = None) -> memoryview:
    """The value whose first piece stands under a key: itself where it is the only one."""
    parts = [first]
    while (part := txn.get(_piece_key(key, len(parts)), db=db)) is not None:
        parts.append(part)
    return first if len(parts) == 1 else memoryview(b"".join(parts))


def delete_pieces(txn: Txn, key: bytes, db: Database) -> None:
    """Delete a value, in however many pieces it is."""
    number = 0
    while txn.delete(_piece_key(key, number), db=db):
        number += 1


def _piece_key(key: bytes, number: int) -> bytes:
    """The key of a value's first piece, 0, or of a later one."""
    return key + _NUMBER.pack(0, number) if number else key


def whole_record(txn: Txn, key: bytes, value: memoryview) -> memoryview:
    """What a record's header and values are in, of which ``value`` is the first piece."""
    is_in_pieces = len(value) >= HEADER.size and HEADER.unpack_from(value)[0] & IN_PIECES
    return joined(txn, key, value) if is_in_pieces else value


class ValueWriter:
    """Writes values of rows: whole, or in pieces while the map's free pages lie apart.

    They do so until the rows that were there when it showed are gone.
    """

    def __init__(self, page_bytes: int) -> None:
        """Write whole values at first."""
        self._page_bytes = page_bytes
        self._piece_bytes = piece_bytes(page_bytes)
        self._apart_until = 0  # the oldest row is this one or a later one
        self._is_in_pieces = False

    def go_to_pieces(self, next_row: int) -> None:
        """Write in pieces until all rows before this one are gone."""
        self._apart_until, self._is_in_pieces = next_row, True

    @property
    def most_pages(self) -> int:
        """Pages that a transaction should write: LMDB keeps the memory of single ones for good."""
        return MOST_SINGLE_PAGES if self._is_in_pieces else sys.maxsize

    def pages_of(self, size_bytes: int) -> int:
        """Pages that a value may take at most, with those of its pieces' keys."""
        if not size_bytes:
            return 0
        pages = -(-(size_bytes + NODE_BYTES) // self._page_bytes)
        return pages + pages // PIECES_A_PAGE

    def pages(self, records: Sequence[Record | PackedRows]) -> int:
        """Pages that records may take at most, with those of their keys."""
        small_bytes, large = 0, 2
        for record in records:
            if record.size < self._page_bytes // 2:
                small_bytes += record.size + NODE_BYTES
            else:
                large += self.pages_of(record.size) + record.value_count
        return large + small_bytes // self._page_bytes

    def begin(self, first_row: int) -> int:
        """Before a transaction is written; ``end`` is to be given what this returns."""
        self._is_in_pieces = first_row < self._apart_until
        return time.thread_time_ns()

    def end(self, started_ns: int, pages: int, next_row: int) -> None:
        """A transaction of so many pages was written: see whether LMDB has looked for them long."""
        spent_ns = time.thread_time_ns() - started_ns
        if spent_ns > LONG_NS + pages * LONG_PAGE_NS and not self._is_in_pieces:
            self.go_to_pieces(next_row)

    def put(self, txn: Txn, key: bytes, value: bytes | memoryview, *, append: bool = True) -> None:
        """Store a column."""
        if self._is_in_pieces:
            put_pieces(txn, key, value, self._piece_bytes, append=append)
        else:
            txn.put(key, value, append=append)

    def put_record(self, txn: Txn, key: bytes, value: bytes, *, append: bool = True) -> None:
        """Store what a record's header and values are in."""
        if self._is_in_pieces and len(value) > self._piece_bytes:
            form, *others = HEADER.unpack_from(value)
            value = HEADER.pack(form | IN_PIECES, *others) + value[HEADER.size :]
        self.put(txn, key, value, append=append)
