"""Published checks of the older kind: named expressions that state what is NORMAL.

Rules that hold here:
- The document is ``{"values": {NAME: {"root": EXPRESSION}}, "validations": [NAME, …]}``; its
  variables name a model, input or output, and a position: ``[0][2]`` is element 2 of column 0.
- A row is an anomaly where the expression is false, and the legacy reply prints the expression
  itself: ``{"False": {"expr": "MODEL.outputs[0][0] < 100"}}``.
- As in ``check_tree``, what is not understood is refused at load.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import StartupError
from engine.pipeline.check_columns import DATA_TYPES
from engine.pipeline.check_lists import list_get
from engine.pipeline.check_operations import arithmetic, compare, invert, is_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from engine.pipeline.check_program import Program, Slot
    from engine.pipeline.document import Node

__all__ = ["Positions", "Validation", "read_validations"]

Positions = dict[tuple[str, str], tuple[str, ...]]
"""Per model name and ``input`` or ``output``: its columns, in the model's order."""

_COMPARISONS = {">": "Gt", ">=": "GtEq", "==": "Eq", "<": "Lt", "<=": "LtEq"}
_ARITHMETIC = {"+": "Plus", "-": "Minus"}
_OPERATORS = (*_COMPARISONS, *_ARITHMETIC, "in")
_MAX_DEPTH = 64


@dataclass(frozen=True, slots=True)
class Validation:
    """One older check: its name, the slot that is true for an anomaly, and its printed form."""

    name: str
    verdict: Slot
    text: str


def read_validations(tree: Node, program: Program, positions: Positions) -> Iterator[Validation]:
    """Write the validations of one document into a program.

    Args:
        tree: the parsed document; its path leads errors.
        program: what is written to.
        positions: the columns of the models that may be named.

    Yields:
        The validations, in the document's order.

    Raises:
        StartupError: Something in it is not known; the text names it and its JSON path.
    """
    values = tree.get("values")
    names = list(tree.get("validations").items()) if tree.has("validations") else []
    for name in names:
        if not values.has(name.text()):
            raise name.error(f"one of the values ({', '.join(values.keys())})")
        root = values.get(name.text()).get("root")
        slot, text = _Reader(program, positions).expression(root, 0)
        yield Validation(name.text(), program.apply(invert, slot, place=root.path), text)


class _Reader:
    """Writes one expression; each part comes back with its printed form."""

    def __init__(self, program: Program, positions: Positions) -> None:
        self._program = program
        self._positions = positions

    def expression(self, node: Node, depth: int) -> tuple[Slot, str]:
        kind = node.get("node")
        if depth > _MAX_DEPTH:
            raise StartupError(
                f"pipeline definition, {node.path}: the expression nests more than "
                f"{_MAX_DEPTH} deep; split the check"
            )
        if kind.value == "binop":
            return self._binop(node, depth + 1)
        if kind.value == "variable":
            return self._variable(node)
        if kind.value == "literal":
            value = _scalar(node)
            dtype = DATA_TYPES["Int64" if type(value) is int else "Float64"]
            return self._program.literal(value, dtype), _printed(value)
        raise kind.error("binop, variable or literal; no other kind of expression is supported")

    def _binop(self, node: Node, depth: int) -> tuple[Slot, str]:
        operator = node.get("op")
        if operator.value not in _OPERATORS:
            raise operator.error(f"one of {' '.join(_OPERATORS)}")
        name = str(operator.value)
        left, left_text = self.expression(node.get("left"), depth)
        if name == "in":
            items = [_scalar(item) for item in _list(node.get("right"))]
            kind = "Int64" if all(type(item) is int for item in items) else "Float64"
            slot = self._program.apply(is_in, left, constants=(tuple(items), kind), place=node.path)
            return slot, f"{left_text} in [{', '.join(map(_printed, items))}]"
        right, right_text = self.expression(node.get("right"), depth)
        function = compare if name in _COMPARISONS else arithmetic
        constant = _COMPARISONS.get(name) or _ARITHMETIC[name]
        slot = self._program.apply(function, left, right, constants=(constant,), place=node.path)
        return slot, f"{left_text} {name} {right_text}"

    def _variable(self, node: Node) -> tuple[Slot, str]:
        model, position = node.get("variant_id").get("name"), node.get("position")
        if position.value not in ("input", "output"):
            raise position.error('"input" or "output"')
        columns = self._positions.get((model.text(), str(position.value)))
        if columns is None:
            names = ", ".join(sorted({name for name, _ in self._positions}))
            raise model.error(f"a model whose values the check can see ({names})")
        key = node.get("key")
        indexes = [item.integer() for item in key.items()]
        if not indexes or indexes[0] >= len(columns):
            raise key.error(f"first the position of one of {len(columns)} columns")
        slot = self._program.column(columns[indexes[0]], key.path)
        for index in indexes[1:]:
            slot = self._program.apply(list_get, slot, constants=(index,), place=key.path)
        keys = "".join(f"[{index}]" for index in indexes)
        return slot, f"{model.value}.{position.value}s{keys}"


def _list(node: Node) -> Iterator[Node]:
    if node.get("node").value != "literal" or not node.has("list"):
        raise node.error("a literal list")
    return node.get("list").items()


def _scalar(node: Node) -> int | float:
    if type(node.value) in (int, float):
        return node.value  # type: ignore[return-value]
    for kind, types in _LITERALS.items():
        if node.has(kind) and type(node.get(kind).value) in types:
            return node.get(kind).value  # type: ignore[return-value]
    raise node.error("an integer or a float; no other literal is supported")


_LITERALS: Mapping[str, tuple[type, ...]] = {"integer": (int,), "float": (int, float)}


def _printed(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(value)
