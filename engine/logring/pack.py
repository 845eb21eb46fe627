"""Rows that were answered one by one, packed into one value of the ring while it is small.

A ring of single rows is read and evicted as many rows at a time as share a value, and answers that
arrived together are one or two values instead of one each.

Rules that hold here:
- A pack is written anew, in its last transaction's place, until it is full: never more than a node
  of half a page, of which LMDB copies the whole page anyway.
- After a transaction that failed it is dropped: what it says of the ring may not be so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.logring.header import HEADER, PACKED
from engine.logring.store import row_key

if TYPE_CHECKING:
    from engine.logring.header import Record
    from engine.logring.store import Txn

__all__ = ["Pack"]


class Pack:
    """One value's rows, the ones that are written and the ones to be written.

    Attributes:
        first_row: number of the first row.
    """

    __slots__ = (
        "_context_number",
        "_is_new",
        "_items",
        "_rows",
        "_size",
        "_steps",
        "_time_ms",
        "first_row",
    )

    def __init__(self, record: Record, row: int, context_number: int) -> None:
        """Begin with one row."""
        item = record.item()
        self.first_row = row
        self._context_number = context_number
        self._steps = len(record.elapsed_ns)
        self._time_ms = record.time_ms
        self._items = [item]
        self._rows, self._size, self._is_new = 1, len(item), True

    def add(self, record: Record, row: int, context_number: int, most_bytes: int) -> bool:
        """Add one row; False where it does not fit."""
        if (
            context_number != self._context_number
            or row != self.first_row + self._rows
            or len(record.elapsed_ns) != self._steps
            or self._size + record.size > most_bytes
        ):
            return False
        item = record.item()
        self._items.append(item)
        self._rows += 1
        self._size += len(item)
        return True

    def put(self, txn: Txn) -> None:
        """Write the value with all of its rows."""
        items = b"".join(self._items)
        head = HEADER.pack(PACKED, self._steps, self._context_number, self._rows, self._time_ms)
        txn.put(row_key(self.first_row), head + items, append=self._is_new)
        self._items, self._is_new = [items], False
