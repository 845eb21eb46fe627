"""Arrow columns as numpy arrays, without a copy wherever the values lie side by side in memory.

Rules that hold here:
- A null is found before a list is opened: behind a null row lie values that belong to nobody.
- A list's values are sliced here, since ``values`` ignores the slice that the list itself is.
  ``flatten`` would do, but imports all of pyarrow.compute on its first call and takes 3 us.
- ``to_numpy`` is not used for numbers: it looks for pandas, and imports it where there is one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from engine.errors import SchemaMismatchError
from engine.values import ELEMENT_TYPES

if TYPE_CHECKING:
    from typing import Final

    from engine.values import Array

__all__ = [
    "ARROW_TYPES",
    "NUMPY_TYPES",
    "arrow_array",
    "dense_lists",
    "equal_lists",
    "flatten_column",
    "is_flat",
    "is_list",
    "leaf_array",
    "list_bounds",
    "list_values",
    "null_text",
    "uniform_rows",
]

ARROW_TYPES = {  # of every number type
    np.dtype(element.numpy): pa.from_numpy_dtype(element.numpy)
    for element in ELEMENT_TYPES.values()
    if element.array_code is not None
}
NUMPY_TYPES = {element.numpy: np.dtype(element.numpy) for element in ELEMENT_TYPES.values()}
MAX_VALUES: Final = (1 << 31) - 1  # in one column of lists with 32-bit offsets
_NUMPY_TYPES = {kind.id: dtype for dtype, kind in ARROW_TYPES.items()}
_FIXED_SIZE_LIST = pa.list_(pa.null(), 1).id
_LIST_TYPES = frozenset(
    kind.id for kind in (pa.list_(pa.null()), pa.large_list(pa.null()), pa.list_(pa.null(), 1))
)


def arrow_array(values: Array) -> pa.Array:
    """Flat values as Arrow: numbers as a view of the array, booleans and text as new memory."""
    kind = ARROW_TYPES.get(values.dtype)
    if kind is None:
        text = values.dtype.kind in "OU"
        return pa.array(values.tolist(), pa.string() if text else pa.bool_())
    values = np.ascontiguousarray(values)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def leaf_array(values: pa.Array) -> Array:
    """Scalars as numpy: numbers as a view, booleans and text as new memory; no text is null."""
    dtype = _NUMPY_TYPES.get(values.type.id)
    if dtype is None and not pa.types.is_boolean(values.type):
        return np.array(values.to_pylist(), dtype=object)
    buffer = values.buffers()[1]
    if buffer is None or not len(values):
        return np.zeros(len(values), dtype or bool)
    if dtype is not None:
        return np.frombuffer(buffer, dtype, len(values), values.offset * dtype.itemsize)
    first, skipped = divmod(values.offset, 8)  # eight booleans to a byte, from the lowest bit on
    packed = np.frombuffer(buffer, np.uint8, offset=first)
    bits = np.unpackbits(packed, count=skipped + len(values), bitorder="little")
    return bits[skipped:].view(bool)


def dense_lists(column: pa.Array) -> Array | None:
    """Fixed-size lists of numbers without nulls, as a view.

    The layout that requests are best sent in, read with as few questions as it takes.

    Returns:
        An array shaped ``[rows, n]``; None for every other layout, and where there is no row.
    """
    kind = column.type
    if kind.id != _FIXED_SIZE_LIST or column.null_count:
        return None
    child = column.values
    dtype, rows, width = _NUMPY_TYPES.get(child.type.id), len(column), kind.list_size
    if dtype is None or child.null_count or not rows:
        return None
    start = child.offset + column.offset * width
    return np.ndarray((rows, width), dtype, child.buffers()[1], start * dtype.itemsize)


def is_flat(kind: pa.DataType) -> bool:
    """Whether ``leaf_array`` reads values of this type without a Python object for each."""
    return kind.id in _NUMPY_TYPES or pa.types.is_boolean(kind)


def uniform_rows(values: pa.Array) -> Array | None:
    """Numbers or booleans ``[rows]``, or lists of them of one shape; None for all else."""
    shape = [len(values)]
    while is_list(values.type):
        rows = len(values)
        if values.null_count or not rows:
            return None
        flat = list_values(values)
        width, rest = divmod(len(flat), rows)
        if rest or not (
            pa.types.is_fixed_size_list(values.type) or (_lengths(values) == width).all()
        ):
            return None
        shape.append(width)
        values = flat
    if values.null_count or not is_flat(values.type):
        return None
    return leaf_array(values).reshape(shape)


def flatten_column(column: pa.Array, name: str) -> tuple[pa.Array, tuple[int, ...]]:
    """Peel the lists off a column; a list of unequal lengths or with nulls is refused first."""
    row_shape: list[int] = []
    values = column
    while True:
        if isinstance(values, pa.ExtensionArray):
            row_shape.extend(_extension_shape(values, name))
            values = values.storage
            # the storage is one flat list per row: its length is the product just recorded
            values = _checked_flatten(values, name)[0]
            continue
        if not is_list(values.type):
            return values, tuple(row_shape)
        values, width = _checked_flatten(values, name)
        row_shape.append(width)


def _extension_shape(values: pa.ExtensionArray, name: str) -> list[int]:
    kind = values.type
    if not isinstance(kind, pa.FixedShapeTensorType):
        raise SchemaMismatchError(f"column {name!r} has the extension type {kind}: not supported")
    permutation = kind.permutation
    if permutation is not None and list(permutation) != sorted(permutation):
        raise SchemaMismatchError(
            f"column {name!r} is a tensor with permuted axes {list(permutation)}: "
            "send it in row-major order"
        )
    return list(kind.shape)


def is_list(kind: pa.DataType) -> bool:
    """Whether a type is a list of any of the accepted layouts."""
    return kind.id in _LIST_TYPES


def list_values(values: pa.Array) -> pa.Array:
    """The values of a list array, one after the other, those behind nulls included; a view."""
    if pa.types.is_fixed_size_list(values.type):
        size = values.type.list_size
        return values.values.slice(values.offset * size, len(values) * size)
    offsets = leaf_array(values.offsets)
    first = int(offsets[0]) if len(offsets) else 0
    return values.values.slice(first, int(offsets[-1]) - first if len(offsets) else 0)


def _checked_flatten(values: pa.Array, name: str) -> tuple[pa.Array, int]:
    """One level of lists to its values, which are a view that honours a slice's offset."""
    if values.null_count:
        raise SchemaMismatchError(null_text(name, values, len(values)))
    if pa.types.is_fixed_size_list(values.type):
        return list_values(values), values.type.list_size
    if not len(values):
        return list_values(values), 0
    lengths = _lengths(values)
    width = int(lengths[0])
    if (lengths != width).any():
        row = int((lengths != width).argmax())
        raise SchemaMismatchError(
            f"column {name!r} is ragged: list {row} has {lengths[row]} values, list 0 has {width}; "
            "a tensor needs lists of equal length"
        )
    return list_values(values), width


def null_text(name: str, values: pa.Array, rows: int) -> str:
    """Where the first null of a column of ``rows`` rows is, as the documented refusal says it."""
    position = int(leaf_array(values.is_null()).argmax())
    per_row = max(len(values) // rows, 1) if rows else 1
    return (
        f"tensor values may not be null: $[{position // per_row}].{name}[{position % per_row}] "
        "is null"
    )


def list_bounds(values: pa.Array) -> Array:
    """Where the lists of an array begin in its ``list_values``, and where the last one ends."""
    if pa.types.is_fixed_size_list(values.type):
        return np.arange(len(values) + 1) * values.type.list_size
    offsets = leaf_array(values.offsets)
    return offsets - offsets[:1]


def equal_lists(values: pa.Array, count: int, width: int, item: pa.Field) -> pa.Array:
    """Group values into variable lists that all have the same length.

    Raises:
        SchemaMismatchError: there are more values than the documented 32-bit offsets reach.
    """
    if count * width > MAX_VALUES:
        raise SchemaMismatchError(
            f"a column of {count} lists of {width} values is more than Arrow's lists hold: send "
            "several requests"
        )
    offsets = arrow_array(np.arange(count + 1, dtype=np.int32) * np.int32(width))
    return pa.ListArray.from_arrays(offsets, values, type=pa.list_(item))


def _lengths(values: pa.Array) -> Array:
    return np.diff(leaf_array(values.offsets))
