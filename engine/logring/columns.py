"""An answer's columns as raw values, where they are numbers with equally many in every row.

That is what tensors are. Anything else (text, ragged or nested request lists, nulls) is kept as an
Arrow message; so is what this file does not know, since the columns found here are compared with
the records reply's own before they are used (``LogEncoder``).

Rules that hold here:
- Small values are copied, large ones are views: they must not change before they are stored.
- Nothing here imports pandas or pyarrow.compute, as ``to_numpy`` and ``flatten`` do.
"""

from __future__ import annotations

import math
from array import array
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from engine.values import ELEMENT_TYPES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from engine.values import Array, InferResult, Output

__all__ = ["Kind", "raw_columns", "row_bytes"]

_SMALL_BYTES = 1 << 16  # below this a copy is cheaper than a view
_DOUBLE = ("d", "d")
_CODES = {  # Python types of a JSON column's values -> codes of array and of numpy
    frozenset({float}): _DOUBLE,
    frozenset({float, int}): _DOUBLE,
    frozenset({int}): ("q", "l"),
}

_ARROW_CODES = {  # Arrow type -> numpy's type code, of every number type
    pa.from_numpy_dtype(element.numpy).id: np.dtype(element.numpy).char
    for element in ELEMENT_TYPES.values()
    if element.array_code is not None
}
_LIST = pa.list_(pa.null()).id
_FIXED_SIZE_LIST = pa.list_(pa.null(), 1).id

Kind = tuple[str, str, str, tuple[int, ...]]  # group, column, numpy's type code, shape of a row
RawColumn = tuple[str, tuple[int, ...], "bytes | memoryview"]  # type code, shape of a row, values
_COUNT: Kind = ("anomaly", "count", "I", ())


def row_bytes(kind: Kind) -> int:
    """Bytes of one row of a column."""
    return math.prod(kind[3]) * np.dtype(kind[2]).itemsize


def raw_columns(result: InferResult) -> tuple[list[Kind], list[bytes | memoryview]] | None:
    """Every column of the record as raw values, in schema order; None where one cannot be raw."""
    frame = result.frame
    rows = frame.rows
    if not rows or result.row_models is not None or any(s.is_missing for s in result.shadows):
        return None
    kinds: list[Kind] = []
    values: list[bytes | memoryview] = []
    columns = frame.columns
    for name in sorted(columns) if len(columns) > 1 else columns:
        column = columns[name]
        if isinstance(column, list):
            raw = _raw_list(column, may_hold_bool=frame.has_literals)
        else:
            raw = _raw_arrow(column)
        if raw is None:
            return None
        kinds.append(("in", name, raw[0], raw[1]))
        values.append(raw[2])
    groups = [("out", result.outputs)]
    groups += [(f"out_{shadow.model_name}", shadow.outputs) for shadow in result.shadows]
    if not all(_add_outputs(name, own, rows, kinds, values) for name, own in groups):
        return None
    kinds.append(_COUNT)
    if result.checks is None:
        values.append(bytes(4 * rows))
        return kinds, values
    values.append(result.checks.count.tobytes())
    for name, flag in sorted(result.checks.flags.items()):
        kinds.append(("anomaly", name, "?", ()))
        values.append(flag.tobytes())
    return kinds, values


def _add_outputs(
    group: str,
    outputs: Sequence[Output],
    rows: int,
    kinds: list[Kind],
    values: list[bytes | memoryview],
) -> bool:
    """Add a group's columns; False where one cannot be raw."""
    for output in outputs:
        array = output.values
        raw = _raw_array(array, array.shape[1:] if output.per_row else array.shape)
        if raw is None or not (output.per_row or rows == 1):
            return False
        kinds.append((group, output.name, raw[0], raw[1]))
        values.append(raw[2])
    return True


def _raw_list(column: list[Any], *, may_hold_bool: bool) -> RawColumn | None:
    """A JSON column as pyarrow would infer it: float64, or int64 where all are integers."""
    shape: tuple[int, ...] = ()
    flat = column
    first = column[0]
    if isinstance(first, list):
        shape = (len(first),)
        if len(column) == 1:
            flat = first
        elif set(map(type, column)) != {list} or set(map(len, column)) != {len(first)}:
            return None
        else:
            flat = list(chain.from_iterable(column))
    if not flat:
        return None
    if may_hold_bool or type(flat[0]) is not float:
        code = _CODES.get(frozenset(map(type, flat)))
        if code is None:
            return None
    else:
        code = _DOUBLE  # numbers, the first of them a float: array refuses what is no number
    try:
        return code[1], shape, array(code[0], flat).tobytes()
    except (OverflowError, TypeError):
        return None


def _raw_arrow(column: pa.Array) -> RawColumn | None:
    """A view of the values of an Arrow column, where they are numbers side by side."""
    kind = column.type
    if column.null_count:
        return None
    shape: tuple[int, ...] = ()
    values, start, count = column, column.offset, len(column)
    if kind.id == _FIXED_SIZE_LIST:
        width = kind.list_size
        shape, values = (width,), column.values
        start, count = values.offset + start * width, count * width
    elif kind.id == _LIST:
        offsets = np.frombuffer(column.buffers()[1], np.int32, count + 1, 4 * start)
        widths = np.diff(offsets)
        if (widths != widths[0]).any():
            return None
        shape, values = (int(widths[0]),), column.values
        start, count = values.offset + int(offsets[0]), int(offsets[-1] - offsets[0])
    if values.null_count:
        return None
    code = _ARROW_CODES.get(values.type.id)
    if code is None:
        return _raw_bools(values, start - values.offset, count, shape)
    size = np.dtype(code).itemsize
    return (
        code,
        shape,
        memoryview(values.buffers()[1] or b"")[start * size : (start + count) * size],
    )


def _raw_bools(
    values: pa.Array, start: int, count: int, shape: tuple[int, ...]
) -> RawColumn | None:
    if not pa.types.is_boolean(values.type):
        return None
    return "?", shape, np.array(values.slice(start, count).to_pylist(), np.bool_).tobytes()


def _raw_array(values: Array, shape: tuple[int, ...]) -> RawColumn | None:
    dtype = values.dtype
    if dtype.kind not in "biuf":
        return None
    if values.nbytes < _SMALL_BYTES:
        return dtype.char, shape, values.tobytes()
    flat = np.ascontiguousarray(values).reshape(-1)
    return dtype.char, shape, flat.view(np.uint8).data
