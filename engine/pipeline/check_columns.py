"""The columns that checks work on: a request's and a result's, read without a copy.

Rules that hold here:
- A column is a ``Value`` (one value, or one list of a fixed length, per row) wherever that says
  it all, and ``Lists`` only where lists differ in length or hold nulls.
- Nothing writes into a column after it was read: it may be a view into the request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from engine.values import Array, Column

__all__ = ["DATA_TYPES", "CheckTypeError", "Lists", "Operand", "Value", "either", "read_column"]

DATA_TYPES: dict[str, np.dtype[Any]] = {
    "Int8": np.dtype(np.int8),
    "Int16": np.dtype(np.int16),
    "Int32": np.dtype(np.int32),
    "Int64": np.dtype(np.int64),
    "UInt8": np.dtype(np.uint8),
    "UInt16": np.dtype(np.uint16),
    "UInt32": np.dtype(np.uint32),
    "UInt64": np.dtype(np.uint64),
    "Float32": np.dtype(np.float32),
    "Float64": np.dtype(np.float64),
    "Boolean": np.dtype(np.bool_),
    "Utf8": np.dtype(object),
}
"""The polars names of the types a check may hold; text is an array of Python strings."""

_FILLERS: tuple[tuple[Callable[[pa.DataType], bool], str | bool | int], ...] = (
    (pa.types.is_string, ""),
    (pa.types.is_large_string, ""),
    (pa.types.is_boolean, False),
    (pa.types.is_integer, 0),
)
"""What stands where an Arrow column has no value; nobody reads it, numpy needs one."""


class CheckTypeError(TypeError):
    """The operation is not defined for the types of its operands."""


@dataclass(slots=True, eq=False)  # not frozen: that trebles the cost of making one
class Value:
    """One value per row.

    Attributes:
        data: ``[rows]``, or ``[]`` for one value that stands for every row, or ``[rows, k, …]``
            for lists of equal length that hold no null.
        null: bool ``[rows]``, true where there is no value; None where there is always one.
        literal_forms: where the check spelled this value out, so that it takes the other side's
            type: its form beside each type that it has met. None for any other value.
    """

    data: Array
    null: Array | None = None
    literal_forms: dict[np.dtype[Any], Array] | None = None


@dataclass(slots=True, eq=False)
class Lists:
    """One list per row, of any length, maybe with nulls; regular lists are a ``Value``.

    Attributes:
        values: the elements of all lists.
        starts: int64 ``[rows]``, where each row's list begins in ``values``.
        ends: int64 ``[rows]``, where it ends.
        null: bool ``[rows]``, true where there is no list; None where there is always one.
    """

    values: Operand
    starts: Array
    ends: Array
    null: Array | None = None


Operand = Value | Lists


def read_column(column: Column | Array, rows: int) -> Operand | None:
    """Make a request or result column ready for the operations below.

    Args:
        column: a tensor ``[rows, …]``, an Arrow array of ``rows`` values, or a list of ``rows``
            JSON values.
        rows: rows of the request.

    Returns:
        A view of the column where its layout allows one; None where no row has a value, so that
        the column has no type either.

    Raises:
        CheckTypeError: The column's type is one that checks cannot read.
    """
    if isinstance(column, list):
        try:
            column = pa.array(column)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            raise CheckTypeError(f"its values are of several types: {error}") from None
    if isinstance(column, np.ndarray):
        if column.shape[:1] != (rows,):
            if rows != 1:
                raise CheckTypeError(f"its shape {list(column.shape)} is not one value per row")
            column = column.reshape(1, *column.shape)
        return Value(_readable(column))
    if pa.types.is_null(column.type):
        return None
    try:
        return _read_arrow(column)
    except RecursionError:
        raise CheckTypeError("its lists are nested too deep") from None


def _readable(data: Array) -> Array:
    return data.astype(np.float32) if data.dtype == np.float16 else data


def _read_arrow(column: pa.Array) -> Operand:
    kind = column.type
    if isinstance(column, pa.ExtensionArray):
        return _read_arrow(column.storage)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _read_lists(column)
    null = column.is_null().to_numpy(zero_copy_only=False) if column.null_count else None
    if pa.types.is_null(kind):
        return Value(np.zeros(len(column)), null)
    if pa.types.is_floating(kind):
        return Value(_readable(column.to_numpy(zero_copy_only=False)), null)
    fill = next((filler for is_kind, filler in _FILLERS if is_kind(kind)), None)
    if fill is None:
        raise CheckTypeError(f"checks cannot read {kind}")
    if null is not None:
        column = column.fill_null(fill)
    return Value(column.to_numpy(zero_copy_only=False), null)


def _read_lists(column: pa.Array) -> Operand:
    rows = len(column)
    if pa.types.is_fixed_size_list(column.type):
        width = column.type.list_size
        starts = (column.offset + np.arange(rows)) * width
        ends = starts + width
    else:
        offsets = column.offsets.to_numpy().astype(np.int64)
        starts, ends = offsets[:-1], offsets[1:]
    null = column.is_null().to_numpy(zero_copy_only=False) if column.null_count else None
    values = _read_arrow(column.values)
    widths = ends - starts
    regular = null is None and rows and (widths == widths[0]).all()
    if regular and isinstance(values, Value) and values.null is None:
        first, last = int(starts[0]), int(ends[-1])
        shape = (rows, int(widths[0]), *values.data.shape[1:])
        return Value(values.data[first:last].reshape(shape))
    return Lists(values, starts, ends, null)


def either(a: Array | None, b: Array | None) -> Array | None:
    """Where at least one of two null masks is true; None when neither has any."""
    if a is None or b is None:
        return b if a is None else a
    return a | b
