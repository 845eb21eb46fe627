"""Every operation of a check on one value per row, as polars 0.18.15 did it.

Rules that hold here:
- Published checks are polars 0.18.15 expressions; what they answered there is what they answer
  here. Each rule below (literals take the column's type, NaN is unequal to itself, null is
  neither true nor false, integers wrap) was compared with that release.
- An operation never changes its operands; what it returns may be a view of them.
- An operation that polars refuses for its operands' types raises ``CheckTypeError``, also for
  zero rows, so that a check is type-checked by running it on columns without rows.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

import numpy as np

from engine.pipeline.check_columns import (
    DATA_TYPES,
    CheckTypeError,
    Lists,
    Operand,
    Value,
    either,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from engine.values import Array

__all__ = [
    "ARITHMETIC",
    "COMPARISONS",
    "absolute",
    "arithmetic",
    "cast",
    "coerce",
    "compare",
    "invert",
    "is_in",
    "is_nan",
    "is_not_null",
    "is_null",
    "logic",
    "type_name",
    "where",
]

COMPARISONS: dict[str, Callable[[Array, Array], Array]] = {
    "Eq": operator.eq,
    "NotEq": operator.ne,
    "Lt": operator.lt,
    "LtEq": operator.le,
    "Gt": operator.gt,
    "GtEq": operator.ge,
}
ARITHMETIC: dict[str, Callable[[Array, Array], Array]] = {
    "Plus": np.add,
    "Minus": np.subtract,
    "Multiply": np.multiply,
    "TrueDivide": np.true_divide,
}
LOGIC = ("And", "Or")


def compare(left: Operand, right: Operand, name: str) -> Value:
    """Compare two columns; a null on either side gives null, NaN compares as IEEE 754 says."""
    a, b = _scalar(left), _scalar(right)
    x, y = coerce(a, b)
    return Value(np.asarray(COMPARISONS[name](x, y), dtype=bool), either(a.null, b.null))


def arithmetic(left: Operand, right: Operand, name: str) -> Value:
    """Add, subtract, multiply (integers wrap) or divide (integers give float64)."""
    a, b = _scalar(left), _scalar(right)
    x, y = coerce(a, b)
    if x.dtype.kind == "O":
        raise CheckTypeError("text cannot be calculated with")
    if x.dtype.kind == "b":
        if name not in ("Plus", "TrueDivide"):
            raise CheckTypeError("true and false cannot be calculated with")
        x, y = x.astype(np.uint32), y.astype(np.uint32)
    return Value(np.asarray(ARITHMETIC[name](x, y)), either(a.null, b.null))


def logic(left: Operand, right: Operand, name: str) -> Value:
    """And, Or in three-valued logic: null only where the other side does not decide."""
    a, b = _truth(left), _truth(right)
    x, y = a.data, b.data
    result = x & y if name == "And" else x | y
    if a.null is None and b.null is None:
        return Value(result)
    no = np.False_
    x_null, y_null = (no if side.null is None else side.null for side in (a, b))
    decisive = name == "Or"
    decided = (~x_null & (x == decisive)) | (~y_null & (y == decisive))
    return Value(np.where(decided, decisive, result), (x_null | y_null) & ~decided)


def invert(operand: Operand) -> Value:
    """Not; null stays null."""
    truth = _truth(operand)
    return Value(~truth.data, truth.null)


def is_null(operand: Operand) -> Value:
    """Whether there is no value."""
    if operand.null is not None:
        return Value(operand.null)
    if isinstance(operand, Lists):
        return Value(np.zeros(len(operand.starts), bool))
    return Value(np.zeros(operand.data.shape[:1], bool))


def is_not_null(operand: Operand) -> Value:
    """Whether there is a value."""
    return Value(~is_null(operand).data)


def is_nan(operand: Operand) -> Value:
    """Whether a number is NaN; integers never are, not even where they are null."""
    value = _scalar(operand)
    if value.data.dtype.kind in "iu":
        return Value(np.zeros(value.data.shape, bool))
    if value.data.dtype.kind != "f":
        raise CheckTypeError(f"{type_name(value.data)} is never NaN: is_nan needs numbers")
    return Value(np.isnan(value.data), value.null)


def absolute(operand: Operand) -> Value:
    """The magnitude; the smallest integer of its type stays what it is."""
    value = _scalar(operand)
    if value.data.dtype.kind not in "iuf":
        raise CheckTypeError(f"{type_name(value.data)} has no magnitude")
    return Value(np.abs(value.data), value.null)


def is_in(operand: Operand, members: Sequence[object], data_type: str) -> Value:
    """Whether the value is one of the members, which first take the value's own type.

    A member that does not fit that type counts as null, and null is a member of a set that
    holds null. Floats are the same when their bits are.
    """
    value = _scalar(operand)
    held: np.dtype[np.generic] = DATA_TYPES[data_type]
    kind = value.data.dtype
    if (held.kind == "O") != (kind.kind == "O"):
        raise CheckTypeError(f"{type_name(value.data)} is never one of {data_type} members")
    absent = np.array([member is None for member in members], dtype=bool)
    filled = [
        (held.type() if held.kind != "O" else "") if member is None else member
        for member in members
    ]
    wanted = Value(np.array(filled, dtype=held), absent)
    if kind != held:
        wanted = cast(wanted, kind)
    assert wanted.null is not None  # noqa: S101  (given above, and a cast keeps it)
    known = wanted.data[~wanted.null]
    if kind.kind == "f":
        bits = f"u{kind.itemsize}"
        found = np.isin(np.ascontiguousarray(value.data).view(bits), known.view(bits))
    elif kind.kind == "O":
        texts = set(known.tolist())
        found = np.fromiter((text in texts for text in value.data.flat), bool, value.data.size)
        found = found.reshape(value.data.shape)
    else:
        found = np.isin(value.data, known)
    if value.null is None or kind.kind == "b":
        return Value(found, value.null)
    return Value(np.where(value.null, wanted.null.any(), found))


def cast(operand: Operand, target: np.dtype[np.generic]) -> Value:
    """Convert to another type; what does not fit becomes null."""
    value = _scalar(operand)
    data = value.data
    if data.dtype.kind == "O" or target.kind == "O":
        raise CheckTypeError("text is not converted to or from other types")
    if target.kind not in "iu" or data.dtype.kind == "b":
        return Value(data.astype(target), value.null)
    bounds = np.iinfo(str(target))
    if data.dtype.kind == "f":
        whole = np.trunc(data)
        fits = (whole >= float(bounds.min)) & (whole < float(bounds.max) + 1.0)
    else:
        own = np.iinfo(str(data.dtype))
        fits = np.ones(data.shape, bool)
        if own.min < bounds.min:
            fits &= data >= bounds.min
        if own.max > bounds.max:
            fits &= data <= bounds.max
    converted = np.where(fits, data, data.dtype.type(0)).astype(target)
    return Value(converted, either(value.null, None if fits.all() else ~fits))


def where(predicate: Operand, truthy: Operand, falsy: Operand) -> Value:
    """When, then, otherwise; a null condition takes the otherwise."""
    condition = _truth(predicate)
    a, b = _scalar(truthy), _scalar(falsy)
    x, y = coerce(a, b)
    chosen = condition.data if condition.null is None else condition.data & ~condition.null
    if a.null is None and b.null is None:
        return Value(np.where(chosen, x, y))
    no = np.False_
    null = np.where(chosen, no if a.null is None else a.null, no if b.null is None else b.null)
    return Value(np.where(chosen, x, y), null)


def coerce(a: Value, b: Value) -> tuple[Array, Array]:
    """Both sides in the type in which polars lets them meet; only a literal gives way."""
    x, y = a.data.dtype, b.data.dtype
    if (x.kind == "O") != (y.kind == "O"):
        raise CheckTypeError(f"{type_name(a.data)} and {type_name(b.data)} do not meet")
    if x == y:
        return a.data, b.data
    if a.literal_forms is not None and b.literal_forms is None:
        form = _literal_form(a.data, a.literal_forms, y)
        return form, b.data.astype(form.dtype, copy=False)
    if b.literal_forms is not None and a.literal_forms is None:
        form = _literal_form(b.data, b.literal_forms, x)
        return a.data.astype(form.dtype, copy=False), form
    kind = np.promote_types(x, y)
    return a.data.astype(kind, copy=False), b.data.astype(kind, copy=False)


def _literal_form(
    literal: Array, forms: dict[np.dtype[Any], Array], column: np.dtype[Any]
) -> Array:
    """The literal as it meets a column of this type."""
    form = forms.get(column)
    if form is None:
        with np.errstate(all="ignore"):
            form = forms[column] = literal.astype(_literal_type(literal, column))
    return form


def _literal_type(literal: Array, column: np.dtype[Any]) -> np.dtype[Any]:
    if column.kind == "f" and literal.dtype.kind in "iuf":
        return column
    if column.kind in "iu" and literal.dtype.kind in "iu":
        bounds = np.iinfo(str(column))
        if bounds.min <= int(literal) <= bounds.max:
            return column
    return np.promote_types(column, literal.dtype)


def _scalar(operand: Operand) -> Value:
    if isinstance(operand, Lists) or operand.data.ndim > 1:
        raise CheckTypeError("there is a list in each row: name an element, as in [0]")
    return operand


def _truth(operand: Operand) -> Value:
    value = _scalar(operand)
    if value.data.dtype.kind != "b":
        raise CheckTypeError(f"{type_name(value.data)} is neither true nor false")
    return value


def type_name(data: Array) -> str:
    """What a user calls the type of these values."""
    return {"O": "text", "b": "true or false"}.get(data.dtype.kind, str(data.dtype))
