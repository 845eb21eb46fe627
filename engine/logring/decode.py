"""Records back to Arrow record batches in the log schema.

Rules that hold here:
- Values are copied out of the ring's memory before the read transaction ends; what was copied is
  then used as it is: a raw column becomes an Arrow column without another copy.
- No byte is trusted: lengths are checked, an Arrow message is validated in full.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from engine.logring.context import LogContext, list_depth, numpy_type
from engine.logring.header import ARROW, HEADER, SEPARATE_BYTES, RecordHeader

if TYPE_CHECKING:
    from engine.logring.store import Txn

__all__ = ["Piece", "copy_piece", "read_columns", "to_batch"]

_STEPS = pa.list_(pa.field("steps", pa.uint64(), nullable=False))


@dataclasses.dataclass(slots=True)
class Piece:
    """Some rows of one record, copied out.

    Attributes:
        context: the record's context.
        rows: how many rows.
        time_ms: when they were answered.
        elapsed: the steps' times, as stored.
        body: raw: the bytes of each column; Arrow: the columns themselves.
    """

    context: LogContext
    rows: int
    time_ms: int
    elapsed: bytes
    body: list[bytes] | pa.RecordBatch


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
    columns = []
    for number, stride in enumerate(context.strides):
        size = header.rows * stride
        if size < SEPARATE_BYTES:
            columns.append(value[offset : offset + size])
            offset += size
            continue
        column = txn.get(key + bytes([number + 1]))
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
    elapsed = bytes(value[HEADER.size : HEADER.size + 8 * header.steps])
    if header.form != ARROW:
        strides = zip(columns, context.strides, strict=True)
        body = [bytes(column[rows.start * n : rows.stop * n]) for column, n in strides]
        return Piece(context, count, header.time_ms, elapsed, body)
    batch = pa.ipc.read_record_batch(pa.py_buffer(bytes(columns[0])), context.payload)
    batch.validate(full=True)
    if batch.num_rows != header.rows:
        raise ValueError(f"a record of {batch.num_rows} rows says that it has {header.rows}")
    return Piece(context, count, header.time_ms, elapsed, batch.slice(rows.start, count))


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


def _column(leaf: pa.Field, shape: Sequence[int], rows: int, data: bytes) -> pa.Array:
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
        offsets = np.arange(counts[depth] + 1, dtype=np.int32) * np.int32(shape[depth])
        buffers = [None, pa.py_buffer(offsets)]
        values = pa.Array.from_buffers(levels[depth], counts[depth], buffers, children=[values])
    return values


def _with_own_columns(run: Sequence[Piece], payload: list[pa.Array]) -> pa.RecordBatch:
    """Add time and metadata, which the header and the context hold once for many rows."""
    schema = run[0].context.schema
    counts = np.array([piece.rows for piece in run])
    times = np.repeat(np.array([piece.time_ms for piece in run], np.int64), counts)
    columns = {
        field.name: array for field, array in zip(run[0].context.payload, payload, strict=True)
    }
    columns["time"] = _numbers(pa.int64(), times)
    columns["metadata"] = _metadata(run, counts, schema.field("metadata").type)
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def _metadata(run: Sequence[Piece], counts: np.ndarray, kind: pa.DataType) -> pa.Array:
    contexts = list({id(piece.context): piece.context for piece in run}.values())
    constants = pa.array([{**c.constants, "elapsed": []} for c in contexts], kind)
    place = {id(context): index for index, context in enumerate(contexts)}
    places = np.array([place[id(piece.context)] for piece in run], np.int64)
    chosen = _numbers(pa.int64(), np.repeat(places, counts))
    taken = [
        _elapsed(run, counts) if leaf.name == "elapsed" else constants.field(i).take(chosen)
        for i, leaf in enumerate(kind)
    ]
    return pa.Array.from_buffers(kind, len(chosen), [None], children=taken)


def _elapsed(run: Sequence[Piece], counts: np.ndarray) -> pa.Array:
    steps = np.array([len(piece.elapsed) // 8 for piece in run])
    times = np.frombuffer(b"".join([piece.elapsed for piece in run]), np.uint64)
    starts = np.cumsum(steps) - steps
    lengths = np.repeat(steps, counts)
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    if len(run) == 1:
        values = np.tile(times, counts[0])
    elif (steps == steps[0]).all():
        values = np.repeat(times.reshape(len(run), -1), counts, axis=0).reshape(-1)
    else:
        parts = zip(starts, steps, counts, strict=True)
        values = np.concatenate([np.tile(times[a : a + n], rows) for a, n, rows in parts])
    data = _numbers(pa.uint64(), values)
    return pa.Array.from_buffers(
        _STEPS, len(lengths), [None, pa.py_buffer(offsets)], children=[data]
    )


def _numbers(kind: pa.DataType, values: np.ndarray) -> pa.Array:
    """A view of an array; ``pa.array`` would import pandas where there is one."""
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])
