"""One-row JSON answers that are like the one before them: what most requests to an edge are.

Rules that hold here:
- A pattern makes the very record that the long way makes, or none: it compares everything that the
  record's layout and context depend on, and looks at nothing else.
"""

from __future__ import annotations

import math
from array import array
from typing import TYPE_CHECKING

from engine.logring.header import HEADER, SEPARATE_BYTES, Record

if TYPE_CHECKING:
    from engine.logring.context import LogContext
    from engine.values import Frame, InferResult

__all__ = ["RowPattern"]

_NO_ANOMALY = bytes(4)


class RowPattern:
    """What one-row answers of a kind have in common: lists of floats in, arrays out, no checks."""

    __slots__ = ("_context", "_inputs", "_like", "_outputs", "_size", "_steps")

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
        self._size = HEADER.size + 8 * self._steps + sum(context.strides)

    @classmethod
    def of(cls, result: InferResult, context: LogContext) -> RowPattern | None:
        """The pattern of an answer whose columns the context holds as they are, if it has one."""
        columns = result.frame.columns.values()
        if (
            not all(type(column) is list and type(column[0]) is list for column in columns)
            or max(context.strides) >= SEPARATE_BYTES
        ):
            return None
        pattern = cls(result, context)
        return pattern if pattern.record(result) else None

    def record(self, result: InferResult) -> Record | None:
        """The record of an answer like the one that this is of; None where it is another."""
        like = self._like
        if (
            result.model is not like.model
            or result.pipeline is not like.pipeline
            or result.partition != like.partition
            or result.checks is not None
            or result.shadows
            or result.row_models is not None
            or len(result.elapsed_ns) != self._steps
            or len(result.outputs) != len(self._outputs)
        ):
            return None
        parts: list[bytes] = []
        if not self._add_inputs(result.frame, parts):
            return None
        for output, (name, per_row, dtype, shape) in zip(
            result.outputs, self._outputs, strict=True
        ):
            values = output.values
            if (
                output.name != name
                or values.shape != shape
                or values.dtype != dtype
                or output.per_row != per_row
            ):
                return None
            parts.append(values.tobytes())
        parts.append(_NO_ANOMALY)
        return Record(self._context, 1, result.time_ms, result.elapsed_ns, parts, self._size)

    def _add_inputs(self, frame: Frame, parts: list[bytes]) -> bool:
        """Add the bytes of the request's columns; False where they are others."""
        columns = frame.columns
        if frame.rows != 1 or frame.has_literals or len(columns) != len(self._inputs):
            return False
        try:
            for name, width in self._inputs:
                values = columns[name][0]
                if type(values) is not list or len(values) != width or type(values[0]) is not float:
                    return False
                parts.append(array("d", values).tobytes())
        except (KeyError, TypeError, OverflowError):
            return False
        return True
