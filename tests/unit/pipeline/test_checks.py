"""Published checks: the recorded expressions, what polars makes of odd values, what is refused."""

import json
import os
import pathlib

import numpy as np
import pyarrow as pa
import pytest

from engine.errors import SchemaMismatchError, StartupError
from engine.pipeline.check_text import compile_text
from engine.pipeline.checks import compile_checks
from engine.values import ELEMENT_TYPES, TensorSpec

GOLDEN = pathlib.Path(os.environ.get("SAGITTA_GOLDEN", "../shared/golden"))
CORPUS = GOLDEN / "expr" / "polars_0_18_15_expressions.json"
ANSWERS = GOLDEN / "recorded" / "ops_infer_ccfraud_keras_1001_2023_no_elapsed.json"
needs_golden = pytest.mark.skipif(not CORPUS.exists(), reason="SAGITTA_GOLDEN is absent")

NAN = float("nan")


def check(text, name="x"):
    return compile_text(name, text)


def flags(text, columns, rows):
    result = compile_checks([check(text)]).evaluate(columns, rows)
    return result.flags["x"].tolist()


def spec(name, element="float", shape=(None, 4)):
    return TensorSpec(name, ELEMENT_TYPES[element], shape)


COLUMNS = {
    "in.tensor": spec("tensor"),
    "in.name": spec("name", "string", (None,)),
    "in.card_type": None,
    "out.price": spec("price", "float", (None, 1)),
    "out.label": spec("label", "int64", (None,)),
    "out.flag": spec("flag", "bool", (None,)),
    "out.any": spec("any", "float", (None, None)),
    "out.deep": spec("deep", "float", (None, 2, 3)),
}


@pytest.fixture(scope="module")
def recorded():
    rows = json.loads(ANSWERS.read_text())
    return {
        "in.tensor": np.array([row["in"]["tensor"] for row in rows], np.float32),
        "out.dense_1": np.array([row["out"]["dense_1"] for row in rows], np.float32),
    }


@pytest.fixture(scope="module")
def corpus():
    return json.loads(CORPUS.read_text())["expressions"]


@needs_golden
@pytest.mark.parametrize("layout", ["tensor", "arrow lists", "arrow fixed lists", "json"])
def test_recorded_expressions_find_the_recorded_rows(recorded, corpus, layout):
    make = {
        "tensor": lambda tensor: tensor,
        "arrow lists": lambda tensor: pa.array(tensor.tolist(), pa.list_(pa.float32())),
        "arrow fixed lists": lambda tensor: pa.FixedSizeListArray.from_arrays(
            pa.array(tensor.reshape(-1)), tensor.shape[1]
        ),
        "json": lambda tensor: tensor.tolist(),
    }[layout]
    columns = {name: make(tensor) for name, tensor in recorded.items()}
    for expression in corpus:
        if layout == "json" and expression["name"] == "eq_expr":
            continue  # JSON numbers are float64: 1.0 is the same number there, polars agrees

        result = compile_checks([expression["json"]]).evaluate(columns, 1001)

        found = np.flatnonzero(result.flags[expression["name"]])
        assert len(found) == expression["true_count"], expression["name"]
        assert found[:50].tolist() == expression["true_rows_first50"], expression["name"]
        assert result.count.tolist() == result.flags[expression["name"]].tolist()


@needs_golden
def test_all_recorded_expressions_at_once_count_alike(recorded, corpus):
    checks = compile_checks([expression["json"] for expression in corpus])

    result = checks.evaluate(recorded, 1001)

    assert result.count.dtype == np.uint32
    assert result.count.sum() == sum(expression["true_count"] for expression in corpus)
    assert list(result.flags) == [expression["name"] for expression in corpus]


@needs_golden
def test_recorded_expressions_suit_the_model_they_were_made_for(corpus):
    columns = {
        "in.tensor": spec("tensor", "float", (None, 29)),
        "out.dense_1": spec("dense_1", "float", (None, 1)),
    }

    assert not compile_checks([one["json"] for one in corpus]).validate(columns)


# What polars 0.18.15 answered, value by value.
SEMANTICS = [
    # a literal takes the column's type: 0.9 as float32 is the column's own 0.9
    ("out.f == 0.9", [True, False, False, False, False, False]),
    ("out.f > 0.9", [False, False, True, False, True, False]),
    ("out.f != 0.9", [False, True, True, True, True, True]),
    ("out.f / 0 > 1", [True, False, True, False, True, False]),
    # two columns meet in the wider type
    ("out.f == out.d", [False, False, True, True, True, False]),
    # arithmetic of literals is not a literal: it stays float64
    ("out.f == 0.5 + 0.4", [False, False, False, False, False, False]),
    ("is_nan(out.f)", [False, True, False, False, False, False]),
    ("out.f in [0.9, 1]", [True, False, True, False, False, False]),
    ("out.f in [0.0]", [False, False, False, False, False, False]),  # -0.0 has other bits
    # integers wrap in their own type, unless a literal does not fit it
    ("out.i8 + 1 < 0", [True, False, False, True, False, False]),
    ("out.i8 + 300 < 0", [False, False, False, False, False, False]),
    ("out.u8 - 1 > 200", [True, True, False, False, True, True]),
    ("abs(out.i8) < 0", [False, False, False, True, False, False]),
    ("out.u8 - out.i8 < 0", [True, True, False, False, False, False]),
    ("out.i8 / 2 == 0.5", [False, True, False, False, False, False]),
    ("out.i8 in [3.9]", [False, False, True, False, False, False]),  # members take its type
    ("out.u8 == -1", [False, False, False, False, False, False]),
    ("out.l == out.ul", [False, False, True, True, True, False]),  # both as float64
    ("out.b + out.b == 2", [True, False, True, False, True, False]),
]
VALUES = {
    "out.f": np.array([0.9, NAN, 1.0, -0.0, np.inf, -2.5], np.float32),
    "out.d": np.array([0.9, NAN, 1.0, 0.0, np.inf, 2.5], np.float64),
    "out.i8": np.array([127, 1, 3, -128, 0, -1], np.int8),
    "out.u8": np.array([0, 0, 3, 128, 255, 254], np.uint8),
    "out.l": np.array([-1, 1, 2**53 + 1, 0, 2**62, 1], np.int64),
    "out.ul": np.array([2**64 - 1, 0, 2**53, 0, 2**62 + 1, 2], np.uint64),
    "out.b": np.array([True, False, True, False, True, False]),
}


@pytest.mark.parametrize(("text", "expected"), SEMANTICS, ids=[text for text, _ in SEMANTICS])
def test_numbers_are_compared_as_polars_does(text, expected):
    assert flags(text, VALUES, 6) == expected


NULLS = {
    "in.f": pa.array([1.0, None, NAN, 3.0], pa.float32()),
    "in.i": pa.array([1, None, 2, 3], pa.int32()),
    "in.b": pa.array([True, None, False, None]),
    "in.c": pa.array([None, None, None, True]),
    "in.s": pa.array(["a", None, "", "é"]),
    "in.L": pa.array([[1.0, 2.0], None, [], [None, 5.0]], pa.list_(pa.float32())),
    "in.N": pa.array([[[1], [2, 3]], [], None, [[], [4]]], pa.list_(pa.list_(pa.int64()))),
    "in.S": pa.array([["a"], ["b", None], None, []], pa.large_list(pa.large_string())),
    "in.F": pa.array([[1, 2], None, [None, 4], [5, 6]], pa.list_(pa.int8(), 2)),
    "in.nothing": pa.nulls(4),
}
NULL_SEMANTICS = [
    ("in.f > 0", [True, False, False, True]),
    ("not in.f > 0", [False, False, True, False]),  # null is neither
    ("is_null(in.f)", [False, True, False, False]),
    ("not is_null(in.f)", [True, False, True, True]),
    ("is_nan(in.f)", [False, False, True, False]),
    ("in.b and in.c", [False, False, False, False]),
    ("is_null(in.b and in.c)", [True, True, False, True]),
    ("is_null(in.b or in.c)", [False, True, True, False]),
    ("in.b or in.c", [True, False, False, True]),
    ("in.i in [1, 3]", [True, False, False, True]),
    ("in.i in [1099511627776]", [False, True, False, False]),  # what does not fit is null
    ("in.s == 'a'", [True, False, False, False]),
    ("in.s != 'a'", [False, False, True, True]),
    ("in.s < 'b'", [True, False, True, False]),
    ("in.s in ['a', 'é']", [True, False, False, True]),
    ("in.L[0] > 0", [True, False, False, False]),
    ("in.L[-1] > 0", [True, False, False, True]),
    ("is_null(in.L[0])", [False, True, True, True]),
    ("is_null(in.L)", [False, True, False, False]),
    ("sum(in.L) == 0", [False, False, True, False]),
    ("sum(in.L) == 5", [False, False, False, True]),
    ("contains(in.L, 5)", [False, False, False, True]),
    ("not contains(in.L, 5)", [True, True, True, False]),
    ("in.N[1][0] > 1", [True, False, False, True]),
    ("is_null(in.N[0][0])", [False, True, True, True]),
    ("in.S[0] == 'b'", [False, True, False, False]),
    ("contains(in.S, 'b')", [False, True, False, False]),
    ("in.F[1] > 2", [False, False, True, True]),
    ("sum(in.F) > 10", [False, False, False, True]),
    ("is_null(in.nothing)", [True, True, True, True]),
]


@pytest.mark.parametrize(("text", "expected"), NULL_SEMANTICS)
@pytest.mark.parametrize("sliced", [False, True])
def test_nulls_are_treated_as_polars_does(text, expected, sliced):
    columns = NULLS
    if sliced:
        columns = {
            name: pa.concat_arrays([column[2:], column, column[:1]]).slice(2, 4)
            for name, column in NULLS.items()
        }

    assert flags(text, columns, 4) == expected


@pytest.mark.parametrize(("text", "expected"), NULL_SEMANTICS)
def test_json_values_are_treated_as_arrow_values_are(text, expected):
    if "1099511627776" in text:
        expected = [False] * 4  # JSON integers are int64: it fits

    columns = {name: column.to_pylist() for name, column in NULLS.items()}

    assert flags(text, columns, 4) == expected


def test_a_missing_value_takes_the_otherwise():
    tree = {
        "Ternary": {
            "predicate": {"Column": "in.b"},
            "truthy": {"Literal": {"Boolean": True}},
            "falsy": {"BinaryExpr": {"left": {"Column": "in.i"}, "op": "Gt", "right": _lit(1)}},
        }
    }

    result = _evaluate(tree, NULLS, 4)

    assert result.flags["x"].tolist() == [True, False, True, True]


CASTS = [
    ("Int8", [1.7, -1.7, 127.9, 128.0, NAN, np.inf], [1, -1, 127, None, None, None]),
    ("UInt8", [0.5, -1.0, 255.0, 256.0, NAN, -np.inf], [0, None, 255, None, None, None]),
    ("Int64", [1e30, -3.9, 2.0**63, -(2.0**63), 0.0, 1.0], [None, -3, None, -(2**63), 0, 1]),
    ("Boolean", [0.0, NAN, 2.0, -0.0, 1.0, np.inf], [False, True, True, False, True, True]),
    ("Float32", [0.1, 1e300, NAN, 0.0, -1.0, 2.0], [0.10000000149011612, np.inf, NAN, 0, -1, 2]),
]


@pytest.mark.parametrize(("target", "values", "expected"), CASTS)
def test_a_cast_gives_null_for_what_does_not_fit(target, values, expected):
    cast = {"Cast": {"expr": {"Column": "out.v"}, "data_type": target, "strict": True}}
    columns = {"out.v": np.array(values)}
    null = _evaluate(_function({"Boolean": "IsNull"}, cast), columns, 6).flags["x"]

    assert null.tolist() == [value is None for value in expected]
    for row, value in enumerate(expected):
        if value is not None and np.isfinite(value):
            right = _lit(value, "Boolean" if target == "Boolean" else None)
            equal = {"BinaryExpr": {"left": cast, "op": "Eq", "right": right}}
            assert _evaluate(equal, columns, 6).flags["x"][row], value


def test_a_float32_sum_runs_left_to_right():
    values = np.array([[1e8, 1.0, -1e8, 0.5]] * 8, np.float32)

    assert flags("sum(out.v) == 0.5", {"out.v": values}, 8) == [True] * 8
    assert flags("sum(out.v) == 0.5", {"out.v": values[:1]}, 1) == [True]


def test_a_tensor_is_read_in_place():
    tensor = np.arange(12, dtype=np.float32).reshape(3, 4)
    tensor.flags.writeable = False

    assert flags("out.t[-1] > 5", {"out.t": tensor}, 3) == [False, True, True]
    assert flags("out.t[1] > 5", {"out.t": tensor[:, ::-1]}, 3) == [False, True, True]


def test_only_the_named_columns_are_asked_for():
    class Watched(dict):
        asked = ()

        def __getitem__(self, name):
            self.asked = (*self.asked, name)
            return super().__getitem__(name)

    columns = Watched({"out.a": np.ones(2), "out.b": np.ones(2), "in.c": np.ones(2)})
    checks = compile_checks([check("out.a > 0"), check("out.a > in.c", "y")])

    checks.evaluate(columns, 2)

    assert set(columns.asked) == {"out.a", "in.c"} == set(checks.columns)
    assert len(columns.asked) == 2


NOTHING = [  # a check on a column without any value, which therefore has no type
    ("in.none == 'gold'", False),
    ("in.none > 0.5", False),
    ("not (in.none > 0.5)", False),
    ("in.none[0] + 1 > 0.5", False),
    ("is_null(in.none)", True),
    ("is_null(in.none) and out.a > 0", True),
    ("in.none > 1 or out.a > 0", True),
    ("in.none > 1 and out.a > 0", False),
    ("in.none in ['a']", False),
    ("sum(in.none) > 1", False),
    ("contains(in.none, 1)", False),
]


@pytest.mark.parametrize("columns", [{}, {"in.none": [None, None]}, {"in.none": pa.nulls(2)}])
@pytest.mark.parametrize(("text", "expected"), NOTHING)
def test_a_column_without_any_value_is_null_in_every_row(text, expected, columns):
    assert flags(text, {"out.a": np.ones(2), **columns}, 2) == [expected] * 2


@pytest.mark.parametrize(
    ("predicate", "truthy", "expected"),
    [(None, 1.0, True), (False, None, True), (True, None, False), (True, 1.0, False)],
)
def test_a_choice_between_something_and_nothing(predicate, truthy, expected):
    """``when(predicate).then(truthy).otherwise(9.0) == 9.0``; None is the column of no values."""
    nothing = {"Column": "in.none"}
    choice = {
        "predicate": nothing if predicate is None else _lit(predicate, "Boolean"),
        "truthy": nothing if truthy is None else _lit(truthy),
        "falsy": _lit(9.0),
    }
    tree = {"BinaryExpr": {"left": {"Ternary": choice}, "op": "Eq", "right": _lit(9.0)}}

    assert _evaluate(tree, {"in.none": [None]}, 1).flags["x"].tolist() == [expected]


def test_zero_rows_have_no_verdicts():
    result = compile_checks([check("out.a[0] > 0"), check("true", "y")]).evaluate(
        {"out.a": np.zeros((0, 3), np.float32)}, 0
    )

    assert result.count.tolist() == []
    assert result.flags["y"].tolist() == []
    assert result.verdicts[0][1].tolist() == []


def test_one_name_twice_counts_twice_and_shows_the_last():
    result = compile_checks([check("out.a > 0"), check("out.a > 5")]).evaluate(
        {"out.a": np.array([1.0, 9.0])}, 2
    )

    assert result.count.tolist() == [1, 2]
    assert {name: flag.tolist() for name, flag in result.flags.items()} == {"x": [False, True]}


def test_a_check_called_count_is_dropped_with_a_warning():
    checks = compile_checks([check("true", "count"), check("true", "y")])

    result = checks.evaluate({}, 2)

    assert checks.names == ("y",)
    assert result.count.tolist() == [1, 1]
    assert "$.tree[0]" in checks.warnings[0]
    assert "rename" in checks.warnings[0]


def test_readable_checks_may_stand_in_the_tree():
    result = compile_checks(["too high: out.a > 5"]).evaluate({"out.a": np.array([1.0, 9.0])}, 2)

    assert result.flags["too high"].tolist() == [False, True]


def test_a_request_of_another_type_is_the_callers_fault():
    checks = compile_checks([check("in.name == 'a'")])

    with pytest.raises(SchemaMismatchError, match=r"BinaryExpr: int64 and text do not meet"):
        checks.evaluate({"in.name": [1, 2]}, 2)
    with pytest.raises(SchemaMismatchError, match=r"column 'in\.name': its values are of several"):
        checks.evaluate({"in.name": [1, "a"]}, 2)
    with pytest.raises(SchemaMismatchError, match=r"checks cannot read timestamp"):
        checks.evaluate({"in.name": pa.array([0, 1], pa.timestamp("ms"))}, 2)


def test_an_element_beyond_a_known_list_is_reported():
    warnings = compile_checks([check("out.price[1] > 0"), check("out.any[7] > 0")]).validate(
        COLUMNS
    )

    assert len(warnings) == 1
    assert "each list has 1 elements, so element 1 is always null" in warnings[0]


def test_a_column_of_the_clients_choice_is_checked_when_it_comes():
    checks = compile_checks([check("in.card_type == 'gold' or out.price[0] > 1")])

    assert checks.validate(COLUMNS) == ()
    assert checks.evaluate(
        {"in.card_type": ["gold", None], "out.price": np.zeros((2, 1), np.float32)}, 2
    ).count.tolist() == [1, 0]


def _lit(value, kind=None):
    return {"Literal": {kind or ("Int64" if isinstance(value, int) else "Float64"): value}}


def _function(name, *inputs):
    return {"Function": {"input": list(inputs), "function": name, "options": {}}}


def _evaluate(tree, columns, rows):
    return compile_checks([json.dumps({"Alias": [tree, "x"]})]).evaluate(columns, rows)


PRICE = _function({"ListExpr": "Get"}, {"Column": "out.price"}, {"Literal": {"Int32": 0}})
GOOD = {"BinaryExpr": {"left": PRICE, "op": "Gt", "right": _lit(1.0)}}


def _is_in(datatype, values):
    series = {"Series": {"datatype": datatype, "values": values}}
    return _function({"Boolean": "IsIn"}, PRICE, {"Literal": series})


def _deep(levels):
    tree = GOOD
    for _ in range(levels):
        tree = _function({"Boolean": "IsNot"}, tree)
    return tree


WRONG = [
    # the document
    ("not json {", r"NAME: EXPRESSION"),
    ("{", r"\$\.tree\[0\]: the check is not JSON"),
    ('{"Alias": 5}', r"\$\.tree\[0\]\.Alias: found 5, expected an array"),
    (GOOD, r'\$\.tree\[0\]: .* expected .*"Alias".* a check needs a name'),
    ({"Alias": [GOOD]}, r"\.Alias: .* expected an expression and a name"),
    ({"Alias": [GOOD, 5]}, r"\.Alias\[1\]: found 5, expected a printable string"),
    ({"Alias": [GOOD, "x"], "Column": "out.price"}, r"expected an object with one key"),
    # the expression
    ({"Alias": ["Wildcard", "x"]}, r'Alias\[0\]: found "Wildcard", expected an expression, one of'),
    (
        {"Alias": [{"Agg": {"Mean": {}}}, "x"]},
        r"Alias\[0\]: expression 'Agg' is not supported .*"
        r"supported are Column, Literal, BinaryExpr",
    ),
    ({"Alias": [{"Alias": [GOOD, "y"]}, "x"]}, r"expression 'Alias' is not supported"),
    ({"Alias": [_deep(200), "x"]}, r"nests more than 128 deep; split the check"),
    ({"Alias": [{"Column": "price"}, "x"]}, r'Column: found "price", expected a column as "in\.'),
    (
        {"Alias": [_lit(None, "Float64"), "x"]},
        r"Literal\.Float64: found nothing, expected a Float64",
    ),
    ({"Alias": [_lit(2**40, "Int32"), "x"]}, r"Literal\.Int32: .* a number that fits Int32"),
    ({"Alias": [_lit(1.5, "Int32"), "x"]}, r"Literal\.Int32: found 1\.5, expected a Int32 value"),
    ({"Alias": [{"Literal": "Null"}, "x"]}, r"literal 'Null' is not supported in a check"),
    ({"Alias": [_lit([1], "Date"), "x"]}, r"literal 'Date' is not supported"),
    (
        {"Alias": [{"BinaryExpr": {**GOOD["BinaryExpr"], "op": "Modulus"}}, "x"]},
        r"BinaryExpr\.op: operator 'Modulus' is not supported .* Eq, NotEq, Lt",
    ),
    (
        {"Alias": [{"BinaryExpr": {"left": PRICE, "op": "Gt"}}, "x"]},
        r"BinaryExpr\.right: found nothing, expected an expression",
    ),
    (
        {"Alias": [_function({"StringExpr": {"Contains": {}}}, PRICE), "x"]},
        r"Function\.function: function .*StringExpr.* is not supported",
    ),
    ({"Alias": [_function("Exp", PRICE), "x"]}, r"function 'Exp' is not supported .* Abs"),
    ({"Alias": [_function("Abs", PRICE, PRICE), "x"]}, r"input: .* expected 1 expressions for Abs"),
    (
        {
            "Alias": [
                _function({"ListExpr": "Get"}, {"Column": "out.price"}, {"Column": "in.i"}),
                "x",
            ]
        },
        r"input\[1\]: .* expected a literal",
    ),
    (
        {"Alias": [_function({"ListExpr": "Get"}, {"Column": "out.price"}, _lit(0.5)), "x"]},
        r"input\[1\]: .* expected a whole number",
    ),
    (
        {"Alias": [_function({"Boolean": "IsIn"}, PRICE, _lit(1)), "x"]},
        r"Literal: .* expected a Series",
    ),
    (
        {
            "Alias": [
                _function(
                    {"Boolean": "IsIn"},
                    PRICE,
                    {"Literal": {"Series": {"datatype": "Int64", "values": [1, "a"]}}},
                ),
                "x",
            ]
        },
        r'values\[1\]: found "a", expected a',
    ),
    (
        {
            "Alias": [
                _function(
                    {"Boolean": "IsIn"},
                    PRICE,
                    {"Literal": {"Series": {"datatype": "Date", "values": []}}},
                ),
                "x",
            ]
        },
        r"data type 'Date' is not supported",
    ),
    ({"Alias": [_is_in(["Int64"], [1]), "x"]}, r"datatype: data type .* is not supported"),
    (
        {"Alias": [_is_in("UInt8", [1, 300]), "x"]},
        r"values\[1\]: found 300, expected a UInt8 value",
    ),
    ({"Alias": [_function(["Abs"], PRICE), "x"]}, r"function: function .*'Abs'.* is not supported"),
    (
        {"Alias": [{"Cast": {"expr": PRICE, "data_type": "Utf8", "strict": True}}, "x"]},
        r"Cast\.data_type: data type 'Utf8' is not supported .* Int8",
    ),
    (
        {"Alias": [{"Ternary": {"predicate": GOOD, "truthy": GOOD}}, "x"]},
        r"Ternary\.falsy: found nothing",
    ),
    # columns and types
    (check("out.prize[0] > 1"), r"no column 'out\.prize'; did you mean 'out\.price'\? \(columns: "),
    (check("in.zzz > 1"), r"Column: there is no column 'in\.zzz' \(columns: in\.card_type, in\."),
    (check("out.price > 1"), r"there is a list in each row: name an element, as in \[0\]"),
    (check("out.label[0] > 1"), r"there is one int64 in each row, not a list"),
    (check("out.price[0]"), r"check 'x' gives float32; it must be true or false"),
    (check("out.any"), r"check 'x' gives a list"),
    (check("in.name > 1"), r"text and int32 do not meet"),
    (check("in.name + 'a' == 'b'"), r"text cannot be calculated with"),
    (check("out.flag * out.flag == 1"), r"true and false cannot be calculated with"),
    (check("out.label and out.flag"), r"int64 is neither true nor false"),
    (check("not out.label"), r"int64 is neither true nor false"),
    (check("abs(in.name) == 'a'"), r"text has no magnitude"),
    (check("is_nan(out.flag)"), r"true or false is never NaN"),
    (check("sum(out.deep) > 1"), r"there is no sum of lists of lists"),
    (check("sum(out.label) > 1"), r"there is one int64 in each row, not a list"),
    (check("in.name in [1]"), r"text is never one of Int64 members"),
    (check("contains(in.tensor, 'a')"), r"float32 and text do not meet"),
]


@pytest.mark.parametrize(("tree", "message"), WRONG)
def test_what_is_not_understood_is_refused_by_name_and_place(tree, message):
    text = tree if isinstance(tree, str) else json.dumps(tree)

    with pytest.raises(StartupError, match=message) as error:
        compile_checks([text]).validate(COLUMNS)

    assert "$.tree[0]" in str(error.value)
