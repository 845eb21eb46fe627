"""Request columns to the tensors a model reads: no copy for Arrow, one pass for JSON.

Rules that hold here:
- A tensor made from an Arrow column of the model's own element type is a view into the request
  body; every other tensor is new memory.
- A cast is done where it keeps the value (rounding a wider float or an integer to the model's
  float included) and refused, with row and position, where it does not.
- Nothing is guessed about shape: a row has as many values as the model's row, or it is refused.
- The quick way of reading JSON numbers never decides that a request is wrong: on any doubt
  ``_explain`` walks the values one by one and either converts them or names the culprit.
"""

from __future__ import annotations

import math
from array import array
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from engine.errors import SchemaMismatchError

if TYPE_CHECKING:
    from engine.values import Array, Frame, TensorSpec

__all__ = ["to_tensor"]


def to_tensor(frame: Frame, spec: TensorSpec) -> Array:
    """Turn the column that a model input reads into the tensor it takes.

    Args:
        frame: the request's rows.
        spec: the model's input.

    Returns:
        An array of ``spec.element`` shaped ``[rows, *row]``; a view into the request body where
        the element type already fits, so it lives as long as the body does.

    Raises:
        SchemaMismatchError: the column is missing, or its values or its shape do not fit.
    """
    try:
        column = frame.columns[spec.name]
    except KeyError:
        known = ", ".join(map(repr, frame.columns)) or "no column at all"
        raise SchemaMismatchError(
            f"column {spec.name!r} is missing: the model takes {spec}, the request has {known}"
        ) from None
    if isinstance(column, list):
        return _from_json(column, spec, frame)
    return _from_arrow(column, spec, frame)


def _from_arrow(column: pa.Array, spec: TensorSpec, frame: Frame) -> Array:
    values, row_shape = _flatten_arrow(column, spec.name)
    if values.null_count:
        raise SchemaMismatchError(_null_text(spec.name, values, frame.rows))
    if pa.types.is_boolean(values.type):
        flat = values.to_numpy(zero_copy_only=False)
    elif pa.types.is_primitive(values.type):
        flat = values.to_numpy()
    else:
        flat = np.array(values.to_pylist(), dtype=object)
    flat = _cast(flat, spec, frame.rows)
    declared = frame.row_shapes.get(spec.name, row_shape)
    if math.prod(declared) != math.prod(row_shape):
        declared = row_shape
    return _shape_rows(flat, spec, frame.rows, declared)


def _flatten_arrow(column: pa.Array, name: str) -> tuple[pa.Array, tuple[int, ...]]:
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
        if not _is_list(values.type):
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


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    )


def _checked_flatten(values: pa.Array, name: str) -> tuple[pa.Array, int]:
    """One level of lists to its values, which are a view that honours a slice's offset."""
    if values.null_count:
        raise SchemaMismatchError(_null_text(name, values, len(values)))
    if pa.types.is_fixed_size_list(values.type):
        return values.flatten(), values.type.list_size
    if not len(values):
        return values.flatten(), 0
    lengths = np.diff(values.offsets.to_numpy())
    width = int(lengths[0])
    if (lengths != width).any():
        row = int((lengths != width).argmax())
        raise SchemaMismatchError(
            f"column {name!r} is ragged: list {row} has {lengths[row]} values, list 0 has {width}; "
            "a tensor needs lists of equal length"
        )
    return values.flatten(), width


def _null_text(name: str, values: pa.Array, rows: int) -> str:
    position = values.is_null().to_numpy(zero_copy_only=False).argmax()
    per_row = max(len(values) // rows, 1) if rows else 1
    return (
        f"tensor values may not be null: $[{position // per_row}].{name}[{position % per_row}] "
        "is null"
    )


def _cast(flat: Array, spec: TensorSpec, rows: int) -> Array:
    target = np.dtype(spec.element.numpy)
    if flat.dtype == target:
        return flat
    if flat.dtype.kind not in "iuf" or target.kind not in "iuf":
        raise SchemaMismatchError(
            f"column {spec.name!r} holds {_kind_name(flat.dtype)}: the model takes {spec}"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        cast = flat.astype(target)
        if target.kind == "f":
            lost = ~np.isfinite(cast) & np.isfinite(flat)
        else:
            # the value must come back unchanged, and a sign must not have wrapped on the way
            lost = (cast.astype(flat.dtype) != flat) | ((cast < 0) != (flat < 0))
            if flat.dtype.kind == "f":
                lost |= ~_fits(flat, target)
    if lost.any():
        position = int(lost.argmax())
        width = max(flat.size // rows, 1) if rows else 1
        raise SchemaMismatchError(
            f"$[{position // width}].{spec.name}[{position % width}] is {flat[position]}: "
            f"it does not fit {spec.element.onnx}, which the model takes"
        )
    return cast


def _fits(values: Array, target: np.dtype[np.generic]) -> Array:
    """Whether floats lie inside an integer type: casting one outside is undefined in C."""
    bounds = np.iinfo(str(target))
    return (values >= float(bounds.min)) & (values < float(bounds.max) + 1.0)


def _kind_name(dtype: np.dtype[np.generic]) -> str:
    return "text" if dtype.kind == "O" else str(dtype)


def _from_json(column: list[object], spec: TensorSpec, frame: Frame) -> Array:
    if spec.element.array_code is None or (frame.has_literals and _may_hold_bool(column)):
        return _explain(column, spec, frame.rows)
    try:
        leaves, row_shape = _flatten_json(column)
        numbers = array(spec.element.array_code)
        for leaf in leaves:
            numbers.fromlist(leaf)  # type: ignore[arg-type]  # checked by array itself
        target = np.dtype(spec.element.numpy)
        flat: Array = np.frombuffer(numbers, dtype=f"{target.kind}{numbers.itemsize}")
        if flat.dtype != target:
            with np.errstate(over="ignore"):
                flat = flat.astype(target)
    except (TypeError, ValueError, OverflowError):
        return _explain(column, spec, frame.rows)
    if target.kind == "f" and not np.isfinite(flat).all():
        return _explain(column, spec, frame.rows)
    return _shape_rows(flat, spec, frame.rows, row_shape)


def _may_hold_bool(column: list[object]) -> bool:
    leaves, _ = _try_flatten(column)
    return any(bool in set(map(type, leaf)) for leaf in leaves)


def _try_flatten(column: list[object]) -> tuple[list[list[object]], tuple[int, ...]]:
    try:
        return _flatten_json(column)
    except (TypeError, ValueError):
        return [[True]], ()  # not regular: let the careful walk see it


def _flatten_json(column: list[object]) -> tuple[list[list[object]], tuple[int, ...]]:
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


def _explain(column: list[object], spec: TensorSpec, rows: int) -> Array:
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
    return _shape_rows(np.array(flat, dtype=dtype), spec, rows, row_shape or ())


def _walk(value: object, spec: TensorSpec, place: str, flat: list[object]) -> tuple[int, ...]:
    if not isinstance(value, list):
        flat.append(_scalar(value, spec, place))
        return ()
    shape: tuple[int, ...] | None = None
    for index, item in enumerate(value):
        inner = _walk(item, spec, f"{place}[{index}]", flat)
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


def _shape_rows(flat: Array, spec: TensorSpec, rows: int, row_shape: tuple[int, ...]) -> Array:
    """Give flat values the model's row shape, or say what was expected."""
    if not spec.shape:
        if rows != 1 or flat.size != 1:
            raise SchemaMismatchError(
                f"the model takes {spec.name!r} as one bare value: send one row with one value"
            )
        return flat.reshape(())
    wanted = spec.row_shape
    if _matches(row_shape, wanted):
        return flat.reshape(rows, *row_shape)
    width = math.prod(row_shape)
    static = math.prod(axis for axis in wanted if axis is not None)
    unknown = wanted.count(None)
    if rows == 0 and unknown <= 1:
        return flat.reshape(0, *(axis or 0 for axis in wanted))
    if (unknown == 0 and width == static) or (unknown == 1 and static and width % static == 0):
        return flat.reshape(rows, *(-1 if axis is None else axis for axis in wanted))
    raise SchemaMismatchError(
        f"column {spec.name!r} has rows of shape {list(row_shape)} ({width} values): "
        f"the model takes {spec}"
    )


def _matches(row_shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(row_shape) == len(wanted) and all(
        want is None or have == want for have, want in zip(row_shape, wanted, strict=True)
    )
