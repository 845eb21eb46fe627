"""Readable checks: the published JSON they become, and where their errors point."""

import json
import os
import pathlib

import pytest

from engine.errors import StartupError
from engine.pipeline.check_drawing import draw_check
from engine.pipeline.check_text import compile_text

CORPUS = (
    pathlib.Path(os.environ.get("SAGITTA_GOLDEN", "../shared/golden"))
    / "expr"
    / "polars_0_18_15_expressions.json"
)

WRITTEN = {
    "fraud": "out.dense_1[0] > 0.9",
    "too_low": "out.dense_1[0]<1e-3",
    "in_between_2": "out.dense_1[0] < .9 and out.dense_1[0] > 0.001",
    "or_expr": "out.dense_1[0] >= 0.9 or out.dense_1[0] <= 0.0001",
    "not_expr": "not (out.dense_1[0] > 0.5)",
    "eq_expr": "out.dense_1[0] == 1.0",
    "ne_expr": "out.dense_1[0] != 1.",
    "in_first": "in.tensor[0] > 1.0",
    "in_neg_index": "in.tensor[-1] > 0.5",
    "in_and_out": "in.`tensor`[28] > 0 and out.dense_1[0] > 0.01",
    "list_sum": "sum(in.tensor) > 5.0",
    "list_contains": "contains(in.tensor, 0.0)",
    "arith": "out.dense_1[0] * 2 + 0.1 > 1.9",
    "arith_div": "in.tensor[1] / in.tensor[2] > 1.0",
    "abs_expr": "abs(in.tensor[2]) > 5.0",
    "is_between": "between(out.dense_1[0], 0.001, 0.9)",
    "is_null": "is_null(out.dense_1[0])",
    "is_nan": "is_nan(out.dense_1[0])",
    "lit_true": "true",
}


@pytest.mark.skipif(not CORPUS.exists(), reason="SAGITTA_GOLDEN is absent")
@pytest.mark.parametrize("name", WRITTEN)
def test_the_json_is_polars_own_byte_for_byte(name):
    recorded = {one["name"]: one["json"] for one in json.loads(CORPUS.read_text())["expressions"]}

    assert compile_text(name, WRITTEN[name]) == recorded[name]


def literals(text):
    """Every literal of the compiled check, in order."""
    found = []

    def walk(node):
        if isinstance(node, dict):
            found.extend([node["Literal"]] if "Literal" in node else [])
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(json.loads(compile_text("x", text)))
    return found


NUMBERS = [
    ("1_000_000", {"Int32": 1000000}),
    ("2147483647", {"Int32": 2147483647}),
    ("2147483648", {"Int64": 2147483648}),
    ("-2147483648", {"Int32": -2147483648}),
    ("-2147483649", {"Int64": -2147483649}),
    ("1.", {"Float64": 1.0}),
    (".5", {"Float64": 0.5}),
    ("-1_0.5e-3", {"Float64": -0.0105}),
    ("1E6", {"Float64": 1e6}),
    ("- - 3", {"Int32": 3}),
    ("'it is'", {"Utf8": "it is"}),
    ('"é"', {"Utf8": "é"}),
    ("false", {"Boolean": False}),
]


@pytest.mark.parametrize(("text", "literal"), NUMBERS)
def test_literals(text, literal):
    assert literals(f"out.x == {text}") == [literal]


def series(kind, values):
    return {"Series": {"name": "", "datatype": kind, "bit_settings": "", "values": values}}


def test_lists_take_the_type_that_holds_all_values():
    assert literals("out.x in [1, -2]") == [series("Int64", [1, -2])]
    assert literals("out.x in [1, 2.5]") == [series("Float64", [1.0, 2.5])]
    assert literals("out.x in ['a']") == [series("Utf8", ["a"])]
    assert literals("out.x in [true]") == [series("Boolean", [True])]


BINDING = [
    ("out.a or out.b and not out.c", "out.a or (out.b and (not out.c))"),
    ("out.a + out.b * out.c > -out.d", "(out.a + (out.b * out.c)) > (0 - out.d)"),
    ("out.a - out.b - out.c > 1", "((out.a - out.b) - out.c) > 1"),
    ("not out.a == out.b", "not (out.a == out.b)"),
    ("out.a[0][1] in [1] and true", "((out.a[0])[1] in [1]) and true"),
]


@pytest.mark.parametrize(("loose", "strict"), BINDING)
def test_operators_bind_as_one_reads_them(loose, strict):
    assert compile_text("x", loose) == compile_text("x", strict)


POINTS = [
    ("out.x[0] > > 3", 12, "found '>', expected a column, a number, a text, a function"),
    ("out.x[0", 8, "found the end, expected ']'"),
    ("1 < out.x < 2", 11, "join two of them with 'and'"),
    ("price > 3", 1, "'price' is no column (in.price or out.price?) and no function (abs,"),
    ("out.x ? 3", 7, "'?' means nothing here"),
    ("out.x = 3", 7, "'=' means nothing here"),
    ("out.x in [1, 'a']", 10, "the listed values are of several types"),
    ("out.x in [out.y]", 10, "only numbers and texts that are spelled out"),
    ("out.x in []", 11, "found ']'"),
    ("out.x in 3", 10, "found '3', expected '['"),
    ("", 1, "found the end"),
    ("out.x > 1e999", 9, "too large for a float64"),
    ("out.x > 9223372036854775808", 9, "too large for an int64"),
    ("out.x[1.5] > 1", 7, "the position in a list is a whole number"),
    ("out.x[out.y] > 1", 7, "expected a number"),
    ("(out.x > 1", 11, "expected ')'"),
    ("between(out.x, 1)", 1, "between takes 3 value(s), here are 2"),
    ("contains(in.t, in.u)", 1, "contains looks for"),
    ("out.x > 1 2", 11, "found '2', expected the end of the check"),
    ("not", 4, "found the end"),
    ("out.x > 'abc", 9, "means nothing here"),
    ("(" * 40 + "true" + ")" * 40, 25, "nests more than"),
    ("out.x > 1" + " or out.x > 1" * 99, None, "too long: split it"),
]


@pytest.mark.parametrize(("text", "character", "problem"), POINTS)
def test_errors_point_at_the_character(text, character, problem):
    with pytest.raises(StartupError) as error:
        compile_text("high", text)

    first, shown, pointer = str(error.value).split("\n")
    assert first.startswith("check 'high', character ")
    assert problem in first
    assert shown == f"  {text}"
    if character is not None:
        assert f"character {character}:" in first
        assert pointer == " " * (character + 1) + "^"


DRAWN = [
    "out.dense_1[0] > 0.9",
    "(out.a[0] < 0.9) and (out.b > -3)",
    "(not (out.a > 5)) or is_null(in.x[-1])",
    "((out.a * 2) + 0.1) > 1.9",
    "abs(in.`dense-1:0`[2]) > 5.0",
    '(in.name == "é\'") or (in.name in ["a", "b"])',
    "(in.n in [1, -2]) or contains(in.list, 3000000000)",
    "(sum(in.list) / out.d[0][1]) != out.e",
    "true",
    """in.name == 'a"b'""",
    """(in.name in ['"', "'", "back\\slash"])""",
]


@pytest.mark.parametrize("text", DRAWN)
def test_what_is_drawn_compiles_to_what_it_was_drawn_from(text):
    tree = compile_text("odd one", text)

    assert draw_check(tree) == f"odd one: {text}"


@pytest.mark.skipif(not CORPUS.exists(), reason="SAGITTA_GOLDEN is absent")
def test_recorded_checks_are_drawn_as_far_as_the_readable_form_reaches():
    for one in json.loads(CORPUS.read_text())["expressions"]:
        name, _, text = draw_check(one["json"]).partition(": ")

        assert name == one["name"]
        if one["name"] in ("is_in", "cast", "when_then"):
            assert text == ""
        else:
            assert compile_text(name, text) == one["json"]


def test_a_text_with_both_quotes_has_no_readable_form():
    body = {"left": {"Column": "in.name"}, "op": "Eq", "right": {"Literal": {"Utf8": "'\""}}}

    assert draw_check(json.dumps({"Alias": [{"BinaryExpr": body}, "odd"]})) == "odd"


def test_what_is_no_published_json_is_shown_as_it_is():
    assert draw_check("odd: out.x > 1") == "odd: out.x > 1"
    assert draw_check('{"values": {}}') == '{"values": {}}'
