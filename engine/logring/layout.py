"""How records lie in a segment, and finding runs of them that look the same.

A record is a header, its steps' times, the values of its small columns one after the other, filled
up to a multiple of 8 bytes, then each large column, filled up likewise. Records of one kind of
request are equally long, so that a whole run of them is one matrix of bytes.

Rules that hold here:
- The layout is the file format: a change needs a new mark in ``segment.py``.
- No byte is trusted: a header that cannot be one is a ValueError, never a wild read.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["HEADER", "LARGE_BYTES", "RecordHeader", "Run", "pack", "padding", "runs"]

HEADER = struct.Struct("<IIQqIIIHH")
_CHECKED = struct.Struct("<IQqIIIHH")  # the header behind its check
_CHECK_BYTES = 4
_WORD = 8
LARGE_BYTES = 1 << 12  # a column with as many is stored behind the small ones, and not joined
_LOOK_AHEAD = 16  # records; 16 times as many wherever all of them look the same
_ZEROS = [bytes(n) for n in range(_WORD)]


class RecordHeader(NamedTuple):
    """What a record says of itself.

    Attributes:
        check: of everything behind it.
        length: bytes of the record, a multiple of 8.
        row: number of its first row.
        time_ms: when its rows were answered.
        context: where in the segment its context is; a context's own size where ``rows`` is 0.
        rows: how many; 0: it is a context.
        plain: bytes up to the first large column.
        steps: how many steps' times follow the header.
        unused: 0.
    """

    check: int
    length: int
    row: int
    time_ms: int
    context: int
    rows: int
    plain: int
    steps: int
    unused: int


class Run(NamedTuple):
    """Records side by side that differ in their values, times and row numbers only.

    Attributes:
        block: the bytes that they lie in.
        at: where the first of them begins.
        records: how many there are.
        header: of the first one.
    """

    block: bytes
    at: int
    records: int
    header: RecordHeader

    @property
    def end(self) -> int:
        """Where the next record begins."""
        return self.at + self.records * self.header.length

    @property
    def stop_row(self) -> int:
        """The row after the last one."""
        return self.header.row + self.records * self.header.rows

    def matrix(self) -> np.ndarray:
        """uint8 [records, bytes of one]; a view."""
        flat = np.frombuffer(self.block, np.uint8, self.end - self.at, self.at)
        return flat.reshape(self.records, self.header.length)

    def times_ms(self) -> np.ndarray:
        """When each record was answered, int64 [records]; a view."""
        words = np.frombuffer(self.block, np.int64, (self.end - self.at) // _WORD, self.at)
        return words[2 :: self.header.length // _WORD]

    def part(self, start: int, stop: int) -> Run:
        """Some of the records."""
        header = self.header
        at = self.at + start * header.length
        moved = header._replace(row=header.row + start * header.rows)
        return Run(self.block, at, stop - start, moved)

    def intact(self, salt: int) -> int:
        """How many records, from the first on, are as they were written."""
        length, plain = self.header.length, self.header.plain
        for number in range(self.records):
            at = self.at + number * length
            check = zlib.crc32(self.block[at + _CHECK_BYTES : at + plain], salt)
            if plain < length:
                words = np.frombuffer(self.block, np.uint64, (length - plain) // _WORD, at + plain)
                check = _with_large(check, int(np.add.reduce(words)))
            if check != int.from_bytes(self.block[at : at + _CHECK_BYTES], "little"):
                return number
        return self.records


def padding(size: int) -> bytes:
    """What fills a size up to whole words."""
    return _ZEROS[-size % _WORD]


def pack(
    fields: tuple[int, ...], plain: bytes, large: Sequence[bytes | memoryview], salt: int
) -> tuple[bytes, bytes]:
    """The header of a record.

    Args:
        fields: what ``RecordHeader`` has, from ``length`` on.
        plain: what follows the header, whole words.
        large: the columns behind that, each whole words but for its padding.
        salt: the segment's.

    Returns:
        The header in two parts, to be joined with what follows.
    """
    rest = _CHECKED.pack(*fields)
    check = zlib.crc32(plain, zlib.crc32(rest, salt))
    if large:
        check = _with_large(check, sum(map(_sum, large)))
    return check.to_bytes(_CHECK_BYTES, "little"), rest


def _sum(column: bytes | memoryview) -> int:
    """The sum of a column's words: a page that a disk never got shows in it, and it is quick."""
    whole = len(column) // _WORD
    tail = int.from_bytes(column[whole * _WORD :], "little")
    return int(np.add.reduce(np.frombuffer(column, np.uint64, whole))) + tail


def _with_large(check: int, total: int) -> int:
    return zlib.crc32((total & (1 << 64) - 1).to_bytes(_WORD, "little"), check)


def runs(block: bytes) -> Iterator[Run]:
    """The runs of records in some bytes; a record that is not complete ends them.

    Raises:
        ValueError: what should be a header is none.
    """
    at, words = 0, np.frombuffer(block, np.uint64, len(block) // _WORD)
    while at + HEADER.size <= len(block):
        header = _header(block, at)
        most = (len(block) - at) // header.length
        if not most:
            return
        count = 1
        if most > 1 and header.rows and _is_next(header, block, at + header.length):
            count = _count(words[at // _WORD :], header, most)
        run = Run(block, at, count, header)
        yield run
        at = run.end


def _header(block: bytes, at: int) -> RecordHeader:
    header = RecordHeader._make(HEADER.unpack_from(block, at))
    smallest = HEADER.size + _WORD * header.steps
    if header.unused or not smallest <= header.plain <= header.length or header.length % _WORD:
        raise ValueError(f"a record starts with {header}")
    return header


def _is_next(header: RecordHeader, block: bytes, at: int) -> bool:
    other = HEADER.unpack_from(block, at)
    return other[1] == header.length and other[2] == header.row + header.rows


def _count(words: np.ndarray, header: RecordHeader, most: int) -> int:
    """How many records look like the first one."""
    width, count, step = header.length // _WORD, 1, _LOOK_AHEAD
    while count < most:
        stop = min(most, count + step)
        found = words[count * width : stop * width].reshape(-1, width)
        rows = np.arange(count, stop, dtype=np.uint64) * np.uint64(header.rows)
        same = (
            (found[:, 0] >> np.uint64(32) == header.length)
            & (found[:, 1] == rows + np.uint64(header.row))
            & (found[:, 3] == words[3])
            & (found[:, 4] == words[4])
        )
        if not same.all():
            return count + int(np.argmin(same))
        count, step = stop, step * _LOOK_AHEAD
    return count
