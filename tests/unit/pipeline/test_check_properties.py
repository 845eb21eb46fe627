"""Random checks on random columns against an evaluator that knows one row and no arrays."""

import json

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.pipeline.checks import compile_checks

ROWS = 7
INTEGERS = {"in.i8": np.int8, "in.u8": np.uint8, "in.i32": np.int32, "out.i64": np.int64}
FLOATS = {"in.f": np.float32, "out.d": np.float64}
LISTS = {"in.L": np.float32, "out.M": np.int16}
TYPES = {**INTEGERS, **FLOATS}
ARROW = {np.int16: pa.int16(), np.int8: pa.int8(), np.uint8: pa.uint8(), np.int32: pa.int32()} | {
    np.int64: pa.int64(),
    np.float32: pa.float32(),
    np.float64: pa.float64(),
}
COMPARE = ("Eq", "NotEq", "Lt", "LtEq", "Gt", "GtEq")


def numbers(kind):
    if kind in (np.float32, np.float64):
        values = st.sampled_from([0.0, -0.0, 0.1, 1.0, -2.5, np.nan, np.inf, 3e7, 1e-20])
        return st.floats(width=32) | values
    bounds = np.iinfo(kind)
    edges = st.sampled_from([bounds.min, bounds.max, 0, 1, 3])
    return st.integers(int(bounds.min), int(bounds.max)) | edges


@st.composite
def columns(draw):
    made = {}
    for name, kind in TYPES.items():
        made[name] = draw(st.lists(st.none() | numbers(kind), min_size=ROWS, max_size=ROWS))
    for name, kind in LISTS.items():
        lists = st.none() | st.lists(st.none() | numbers(kind), max_size=4)
        made[name] = draw(st.lists(lists, min_size=ROWS, max_size=ROWS))
    made["out.b"] = draw(st.lists(st.none() | st.booleans(), min_size=ROWS, max_size=ROWS))
    return made


literal = st.one_of(
    st.sampled_from([0, 1, -1, 3, 300, -129, 2**31 - 1]).map(lambda n: {"Literal": {"Int32": n}}),
    st.sampled_from([0.0, 0.1, 2.5, -1.0, 1e30]).map(lambda n: {"Literal": {"Float64": n}}),
)


def function(name, *inputs):
    return {"Function": {"input": list(inputs), "function": name, "options": {}}}


element = st.builds(
    lambda name, index: function(
        {"ListExpr": "Get"}, {"Column": name}, {"Literal": {"Int32": index}}
    ),
    st.sampled_from(sorted(LISTS)),
    st.integers(-5, 4),
)
leaf = st.sampled_from(sorted(TYPES)).map(lambda name: {"Column": name}) | element


def binary(op, left, right):
    return {"BinaryExpr": {"left": left, "op": op, "right": right}}


number = st.recursive(
    leaf,
    lambda inner: st.one_of(
        st.builds(binary, st.sampled_from(["Plus", "Minus", "Multiply"]), inner, inner | literal),
        st.builds(binary, st.just("TrueDivide"), inner, inner | literal),
        inner.map(lambda tree: function("Abs", tree)),
    ),
    max_leaves=4,
)
test = st.one_of(
    st.builds(binary, st.sampled_from(COMPARE), number, number | literal),
    number.map(lambda tree: function({"Boolean": "IsNull"}, tree)),
    number.map(lambda tree: function({"Boolean": "IsNan"}, tree)),
    st.just({"Column": "out.b"}),
)
boolean = st.recursive(
    test,
    lambda inner: st.one_of(
        st.builds(binary, st.sampled_from(["And", "Or"]), inner, inner),
        inner.map(lambda tree: function({"Boolean": "IsNot"}, tree)),
    ),
    max_leaves=5,
)


class Naive:
    """One row: each expression gives its type and a value of that type, or None."""

    def __init__(self, row):
        self.row = row

    def __call__(self, tree):
        kind, body = next(iter(tree.items()))
        return getattr(self, kind)(body)

    def Column(self, name):
        value = self.row[name]
        kind = np.dtype({**TYPES, **LISTS, "out.b": np.bool_}[name])
        return kind, value if value is None or isinstance(value, list) else kind.type(value)

    def Literal(self, body):
        return next(iter(body)), next(iter(body.values()))

    def BinaryExpr(self, body):
        op, left, right = body["op"], self(body["left"]), self(body["right"])
        if op in ("And", "Or"):
            decisive = op == "Or"
            if decisive in (left[1], right[1]):
                return np.dtype(bool), np.bool_(decisive)
            known = None not in (left[1], right[1])
            return np.dtype(bool), np.bool_(not decisive) if known else None
        kind = self.meet(left, right)
        result = np.dtype(bool) if op in COMPARE else kind
        if op == "TrueDivide" and kind.kind in "iu":
            result = kind = np.dtype(np.float64)
        if left[1] is None or right[1] is None:
            return result, None
        with np.errstate(all="ignore"):
            x, y = kind.type(left[1]), kind.type(right[1])
            return result, result.type(
                {
                    "Plus": lambda: x + y,
                    "Minus": lambda: x - y,
                    "Multiply": lambda: x * y,
                    "TrueDivide": lambda: x / y,
                    "Eq": lambda: x == y,
                    "NotEq": lambda: x != y,
                    "Lt": lambda: x < y,
                    "LtEq": lambda: x <= y,
                    "Gt": lambda: x > y,
                    "GtEq": lambda: x >= y,
                }[op]()
            )

    @staticmethod
    def meet(left, right):
        if not isinstance(right[0], str):
            return np.promote_types(left[0], right[0])
        column, (name, value) = left[0], right
        if column.kind == "f":
            return column
        if name == "Float64":
            return np.dtype(np.float64)
        bounds = np.iinfo(column)
        fits = bounds.min <= value <= bounds.max
        return column if fits else np.promote_types(column, np.int32)

    def Function(self, body):
        name, inputs = body["function"], body["input"]
        kind, value = self(inputs[0])
        if name == "Abs":
            with np.errstate(all="ignore"):
                return kind, None if value is None else kind.type(np.abs(value))
        family, member = next(iter(name.items()))
        if family == "ListExpr":
            index = inputs[1]["Literal"]["Int32"]
            inside = value is not None and -len(value) <= index < len(value)
            item = value[index] if inside else None
            return kind, None if item is None else kind.type(item)
        if member == "IsNull":
            return np.dtype(bool), np.bool_(value is None)
        if member == "IsNan" and kind.kind in "iu":
            return np.dtype(bool), np.bool_(False)
        change = np.isnan if member == "IsNan" else np.logical_not
        return np.dtype(bool), None if value is None else np.bool_(change(value))


@settings(max_examples=150, deadline=None)
@given(columns(), st.lists(boolean, min_size=1, max_size=3))
def test_checks_find_what_a_row_by_row_evaluator_finds(data, trees):
    kinds = {name: ARROW[kind] for name, kind in TYPES.items()}
    kinds |= {name: pa.list_(ARROW[kind]) for name, kind in LISTS.items()}
    kinds["out.b"] = pa.bool_()
    arrays = {name: pa.array(data[name], kind) for name, kind in kinds.items()}
    checks = [json.dumps({"Alias": [tree, f"c{n}"]}) for n, tree in enumerate(trees)]

    result = compile_checks(checks).evaluate(arrays, ROWS)

    for row in range(ROWS):
        naive = Naive({name: values[row] for name, values in data.items()})
        expected = [bool(naive(tree)[1]) for tree in trees]
        assert [bool(flag[row]) for flag in result.flags.values()] == expected
        assert result.count[row] == sum(expected)
