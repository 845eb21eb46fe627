"""Request columns to the tensors a model reads: no copy for Arrow, one pass for JSON.

Rules that hold here:
- A tensor made from an Arrow column of the model's own element type is a view into the request
  body; every other tensor is new memory.
- A cast is done where it keeps the value (rounding a wider float or an integer to the model's
  float included) and refused, with row and position, where it does not.
- Nothing is guessed about shape: a row has as many values as the model's row, or it is refused.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from engine.codecs.arrow_columns import (
    NUMPY_TYPES,
    flatten_column,
    leaf_array,
    null_text,
)
from engine.codecs.json_numbers import json_array
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
    known = None if frame.dense is None else frame.dense.get(spec.name)
    if known is not None and known.dtype == NUMPY_TYPES[spec.element.numpy]:
        if known.shape[1:] == spec.row_shape:
            return known
        if known.shape[1] == spec.row_size:
            return known.reshape(frame.rows, *spec.row_shape)
    try:
        column = frame.columns[spec.name]
    except KeyError:
        names = ", ".join(map(repr, frame.columns)) or "no column at all"
        raise SchemaMismatchError(
            f"column {spec.name!r} is missing: the model takes {spec}, the request has {names}"
        ) from None
    if isinstance(column, list):
        flat, row_shape = json_array(column, spec, has_literals=frame.has_literals)
        if row_shape == spec.row_shape and spec.shape:
            return flat.reshape(frame.rows, *row_shape)
        return _shape_rows(flat, spec, frame.rows, row_shape)
    values, row_shape = flatten_column(column, spec.name)
    if values.null_count:
        raise SchemaMismatchError(null_text(spec.name, values, frame.rows))
    flat = _cast(leaf_array(values), spec, frame.rows)
    declared = frame.row_shapes.get(spec.name, row_shape)
    if math.prod(declared) != math.prod(row_shape):
        declared = row_shape
    return _shape_rows(flat, spec, frame.rows, declared)


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
    if row_shape == wanted:
        return True
    return len(row_shape) == len(wanted) and all(
        want is None or have == want for have, want in zip(row_shape, wanted, strict=True)
    )
