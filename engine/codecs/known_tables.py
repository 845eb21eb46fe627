"""Arrow bodies that are like one before them but for their numbers, read without asking again.

A client sends table after table of one schema and size: all bytes are equal then but those of the
numbers. Where they are, everything that was found out about the first one holds, what it declares,
that its schema is accepted and its buffers lie inside it, so that its columns are made of the bytes
where they lie: a tenth of the time of reading a file.

Rules that hold here:
- Nothing is interpreted here: what is known was read by ``read_arrow``, and all bytes that it went
  by are compared. Only bytes of numbers may differ, in which no value is wrong.
- Bytes that two buffers share are never among those that may differ.
- Any thread may read: an entry is made whole and put in place at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from engine.codecs.arrow_columns import ARROW_TYPES, is_list
from engine.codecs.arrow_ipc import Readers, read_arrow
from engine.values import Frame

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any, Final

    from engine.values import Column

    Span = tuple[int, int]  # first byte of a body, and the one after the last

__all__ = ["KnownTables"]

MAX_KNOWN: Final = 64
LENGTH_BYTES: Final = 8  # of a buffer's decoded length, before it in a compressed batch
UNCOMPRESSED: Final = b"\xff" * LENGTH_BYTES  # a length that says: this buffer was left as it is
MAX_FIXED_BYTES: Final = 16 << 10  # compared for each request and kept for each layout
_DTYPES = {kind.id: dtype for dtype, kind in ARROW_TYPES.items()}


@dataclasses.dataclass(frozen=True, slots=True)
class _Level:
    """One level of a column, without nulls: numbers, or lists of the level before.

    Attributes:
        kind: its type.
        length: how many numbers or lists.
        span: where its numbers or offsets lie; None for lists of fixed size.
    """

    kind: pa.DataType
    length: int
    span: Span | None


@dataclasses.dataclass(frozen=True, slots=True)
class _Table:
    """What is known of the bodies of one layout.

    Attributes:
        fixed: the bytes that are equal in all of them, and where each piece begins.
        rows: how many rows they have.
        columns: by name the levels of a column, its numbers first.
        dense: name, shape ``[rows, n]``, type and first byte of columns of lists of fixed size.
        row_shapes: as in a ``Frame``.
    """

    fixed: tuple[tuple[int, bytes], ...]
    rows: int
    columns: dict[str, tuple[_Level, ...]]
    dense: tuple[tuple[str, tuple[int, int], np.dtype[Any], int], ...]
    row_shapes: dict[str, tuple[int, ...]]


class KnownTables:
    """The layouts of the Arrow bodies that were read, by the size of the body."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._known: dict[int, _Table | None] = {}  # None: a size that was met once
        self._readers = Readers()  # of bodies of other sizes

    def read(self, body: bytes | bytearray) -> Frame:
        """Read an Arrow IPC file or stream; see ``read_arrow``, whose answer and errors it has."""
        frame = self.read_known(body)
        if frame is not None:
            return frame
        frame = read_arrow(body, readers=self._readers)
        size = len(body)
        if size in self._known:
            table = _learn(body, frame)
            if table is not None:
                self._known[size] = table
        else:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()  # rather than tracking use on every request
            self._known[size] = None
        return frame

    def read_known(
        self, data: bytes | bytearray, start: int = 0, stop: int | None = None
    ) -> Frame | None:
        """Read a body like one before it; None for any other.

        Args:
            data: holds the body; the Frame's columns are views into it.
            start: the body's first byte, at an address that is a multiple of its numbers' sizes.
            stop: the one after its last; None where it ends with ``data``.

        Returns:
            The rows.
        """
        table = self._known.get((len(data) if stop is None else stop) - start)
        if table is None:
            return None
        for position, piece in table.fixed:
            if not data.startswith(piece, start + position):
                return None
        dense = {}
        for name, shape, dtype, position in table.dense:
            dense[name] = np.ndarray(shape, dtype, data, start + position)
        columns = _Columns(table, data, start)
        return Frame(table.rows, columns, row_shapes=table.row_shapes, dense=dense)


class _Columns(Mapping[str, "Column"]):
    """The columns of a body, made when one of them is asked for: most replies need none."""

    __slots__ = ("_data", "_made", "_start", "_table")

    def __init__(self, table: _Table, data: bytes | bytearray, start: int) -> None:
        self._table = table
        self._data = data
        self._start = start
        self._made: dict[str, Column] = {}

    def __len__(self) -> int:
        return len(self._table.columns)

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.columns)

    def __getitem__(self, name: str) -> Column:
        column = self._made.get(name)
        if column is None:
            column = self._made[name] = _column(self._table.columns[name], self._data, self._start)
        return column


def _column(levels: Sequence[_Level], data: bytes | bytearray, body_start: int) -> pa.Array:
    whole = pa.py_buffer(data).slice(body_start)
    below: list[pa.Array] = []
    for level in levels:
        buffers = [None]
        if level.span is not None:
            start, stop = level.span
            buffers.append(whole.slice(start, stop - start))
        below = [pa.Array.from_buffers(level.kind, level.length, buffers, 0, 0, below or None)]
    return below[0]


def _learn(body: bytes | bytearray, frame: Frame) -> _Table | None:
    """What is to be known of a body that was read; None where it has no such layout."""
    first_address = np.frombuffer(body, np.uint8).ctypes.data
    free: list[Span] = []
    bound: list[Span] = []
    columns = {}
    for name, column in frame.columns.items():
        if isinstance(column, list):
            return None
        levels = _levels(column, first_address)
        if levels is None:
            return None
        columns[name] = levels
        *others, _numbers = column.buffers()
        free += [span for span in (levels[0].span,) if span is not None]
        bound += [_span(buffer, first_address) for buffer in others if buffer is not None]
    fixed = _fixed_pieces(body, sorted(free), bound)
    if fixed is None:
        return None
    dense = tuple(
        (
            name,
            (frame.rows, lists[0].kind.list_size),
            _DTYPES[numbers.kind.id],
            numbers.span[0],
        )
        for name, (numbers, *lists) in columns.items()
        if len(lists) == 1 and lists[0].span is None and numbers.span is not None
    )
    return _Table(fixed, frame.rows, columns, dense, frame.row_shapes)


def _fixed_pieces(
    body: bytes | bytearray, free: Sequence[Span], bound: Sequence[Span]
) -> tuple[tuple[int, bytes], ...] | None:
    """The bytes between those that may differ; None where these do not stand for themselves.

    Args:
        body: the whole body.
        free: where the numbers lie, in order.
        bound: where all other buffers lie.

    Returns:
        Pieces of the body, and where each begins.
    """
    ends = [0, *(stop for _, stop in free)]
    starts = [*(start for start, _ in free), len(body)]
    if (
        # two share bytes, or one lies in memory of its own: it was compressed
        any(end > start for end, start in zip(ends, starts, strict=True))
        or any(one < stop and start < other for start, stop in free for one, other in bound)
        # offsets that the reader made: decompressed, or of another byte order
        or any(not 0 <= start <= stop <= len(body) for start, stop in bound)
        # perhaps of a compressed batch, where lengths before the buffers say how they are read
        or any(body[start - LENGTH_BYTES : start] == UNCOMPRESSED for start, _ in free)
    ):
        return None
    pieces = [(end, bytes(body[end:start])) for end, start in zip(ends, starts, strict=True)]
    too_large = sum(len(piece) for _, piece in pieces) > MAX_FIXED_BYTES
    return None if too_large else tuple(pieces)


def _levels(column: pa.Array, first_address: int) -> tuple[_Level, ...] | None:
    """A column's levels, its numbers first; None where it has nulls or is of another kind."""
    levels: list[_Level] = []
    values = column
    while True:
        if values.null_count or values.offset or not len(values):
            return None
        if not is_list(values.type):
            break
        span = None
        if not pa.types.is_fixed_size_list(values.type):
            span = _span(values.buffers()[1], first_address)
        levels.insert(0, _Level(values.type, len(values), span))
        values = values.values
    dtype = _DTYPES.get(values.type.id)
    if dtype is None:
        return None
    start, _ = _span(values.buffers()[1], first_address)
    levels.insert(
        0, _Level(values.type, len(values), (start, start + len(values) * dtype.itemsize))
    )
    return tuple(levels)


def _span(buffer: pa.Buffer, first_address: int) -> Span:
    start = buffer.address - first_address
    return start, start + buffer.size
