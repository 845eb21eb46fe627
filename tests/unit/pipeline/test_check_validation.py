"""The older checks: what they find and how they are printed."""

import json

import numpy as np
import pytest

from engine.errors import StartupError
from engine.pipeline.checks import compile_checks

POSITIONS = {
    ("anomaly-housing-model", "input"): ("in.dense_16_input",),
    ("anomaly-housing-model", "output"): ("out.dense_19", "out.extra"),
}


def variable(position, *key, model="anomaly-housing-model"):
    return {
        "node": "variable",
        "variant_id": {"name": model},
        "position": position,
        "key": list(key),
    }


def literal(value, kind=None):
    return {"node": "literal", kind or ("integer" if isinstance(value, int) else "float"): value}


def binop(op, left, right):
    return {"node": "binop", "op": op, "left": left, "right": right}


def document(**roots):
    values = {
        name: {"root": root, "required_data": [{"name": "anomaly-housing-model"}]}
        for name, root in roots.items()
    }
    return json.dumps({"values": values, "gauges": [], "validations": list(roots)})


def evaluate(text, rows=3):
    columns = {
        "in.dense_16_input": np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], np.float32)[:rows],
        "out.dense_19": np.array([[99.0], [350.47], [np.nan]], np.float32)[:rows],
        "out.extra": np.array([1, 2, 3])[:rows],
    }
    return compile_checks([text], positions=POSITIONS).evaluate(columns, rows)


def printed(result):
    """What the legacy reply prints, once per row in which it is true."""
    return [text for text, flag in result.verdicts for _ in range(flag.sum())]


def test_the_recorded_validation_is_printed_as_recorded():
    price = binop("<", variable("output", 0, 0), literal(100.0))

    result = evaluate(document(**{"price too high": price}))

    assert result.flags["price too high"].tolist() == [False, True, True]
    assert result.count.tolist() == [0, 1, 1]
    assert printed(result) == [
        {"False": {"expr": "anomaly-housing-model.outputs[0][0] < 100"}},
        {"False": {"expr": "anomaly-housing-model.outputs[0][0] < 100"}},
    ]


CASES = [
    (binop(">", variable("output", 1), literal(1)), [True, False, False], "outputs[1] > 1"),
    (binop(">=", variable("output", 1), literal(2)), [True, False, False], "outputs[1] >= 2"),
    (binop("==", variable("output", 1), literal(2)), [True, False, True], "outputs[1] == 2"),
    (binop("<=", variable("input", 0, 1), literal(4.5)), [0, 0, 1], "inputs[0][1] <= 4.5"),
    (
        binop(">", binop("+", variable("input", 0, 0), literal(1)), literal(3)),
        [True, False, False],
        "inputs[0][0] + 1 > 3",
    ),
    (
        binop("<", binop("-", variable("input", 0, 0), variable("input", 0, 1)), literal(0)),
        [False, False, False],
        "inputs[0][0] - anomaly-housing-model.inputs[0][1] < 0",
    ),
    (
        binop("in", variable("output", 1), {"node": "literal", "list": [1, literal(3)]}),
        [False, True, False],
        "outputs[1] in [1, 3]",
    ),
]


@pytest.mark.parametrize(("root", "found", "text"), CASES, ids=[text for *_, text in CASES])
def test_each_operator(root, found, text):
    result = evaluate(document(x=root))

    assert result.flags["x"].tolist() == [bool(one) for one in found]
    expected = {"False": {"expr": f"anomaly-housing-model.{text}"}}
    assert printed(result) == [expected] * sum(map(bool, found))


GOOD = variable("output", 0, 0)
WRONG = [
    (document(x={"node": "fn", "fn": "abs"}), r'root\.node: found "fn", expected binop, variable'),
    (document(x=binop("*", GOOD, GOOD)), r'root\.op: found "\*", expected one of > >= =='),
    (document(x=binop("<", GOOD, literal(5, "timedelta"))), r"right: .* an integer or a float"),
    (document(x=binop("in", GOOD, literal(5))), r"right: .* expected a literal list"),
    (document(x=variable("state", 0)), r'position: found "state", expected "input" or "output"'),
    (
        document(x=variable("output", 0, model="b")),
        r"name: found \"b\", expected a model .*housing",
    ),
    (document(x=variable("output", 2, 0)), r"key: .* the position of one of 2 columns"),
    (document(x=variable("output")), r"key: .* the position of one of 2 columns"),
    (document(x=variable("output", -1)), r"key\[0\]: found -1"),
    (
        '{"values": {"a": {}}, "validations": ["b"]}',
        r'validations\[0\]: found "b", expected one of',
    ),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_what_is_not_understood_is_refused_by_name_and_place(text, message):
    with pytest.raises(StartupError, match=message) as error:
        compile_checks([text], positions=POSITIONS)

    assert "$.tree[0]" in str(error.value)
