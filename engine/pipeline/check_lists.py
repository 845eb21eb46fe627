"""The operations of a check on one list per row, as polars 0.18.15 did them.

Rules that hold here: those of ``check_operations``, and sums run left to right in the list's own
type, because the order decides the last bits of a float32 sum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from engine.pipeline.check_columns import CheckTypeError, Lists, Operand, Value, either
from engine.pipeline.check_operations import coerce, type_name

if TYPE_CHECKING:
    from engine.values import Array

__all__ = ["contains", "list_get", "list_sum"]


def list_get(lists: Operand, index: int) -> Operand:
    """The element at a position, counted from the end when negative; outside it is null."""
    if isinstance(lists, Lists):
        at = (lists.starts if index >= 0 else lists.ends) + index
        inside = (at >= lists.starts) & (at < lists.ends)
        if lists.null is not None:
            inside &= ~lists.null
        return _take(lists.values, np.where(inside, at, 0), ~inside)
    _require_list(lists)
    width = lists.data.shape[1]
    if -width <= index < width:
        return Value(lists.data[:, index], lists.null)
    rows = lists.data.shape[0]
    return Value(np.zeros((rows, *lists.data.shape[2:]), lists.data.dtype), np.ones(rows, bool))


def list_sum(lists: Operand) -> Value:
    """The sum of each list, left to right in its own type; nulls are left out, of none it is 0."""
    if isinstance(lists, Value):
        _require_list(lists)
        return Value(_sum_rows(_summable(lists.data, 2)), lists.null)
    if not isinstance(lists.values, Value):
        raise CheckTypeError("there is no sum of lists of lists")
    values = _summable(lists.values.data, 1)
    if lists.values.null is not None:
        values = np.where(lists.values.null, values.dtype.type(0), values)
    widths = lists.ends - lists.starts
    sums = np.zeros(len(widths), _sum_rows(values[:0].reshape(0, 1)).dtype)
    for width in np.unique(widths):
        rows = np.flatnonzero(widths == width)
        sums[rows] = _sum_rows(values[lists.starts[rows, None] + np.arange(width)])
    return Value(sums, lists.null)


def _sum_rows(values: Array) -> Array:
    """Sum ``[rows, k]`` over k in order, as polars does: float32 sums depend on the order."""
    kind = values.dtype
    if kind.kind == "b":
        return values.sum(axis=1, dtype=np.uint32)
    if kind.kind != "f":
        return values.sum(axis=1, dtype=np.int64 if kind.itemsize < 4 else kind)
    if values.shape[1] == 0:
        return np.zeros(len(values), kind)
    total = values[:, 0].copy()
    if values.shape[1] > len(values):
        return np.add.accumulate(values, axis=1)[:, -1]
    for position in range(1, values.shape[1]):
        total += values[:, position]
    return total


def contains(lists: Operand, item: Value) -> Value:
    """Whether each list holds the item; no list holds nothing."""
    elements = lists.values if isinstance(lists, Lists) else lists
    if not isinstance(elements, Value):
        raise CheckTypeError("a list of lists does not hold a single value")
    if isinstance(lists, Value):
        _require_list(lists)
    left, right = coerce(elements, Value(item.data))
    found = left == right
    if isinstance(lists, Value):
        held = found.any(axis=1)
        return Value(held if lists.null is None else held & ~lists.null)
    if elements.null is not None:
        found = found & ~elements.null
    before = np.concatenate([[0], np.cumsum(found)])
    held = before[lists.ends] > before[lists.starts]
    return Value(held if lists.null is None else held & ~lists.null)


def _take(values: Operand, at: Array, null: Array) -> Operand:
    """The elements at these positions, null where told; there may be no element at all."""
    if isinstance(values, Lists):
        starts, ends = values.starts, values.ends
        if not len(starts):
            return Lists(values.values, np.zeros_like(at), np.zeros_like(at), null)
        own = None if values.null is None else values.null[at]
        return Lists(values.values, starts[at], ends[at], either(own, null))
    if not len(values.data):
        return Value(np.zeros((len(at), *values.data.shape[1:]), values.data.dtype), null)
    own = None if values.null is None else values.null[at]
    return Value(values.data[at], either(own, null))


def _require_list(value: Value) -> None:
    if value.data.ndim < 2:
        raise CheckTypeError(f"there is one {type_name(value.data)} in each row, not a list")


def _summable(data: Array, dimensions: int) -> Array:
    if data.ndim != dimensions:
        raise CheckTypeError("there is no sum of lists of lists")
    if data.dtype.kind not in "biuf":
        raise CheckTypeError(f"{type_name(data)} has no sum")
    return data
