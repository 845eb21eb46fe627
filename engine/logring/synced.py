"""The last state of the ring that the disk has for sure, and going back to it.

LMDB without a sync at every commit may use pages again that the last synced state needs, and a disk
may keep what was written later and not what was written before: after a power cut the file may be
no tree at all. So a reader is held on the synced state, which keeps LMDB from using its pages
again, and the page that leads to it is kept beside the file; at the start after a power cut it is
put back.

Rules that hold here:
- What ``synced.meta`` names is intact as long as the file is there: it is replaced or deleted, and
  that is on the disk, before the reader is let go.
- A ring that is written over so fast that the held pages are needed (``LMDB`` says that the map is
  full) gives the state up until the next sync.
"""

from __future__ import annotations

import os
import struct
import threading
import zlib
from typing import TYPE_CHECKING

import lmdb

if TYPE_CHECKING:
    import pathlib

__all__ = ["SyncedState", "forget", "restore"]

_NAME = "synced.meta"
_PAGE_NUMBER = struct.Struct("<Q")  # a page begins with its number
_PAGE_BYTES = struct.Struct("<I")  # as the machine has them where the file was made
_PAGE_BYTES_PLACE = 40  # in a meta page: behind its head, and what the map is
_TXN_ID = struct.Struct("<Q")
_TXN_ID_PLACE = 144  # in a meta page: behind its head, the map's size and the two roots


class SyncedState:
    """Holds a ring's last synced state. Any thread may call it."""

    def __init__(self, directory: pathlib.Path, env: lmdb.Environment) -> None:
        """Hold nothing yet."""
        self._directory = directory
        self._env = env
        self._page_bytes: int = env.stat()["psize"]
        self._lock = threading.Lock()
        self._held: lmdb.Transaction[bytes] | None = None
        self._next: lmdb.Transaction[bytes] | None = None

    def begin(self) -> bytes | None:
        """Hold the newest state; nobody may be writing.

        Returns:
            What to give to ``complete`` once it is synced; None where it cannot be held.
        """
        with self._lock:
            if self._next is not None:  # its sync failed
                self._next.abort()
                self._next = None
            try:
                txn = self._env.begin()
                page = self._meta_page(txn.id())
            except (lmdb.Error, OSError):
                return None
            if page is None:
                txn.abort()
            else:
                self._next = txn
            return page

    def _meta_page(self, number: int) -> bytes | None:
        with (self._directory / "data.mdb").open("rb") as file:
            file.seek(number % 2 * self._page_bytes)
            page = file.read(self._page_bytes)
        is_it = (
            len(page) == self._page_bytes and _TXN_ID.unpack_from(page, _TXN_ID_PLACE)[0] == number
        )
        return page if is_it else None

    def complete(self, page: bytes | None) -> None:
        """The state is on the disk: let the one before it go.

        Raises:
            OSError: the disk refuses; the one before it is still held.
        """
        with self._lock:
            if self._next is None or page is None:
                return
            temporary = self._directory / f"{_NAME}.new"
            with temporary.open("wb") as file:
                file.write(zlib.crc32(page).to_bytes(4, "little") + page)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._directory / _NAME)
            _sync_folder(self._directory)
            if self._held is not None:
                self._held.abort()
            self._held, self._next = self._next, None

    def give_up(self) -> bool:
        """Let go of what is held, since room is needed: whether anything was."""
        with self._lock:
            held = [txn for txn in (self._held, self._next) if txn is not None]
            if not held:
                return False
            try:
                forget(self._directory)
            except OSError:
                return False  # it may be needed: it stays
            self._release()
            return True

    def release(self) -> None:
        """Let go before the environment is closed."""
        with self._lock:
            self._release()

    def _release(self) -> None:
        for txn in (self._held, self._next):
            if txn is not None:
                txn.abort()
        self._held = self._next = None


def restore(directory: pathlib.Path) -> bool:
    """Go back to the last synced state; nobody may have the ring open.

    Returns:
        Whether there is one.

    Raises:
        OSError: the disk refuses.
    """
    try:
        kept = (directory / _NAME).read_bytes()
    except FileNotFoundError:
        return False
    page = kept[4:]
    if zlib.crc32(page).to_bytes(4, "little") != kept[:4] or len(page) < _TXN_ID_PLACE + 8:
        return False
    (page_bytes,) = _PAGE_BYTES.unpack_from(page, _PAGE_BYTES_PLACE)
    if len(page) != page_bytes:
        return False
    (newest,) = _TXN_ID.unpack_from(page, _TXN_ID_PLACE)
    with (directory / "data.mdb").open("r+b") as file:
        for txn_id in (newest, newest - 1):  # the one not chosen says the same
            meta = bytearray(page)
            _PAGE_NUMBER.pack_into(meta, 0, txn_id % 2)
            _TXN_ID.pack_into(meta, _TXN_ID_PLACE, txn_id)
            file.seek(txn_id % 2 * page_bytes)
            file.write(meta)
        file.flush()
        os.fsync(file.fileno())
    return True


def forget(directory: pathlib.Path) -> None:
    """Have the disk know that there is no such state any more, before its file is changed.

    Raises:
        OSError: the disk refuses.
    """
    try:
        (directory / _NAME).unlink()
    except FileNotFoundError:
        return
    _sync_folder(directory)


def _sync_folder(directory: pathlib.Path) -> None:
    folder = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
