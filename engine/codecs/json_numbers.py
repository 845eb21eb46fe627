"""JSON columns, which are lists of Python values, as numpy arrays of a model's element type.

Rules that hold here:
- The quick way never decides that a request is wrong: on any doubt ``_explain`` walks the values
  one by one and either converts them or names the culprit.
"""

from __future__ import annotations

import math
from array import array
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from engine.errors import SchemaMismatchError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from engine.values import Array, TensorSpec

__all__ = ["json_array"]

MAX_DEPTH: Final = 32  # lists in lists: more than any tensor has axes
SMALL: Final = 64


def json_array(
    column: list[object], spec: TensorSpec, *, has_literals: bool
) -> tuple[Array, tuple[int, ...]]:
    """Turn a JSON column into the values of a tensor.

    Args:
        column: one value per row.
        spec: the model's input.
        has_literals: False where the text is known to hold no true, false or null.

    Returns:
        The values, flat, of the model's element type; and the shape of one row.

    Raises:
        SchemaMismatchError: a value does not fit, or rows have different shapes.
    """
    if spec.element.array_code is None or (has_literals and _may_hold_bool(column)):
        return _explain(column, spec)
    leaves: Sequence[object]
    row_shape: tuple[int, ...]
    try:
        row = column[0] if len(column) == 1 else None
        if isinstance(row, list) and row and not isinstance(row[0], list):
            leaves, row_shape = column, (len(row),)  # one flat row, the most common request
        else:
            leaves, row_shape = _flatten(column)
        numbers = array(spec.element.array_code)
        for leaf in leaves:
            numbers.fromlist(leaf)  # type: ignore[arg-type]  # array itself checks every value
    except (TypeError, ValueError, OverflowError):
        return _explain(column, spec)
    flat: Array = np.frombuffer(numbers, numbers.typecode)  # numpy has the same type codes
    if spec.element.numpy == "float16":
        with np.errstate(over="ignore"):
            flat = flat.astype("float16")
    elif len(numbers) <= SMALL and math.isfinite(sum(numbers)):
        return flat, row_shape  # a sum is finite where all are; numpy's own ways cost more
    # counting takes half the time of .all() on a small array
    if flat.dtype.kind == "f" and np.count_nonzero(np.isfinite(flat)) != flat.size:
        return _explain(column, spec)
    return flat, row_shape


def _may_hold_bool(column: list[object]) -> bool:
    leaves, _ = _flatten_or_doubt(column)
    return any(bool in set(map(type, leaf)) for leaf in leaves)


def _flatten_or_doubt(column: list[object]) -> tuple[list[list[object]], tuple[int, ...]]:
    try:
        return _flatten(column)
    except (TypeError, ValueError):
        return [[True]], ()  # not regular: let the careful walk see it


def _flatten(column: list[object]) -> tuple[list[list[object]], tuple[int, ...]]:
    """Nested lists to lists of scalars, and the shape of one row; TypeError where irregular."""
    leaves: list[object] = column
    row_shape: list[int] = []
    if not column or not isinstance(column[0], list):
        return [column], ()
    while True:
        widths = set(map(len, leaves))  # type: ignore[arg-type]
        if len(widths) != 1:
            raise ValueError("ragged")
        row_shape.append(widths.pop())
        first = leaves[0]
        if not isinstance(first, list) or not first or not isinstance(first[0], list):
            return leaves, tuple(row_shape)  # type: ignore[return-value]
        leaves = list(chain.from_iterable(leaves))  # type: ignore[arg-type]


def _explain(column: list[object], spec: TensorSpec) -> tuple[Array, tuple[int, ...]]:
    """Convert value by value, or raise with the place of the first value that does not fit."""
    flat: list[object] = []
    row_shape: tuple[int, ...] | None = None
    for row, value in enumerate(column):
        shape = _walk(value, spec, f"$[{row}].{spec.name}", flat)
        if row_shape is not None and shape != row_shape:
            raise SchemaMismatchError(
                f"$[{row}].{spec.name} has shape {list(shape)}, row 0 has {list(row_shape)}: "
                "a tensor needs rows of equal shape"
            )
        row_shape = shape
    dtype = np.dtype(spec.element.numpy)
    return np.array(flat, dtype=dtype), row_shape or ()


def _walk(
    value: object, spec: TensorSpec, place: str, flat: list[object], depth: int = 1
) -> tuple[int, ...]:
    if not isinstance(value, list):
        flat.append(_scalar(value, spec, place))
        return ()
    if depth > MAX_DEPTH:
        raise SchemaMismatchError(f"{place} is nested more than {MAX_DEPTH} deep: no tensor is")
    shape: tuple[int, ...] | None = None
    for index, item in enumerate(value):
        inner = _walk(item, spec, f"{place}[{index}]", flat, depth + 1)
        if shape is not None and inner != shape:
            raise SchemaMismatchError(f"{place} is ragged at [{index}]: lists of equal length only")
        shape = inner
    return (len(value), *(shape or ()))


def _scalar(value: object, spec: TensorSpec, place: str) -> object:
    """One JSON value as the model's element, or the reason why it cannot be."""
    dtype = np.dtype(spec.element.numpy)
    if value is None:
        raise SchemaMismatchError(f"tensor values may not be null: {place} is null")
    fits = {"b": bool, "O": str}.get(dtype.kind)
    if fits is not None and isinstance(value, fits):
        return value
    if fits is None and isinstance(value, int | float) and not isinstance(value, bool):
        number = _exact(value, dtype)
        if number is not None:
            return number
        raise SchemaMismatchError(
            f"{place} is {value}: it does not fit {spec.element.onnx}, which the model takes"
        )
    raise SchemaMismatchError(
        f"{place} is {_json_kind(value)}: the model takes {spec.element.onnx} ({spec})"
    )


def _exact(value: float, dtype: np.dtype[np.generic]) -> int | float | None:
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return value if np.isfinite(dtype.type(value)) else None
    whole = int(value)
    bounds = np.iinfo(str(dtype))
    return whole if whole == value and bounds.min <= whole <= bounds.max else None


def _json_kind(value: object) -> str:
    if isinstance(value, bool):
        return "true or false"
    return (
        "text" if isinstance(value, str) else "an object" if isinstance(value, dict) else "a number"
    )
