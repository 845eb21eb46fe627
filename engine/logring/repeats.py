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

from engine.logring.header import PACKED_BYTES, packed_layout

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from engine.logring.context import LogContext
    from engine.values import Array, InferResult, Output

__all__ = ["RowPattern", "TablePattern"]


class RowPattern:
    """What one-row answers of a kind have in common: lists of floats in, arrays out, no checks.

    Attributes:
        context: of all of them.
        steps: how many steps' times each has.
        row_bytes: of a row as ``PackedRows`` has it.
    """

    __slots__ = (
        "_inputs",
        "_like",
        "_most_rows",
        "_outputs",
        "_pack",
        "_same_outputs",
        "context",
        "row_bytes",
        "steps",
    )

    def __init__(self, result: InferResult, context: LogContext) -> None:
        """Take the pattern of an answer; ``of`` says for which ones there is one."""
        self.context = context
        self.steps = len(result.elapsed_ns)
        self._like = result  # keeps the identities alive
        shapes = zip(sorted(result.frame.columns), context.shapes or (), strict=False)
        self._inputs = [(name, math.prod(shape)) for name, shape in shapes]  # they come first
        self._outputs = [
            (o.name, o.per_row, o.values.dtype, o.values.shape) for o in result.outputs
        ]
        self._same_outputs = result.outputs
        numbers = "".join([f"{width}d" for _, width in self._inputs])
        arrays = "".join([f"{output.values.nbytes}s" for output in result.outputs])
        no_anomaly = "4x"
        layout = struct.Struct(f"<q{self.steps}Q{numbers}{arrays}{no_anomaly}")
        self._pack = layout.pack
        self.row_bytes = layout.size
        self._most_rows = PACKED_BYTES // layout.size

    @classmethod
    def of(cls, result: InferResult, context: LogContext) -> RowPattern | None:
        """The pattern of an answer whose columns the context holds as they are, if it has one."""
        columns = result.frame.columns.values()
        if not all(type(column) is list and type(column[0]) is list for column in columns):
            return None
        pattern = cls(result, context)
        return None if pattern.items([result]) is None else pattern

    def items(self, results: Sequence[InferResult]) -> bytes | None:
        """The rows of answers like the one that this is of, each as ``PackedRows`` has it.

        Args:
            results: the answers.

        Returns:
            The rows, one after the other; None where one of them is another, or is older than the
            one before it.
        """
        like, time_ms = self._like, 0
        items: list[bytes] = []
        if len(results) > self._most_rows:
            return None
        try:
            for result in results:
                frame, outputs = result.frame, result.outputs
                if (
                    result.time_ms < time_ms
                    or result.model is not like.model
                    or result.pipeline is not like.pipeline
                    or result.partition != like.partition
                    or result.checks is not None
                    or result.shadows
                    or result.row_models is not None
                    or frame.rows != 1
                    or frame.has_literals
                    or len(frame.columns) != len(self._inputs)
                    or (outputs is not self._same_outputs and not self._has_same(outputs))
                ):
                    return None
                time_ms = result.time_ms
                values: list[Any] = [time_ms, *result.elapsed_ns]
                for name, width in self._inputs:
                    numbers = frame.columns[name][0]
                    if type(numbers) is not list or len(numbers) != width:
                        return None
                    if type(numbers[0]) is not float and float not in map(type, numbers):
                        return None  # only integers: another kind of column
                    values += numbers
                for output in outputs:
                    values.append(output.values.tobytes())
                items.append(self._pack(*values))
        except Exception:  # noqa: BLE001 - whatever it is, the long way tells
            return None
        return b"".join(items)

    def _has_same(self, outputs: tuple[Output, ...]) -> bool:
        """Whether these are outputs of this kind; the next answer may have the very same ones."""
        if len(outputs) != len(self._outputs):
            return False
        for output, (name, per_row, dtype, shape) in zip(outputs, self._outputs, strict=True):
            values = output.values
            if (
                output.name != name
                or values.dtype is not dtype
                or values.shape != shape
                or output.per_row is not per_row
            ):
                return False
        self._same_outputs = outputs
        return True


class TablePattern:
    """What answers to tables of one kind have in common: dense tensors in, arrays out, no checks.

    Attributes:
        context: of all of them.
        row_bytes: of a row as ``PackedRows`` has it.
    """

    __slots__ = (
        "_inputs",
        "_layout",
        "_like",
        "_no_anomaly",
        "_outputs",
        "_steps",
        "context",
        "row_bytes",
    )

    def __init__(self, result: InferResult, context: LogContext) -> None:
        """Take the pattern of an answer; ``of`` says for which ones there is one."""
        self.context = context
        self._steps = len(result.elapsed_ns)
        self._layout = packed_layout(context, self._steps)
        self.row_bytes = self._layout.row_bytes
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

    def items(self, results: Sequence[InferResult]) -> bytes | None:
        """The rows of answers to small tables like the one that this is of; as ``RowPattern``'s."""
        parts: list[bytes] = []
        layout, time_ms, rows_left = self._layout, 0, self._layout.most_rows
        for result in results:
            rows, elapsed_ns = result.frame.rows, result.elapsed_ns
            rows_left -= rows
            if not rows or rows_left < 0 or result.time_ms < time_ms:
                return None
            values = self.values(result)
            if values is None or len(elapsed_ns) != self._steps:
                return None
            time_ms = result.time_ms
            parts.append(layout.items(rows, time_ms, elapsed_ns, values))
        return b"".join(parts)

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
