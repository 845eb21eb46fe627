"""The JSON of polars 0.18.15 expressions, written exactly as that release writes it."""

from typing import Any

__all__ = [
    "Tree",
    "common_type",
    "write_between",
    "write_binary",
    "write_contains",
    "write_function",
]

Tree = dict[str, Any]

_OPTIONS: dict[str, object] = {
    "collect_groups": "ApplyFlat",
    "fmt_str": "",
    "input_wildcard_expansion": False,
    "auto_explode": False,
    "cast_to_supertypes": False,
    "allow_rename": False,
    "pass_name_to_apply": False,
    "changes_length": False,
    "check_lengths": True,
    "allow_group_aware": True,
}


def write_binary(name: str, left: Tree, right: Tree) -> Tree:
    """Two operands and the polars name of what joins them."""
    return {"BinaryExpr": {"left": left, "op": name, "right": right}}


def write_function(function: object, *inputs: Tree, **options: object) -> Tree:
    """A function of polars; ``options`` are those in which it differs from the usual."""
    return {
        "Function": {
            "input": list(inputs),
            "function": function,
            "options": {**_OPTIONS, **options},
        }
    }


def write_contains(tree: Tree, item: Tree) -> Tree:
    """Whether a list holds a value."""
    options = {"auto_explode": True, "input_wildcard_expansion": True}
    return write_function({"ListExpr": "Contains"}, tree, item, **options)


def write_between(tree: Tree, low: Tree, high: Tree) -> Tree:
    """Both bounds belong to the range."""
    return write_binary("And", write_binary("GtEq", tree, low), write_binary("LtEq", tree, high))


def common_type(values: list[object]) -> str | None:
    """The polars type that holds all these values; None when there is none."""
    types = {type(value) for value in values}
    for kind, fits in (
        ("Int64", {int}),
        ("Float64", {int, float}),
        ("Boolean", {bool}),
        ("Utf8", {str}),
    ):
        if types <= fits:
            return kind
    return None
