"""Checks as people write them, ``out.variable[0] > 1_000_000``, compiled to the published JSON.

The language: columns ``in.NAME`` and ``out.NAME`` (a name of other characters than letters,
digits and ``_`` in backquotes), elements ``[0]`` and ``[-1]``, numbers, texts in quotes, ``true``,
``false``; ``+ - * /``; ``> >= < <= == !=``, once; ``in [1, 2]``; ``not``, ``and``, ``or``;
``abs(x)``, ``between(x, low, high)``, ``is_null(x)``, ``is_nan(x)``, ``sum(list)``,
``contains(list, value)``. True means anomaly.

Rules that hold here:
- What is written out is what polars 0.18.15 itself would have written for the same expression,
  so a pipeline published here reads the same everywhere.
- Every error shows the text and points at the character.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from engine.errors import StartupError
from engine.pipeline.check_writer import (
    common_type,
    write_between,
    write_binary,
    write_contains,
    write_function,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.pipeline.check_writer import Tree

__all__ = ["compile_text"]

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<column>(?:in|out)\.(?:`[^`]+`|\w+))
      | (?P<number>(?:\d[\d_]*)?\.?\d[\d_]*(?:\.(?!\w))?(?:[eE][-+]?\d+)?)
      | (?P<text>"[^"]*"|'[^']*')
      | (?P<word>[^\W\d]\w*)
      | (?P<sign><=|>=|==|!=|[-+*/<>()\[\],])
      | (?P<end>$)
    )""",
    re.VERBOSE,
)
_COMPARISONS = {">": "Gt", ">=": "GtEq", "<": "Lt", "<=": "LtEq", "==": "Eq", "!=": "NotEq"}
_SUMS = {"+": "Plus", "-": "Minus"}
_PRODUCTS = {"*": "Multiply", "/": "TrueDivide"}
_MAX_DEPTH = 24
_MAX_TOKENS = 256
_MAX_DIGITS = 400  # every float64 can be written with fewer


def compile_text(name: str, text: str) -> str:
    """Compile a readable check to the JSON that ``Check.tree`` holds.

    Args:
        name: the check's name, which the reply shows as ``anomaly.NAME``.
        text: the expression; true for an anomaly.

    Returns:
        The polars 0.18.15 JSON of the expression under that name.

    Raises:
        StartupError: The text is not in the language; the message points at the character.
    """
    tree = _Parser(name, text).parse()
    return json.dumps({"Alias": [tree, name]}, separators=(",", ":"), ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    at: int


class _Parser:
    """One pass over the text; a method per rank of operators, loosest first."""

    def __init__(self, name: str, text: str) -> None:
        self._name = name
        self._text = text
        self._tokens = list(self._split())
        self._next = 0
        self._depth = 0
        self._functions: dict[str, tuple[int, Callable[..., Tree]]] = {
            "abs": (1, lambda x: write_function("Abs", x)),
            "is_null": (1, lambda x: write_function({"Boolean": "IsNull"}, x)),
            "is_nan": (1, lambda x: write_function({"Boolean": "IsNan"}, x)),
            "sum": (1, lambda x: write_function({"ListExpr": "Sum"}, x, fmt_str="list.sum")),
            "contains": (2, write_contains),
            "between": (3, write_between),
        }

    def parse(self) -> Tree:
        tree = self._or()
        if self._peek().kind != "end":
            self._fail("the end of the check, or an operator")
        return tree

    def _split(self) -> list[_Token]:
        tokens: list[_Token] = []
        at = 0
        while not tokens or tokens[-1].kind != "end":
            match = _TOKEN.match(self._text, at)
            if match is None or match.lastgroup is None:
                rest = len(self._text[at:]) - len(self._text[at:].lstrip())
                self._point(at + rest, f"{self._text[at + rest]!r} means nothing here")
            tokens.append(
                _Token(match.lastgroup, match[match.lastgroup], match.start(match.lastgroup))
            )
            at = match.end()
            if len(tokens) > _MAX_TOKENS:
                self._point(at, "the check is too long: split it")
        return tokens

    def _or(self) -> Tree:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            self._point(self._peek().at, f"the check nests more than {_MAX_DEPTH} deep")
        tree = self._and()
        while self._accept("or"):
            tree = write_binary("Or", tree, self._and())
        self._depth -= 1
        return tree

    def _and(self) -> Tree:
        tree = self._not()
        while self._accept("and"):
            tree = write_binary("And", tree, self._not())
        return tree

    def _not(self) -> Tree:
        inversions = 0
        while self._accept("not"):
            inversions += 1
        tree = self._comparison()
        for _ in range(inversions):
            tree = write_function({"Boolean": "IsNot"}, tree)
        return tree

    def _comparison(self) -> Tree:
        left = self._chain(_SUMS, lambda: self._chain(_PRODUCTS, self._unary))
        token = self._peek()
        if token.text == "in" and token.kind == "word":
            self._next += 1
            return self._membership(left)
        if token.text not in _COMPARISONS or token.kind != "sign":
            return left
        self._next += 1
        right = self._chain(_SUMS, lambda: self._chain(_PRODUCTS, self._unary))
        if self._peek().text in _COMPARISONS:
            self._fail("one comparison; join two of them with 'and'")
        return write_binary(_COMPARISONS[token.text], left, right)

    def _chain(self, operators: dict[str, str], operand: Callable[[], Tree]) -> Tree:
        tree = operand()
        while self._peek().kind == "sign" and self._peek().text in operators:
            operator = operators[self._take().text]
            tree = write_binary(operator, tree, operand())
        return tree

    def _unary(self) -> Tree:
        minus = 0
        while self._accept("-"):
            minus += 1
        number = minus > 0 and self._peek().kind == "number"
        tree = self._number(negative=minus % 2 == 1) if number else self._element()
        if minus % 2 and not number:
            tree = write_binary("Minus", {"Literal": {"Int32": 0}}, tree)
        return tree

    def _element(self) -> Tree:
        tree = self._atom()
        while self._accept("["):
            negative = self._accept("-")
            token = self._peek()
            index = self._number(negative=negative)["Literal"].get("Int32")
            if index is None:
                self._point(token.at, "the position in a list is a whole number")
            self._expect("]")
            literal = {"Literal": {"Int32": index}}
            tree = write_function({"ListExpr": "Get"}, tree, literal, auto_explode=True)
        return tree

    def _atom(self) -> Tree:
        token = self._peek()
        if token.kind == "number":
            return self._number(negative=False)
        if token.kind == "column":
            return {"Column": self._take().text.replace("`", "")}
        if token.kind == "text":
            return {"Literal": {"Utf8": self._take().text[1:-1]}}
        if token.text in ("true", "false"):
            return {"Literal": {"Boolean": self._take().text == "true"}}
        if token.text in self._functions:
            return self._call()
        if self._accept("("):
            tree = self._or()
            self._expect(")")
            return tree
        if token.kind == "word" and token.text not in ("and", "or", "not", "in"):
            known = ", ".join(self._functions)
            self._point(
                token.at,
                f"{token.text!r} is no column (in.{token.text} or out.{token.text}?) and no "
                f"function ({known})",
            )
        self._fail("a column, a number, a text, a function or '('")

    def _call(self) -> Tree:
        token = self._take()
        count, build = self._functions[token.text]
        self._expect("(")
        arguments = [self._or()]
        while self._accept(","):
            arguments.append(self._or())
        self._expect(")")
        if len(arguments) != count:
            self._point(token.at, f"{token.text} takes {count} value(s), here are {len(arguments)}")
        if token.text == "contains" and "Literal" not in arguments[1]:
            self._point(token.at, "contains looks for a number or a text that is spelled out")
        return build(*arguments)

    def _membership(self, left: Tree) -> Tree:
        start = self._peek().at
        self._expect("[")
        values: list[object] = []
        while not values or self._accept(","):
            negative = self._accept("-")
            atom = self._number(negative=negative) if negative else self._atom()
            if "Literal" not in atom:
                self._point(start, "only numbers and texts that are spelled out can be listed")
            values.extend(atom["Literal"].values())
        self._expect("]")
        kind = common_type(values)
        if kind is None:
            self._point(start, "the listed values are of several types")
        if kind == "Float64":
            values = [float(value) for value in values]  # type: ignore[arg-type]
        series = {"name": "", "datatype": kind, "bit_settings": "", "values": values}
        members = {"Literal": {"Series": series}}
        options = {"auto_explode": True, "cast_to_supertypes": True}
        return write_function({"Boolean": "IsIn"}, left, members, **options)

    def _number(self, *, negative: bool) -> Tree:
        token = self._peek()
        if token.kind != "number":
            self._fail("a number")
        self._next += 1
        if len(token.text) > _MAX_DIGITS:
            self._point(token.at, f"this number has more than {_MAX_DIGITS} digits")
        text = ("-" if negative else "") + token.text.replace("_", "")
        if not text.lstrip("-").isdigit():
            value = float(text)
            if value in (float("inf"), float("-inf")):
                self._point(token.at, "this number is too large for a float64")
            return {"Literal": {"Float64": value}}
        whole = int(text)
        if not -(2**63) <= whole < 2**63:
            self._point(token.at, "this number is too large for an int64")
        return {"Literal": {"Int32" if -(2**31) <= whole < 2**31 else "Int64": whole}}

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        self._next += 1
        return self._tokens[self._next - 1]

    def _accept(self, text: str) -> bool:
        token = self._peek()
        found = token.text == text and token.kind in ("sign", "word")
        self._next += found
        return found

    def _expect(self, text: str) -> None:
        if not self._accept(text):
            self._fail(repr(text))

    def _fail(self, expected: str) -> NoReturn:
        token = self._peek()
        found = "the end" if token.kind == "end" else repr(token.text)
        self._point(token.at, f"found {found}, expected {expected}")

    def _point(self, at: int, problem: str) -> NoReturn:
        raise StartupError(
            f"check {self._name!r}, character {at + 1}: {problem}\n  {self._text}\n  {' ' * at}^"
        )
