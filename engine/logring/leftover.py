"""Which rows of the open pack a start goes on with: those that the ring does not have.

Rules that hold here:
- A pack is used only with the context that its rows were written with, and only where its rows
  follow those of the ring: after a power cut, when both are as old as the disk has them, what lies
  between them may be lost, and a pack behind a hole is dropped.
"""

from __future__ import annotations

import logging
import zlib
from typing import TYPE_CHECKING

from engine.logring.contexts import read_context
from engine.logring.pack import FILE_NAME
from engine.logring.rows import row_of, stop_row

if TYPE_CHECKING:
    from engine.logring.store import Store, Txn

__all__ = ["drop_known_rows"]

log = logging.getLogger("sagitta")


def drop_known_rows(txn: Txn, store: Store, *, is_restored: bool = False) -> None:
    """Note how many of the pack's rows are in the ring; forget all where it has nothing to add.

    Args:
        txn: a transaction; it is only read.
        store: with a pack as it was found on disk.
        is_restored: the ring is in a state that it had before; the pack may be newer.

    Raises:
        ValueError: the ring's newest record is damaged.
    """
    pack = store.pack
    if not pack.rows:
        return
    cursor = txn.cursor()
    stop = stop_row(cursor)
    if stop >= pack.stop_row:
        pack.clear()
        return
    context = read_context(txn, store.contexts, pack.header.context_number)
    is_next = stop <= pack.first_row and not (is_restored and stop < pack.first_row)
    grew = stop > pack.first_row and row_of(cursor) == pack.first_row
    if context is None or zlib.crc32(context) != pack.context_check or not (is_next or grew):
        log.warning("%d rows of %s are not the ring's next ones: dropped", pack.rows, FILE_NAME)
        pack.clear()
        return
    pack.stored = max(0, stop - pack.first_row)
