"""The rows in the ring's tree: their keys, moving from record to record, and letting the oldest go.

Rules that hold here:
- Rows are in the main database: a record's key is the number of its first row (``ROW_KEY``). A
  large column has a value of its own behind its record's, under that key and one byte more, so that
  it is copied once less. A cursor is always at a record, never at such a column.
- Who reads rows uses a ``RowCursor``: the newest ones may be in the open pack, not in the tree.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, TypeAlias

from engine.logring.header import RecordHeader, read_header
from engine.logring.pieces import whole_record

if TYPE_CHECKING:
    from lmdb import Cursor

    from engine.logring.store import Txn

__all__ = [
    "ROW_KEY",
    "ROW_KEY_BASE",
    "RowCursor",
    "evict",
    "first_row",
    "header_of",
    "last_time_ms",
    "row_key",
    "row_of",
    "stop_row",
    "to_last",
    "to_next",
    "to_previous",
    "to_row",
]

ROW_KEY = struct.Struct(">Q")
# Row keys sort after the names of the named databases, which LMDB keeps in the same tree: so the
# newest row is always the last key, and appending never splits a page in half.
ROW_KEY_BASE = 1 << 63
_FIRST_KEY = ROW_KEY.pack(ROW_KEY_BASE)


class RowCursor:
    """A cursor over the tree and, as its last record, the open pack; moves as LMDB's own does."""

    def __init__(self, txn: Txn, newest: tuple[int, int, bytes]) -> None:
        """Read what a transaction sees, and behind it a pack that was copied before it began.

        Args:
            txn: a transaction.
            newest: what ``OpenPack.snapshot`` gave; rows that are in the tree as well by now are
                read from there, or else from the pack alone.
        """
        first, stop, value = newest
        self._cursor = txn.cursor()
        self._key, self._value = row_key(first), memoryview(value)
        self._is_at_pack = False
        self._has_pack = stop_row(self._cursor) < stop

    def key(self) -> bytes | memoryview:
        """The record's key; nothing where it is at none."""
        return self._key if self._is_at_pack else self._cursor.key()

    def value(self) -> memoryview:
        """The record's value; nothing where it is at none."""
        return self._value if self._is_at_pack else self._cursor.value()

    def _stop(self, found: bool) -> bool:
        """Be at the pack where a move in the tree has led behind the records before it."""
        self._is_at_pack = self._has_pack and not (found and bytes(self._cursor.key()) < self._key)
        return found or self._is_at_pack

    def set_range(self, key: bytes) -> bool:
        """Move to the first record from a key on."""
        if self._has_pack and key > self._key:
            self._is_at_pack = False
            return bool(self._cursor.set_range(b"\xff" * 9))
        return self._stop(self._cursor.set_range(key))

    def next(self) -> bool:
        """Move to the next record or column."""
        if self._is_at_pack:
            self._is_at_pack = False
            return bool(self._cursor.set_range(b"\xff" * 9))
        return self._stop(self._cursor.next())

    def last(self) -> bool:
        """Move to the newest record or column."""
        self._is_at_pack = self._has_pack
        return self._has_pack or bool(self._cursor.last())

    def prev(self) -> bool:
        """Move to the record or column before."""
        if not self._is_at_pack:
            return bool(self._cursor.prev())
        self._is_at_pack = False
        if self._cursor.set_range(self._key):
            return bool(self._cursor.prev())
        return bool(self._cursor.last())


AnyCursor: TypeAlias = "Cursor[memoryview] | RowCursor"


def first_row(cursor: AnyCursor) -> int | None:
    """Number of the oldest row; None where there is no row."""
    return row_of(cursor) if cursor.set_range(_FIRST_KEY) else None


def stop_row(cursor: AnyCursor) -> int:
    """The row after the newest one; 0 where there is no row.

    Raises:
        ValueError: the newest record is damaged.
    """
    return row_of(cursor) + read_header(cursor.value()).rows if to_last(cursor) else 0


def last_time_ms(txn: Txn, newest: tuple[int, int, bytes] | None) -> int:
    """When the newest row was answered; 0 where there is no row, or its record is damaged.

    Args:
        txn: a transaction.
        newest: what ``OpenPack.snapshot`` gave.
    """
    cursor = txn.cursor() if newest is None else RowCursor(txn, newest)
    if not to_last(cursor):
        return 0
    value = whole_record(txn, row_key(row_of(cursor)), cursor.value())
    try:
        return int(read_header(value).times_ms(value)[-1])
    except ValueError:
        return 0


def row_key(row: int) -> bytes:
    """The key of the record that begins with a row."""
    return ROW_KEY.pack(ROW_KEY_BASE + row)


def row_of(cursor: AnyCursor) -> int:
    """The first row of the record that the cursor is at."""
    return int(ROW_KEY.unpack_from(cursor.key())[0]) - ROW_KEY_BASE


def to_next(cursor: AnyCursor) -> bool:
    """Move to the next record; False where there is none."""
    while cursor.next():
        if len(cursor.key()) == ROW_KEY.size:
            return True
    return False


def to_previous(cursor: AnyCursor) -> bool:
    """Move to the record before; False where there is none."""
    return bool(cursor.prev()) and _to_own_record(cursor)


def to_last(cursor: AnyCursor) -> bool:
    """Move to the newest record; False where there is none."""
    return bool(cursor.last()) and _to_own_record(cursor)


def _to_own_record(cursor: AnyCursor) -> bool:
    """From a record or one of its columns to the record; False from what is no row."""
    key = bytes(cursor.key())
    return key >= _FIRST_KEY and bool(cursor.set_range(key[: ROW_KEY.size]))


def header_of(cursor: AnyCursor) -> RecordHeader | None:
    """The header of the record that the cursor is at; None where it is damaged."""
    try:
        return read_header(cursor.value())
    except ValueError:
        return None


def to_row(cursor: AnyCursor, row: int, *, forward: bool) -> bool:
    """Move to the record with this row; where it is in a gap, to the next or the one before."""
    key = row_key(row)
    found = cursor.set_range(key)  # the first record that starts at the row or later
    if found and bytes(cursor.key()) == key:
        return True
    if to_previous(cursor) if found else to_last(cursor):
        header = header_of(cursor)
        if not forward or (header is not None and row_of(cursor) + header.rows > row):
            return True
        return to_next(cursor)
    return forward and bool(cursor.set_range(key))


def evict(txn: Txn, count: int, page_bytes: int) -> int:
    """Delete the oldest records until about this many pages are free.

    Args:
        txn: a write transaction.
        count: how many pages to free; the caller measures again afterwards.
        page_bytes: LMDB's page size.

    Returns:
        How many values were deleted; 0 where no row is left.
    """
    wanted = count * page_bytes
    freed = deleted = 0
    cursor = txn.cursor()
    if not cursor.set_range(_FIRST_KEY):
        return 0
    while freed < wanted or len(cursor.key()) > ROW_KEY.size:
        size = len(cursor.value())  # 0 behind the last record: no value is empty
        if not size:
            break
        # a value of half a page or more has pages of its own
        freed += size + 24 if size < page_bytes // 2 else -(-(size + 16) // page_bytes) * page_bytes
        cursor.delete()
        deleted += 1
    return deleted
