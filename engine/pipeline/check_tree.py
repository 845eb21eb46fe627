"""Published checks: the JSON of a polars 0.18.15 expression, written into a program.

Rules that hold here:
- What is read is what a check was ever seen to use, and was compared with polars row by row;
  anything else is refused at load by name and JSON path. A check that is half understood would
  be a check that never fires.
- ``options`` of a function is polars' own planning and is passed over.
- A column is ``in.NAME`` or ``out.NAME``; true means anomaly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from engine.errors import StartupError
from engine.pipeline.check_columns import DATA_TYPES
from engine.pipeline.check_lists import contains, list_get, list_sum
from engine.pipeline.check_operations import (
    ARITHMETIC,
    COMPARISONS,
    absolute,
    arithmetic,
    cast,
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
    from collections.abc import Callable, Mapping
    from typing import NoReturn

    from engine.pipeline.check_columns import Operand
    from engine.pipeline.check_program import Program, Slot
    from engine.pipeline.document import Node

__all__ = ["read_check"]

_MAX_DEPTH = 128
_LITERALS: Mapping[str, tuple[type, ...]] = {
    "Int32": (int,),
    "Int64": (int,),
    "Float64": (int, float),
    "Boolean": (bool,),
    "Utf8": (str,),
}
_MEMBERS: Mapping[str, tuple[type, ...]] = {
    "Boolean": (bool,),
    "Utf8": (str,),
    "Float32": (int, float),
    "Float64": (int, float),
}
_UNARY: Mapping[str, Callable[[Operand], Operand]] = {
    "Abs": absolute,
    "Boolean.IsNot": invert,
    "Boolean.IsNull": is_null,
    "Boolean.IsNotNull": is_not_null,
    "Boolean.IsNan": is_nan,
    "ListExpr.Sum": list_sum,
}
_BINARY_FUNCTIONS = ("Boolean.IsIn", "ListExpr.Contains", "ListExpr.Get")


def read_check(tree: Node, program: Program) -> tuple[str, Slot]:
    """Write one check into a program.

    Args:
        tree: the parsed JSON of ``Expr.alias(NAME).meta.write_json()``; its path leads errors.
        program: what is written to.

    Returns:
        The check's name, and the slot of its verdict.

    Raises:
        StartupError: The expression is not one that this engine evaluates; the text names what
            was found, its JSON path and what is supported.
    """
    kind, body = _variant(tree)
    if kind != "Alias":
        raise tree.error('{"Alias": [expression, "name"]}: a check needs a name')
    parts = list(body.items())
    if len(parts) != 2:
        raise body.error("an expression and a name")
    return parts[1].text(), _Reader(program).expression(parts[0], 0)


def _variant(node: Node) -> tuple[str, Node]:
    keys = node.keys()
    if len(keys) != 1:
        raise node.error("an object with one key, the kind of expression")
    return keys[0], node.get(keys[0])


def _refuse(node: Node, what: str, name: str, supported: object) -> NoReturn:
    raise StartupError(
        f"pipeline definition, {node.path}: {what} {name!r} is not supported in a check; "
        f"supported are {', '.join(supported)}"  # type: ignore[arg-type]
    )


class _Reader:
    """Writes the expressions of one check, inner ones first."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._kinds: Mapping[str, Callable[[Node, int], Slot]] = {
            "Column": self._column,
            "Literal": self._literal,
            "BinaryExpr": self._binary,
            "Function": self._function,
            "Cast": self._cast,
            "Ternary": self._ternary,
        }

    def expression(self, node: Node, depth: int) -> Slot:
        if depth > _MAX_DEPTH:
            raise StartupError(
                f"pipeline definition, {node.path}: the expression nests more than "
                f"{_MAX_DEPTH} deep; split the check"
            )
        if not isinstance(node.value, dict):
            raise node.error(f"an expression, one of {', '.join(self._kinds)}")
        kind, body = _variant(node)
        if kind not in self._kinds:
            _refuse(node, "expression", kind, self._kinds)
        return self._kinds[kind](body, depth + 1)

    def _column(self, node: Node, _depth: int) -> Slot:
        name = node.text()
        if not name.startswith(("in.", "out.")):
            raise node.error('a column as "in.NAME" or "out.NAME"')
        return self._program.column(name, node.path)

    def _literal(self, node: Node, _depth: int) -> Slot:
        if not isinstance(node.value, dict):
            _refuse(node, "literal", str(node.value), _LITERALS)
        kind, body = _variant(node)
        if kind not in _LITERALS:
            _refuse(node, "literal", kind, _LITERALS)
        value = body.value
        if type(value) not in _LITERALS[kind]:
            # polars writes NaN and infinity as null: which of them was meant is lost
            raise body.error(f"a {kind} value")
        try:
            return self._program.literal(value, DATA_TYPES[kind])  # type: ignore[arg-type]
        except OverflowError:
            raise body.error(f"a number that fits {kind}") from None

    def _binary(self, node: Node, depth: int) -> Slot:
        name = node.get("op").text()
        function: Callable[..., Operand]
        if name in COMPARISONS:
            function = compare
        elif name in ARITHMETIC:
            function = arithmetic
        elif name in ("And", "Or"):
            function = logic
        else:
            supported = (*COMPARISONS, *ARITHMETIC, "And", "Or")
            _refuse(node.get("op"), "operator", name, supported)
        left = self.expression(node.get("left"), depth)
        right = self.expression(node.get("right"), depth)
        return self._program.apply(function, left, right, constants=(name,), place=node.path)

    def _function(self, node: Node, depth: int) -> Slot:
        function = node.get("function")
        name = function.value
        if isinstance(name, dict):
            family, member = _variant(function)
            name = f"{family}.{member.value}"
        inputs = list(node.get("input").items())
        supported = (*_UNARY, *_BINARY_FUNCTIONS)
        if name not in supported:
            _refuse(function, "function", str(name), supported)
        expected = 1 if name in _UNARY else 2
        if len(inputs) != expected:
            raise node.get("input").error(f"{expected} expressions for {name}")
        first = self.expression(inputs[0], depth)
        if name in _UNARY:
            return self._program.apply(_UNARY[str(name)], first, place=node.path)
        if name == "ListExpr.Get":
            index = _index(inputs[1])
            return self._program.apply(list_get, first, constants=(index,), place=node.path)
        if name == "ListExpr.Contains":
            item = self._literal(_literal_body(inputs[1]), depth)
            return self._program.apply(contains, first, item, place=node.path)
        members = _members(inputs[1])
        return self._program.apply(is_in, first, constants=members, place=node.path)

    def _cast(self, node: Node, depth: int) -> Slot:
        target = node.get("data_type")
        supported = [name for name in DATA_TYPES if name != "Utf8"]
        if target.value not in supported:
            _refuse(target, "data type", str(target.value), supported)
        operand = self.expression(node.get("expr"), depth)
        dtype = DATA_TYPES[str(target.value)]
        return self._program.apply(cast, operand, constants=(dtype,), place=node.path)

    def _ternary(self, node: Node, depth: int) -> Slot:
        parts = [self.expression(node.get(key), depth) for key in ("predicate", "truthy", "falsy")]
        return self._program.apply(where, *parts, place=node.path)


def _literal_body(node: Node) -> Node:
    if not node.has("Literal"):
        raise node.error("a literal")
    return node.get("Literal")


def _index(node: Node) -> int:
    body = _literal_body(node)
    for kind in ("Int32", "Int64"):
        index = body.value.get(kind) if isinstance(body.value, dict) else None
        if type(index) is int and abs(index) < 2**31:
            return index
    raise node.error("a whole number, the position in the list")


def _members(node: Node) -> tuple[tuple[object, ...], str]:
    body = _literal_body(node)
    if not isinstance(body.value, dict) or not body.has("Series"):
        raise body.error("a Series of the values to look for")
    series = body.get("Series")
    kind = series.get("datatype")
    if kind.value not in list(DATA_TYPES):
        _refuse(kind, "data type", str(kind.value), DATA_TYPES)
    name = str(kind.value)
    items = list(series.get("values").items())
    for item in items:
        if not item.is_null and not _is_member(item.value, name):
            raise item.error(f"a {name} value")
    return tuple(item.value for item in items), name


def _is_member(value: object, kind: str) -> bool:
    if type(value) not in _MEMBERS.get(kind, (int,)):
        return False
    bounds = np.iinfo(str(DATA_TYPES[kind])) if DATA_TYPES[kind].kind in "iu" else None
    return bounds is None or bounds.min <= value <= bounds.max  # type: ignore[operator]
