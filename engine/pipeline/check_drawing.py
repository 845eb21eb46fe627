"""Published checks as people write them: the way back from the JSON to the readable form.

Rule that holds here: what is drawn compiles to the expression that it was drawn from; what the
readable form cannot say is not drawn.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["draw_check"]

_PLAIN_NAME = re.compile(r"(in|out)\.\w+")
_OPERATORS = {
    "Or": "or",
    "And": "and",
    "Gt": ">",
    "GtEq": ">=",
    "Lt": "<",
    "LtEq": "<=",
    "Eq": "==",
    "NotEq": "!=",
    "Plus": "+",
    "Minus": "-",
    "Multiply": "*",
    "TrueDivide": "/",
}
_CALLS = {
    "Abs": "abs",
    "Boolean.IsNull": "is_null",
    "Boolean.IsNan": "is_nan",
    "ListExpr.Sum": "sum",
    "ListExpr.Contains": "contains",
}


def draw_check(tree: str) -> str:
    """Draw one check.

    Args:
        tree: an element of ``Check.tree``, in any of its forms.

    Returns:
        ``NAME: EXPRESSION``; the name alone where the readable form cannot say the expression;
        the text as it is where it is none of the published JSON.
    """
    try:
        expression, name = orjson.loads(tree)["Alias"]
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return tree
    try:
        return f"{name}: {_draw(expression, is_inner=False)}"
    except (KeyError, TypeError, ValueError, AttributeError):
        return str(name)


def _draw(tree: Mapping[str, Any], *, is_inner: bool = True) -> str:
    ((kind, body),) = tree.items()
    if kind == "Column":
        side, _, name = body.partition(".")
        return body if _PLAIN_NAME.fullmatch(body) else f"{side}.`{name}`"
    if kind == "Literal":
        ((type_name, value),) = body.items()
        if type_name not in ("Int32", "Int64", "Float64", "Boolean", "Utf8"):
            raise ValueError(type_name)
        return _draw_literal(value)
    if kind == "BinaryExpr":
        text = f"{_draw(body['left'])} {_OPERATORS[body['op']]} {_draw(body['right'])}"
        return f"({text})" if is_inner else text
    if kind == "Function":
        return _draw_function(body)
    raise ValueError(kind)


def _draw_function(body: Mapping[str, Any]) -> str:
    name, inputs = body["function"], body["input"]
    if isinstance(name, dict):
        ((family, member),) = name.items()
        name = f"{family}.{member}"
    first = _draw(inputs[0], is_inner=name not in _CALLS)
    if name in _CALLS:
        rest = [_draw(one) for one in inputs[1:]]
        return f"{_CALLS[name]}({', '.join([first, *rest])})"
    if name == "ListExpr.Get":
        return f"{first}[{inputs[1]['Literal']['Int32']}]"
    if name == "Boolean.IsNot":
        return f"(not {first})"
    if name == "Boolean.IsIn":
        values = inputs[1]["Literal"]["Series"]["values"]
        if not values or None in values:
            raise ValueError(name)
        return f"({first} in [{', '.join(map(_draw_literal, values))}])"
    raise ValueError(name)


def _draw_literal(value: object) -> str:
    """A value as the readable form spells it; a text that holds both quotes it cannot spell."""
    if not isinstance(value, str):
        return json.dumps(value)
    mark = "'" if '"' in value else '"'
    if mark in value or not value.isprintable():
        raise ValueError(value)
    return f"{mark}{value}{mark}"
