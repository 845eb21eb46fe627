"""The contexts that are on disk: which number each has, and which no row needs any more.

Rules that hold here:
- Everything happens under the ring's lock, inside its write transaction; ``commit`` or
  ``roll_back`` follows what became of that.
- They are stored in pieces, so that no map is too scattered for a new one.
- Memory stays bounded however many kinds of request come: blobs are remembered for the most recent
  kinds only; an older kind is simply stored again under a new number.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from engine.logring.context import LogContext
from engine.logring.pieces import delete_pieces, joined, piece_bytes, put_pieces
from engine.logring.store import pages

if TYPE_CHECKING:
    from engine.logring.store import Database, Txn

__all__ = ["ContextTable", "read_context"]

_REMEMBERED = 256
_KEY_BYTES = 4


def read_context(txn: Txn, db: Database, number: int) -> bytes | None:
    """The stored form of a context; None where there is none of this number."""
    key = _key(number)
    first = txn.get(key, db=db)
    return None if first is None else bytes(joined(txn, key, first, db))


def _key(number: int) -> bytes:
    return number.to_bytes(_KEY_BYTES, "big")


class ContextTable:
    """Numbers contexts, and deletes them once the last row that names them has left."""

    def __init__(self, page_bytes: int) -> None:
        self.pages = self._committed_pages = 0
        self._piece_bytes = piece_bytes(page_bytes)
        self._numbers: OrderedDict[bytes, int] = OrderedDict()  # most recent last
        self._last_use: OrderedDict[int, int] = (
            OrderedDict()
        )  # number -> row after its last; oldest use first
        self._next = 0
        self._added: list[bytes] = []
        self._forgotten: list[tuple[int, int]] = []  # as in _last_use

    def load(self, txn: Txn, db: Database, next_row: int) -> None:
        """Learn what is stored; any row there is may be using any of it."""
        self._numbers.clear()
        self._last_use.clear()
        for key, _ in txn.cursor(db=db):
            number = int.from_bytes(key, "big")
            if len(key) == _KEY_BYTES and (blob := read_context(txn, db, number)) is not None:
                self._remember(blob, number)
                self._last_use[number] = next_row
        self._next = max(self._last_use, default=-1) + 1
        self.pages = self._committed_pages = pages(txn, db)

    def number(self, txn: Txn, db: Database, context: LogContext, row: int) -> int:
        """The context's number, for records that start before ``row``; stored where it is new."""
        number = self._numbers.get(context.blob)
        if number is None or number not in self._last_use:
            number = self._next
            self._next += 1
            put_pieces(txn, _key(number), context.blob, self._piece_bytes, db=db)
            self._added.append(context.blob)
            self._remember(context.blob, number)
            self.pages = pages(txn, db)
        self.use(number, row)
        return number

    def use(self, number: int, row: int) -> None:
        """Keep a context that rows before ``row`` name."""
        self._last_use[number] = row
        self._last_use.move_to_end(number)

    def forget(self, txn: Txn, db: Database, first_row: int) -> None:
        """Delete the contexts that only rows before ``first_row`` named."""
        while self._last_use:
            number, row = next(iter(self._last_use.items()))
            if row > first_row:
                break
            delete_pieces(txn, _key(number), db)
            self._forgotten.append(self._last_use.popitem(last=False))
        self.pages = pages(txn, db)

    def commit(self) -> None:
        """The transaction was committed."""
        self._added.clear()
        self._forgotten.clear()
        self._committed_pages = self.pages

    def roll_back(self) -> None:
        """The transaction came to nothing: what it stored is not there, what it deleted is."""
        self.pages = self._committed_pages
        for blob in self._added:
            number = self._numbers.pop(blob, None)
            if number is not None:
                self._last_use.pop(number, None)
        self._added.clear()
        for number, row in reversed(self._forgotten):
            self._last_use[number] = row
            self._last_use.move_to_end(number, last=False)
        self._forgotten.clear()

    def _remember(self, blob: bytes, number: int) -> None:
        self._numbers[blob] = number
        if len(self._numbers) > _REMEMBERED:
            self._numbers.popitem(last=False)
