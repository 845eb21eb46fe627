"""Records back to Arrow record batches in the log schema.

Rules that hold here:
- A column of a whole run of records is cut out of their bytes at once; where it lies in one piece
  it becomes an Arrow column without a copy.
- No byte is trusted: lengths are checked, an Arrow message is validated in full.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from engine.logring.context import LogContext, list_depth, numpy_type
from engine.logring.layout import HEADER, LARGE_BYTES

if TYPE_CHECKING:
    from engine.logring.layout import RecordHeader, Run

__all__ = ["Piece", "to_batch"]

_STEPS = pa.list_(pa.field("steps", pa.uint64(), nullable=False))


@dataclasses.dataclass(slots=True)
class Piece:
    """Some rows of a run of records.

    Attributes:
        context: the records' context.
        run: the records; one where they are Arrow messages.
        rows: which of their rows, counted from the run's first.
        body: raw: the bytes of each column; Arrow: the columns themselves.
    """

    context: LogContext
    run: Run
    rows: slice
    body: list[memoryview] | pa.RecordBatch

    @classmethod
    def cut(cls, context: LogContext, run: Run, rows: slice) -> Piece:
        """Cut rows out of a run.

        Raises:
            ValueError: the records are damaged.
        """
        if context.shapes is None:
            return cls(context, run, rows, _message(context, run, rows))
        places = _places(run.header, context.strides)
        pairs = zip(places, context.strides, strict=True)
        return cls(context, run, rows, [_column_bytes(run, rows, *pair) for pair in pairs])

    @property
    def count(self) -> int:
        """How many rows."""
        return int(self.rows.stop - self.rows.start)

    def per_row(self, values: np.ndarray) -> np.ndarray:
        """What each record has, [records, …], for each of the rows."""
        rows = self.run.header.rows
        return (values if rows == 1 else np.repeat(values, rows, axis=0))[self.rows]

    def elapsed_ns(self) -> np.ndarray:
        """The steps' times of each row, uint64 [rows, steps]."""
        steps = self.run.header.steps
        cut = self.run.matrix()[:, HEADER.size : HEADER.size + 8 * steps]
        times = np.ascontiguousarray(cut).view(np.uint64).reshape(self.run.records, steps)
        return self.per_row(times)


def _places(header: RecordHeader, strides: Sequence[int]) -> list[int]:
    """Where in a record its raw columns begin."""
    small, large = HEADER.size + 8 * header.steps, header.plain
    places = []
    for stride in strides:
        size = header.rows * stride
        if size < LARGE_BYTES:
            places.append(small)
            small += size
        else:
            places.append(large)
            large += -(-size // 8) * 8
    if -(-small // 8) * 8 != header.plain or large != header.length:
        raise ValueError(f"a record of {header.length} bytes is not as long as its columns")
    return places


def _column_bytes(run: Run, rows: slice, place: int, stride: int) -> memoryview:
    if run.records == 1:
        begin = run.at + place
        return memoryview(run.block)[begin + rows.start * stride : begin + rows.stop * stride]
    cut = run.matrix()[:, place : place + run.header.rows * stride]
    return np.ascontiguousarray(cut).reshape(-1)[rows.start * stride : rows.stop * stride].data


def _message(context: LogContext, run: Run, rows: slice) -> pa.RecordBatch:
    begin = run.at + HEADER.size + 8 * run.header.steps
    message = pa.py_buffer(memoryview(run.block)[begin : run.end])
    try:
        batch = pa.ipc.read_record_batch(message, context.payload)
        batch.validate(full=True)
    except OSError as error:
        raise ValueError(str(error)) from error
    if batch.num_rows != run.header.rows:
        raise ValueError(f"{batch.num_rows} rows in a record that says {run.header.rows}")
    return batch.slice(rows.start, rows.stop - rows.start)


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
    rows = sum(piece.count for piece in run)
    leaves: list[pa.Array] = []
    fields = [leaf for field in context.payload for leaf in field.type]
    for index, (leaf, shape) in enumerate(zip(fields, context.shapes or (), strict=True)):
        parts = [piece.body[index] for piece in run]
        leaves.append(_column(leaf, shape, rows, parts[0] if len(run) == 1 else b"".join(parts)))
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
        offsets = np.arange(counts[depth] + 1, dtype=np.int32) * np.int32(shape[depth])
        buffers = [None, pa.py_buffer(offsets)]
        values = pa.Array.from_buffers(levels[depth], counts[depth], buffers, children=[values])
    return values


def _with_own_columns(run: Sequence[Piece], payload: list[pa.Array]) -> pa.RecordBatch:
    """Add time and metadata, which a record's header and its context hold once for many rows."""
    schema = run[0].context.schema
    times = np.concatenate([piece.per_row(piece.run.times_ms()) for piece in run])
    columns = {
        field.name: array for field, array in zip(run[0].context.payload, payload, strict=True)
    }
    columns["time"] = _numbers(pa.int64(), times)
    columns["metadata"] = _metadata(run, schema.field("metadata").type)
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def _metadata(run: Sequence[Piece], kind: pa.DataType) -> pa.Array:
    contexts = list({id(piece.context): piece.context for piece in run}.values())
    constants = pa.array([{**c.constants, "elapsed": []} for c in contexts], kind)
    place = {id(context): index for index, context in enumerate(contexts)}
    places = np.array([place[id(piece.context)] for piece in run], np.int64)
    chosen = _numbers(pa.int64(), np.repeat(places, [piece.count for piece in run]))
    taken = [
        _elapsed(run) if leaf.name == "elapsed" else constants.field(i).take(chosen)
        for i, leaf in enumerate(kind)
    ]
    return pa.Array.from_buffers(kind, len(chosen), [None], children=taken)


def _elapsed(run: Sequence[Piece]) -> pa.Array:
    parts = [piece.elapsed_ns() for piece in run]
    lengths = np.repeat([part.shape[1] for part in parts], [len(part) for part in parts])
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    values = np.concatenate([part.reshape(-1) for part in parts])
    data = _numbers(pa.uint64(), values)
    return pa.Array.from_buffers(
        _STEPS, len(lengths), [None, pa.py_buffer(offsets)], children=[data]
    )


def _numbers(kind: pa.DataType, values: np.ndarray) -> pa.Array:
    """A view of an array; ``pa.array`` would import pandas where there is one."""
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])
