"""Answers that are like the one before them, rows of JSON or tables: what most requests are.

Rules that hold here:
- A pattern makes the very bytes that the long way makes, or none: it compares everything that a
  row's layout and context depend on, and looks at nothing else.
- Few functions and objects are touched: between two requests the model has run, and code that the
  processor's caches have lost takes ten times as long (encoding a table: 12 us in a loop, 100 in an
  engine; by its pattern 3 and 20).
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING

from engine.logring.header import PACKED_BYTES, PackedRows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from engine.logring.context import LogContext
    from engine.values import Array, InferResult

__all__ = ["RowPattern", "TablePattern"]


class RowPattern:
    """What one-row answers of a kind have in common: lists of floats in, arrays out, no checks."""

    __slots__ = ("_context", "_inputs", "_like", "_most_rows", "_outputs", "_pack", "_steps")

    def __init__(self, result: InferResult, context: LogContext) -> None:
        """Take the pattern of an answer; ``of`` says for which ones there is one."""
        self._context = context
        self._like = result  # keeps the identities alive
        self._steps = len(result.elapsed_ns)
        shapes = zip(sorted(result.frame.columns), context.shapes or (), strict=False)
        self._inputs = [(name, math.prod(shape)) for name, shape in shapes]  # they come first
        self._outputs = [
            (output.name, output.per_row, output.values.dtype, output.values.shape)
            for output in result.outputs
        ]
        numbers = "".join([f"{width}d" for _, width in self._inputs])
        arrays = "".join([f"{output.values.nbytes}s" for output in result.outputs])
        no_anomaly = "4x"
        layout = struct.Struct(f"<q{self._steps}Q{numbers}{arrays}{no_anomaly}")
        self._pack = layout.pack
        self._most_rows = PACKED_BYTES // layout.size

    @classmethod
    def of(cls, result: InferResult, context: LogContext) -> RowPattern | None:
        """The pattern of an answer whose columns the context holds as they are, if it has one."""
        columns = result.frame.columns.values()
        if not all(type(column) is list and type(column[0]) is list for column in columns):
            return None
        pattern = cls(result, context)
        return pattern if pattern.rows([result]) else None

    def rows(self, results: Sequence[InferResult]) -> PackedRows | None:
        """The rows of answers like the one that this is of; None where one of them is another."""
        if len(results) > self._most_rows:
            return None
        times_ms: list[int] = []
        items: list[bytes] = []
        try:
            for result in results:
                values = self._values(result)
                if values is None:
                    return None
                times_ms.append(result.time_ms)
                items.append(self._pack(*values))
        except (KeyError, OverflowError, struct.error):
            return None
        if len(items) == 1:
            time_ms = times_ms[0]
            return PackedRows(self._context, self._steps, 1, time_ms, time_ms, items[0])
        oldest_ms, newest_ms = min(times_ms), max(times_ms)
        joined = b"".join(items)
        return PackedRows(self._context, self._steps, len(items), oldest_ms, newest_ms, joined)

    def _values(self, result: InferResult) -> list[Any] | None:
        """What is packed of an answer; None where it is seen to be another kind."""
        like, frame = self._like, result.frame
        columns = frame.columns
        if (
            result.model is not like.model
            or result.pipeline is not like.pipeline
            or result.partition != like.partition
            or result.checks is not None
            or result.shadows
            or result.row_models is not None
            or frame.rows != 1
            or frame.has_literals
            or len(columns) != len(self._inputs)
            or len(result.outputs) != len(self._outputs)
        ):
            return None
        values: list[Any] = [result.time_ms, *result.elapsed_ns]
        for name, width in self._inputs:
            numbers = columns[name][0]
            if type(numbers) is not list or len(numbers) != width:
                return None
            if type(numbers[0]) is not float and float not in map(type, numbers):
                return None  # only integers: another kind of column
            values += numbers
        for output, (name, per_row, dtype, shape) in zip(
            result.outputs, self._outputs, strict=True
        ):
            array = output.values
            if (
                output.name != name
                or array.dtype is not dtype
                or array.shape != shape
                or output.per_row is not per_row
            ):
                return None
            values.append(array.tobytes())
        return values


class TablePattern:
    """What answers to tables of one kind have in common: dense tensors in, arrays out, no checks.

    Attributes:
        context: of all of them.
    """

    __slots__ = ("_inputs", "_like", "_no_anomaly", "_outputs", "context")

    def __init__(self, result: InferResult, context: LogContext) -> None:
        """Take the pattern of an answer; ``of`` says for which ones there is one."""
        self.context = context
        self._like = result.model, result.pipeline, result.partition, result.frame.row_shapes
        self._no_anomaly = b""
        dense = result.frame.dense or {}
        self._inputs = [(name, a.dtype, a.shape[1:]) for name, a in sorted(dense.items())]
        self._outputs = [
            (output.name, output.values.dtype, output.values.shape[1:]) for output in result.outputs
        ]

    @classmethod
    def of(cls, result: InferResult, context: LogContext) -> TablePattern | None:
        """The pattern of an answer whose columns the context holds as they are, if it has one."""
        pattern = cls(result, context)
        return None if pattern.values(result) is None else pattern

    def values(self, result: InferResult) -> list[bytes | memoryview] | None:
        """An answer's columns like ``raw_columns``; None where the answer is another kind."""
        model, pipeline, partition, row_shapes = self._like
        frame, outputs = result.frame, result.outputs
        dense = frame.dense
        if (
            dense is None
            or result.model is not model
            or result.pipeline is not pipeline
            or result.partition != partition
            or result.checks is not None
            or result.shadows
            or result.row_models is not None
            or frame.row_shapes != row_shapes
            or not len(dense) == len(frame.columns) == len(self._inputs)
            or len(outputs) != len(self._outputs)
        ):
            return None
        rows = frame.rows
        values: list[bytes | memoryview] = []
        for name, dtype, shape in self._inputs:
            array = dense.get(name)
            if array is None or array.dtype is not dtype or array.shape != (rows, *shape):
                return None
            values.append(_raw(array))
        for output, (name, dtype, shape) in zip(outputs, self._outputs, strict=True):
            array = output.values
            if (
                output.name != name
                or array.dtype is not dtype
                or array.shape != (rows, *shape)
                or not output.per_row
                or dtype.kind not in "biuf"
            ):
                return None
            values.append(_raw(array))
        no_anomaly = self._no_anomaly
        if len(no_anomaly) != 4 * rows:
            no_anomaly = self._no_anomaly = bytes(4 * rows)
        values.append(no_anomaly)
        return values


def _raw(array: Array) -> bytes | memoryview:
    """An array's bytes, row by row: a view, which takes no longer than a small copy."""
    if array.size and array.flags.c_contiguous:  # nothing cannot be cast
        return array.data.cast("B")
    return array.tobytes()
