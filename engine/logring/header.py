"""A record in the ring: a header, its steps' times and its values.

Rules that hold here:
- Its layout is the file format: a change needs a new format mark in ``store.py``.
"""

from __future__ import annotations

import dataclasses
import functools
import struct
from array import array
from typing import TYPE_CHECKING, ClassVar, NamedTuple, TypeAlias

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
    "packed_layout",
    "read_header",
]

HEADER = struct.Struct("<HHIIq")  # form, steps, context number, rows, time in ms
SEPARATE_BYTES = 1 << 16  # a raw column with as many is a value of its own
PACKED_BYTES = 1 << 15  # rows with more, one or all that came at once, are not packed with others
_TIME_BYTES = 8
_KNOWN_LAYOUTS = 256  # as many as an encoder knows contexts
_PACKED_SHARE = 2  # nor are rows of a table whose values take less than so many times their times
# forms: the columns' values one after the other; an Arrow IPC message; rows of small answers, each
# its time in ms, its steps' times and its values
RAW, ARROW, PACKED = 1, 2, 3
IN_PIECES = 1 << 8  # beside the form: the value is the first piece of it

Column: TypeAlias = "bytes | memoryview"  # its values, row after row


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
    body: Sequence[Column]
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

    def values(self, context_number: int) -> tuple[bytes, list[tuple[bytes, Column]]]:
        """What to store.

        Args:
            context_number: of its context.

        Returns:
            The value for the record's key: all of it but the large columns; and these as they are,
            each with what to add to the key.
        """
        elapsed_ns, body = self.elapsed_ns, self.body
        form = ARROW if self.context.shapes is None else RAW
        head = HEADER.pack(form, len(elapsed_ns), context_number, self.rows, self.time_ms)
        large: list[tuple[bytes, Column]] = []
        if form == RAW and self.size >= SEPARATE_BYTES:
            body = []
            for number, column in enumerate(self.body):
                if is_separate(number, len(column)):
                    large.append((bytes([number + 1]), column))
                else:
                    body.append(column)
        return b"".join((head, array("Q", elapsed_ns).tobytes(), *body)), large


class PackedLayout:
    """How the rows of answers of one kind lie when they are packed: each with its times.

    Attributes:
        row_bytes: of a row.
        most_rows: how many rows an answer may have to be packed; a transaction costs more.
    """

    __slots__ = ("_fields", "_rows", "most_rows", "row_bytes")

    def __init__(self, context: LogContext, steps: int) -> None:
        """Take the layout of rows with a context and the times of so many steps."""
        self.row_bytes = context.packed_bytes(steps)
        values_bytes = sum(context.strides)
        times_bytes = self.row_bytes - values_bytes
        is_narrow = values_bytes < _PACKED_SHARE * times_bytes
        most_rows = PACKED_BYTES // self.row_bytes
        self.most_rows = min(most_rows, 1) if is_narrow else most_rows
        # as void a value is copied by one call, not byte by byte
        sizes = enumerate((times_bytes, *context.strides))
        self._fields = [(str(number), np.dtype(f"V{size}")) for number, size in sizes]
        self._rows = np.dtype(self._fields)

    def items(
        self, rows: int, time_ms: int, elapsed_ns: Sequence[int], body: Sequence[Column]
    ) -> bytes:
        """The rows of one answer, whose columns are given, one after the other."""
        times = array("q", (time_ms,)).tobytes() + array("Q", elapsed_ns).tobytes()
        if rows == 1:
            return b"".join((times, *body))
        items = np.empty(rows, self._rows)
        for (name, kind), values in zip(self._fields, (times, *body), strict=True):
            if values:
                items[name] = np.frombuffer(values, kind)
        return items.tobytes()


@functools.lru_cache(maxsize=_KNOWN_LAYOUTS)
def packed_layout(context: LogContext, steps: int) -> PackedLayout:
    """The layout of rows with a context and the times of so many steps."""
    return PackedLayout(context, steps)


@dataclasses.dataclass(slots=True)
class PackedRows:
    """Rows of small answers, each of raw values, as they are packed with those of others.

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

    @property
    def size(self) -> int:
        """Bytes of the value, where they become one by themselves."""
        return HEADER.size + len(self.items)

    def values(self, context_number: int) -> tuple[bytes, list[tuple[bytes, Column]]]:
        """What to store under the first row's key, where they become a value by themselves."""
        header = HEADER.pack(PACKED, self.steps, context_number, self.rows, self.oldest_ms)
        return header + self.items, []


class RecordHeader(NamedTuple):
    """What a record says of itself; its time is that of its first row."""

    form: int
    steps: int
    context_number: int
    rows: int
    time_ms: int

    def times_ms(self, value: memoryview) -> np.ndarray:
        """When the rows were answered, int64 [1] or [rows]; a view.

        Raises:
            ValueError: the record is damaged.
        """
        if self.form != PACKED:
            return np.array([self.time_ms], np.int64)
        item_bytes = (len(value) - HEADER.size) // self.rows
        if item_bytes < _TIME_BYTES:
            raise ValueError(f"a record of {len(value)} bytes says that it has {self.rows} rows")
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
