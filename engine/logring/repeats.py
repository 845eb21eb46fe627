"""One-row JSON answers that are like the one before them: what most requests to an edge are.

Rules that hold here:
- A pattern makes the very bytes that the long way makes, or none: it compares everything that a
  row's layout and context depend on, and looks at nothing else.
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
    from engine.values import InferResult

__all__ = ["RowPattern"]


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
