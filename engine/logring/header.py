"""A record in the ring: a header, its steps' times and its values.

Rules that hold here:
- Its layout is the file format: a change needs a new format mark in ``store.py``.
"""

from __future__ import annotations

import dataclasses
import struct
from array import array
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.logring.context import LogContext

__all__ = [
    "ARROW",
    "HEADER",
    "IN_PIECES",
    "PACKED",
    "PACKED_BYTES",
    "RAW",
    "PackedRows",
    "Record",
    "RecordHeader",
    "is_separate",
    "read_header",
]

HEADER = struct.Struct("<HHIIq")  # form, steps, context number, rows, time in ms
SEPARATE_BYTES = 1 << 16  # a raw column with as many is a value of its own
PACKED_BYTES = 1 << 15  # rows with more, one or all that came at once, are not packed with others
# forms: the columns' values one after the other; an Arrow IPC message; rows that were answered one
# by one, each its time in ms, its steps' times and its values
RAW, ARROW, PACKED = 1, 2, 3
IN_PIECES = 1 << 8  # beside the form: the value is the first piece of it


def is_separate(number: int, size_bytes: int) -> bool:
    """Whether a raw column is a value of its own: a large one, whose number a byte can say."""
    return size_bytes >= SEPARATE_BYTES and number < 0xFF


@dataclasses.dataclass(slots=True)
class Record:
    """Rows that become one value in the ring.

    Attributes:
        context: what it shares with others.
        rows: how many rows.
        time_ms: when they were answered, ms since the epoch.
        elapsed_ns: time to decode, then of each step.
        body: the values, to be joined; views that must not change before the append.
        size: bytes of the value.
    """

    context: LogContext
    rows: int
    time_ms: int
    elapsed_ns: Sequence[int]
    body: Sequence[bytes | memoryview]
    size: int

    @property
    def value_count(self) -> int:
        """How many values of the ring it takes, at most."""
        return len(self.body)

    @property
    def oldest_ms(self) -> int:
        """The earliest of its rows' times."""
        return self.time_ms

    @property
    def newest_ms(self) -> int:
        """The latest of its rows' times."""
        return self.time_ms

    def value(self, context_number: int) -> bytes:
        """What to store under the record's key: all of it but the large columns."""
        elapsed_ns = self.elapsed_ns
        form = ARROW if self.context.shapes is None else RAW
        head = HEADER.pack(form, len(elapsed_ns), context_number, self.rows, self.time_ms)
        body = self.body
        if form == RAW and self.size >= SEPARATE_BYTES:
            body = [part for number, part in enumerate(body) if not is_separate(number, len(part))]
        return b"".join((head, array("Q", elapsed_ns).tobytes(), *body))

    def large(self) -> list[tuple[bytes, bytes | memoryview]]:
        """Columns to store as they are, each with what to add to the record's key."""
        if self.size < SEPARATE_BYTES or self.context.shapes is None:
            return []
        return [
            (bytes([number + 1]), column)
            for number, column in enumerate(self.body)
            if is_separate(number, len(column))
        ]


@dataclasses.dataclass(slots=True)
class PackedRows:
    """Rows that were answered one by one, each of raw values, as they are packed with others.

    Attributes:
        context: what they share with others.
        steps: how many steps' times each has.
        rows: how many rows.
        oldest_ms: the earliest of their times, ms since the epoch.
        newest_ms: the latest.
        items: each its time in ms, its steps' times and its values, one row after the other.
    """

    context: LogContext
    steps: int
    rows: int
    oldest_ms: int
    newest_ms: int
    items: bytes
    value_count: ClassVar[int] = 1

    @classmethod
    def of(
        cls,
        context: LogContext,
        time_ms: int,
        elapsed_ns: Sequence[int],
        body: Sequence[bytes | memoryview],
    ) -> PackedRows:
        """A single row."""
        times = array("q", (time_ms,)).tobytes() + array("Q", elapsed_ns).tobytes()
        return cls(context, len(elapsed_ns), 1, time_ms, time_ms, b"".join((times, *body)))

    @property
    def size(self) -> int:
        """Bytes of the value, where they become one by themselves."""
        return HEADER.size + len(self.items)

    def value(self, context_number: int) -> bytes:
        """What to store under the first row's key, where they become a value by themselves."""
        header = HEADER.pack(PACKED, self.steps, context_number, self.rows, self.oldest_ms)
        return header + self.items

    def large(self) -> list[tuple[bytes, bytes | memoryview]]:
        """Columns to store as they are: none."""
        return []


class RecordHeader(NamedTuple):
    """What a record says of itself; its time is that of its first row."""

    form: int
    steps: int
    context_number: int
    rows: int
    time_ms: int

    def times_ms(self, value: memoryview) -> np.ndarray:
        """When the rows were answered, int64 [1] or [rows]; a view."""
        if self.form != PACKED:
            return np.array([self.time_ms], np.int64)
        item_bytes = (len(value) - HEADER.size) // self.rows
        return np.ndarray((self.rows,), np.int64, value, HEADER.size, (item_bytes,))


def read_header(value: memoryview) -> RecordHeader:
    """Read a record's header, in whose first piece it is.

    Raises:
        ValueError: the record is damaged.
    """
    if len(value) < HEADER.size:
        raise ValueError(f"a record of {len(value)} bytes is shorter than its header")
    header = RecordHeader._make(HEADER.unpack_from(value))
    if header.form & IN_PIECES:
        header = header._replace(form=header.form ^ IN_PIECES)
    if header.form not in {RAW, ARROW, PACKED} or not header.rows:
        raise ValueError(f"a record starts with {header}")
    return header
