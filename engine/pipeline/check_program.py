"""The operations of all checks of one place in a pipeline, in the order in which they run.

Rules that hold here:
- An operation that several checks share (the same element of the same column, nearly always) is
  one slot and runs once.
- Nothing here knows an expression language: the readers (``check_tree``, ``check_validation``)
  write programs, ``checks`` runs them.
- A program is written at load, then only read: any number of threads may run it at once.
- A column that a request does not have, or has without any value, is null in every row: no type
  is made up for it, and what comes out of it is null until something says otherwise.
"""

from __future__ import annotations

import difflib
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.errors import StartupError
from engine.pipeline.check_columns import CheckTypeError, Operand, Value, read_column
from engine.pipeline.check_lists import contains, list_get
from engine.pipeline.check_operations import (
    compare,
    invert,
    is_in,
    is_nan,
    is_not_null,
    is_null,
    logic,
    where,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from engine.values import Array, Column, TensorSpec

__all__ = ["Program", "Slot"]

Slot = int
"""Where a program keeps one intermediate result."""

_ANY_LENGTH = 2**31 - 1
_QUIET = (compare, contains, invert, is_nan, is_not_null, is_null, list_get, logic)


@dataclass(frozen=True, slots=True)
class _Operation:
    function: Callable[..., Operand]
    arguments: tuple[Slot, ...]
    constants: tuple[Hashable, ...]
    place: str


class Program:
    """Columns and literals, and the operations on them; each has a slot for its result."""

    def __init__(self) -> None:
        self._slots: dict[Hashable, Slot] = {}
        self._literals: list[Operand | None] = []
        self._columns: dict[str, tuple[Slot, str]] = {}
        self._operations: list[tuple[Slot, _Operation]] = []
        self._calculates = False  # whether numpy may warn of overflow or division

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the program reads, as ``in.NAME`` and ``out.NAME``."""
        return tuple(self._columns)

    def column(self, name: str, place: str) -> Slot:
        """The slot of a column; ``place`` is the JSON path that first names it."""
        if name not in self._columns:
            self._columns[name] = (self._new(("column", name), None), place)
        return self._columns[name][0]

    def literal(self, value: bool | float | str, dtype: np.dtype[np.generic]) -> Slot:
        """The slot of a value that the check spells out."""
        key = ("literal", dtype.str, repr(value))  # repr: -0.0 is not 0.0, True is not 1
        if key in self._slots:
            return self._slots[key]
        return self._new(key, Value(np.array(value, dtype=dtype), None, {}))

    def apply(
        self,
        function: Callable[..., Operand],
        *arguments: Slot,
        constants: tuple[Hashable, ...] = (),
        place: str,
    ) -> Slot:
        """The slot of an operation's result.

        Args:
            function: an operation on columns.
            arguments: the slots it works on.
            constants: what it takes besides.
            place: the JSON path of the operation, for errors.
        """
        key = (function, arguments, constants)
        if key in self._slots:
            return self._slots[key]
        slot = self._new(key, None)
        self._calculates |= function not in _QUIET
        self._operations.append((slot, _Operation(function, arguments, constants, place)))
        return slot

    def run(self, columns: Mapping[str, Column | Array], rows: int) -> list[Operand | None]:
        """Run every operation.

        Args:
            columns: the program's columns; those that the request has not are left out.
            rows: rows of the request.

        Returns:
            The result of each slot; None where it is null in every row.

        Raises:
            CheckTypeError: A column of this request has a type that an operation does not take.
        """
        slots = list(self._literals)
        for name, (slot, _) in self._columns.items():
            if name not in columns:
                continue
            try:
                slots[slot] = read_column(columns[name], rows)
            except CheckTypeError as error:
                raise CheckTypeError(f"column {name!r}: {error}") from None
        with np.errstate(all="ignore") if self._calculates else nullcontext():
            for slot, operation in self._operations:
                arguments = [slots[argument] for argument in operation.arguments]
                try:
                    slots[slot] = (
                        _apply_to_nothing(operation, arguments, rows)
                        if None in arguments
                        else operation.function(*arguments, *operation.constants)
                    )
                except CheckTypeError as error:
                    raise CheckTypeError(f"{operation.place}: {error}") from None
        return slots

    def type_check(
        self, columns: Mapping[str, TensorSpec | None]
    ) -> tuple[list[Operand | None], list[str]]:
        """Run every operation on columns of the declared types that have no rows.

        Args:
            columns: every column that a request or result has, by ``in.NAME`` and ``out.NAME``,
                and its type; None where the type is the client's choice.

        Returns:
            The result of each slot, None where it depends on an unknown type; and a line for
            each element that is asked for beyond the end of its list.

        Raises:
            StartupError: A column does not exist or an operation does not take its type; the
                text names the JSON path.
        """
        slots, warnings = list(self._literals), []
        for name, (slot, place) in self._columns.items():
            if name not in columns:
                raise StartupError(f"pipeline definition, {place}: {_unknown(name, columns)}")
            slots[slot] = _without_rows(columns[name])
        for slot, operation in self._operations:
            arguments = [slots[argument] for argument in operation.arguments]
            if any(argument is None for argument in arguments):
                continue
            try:
                slots[slot] = operation.function(*arguments, *operation.constants)
            except CheckTypeError as error:
                raise StartupError(f"pipeline definition, {operation.place}: {error}") from None
            if operation.function is list_get and slots[slot].null is not None:  # type: ignore[union-attr]
                width, index = arguments[0].data.shape[1], operation.constants[0]  # type: ignore[union-attr]
                warnings.append(
                    f"pipeline definition, {operation.place}: each list has {width} elements, so "
                    f"element {index} is always null and the check never finds it"
                )
        return slots, warnings

    def _new(self, key: Hashable, literal: Operand | None) -> Slot:
        self._slots[key] = len(self._literals)
        self._literals.append(literal)
        return self._slots[key]


def _apply_to_nothing(
    operation: _Operation, arguments: list[Operand | None], rows: int
) -> Operand | None:
    """An operation with an operand that is null in every row, and of no type."""
    function: Callable[..., Operand] = operation.function
    if function in (is_null, is_not_null):
        return Value(np.full(rows, function is is_null))
    if function is is_in:
        members = operation.constants[0]
        return Value(np.full(rows, None in members))  # type: ignore[operator]  # a tuple
    if function not in (logic, where):
        return None
    kinds = [one.data.dtype for one in arguments if isinstance(one, Value)]
    kind = kinds[-1] if kinds and function is where else np.dtype(bool)
    nothing = Value(np.zeros(rows, kind), np.ones(rows, bool))
    filled = [nothing if one is None else one for one in arguments]
    if function is where and arguments[0] is None:
        filled[0] = Value(np.zeros(rows, bool))  # a null condition takes the otherwise
    return operation.function(*filled, *operation.constants)


def _without_rows(spec: TensorSpec | None) -> Value | None:
    if spec is None:
        return None
    row_shape = [_ANY_LENGTH if axis is None else axis for axis in spec.row_shape]
    empty = np.zeros((0, *row_shape[:1], *(1 for _ in row_shape[1:])), spec.element.numpy)
    return read_column(empty, 0)  # type: ignore[return-value]  # arrays are read as Value


def _unknown(name: str, columns: Mapping[str, object]) -> str:
    known = ", ".join(sorted(columns)) or "none"
    near = difflib.get_close_matches(name, columns, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"there is no column {name!r}{hint} (columns: {known})"
