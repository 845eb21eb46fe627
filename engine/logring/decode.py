"""Records back to Arrow record batches in the log schema.

Rules that hold here:
- Values are copied out of the ring's memory before the read transaction ends; what was copied is
  then used as it is: a raw column becomes an Arrow column without another copy.
- No byte is trusted: lengths are checked, an Arrow message is validated in full.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from engine.logring.context import LogContext, list_depth, numpy_type
from engine.logring.header import ARROW, HEADER, PACKED, RecordHeader, is_separate
from engine.logring.pieces import joined

if TYPE_CHECKING:
    from engine.logring.store import Txn

__all__ = ["Piece", "copy_piece", "packed_piece", "read_columns", "to_batch"]

_SMALL_PART_BYTES = 8192
_REMEMBERED = 16  # arrays that many batches share; one takes about as much as their rows
_STEPS = pa.list_(pa.field("steps", pa.uint64(), nullable=False))


@dataclasses.dataclass(slots=True)
class Piece:
    """Some rows of one context, copied out.

    Attributes:
        context: their context.
        rows: how many.
        times_ms: when they were answered, int64 [1] or [rows].
        elapsed_ns: the steps' times, uint64 [1, steps] or [rows, steps].
        body: raw: the bytes of each column; Arrow: the columns themselves.
    """

    context: LogContext
    rows: int
    times_ms: np.ndarray
    elapsed_ns: np.ndarray
    body: list[memoryview] | pa.RecordBatch

    def per_row(self, values: np.ndarray) -> np.ndarray:
        """What all rows share, or have one by one, for each of them."""
        return values if len(values) == self.rows else np.repeat(values, self.rows, axis=0)


def packed_piece(
    context: LogContext, steps: int, parts: Sequence[bytes | memoryview], rows: int
) -> Piece:
    """Rows that were packed one by one, as a piece: each column is cut out of many at once.

    Args:
        context: the rows' context.
        steps: how many steps' times each row has.
        parts: the rows, in any number of runs; they may be views of the ring's memory.
        rows: how many they are.

    Raises:
        ValueError: the parts are not as long as the context says.
    """
    item_bytes = context.packed_bytes(steps)
    size_bytes = sum(map(len, parts))
    if size_bytes != rows * item_bytes:
        raise ValueError(f"{rows} packed rows of {item_bytes} bytes in {size_bytes}")
    if size_bytes < len(parts) * _SMALL_PART_BYTES:
        parts = [b"".join(parts)]  # one copy more is cheaper than many small ones

    def cut(place: int, size: int) -> np.ndarray:
        # as void a value is copied by one call, not byte by byte
        column, row = np.empty(rows, f"V{size}"), 0
        for part in parts:
            count = len(part) // item_bytes
            column[row : row + count] = np.ndarray((count,), f"V{size}", part, place, (item_bytes,))
            row += count
        return column

    times_ms = cut(0, 8).view(np.int64)
    elapsed_ns = cut(8, 8 * steps).view(np.uint64).reshape(rows, steps)
    body, place = [], 8 + 8 * steps
    for stride in context.strides:
        body.append(cut(place, stride).view(np.uint8).data)
        place += stride
    return Piece(context, rows, times_ms, elapsed_ns, body)


def read_columns(
    txn: Txn, key: bytes, value: memoryview, header: RecordHeader, context: LogContext
) -> list[memoryview]:
    """Views of a raw record's columns in the ring's memory; an Arrow record's message.

    Raises:
        ValueError: a column is not there, or the record is not as long as it says.
    """
    offset = HEADER.size + 8 * header.steps
    if header.form == ARROW:
        return [value[offset:]]
    if header.form == PACKED:
        if len(value) != HEADER.size + header.rows * context.packed_bytes(header.steps):
            raise ValueError(f"a record of {len(value)} bytes says that it has {header.rows} rows")
        return []
    columns = []
    for number, stride in enumerate(context.strides):
        size = header.rows * stride
        if not is_separate(number, size):
            columns.append(value[offset : offset + size])
            offset += size
            continue
        column_key = key + bytes([number + 1])
        column = txn.get(column_key)
        if column is not None and len(column) < size:
            column = joined(txn, column_key, column)
        if column is None or len(column) != size:
            raise ValueError(f"column {number} of a record has not {size} bytes")
        columns.append(column)
    if offset != len(value):
        raise ValueError(f"a record of {len(value)} bytes says that it has {offset}")
    return columns


def copy_piece(
    value: memoryview,
    header: RecordHeader,
    context: LogContext,
    columns: Sequence[memoryview],
    rows: slice,
) -> Piece:
    """Copy some rows of a record out of the ring's memory.

    Raises:
        ValueError: an Arrow message is damaged.
    """
    count = rows.stop - rows.start
    if header.form == PACKED:
        size = context.packed_bytes(header.steps)
        start = HEADER.size + rows.start * size
        return packed_piece(context, header.steps, [value[start : start + count * size]], count)
    times_ms = np.array([header.time_ms], np.int64)
    elapsed = bytes(value[HEADER.size : HEADER.size + 8 * header.steps])
    elapsed_ns = np.frombuffer(elapsed, np.uint64).reshape(1, header.steps)
    if header.form != ARROW:
        strides = zip(columns, context.strides, strict=True)
        body = [memoryview(bytes(c[rows.start * n : rows.stop * n])) for c, n in strides]
        return Piece(context, count, times_ms, elapsed_ns, body)
    batch = pa.ipc.read_record_batch(pa.py_buffer(bytes(columns[0])), context.payload)
    batch.validate(full=True)
    if batch.num_rows != header.rows:
        raise ValueError(f"a record of {batch.num_rows} rows says that it has {header.rows}")
    return Piece(context, count, times_ms, elapsed_ns, batch.slice(rows.start, count))


def to_batch(pieces: Sequence[Piece]) -> pa.RecordBatch:
    """Join pieces of one schema into one record batch, in their order.

    Args:
        pieces: at least one; all of one log schema.

    Returns:
        The log schema's columns.
    """
    batches = []
    for run in _runs(pieces):
        if run[0].context.shapes is None:
            payload = _joined([piece.body for piece in run]).columns
        else:
            payload = _raw_payload(run)
        batches.append(_with_own_columns(run, payload))
    return _joined(batches)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def _runs(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Neighbours whose bodies have one layout."""
    runs: list[list[Piece]] = []
    for piece in pieces:
        if runs and runs[-1][0].context.shapes == piece.context.shapes:
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return runs


def _raw_payload(run: Sequence[Piece]) -> list[pa.Array]:
    context = run[0].context
    rows = sum(piece.rows for piece in run)
    leaves: list[pa.Array] = []
    fields = [leaf for field in context.payload for leaf in field.type]
    for index, (leaf, shape) in enumerate(zip(fields, context.shapes or (), strict=True)):
        single = len(run) == 1
        data = run[0].body[index] if single else b"".join([piece.body[index] for piece in run])
        leaves.append(_column(leaf, shape, rows, data))
    columns = []
    for field in context.payload:
        children = [leaves.pop(0) for _ in field.type]
        columns.append(pa.Array.from_buffers(field.type, rows, [None], children=children))
    return columns


def _column(leaf: pa.Field, shape: Sequence[int], rows: int, data: bytes | memoryview) -> pa.Array:
    """Raw values as a column: the values are the bytes, list offsets are counted out."""
    levels = [leaf.type]
    for _ in range(list_depth(leaf)):
        levels.append(levels[-1].value_type)
    counts = [rows]
    for axis in shape:
        counts.append(counts[-1] * axis)
    dtype = numpy_type(leaf)
    if dtype.kind == "b":
        values = pa.array(np.frombuffer(data, dtype).tolist(), pa.bool_())
    else:
        values = pa.Array.from_buffers(levels[-1], counts[-1], [None, pa.py_buffer(data)])
    for depth in range(len(shape) - 1, -1, -1):
        buffers = [None, _offsets(counts[depth], shape[depth])]
        values = pa.Array.from_buffers(levels[depth], counts[depth], buffers, children=[values])
    return values


@functools.lru_cache(maxsize=_REMEMBERED)
def _offsets(count: int, width: int) -> pa.Buffer:
    """Offsets of so many lists that are equally long; one batch is often as large as the next."""
    return pa.py_buffer(np.arange(count + 1, dtype=np.int32) * np.int32(width))


def _with_own_columns(run: Sequence[Piece], payload: list[pa.Array]) -> pa.RecordBatch:
    """Add time and metadata, which a record's header and its context hold once for many rows."""
    schema = run[0].context.schema
    times = np.concatenate([piece.per_row(piece.times_ms) for piece in run])
    columns = {
        field.name: array for field, array in zip(run[0].context.payload, payload, strict=True)
    }
    columns["time"] = _numbers(pa.int64(), times)
    columns["metadata"] = _metadata(run, schema.field("metadata").type)
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def _metadata(run: Sequence[Piece], kind: pa.DataType) -> pa.Array:
    parts: list[tuple[LogContext, int]] = []  # contexts, and for how many rows
    for piece in run:
        if parts and parts[-1][0] is piece.context:
            parts[-1] = piece.context, parts[-1][1] + piece.rows
        else:
            parts.append((piece.context, piece.rows))
    taken = []
    for leaf in kind:
        if leaf.name == "elapsed":
            taken.append(_elapsed(run))
        else:
            constants = [_constant(context, leaf.name, rows) for context, rows in parts]
            taken.append(constants[0] if len(parts) == 1 else pa.concat_arrays(constants))
    return pa.Array.from_buffers(kind, sum(rows for _, rows in parts), [None], children=taken)


@functools.lru_cache(maxsize=_REMEMBERED)
def _constant(context: LogContext, name: str, rows: int) -> pa.Array:
    """A constant of a context for each of so many rows; one batch is often as large as the next."""
    constant = pa.array([context.constants[name]], context.schema.field("metadata").type[name].type)
    if not pa.types.is_string(constant.type):
        return constant.take(_numbers(pa.int64(), np.zeros(rows, np.int64)))
    text = constant[0].as_py().encode()  # four times as quick as take
    buffers = [None, _offsets(rows, len(text)), pa.py_buffer(text * rows)]
    return pa.Array.from_buffers(pa.string(), rows, buffers)


def _elapsed(run: Sequence[Piece]) -> pa.Array:
    parts = [piece.per_row(piece.elapsed_ns) for piece in run]
    rows, widths = sum(map(len, parts)), {part.shape[1] for part in parts}
    if len(widths) == 1:
        offsets = _offsets(rows, widths.pop())
    else:
        lengths = np.repeat([part.shape[1] for part in parts], [len(part) for part in parts])
        places = np.zeros(rows + 1, np.int32)
        np.cumsum(lengths, out=places[1:])
        offsets = pa.py_buffer(places)
    values = np.concatenate([part.reshape(-1) for part in parts])
    data = _numbers(pa.uint64(), values)
    return pa.Array.from_buffers(_STEPS, rows, [None, offsets], children=[data])


def _numbers(kind: pa.DataType, values: np.ndarray) -> pa.Array:
    """A view of an array; ``pa.array`` would import pandas where there is one."""
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])
