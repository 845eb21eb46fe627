"""One file of the log: a header, then records one after the other, in space that is its own.

Rules that hold here:
- A segment is written from its beginning to its end, by one thread at a time; what lies before
  ``tail`` never changes until the segment is used anew.
- Used anew it is another ``Segment``; the old one is marked evicted *before* the first byte is
  overwritten, so that a reader who looks at the mark after reading knows whether it read rows.
- What an earlier use left behind is never taken for a record: the check of each begins with the
  segment's salt, and rows are counted on.
- Files are read, never mapped: a truncated map is a SIGBUS.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import struct
import zlib
from typing import TYPE_CHECKING, Self

from engine.logring.layout import HEADER, runs

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Sequence

    from engine.logring.layout import Run

__all__ = ["HEAD_BYTES", "EvictedError", "Segment", "SegmentFile"]

log = logging.getLogger("sagitta")

_MARK = b"sagilog1"
_HEAD = struct.Struct("<8sQIQIqq")  # mark, first row, salt; once sealed: stop row, end, low, high
HEAD_BYTES = 64
BLOCK_BYTES = 1 << 19  # what a reader reads at a time
_NEVER_MS = 1 << 62

_Tail = tuple[int, int]


class EvictedError(Exception):
    """The segment's rows left while they were read."""


class SegmentFile:
    """An open file.

    Attributes:
        path: where it is.
        size_bytes: how long it is; it does not grow.
        descriptor: open for reading, and for writing where the log is.
    """

    def __init__(self, path: pathlib.Path, flags: int) -> None:
        """Open a file; ``flags`` as of ``os.open``."""
        self.path = path
        self.descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
        self.size_bytes = os.fstat(self.descriptor).st_size

    def resize(self, size_bytes: int) -> None:
        """Make the file so long, with holes where it grows."""
        os.ftruncate(self.descriptor, size_bytes)
        self.size_bytes = size_bytes

    def close(self) -> None:
        """Close it; nobody may be reading."""
        os.close(self.descriptor)


class Segment:
    """One use of a file, from its first row to the moment when it is used anew.

    Attributes:
        file: where its bytes are.
        first_row: number of its first row.
        salt: what the checks of its records begin with.
        tail: where the next record goes, and the row after the last one.
        low_ms: earliest time of a row.
        high_ms: latest time of a row.
        is_evicted: its rows have left.
        is_dirty: it has bytes that the disk was not asked to keep.
    """

    __slots__ = (
        "_blocks",
        "file",
        "first_row",
        "high_ms",
        "is_dirty",
        "is_evicted",
        "low_ms",
        "salt",
        "tail",
    )

    def __init__(self, file: SegmentFile, first_row: int, salt: int) -> None:
        """Describe a use of a file that has no row yet."""
        self.file = file
        self.first_row = first_row
        self.salt = salt
        self.tail: _Tail = (HEAD_BYTES, first_row)
        self.low_ms, self.high_ms = _NEVER_MS, -_NEVER_MS
        self.is_evicted = self.is_dirty = False
        self._blocks: list[tuple[int, int]] | None = []  # first row and place; None = unknown yet

    @classmethod
    def begin(cls, file: SegmentFile, first_row: int) -> Self:
        """Use a file from its beginning; what it held is lost.

        Raises:
            OSError: the disk refuses.
        """
        segment = cls(file, first_row, int.from_bytes(os.urandom(4), "little"))
        segment._write_head(0, 0)
        return segment

    @classmethod
    def open(cls, file: SegmentFile, *, is_trusted: bool) -> Self | None:
        """Find out what a file holds.

        Args:
            file: may be anything.
            is_trusted: what its header says of a full segment may be believed; else every record
                is checked.

        Returns:
            The segment with its intact records; None where there is none.
        """
        head = os.pread(file.descriptor, HEAD_BYTES, 0)
        if len(head) < HEAD_BYTES or not head.startswith(_MARK):
            return None
        _, first_row, salt, stop_row, end, low_ms, high_ms = _HEAD.unpack_from(head)
        if int.from_bytes(head[_HEAD.size : _HEAD.size + 4], "little") != _check(head):
            return None
        segment = cls(file, first_row, salt)
        if is_trusted and end and end <= file.size_bytes:
            segment.tail, segment.low_ms, segment.high_ms = (end, stop_row), low_ms, high_ms
            segment._blocks = None
        else:
            segment._blocks, segment.tail = segment._scan(file.size_bytes, is_checked=True)
        return segment if segment.tail[1] > first_row else None

    def seal(self) -> None:
        """Note in the header that the segment is full and what it holds."""
        self._write_head(self.tail[1], self.tail[0])

    def _write_head(self, stop_row: int, end: int) -> None:
        fields = (_MARK, self.first_row, self.salt, stop_row, end, self.low_ms, self.high_ms)
        head = _HEAD.pack(*fields)
        whole = head + _check(head).to_bytes(4, "little")
        _write_all(self.file.descriptor, [whole.ljust(HEAD_BYTES, b"\0")], 0)
        self.is_dirty = True

    def note_time(self, time_ms: int) -> None:
        """Take the time of a row into account, before it is written."""
        if not self.low_ms <= time_ms <= self.high_ms:
            self.low_ms, self.high_ms = min(self.low_ms, time_ms), max(self.high_ms, time_ms)

    def write(self, parts: Sequence[bytes | memoryview], tail: tuple[int, int]) -> None:
        """Write records behind the last one.

        Args:
            parts: their bytes.
            tail: what ``tail`` is once they are written.

        Raises:
            OSError: the disk refuses; the segment is as it was.
        """
        _write_all(self.file.descriptor, parts, self.tail[0])
        blocks = self._blocks
        if blocks is not None and (not blocks or tail[0] - blocks[-1][1] > BLOCK_BYTES):
            blocks.append((self.tail[1], self.tail[0]))
        self.is_dirty = True
        self.tail = tail

    def blocks(self) -> list[tuple[int, int]]:
        """First row and place of every block; grows while rows are written.

        Raises:
            EvictedError: the rows left meanwhile.
        """
        if self._blocks is None:
            said = self.tail
            blocks, self.tail = self._scan(said[0], is_checked=False)
            self._blocks = blocks
            if self.tail != said:
                log.error(
                    "the inference log is damaged: rows %d to %d of %s cannot be read",
                    self.tail[1],
                    said[1] - 1,
                    self.file.path,
                )
        return self._blocks

    def read(self, number: int) -> bytes:
        """The bytes of a block.

        Raises:
            EvictedError: they are not the segment's any more.
            ValueError: the file is shorter than it was.
        """
        blocks = self.blocks()
        start = blocks[number][1]
        stop = blocks[number + 1][1] if number + 1 < len(blocks) else self.tail[0]
        data = self._read(start, stop - start)
        if len(data) < stop - start:
            raise ValueError(f"{self.file.path} was cut off at {start + len(data)} bytes")
        return data

    def read_record(self, place: int) -> bytes:
        """The bytes of one record, by where it is.

        Raises:
            EvictedError: they are not the segment's any more.
            ValueError: there is no record.
        """
        head = self._read(place, HEADER.size)
        if not HEAD_BYTES <= place < self.tail[0] or len(head) < HEADER.size:
            raise ValueError(f"{self.file.path} has no record at {place}")
        return self._read(place, min(HEADER.unpack(head)[1], self.tail[0] - place))

    def _read(self, place: int, size: int) -> bytes:
        data = os.pread(self.file.descriptor, size, place)
        if self.is_evicted:
            raise EvictedError
        return data

    def _scan(self, limit: int, *, is_checked: bool) -> tuple[list[tuple[int, int]], _Tail]:
        """Walk over the records: the blocks, where the records end, and the row after them."""
        blocks: list[tuple[int, int]] = []
        place, row = HEAD_BYTES, self.first_row
        while True:
            block = self._read(place, min(BLOCK_BYTES, limit - place))
            if len(block) >= HEADER.size:
                length = HEADER.unpack_from(block)[1]
                if len(block) < length <= limit - place:
                    block = self._read(place, length)
            walked, stop = self._walk(block, row, is_checked=is_checked)
            if not walked:
                return blocks, (place, row)
            blocks.append((row, place))
            place, row = place + walked, stop

    def _walk(self, block: bytes, row: int, *, is_checked: bool) -> tuple[int, int]:
        """How many bytes of a block are records of ours, and the row after them."""
        walked = 0
        with contextlib.suppress(ValueError):  # what lies behind the last record is anything
            for run in runs(block):
                good = self._good(run, row, is_checked=is_checked)
                walked = run.at + good * run.header.length
                row += good * run.header.rows
                if good < run.records:
                    break
        return walked, row

    def _good(self, run: Run, row: int, *, is_checked: bool) -> int:
        """How many of the records are ours and whole."""
        if run.header.row != row:
            return 0
        if not is_checked:
            return run.records
        count = run.intact(self.salt)
        if count and run.header.rows:
            times = run.times_ms()[:count]
            self.low_ms = min(self.low_ms, int(times.min()))
            self.high_ms = max(self.high_ms, int(times.max()))
        return count


def _check(head: bytes) -> int:
    return zlib.crc32(head[: _HEAD.size])


def _write_all(descriptor: int, parts: Sequence[bytes | memoryview], place: int) -> None:
    """Write at a place, whole or not at all as far as anybody can tell.

    Raises:
        OSError: the disk refuses, or is full in between.
    """
    if len(parts) == 1:
        written, size = os.pwrite(descriptor, parts[0], place), len(parts[0])
    else:
        written, size = os.pwritev(descriptor, parts, place), sum(map(len, parts))
    if written != size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
