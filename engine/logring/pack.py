"""The newest rows, of small answers: packed in a file until they are worth a value.

A transaction for each answer would cost more than all else that the log does. So they lie in a
small file that is mapped into memory, in the very form of a value of the ring, and become one value
once the file is full, once a second, and before any other record is appended.

Rules that hold here:
- Rows are copied into the map first, then one word says how many there are and what their checksum
  is: that store is the commit. Whatever ``kill -9`` interrupts, the word is the old one or the new,
  and what it counts is not written to again.
- After a power cut the file may be any mix of what was written to it: the checksum, which begins
  with what the pack says of itself, tells.
- The file's space is allocated before it is mapped: on a full disk a hole in it is a SIGBUS.
- The thread that adds holds the ring's lock; ``snapshot`` may be called by any.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import struct
import zlib
from typing import TYPE_CHECKING

from engine.logring.header import HEADER, PACKED, RecordHeader

if TYPE_CHECKING:
    import pathlib

    from engine.logring.context import LogContext

__all__ = ["FILE_NAME", "OpenPack", "open_pack", "pack_bytes", "read_pack"]

FILE_NAME = "newest.rows"
_MARK = b"sagitta1"
_WORD_PLACE = 8  # of the word that publishes: rows, and above them the checksum
_IDENTITY_PLACE = 16
_IDENTITY = struct.Struct("<QII")  # first row, checksum of the context, bytes of a row
_HEADER_PLACE = _IDENTITY_PLACE + _IDENTITY.size
_ITEMS_PLACE = _HEADER_PLACE + HEADER.size
_ROWS_MASK = 0xFFFFFFFF
_MOST_BYTES = 256 << 10
_SHARE = 16  # no more than this part of the ring
_GET_FLAGS, _SET_FLAGS, _NO_COPY = 0x80086601, 0x40086602, 0x00800000


class OpenPack:
    """The rows of one value that is still growing.

    Attributes:
        first_row: number of the first row.
        rows: how many rows.
        stored: how many of them the ring has already, under the first one's key.
        header: what the value says of itself, but for the number of rows.
        context_check: checksum of the stored form of its context.
        file_bytes: size of its file.
        can_grow: whether it is on disk; else it is what was found there, or nothing.
        is_damaged: it was found on disk with rows that are not as they were written.
    """

    def __init__(self, buffer: mmap.mmap | bytearray, file_bytes: int) -> None:
        """Go on with what a buffer holds; a private copy of a file cannot grow."""
        self.file_bytes = file_bytes
        self._buffer = buffer
        self._view = memoryview(buffer)
        self._word = self._view[_WORD_PLACE:_IDENTITY_PLACE].cast("Q")
        self.can_grow = isinstance(buffer, mmap.mmap)
        self._context: LogContext | None = None
        self.first_row = self.rows = self.stored = self.context_check = 0
        self.header = RecordHeader(PACKED, 0, 0, 0, 0)
        self._end, self._check, self._item_bytes = _ITEMS_PLACE, 0, 0
        self.is_damaged = not self._load()
        if self.is_damaged:
            self.clear()

    def _load(self) -> bool:
        word = self._word[0]
        if not word or self._view[:_WORD_PLACE] != _MARK:
            return not word
        first_row, context_check, item_bytes = _IDENTITY.unpack_from(self._buffer, _IDENTITY_PLACE)
        header = RecordHeader._make(HEADER.unpack_from(self._buffer, _HEADER_PLACE))
        end = _ITEMS_PLACE + (word & _ROWS_MASK) * item_bytes
        if not _ITEMS_PLACE < end <= len(self._view):
            return False
        check = _first_check(first_row, context_check, item_bytes, header)
        if zlib.crc32(self._view[_ITEMS_PLACE:end], check) != word >> 32:
            return False
        self.first_row, self.rows, self.header = first_row, word & _ROWS_MASK, header
        self.context_check, self._item_bytes, self._end = context_check, item_bytes, end
        return True

    @property
    def stop_row(self) -> int:
        """The row after the last one."""
        return self.first_row + self.rows

    @property
    def size(self) -> int:
        """Bytes of the value."""
        return self._end - _HEADER_PLACE

    def can_hold(self, size: int) -> bool:
        """Whether rows of so many bytes fit once it is empty."""
        return self.can_grow and _ITEMS_PLACE + size <= len(self._view)

    def begin(
        self, context: LogContext, context_number: int, first_row: int, time_ms: int, steps: int
    ) -> None:
        """Begin anew for rows of a context, which the ring has under this number."""
        self.clear()
        item_bytes = context.packed_bytes(steps)
        check = zlib.crc32(context.blob)
        header = RecordHeader(PACKED, steps, context_number, 0, time_ms)
        self._view[:_WORD_PLACE] = _MARK
        _IDENTITY.pack_into(self._buffer, _IDENTITY_PLACE, first_row, check, item_bytes)
        HEADER.pack_into(self._buffer, _HEADER_PLACE, *header)
        self._check = _first_check(first_row, check, item_bytes, header)
        self._context, self._item_bytes = context, item_bytes
        self.context_check, self.first_row, self.header = check, first_row, header

    def add(self, context: LogContext, rows: int, items: bytes) -> bool:
        """Add rows, which are committed with that; False where they are others or do not fit."""
        end = self._end
        stop = end + len(items)
        if (
            context is not self._context
            or len(items) != rows * self._item_bytes  # of rows with other steps
            or stop > len(self._view)
        ):
            return False
        self._buffer[end:stop] = items
        check = self._check = zlib.crc32(items, self._check)
        rows += self.rows
        self._word[0] = check << 32 | rows
        self._end = stop
        self.rows = rows
        return True

    def value(self) -> bytes:
        """All of it as a value of the ring; a copy, since a kill may come at any moment."""
        header = HEADER.pack(*self.header._replace(rows=self.rows))
        return b"".join((header, self._view[_ITEMS_PLACE : self._end]))

    def snapshot(self) -> tuple[int, int, bytes] | None:
        """Its first row, the row after the last, and the value: a copy; None without rows."""
        while True:
            header, first_row, rows = self.header, self.first_row, self.rows
            end = _ITEMS_PLACE + rows * self._item_bytes
            items = bytes(self._view[_ITEMS_PLACE:end])
            if self.header is header:  # else another was begun meanwhile
                value = HEADER.pack(*header._replace(rows=rows)) + items
                return (first_row, first_row + rows, value) if rows else None

    def clear(self) -> None:
        """Forget all rows: the ring has them."""
        if self._context is None and not self._word[0]:  # there is nothing, as most often
            return
        self._word[0] = 0
        self.rows = self.stored = 0
        self.header = self.header._replace(rows=0)  # a new one, for ``snapshot``
        self._context = None
        self._end = _ITEMS_PLACE

    def close(self) -> None:
        """Let go of the map; nobody may use it any more."""
        self._word.release()
        self._view.release()
        if isinstance(self._buffer, mmap.mmap):
            self._buffer.close()


def _first_check(first_row: int, context_check: int, item_bytes: int, header: RecordHeader) -> int:
    """The checksum that rows go on from."""
    identity = _IDENTITY.pack(first_row, context_check, item_bytes)
    return zlib.crc32(identity + HEADER.pack(*header._replace(rows=0)))


def pack_bytes(directory: pathlib.Path, limit_bytes: int) -> int:
    """How large the file is to be in a ring with this limit; it does not shrink with rows in it."""
    wanted = min(_MOST_BYTES, limit_bytes // _SHARE // mmap.PAGESIZE * mmap.PAGESIZE)
    found = read_pack(directory)
    return max(wanted, found.file_bytes) if found.rows else wanted


def open_pack(directory: pathlib.Path, size: int) -> OpenPack:
    """Map the file of the newest rows, or make it; where the disk refuses, one that cannot grow."""
    try:
        descriptor = os.open(directory / FILE_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not os.fstat(descriptor).st_size:
                _write_in_place(descriptor)
            os.ftruncate(descriptor, size)
            os.posix_fallocate(descriptor, 0, size)
            return OpenPack(mmap.mmap(descriptor, size), size)
        finally:
            os.close(descriptor)
    except OSError:
        return read_pack(directory, size)


def read_pack(directory: pathlib.Path, size: int = 0) -> OpenPack:
    """What the file holds, which is to be as large, without touching it."""
    found = b""
    with contextlib.suppress(OSError), (directory / FILE_NAME).open("rb") as file:
        found = file.read(_MOST_BYTES)
    return OpenPack(bytearray(found.ljust(_ITEMS_PLACE, b"\0")), size or len(found))


def _write_in_place(descriptor: int) -> None:
    """Have btrfs write an empty file in place: else what is allocated is so for the first time."""
    with contextlib.suppress(OSError):
        flags = bytearray(8)
        fcntl.ioctl(descriptor, _GET_FLAGS, flags)
        (value,) = struct.unpack("l", flags)
        fcntl.ioctl(descriptor, _SET_FLAGS, struct.pack("l", value | _NO_COPY))
