"""The columns of a documented record as Arrow has them: a request's and a model's.

Rules that hold here:
- Nothing is copied where the values lie as Arrow has them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from engine.codecs.arrow_columns import arrow_array, equal_lists, list_values
from engine.errors import SchemaMismatchError

if TYPE_CHECKING:
    from engine.values import Array, Column

__all__ = ["json_column", "list_column", "open_shape", "output_column"]


def json_column(column: list[object], name: str) -> pa.Array:
    """Values of a JSON request as what Arrow finds in them; of nothing or nulls alone, as text."""
    try:
        array = pa.array(column)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise SchemaMismatchError(
            f"column {name!r} has values of several kinds, which an Arrow column cannot hold: ask "
            "for JSON, or leave the column out of the request"
        ) from error
    return pa.array(column, pa.string()) if pa.types.is_null(array.type) else array


def list_column(array: pa.Array) -> pa.Array:
    """Fixed-size lists become the variable lists that the documented schema has."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    kind = array.type
    if not pa.types.is_fixed_size_list(kind):
        return array
    if array.null_count:
        return array.cast(_list_type(kind))
    values = list_column(list_values(array))
    item = pa.field("item", values.type)
    return equal_lists(values, len(array), kind.list_size, item)


def _list_type(kind: pa.DataType) -> pa.DataType:
    if not pa.types.is_fixed_size_list(kind):
        return kind
    return pa.list_(pa.field("item", _list_type(kind.value_type)))


def open_shape(column: Column) -> list[int | None]:
    """The declared shape of a column that declares none: one open axis per list level."""
    depth = 0
    if isinstance(column, list):
        value: object = column[0] if column else None
        while isinstance(value, list):
            depth += 1
            value = value[0] if value else None
    else:
        kind = column.type
        while hasattr(kind, "value_type"):
            depth += 1
            kind = kind.value_type
    return [None] * depth


def output_column(values: Array) -> pa.Array:
    """``[rows, …]`` as nested lists whose items are named ``inner`` and not null."""
    if values.dtype.kind == "O" and len(values) and isinstance(values[0], np.ndarray):
        first = output_column(values[0])
        return pa.array([value.tolist() for value in values], pa.list_(_inner(first.type)))
    flat = values.ravel()
    array = arrow_array(flat)
    for axis in range(values.ndim - 1, 0, -1):
        count = int(np.prod(values.shape[:axis]))
        array = equal_lists(array, count, values.shape[axis], _inner(array.type))
    return array


def _inner(kind: pa.DataType) -> pa.Field:
    return pa.field("inner", kind, nullable=False)
