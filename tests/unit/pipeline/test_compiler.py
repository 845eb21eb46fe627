"""Definitions that cannot run: each is refused at load, by its place and by what is wrong."""

import json

import pytest
from support.fakes import FakeModel, spec

from engine.errors import StartupError
from engine.pipeline.compiler import compile_plan
from engine.pipeline.definition import parse_definition

MODELS = {
    "a": FakeModel("a", inputs=[spec("x")], outputs=[spec("y")]),
    "b": FakeModel("b", inputs=[spec("y")], outputs=[spec("z")]),
    "wide": FakeModel("wide", inputs=[spec("y", shape=(None, 5))]),
    "flat": FakeModel("flat", inputs=[spec("y", shape=(None,))]),
    "deep": FakeModel("deep", inputs=[spec("x")], outputs=[spec("y", shape=(None, 2, 2))]),
    "double": FakeModel("double", inputs=[spec("y", "double")]),
    "counts": FakeModel("counts", inputs=[spec("x")], outputs=[spec("y", "int64")]),
    "two": FakeModel("two", inputs=[spec("x"), spec("w")], outputs=[spec("y"), spec("v")]),
    "text": FakeModel("text", inputs=[spec("x")], outputs=[spec("y", "string")]),
    "typo": FakeModel("typo", inputs=[spec("yy")]),
}


def named(*names):
    return [{"name": name} for name in names]


def infer(*names):
    return {"ModelInference": {"models": named(*names)}}


def check(text):
    return {"Check": {"tree": [f"odd: {text}"]}}


def audit(first, last=None):
    return {"AuditResults": {"from": first, "to": last}}


def split(*names):
    arms = [{"model": {"name": name}, "weight": 1} for name in names]
    return {"RandomSplit": {"hash_key": None, "weights": arms}}


def key_split(control, **routes):
    arms = {value: {"name": name} for value, name in routes.items()}
    return {"MetaValueSplit": {"split_key": "card", "control": {"name": control}, "routes": arms}}


def rows_to(*pairs):
    rows = [{"row_index": index, "model": {"name": name}} for index, name in pairs]
    return {"RowsToModels": {"rows_to_models": rows}}


MULTI, AVERAGE = {"MultiOut": {}}, {"Average": {}}
SELECT, TO_ROWS = {"ColumnsSelect": {"columns": [0, 1]}}, {"ColumnsToRows": {}}


def compile_steps(steps, **changes):
    document = {"id": "pipe", "steps": steps, "models": named(*MODELS), **changes}
    definition = parse_definition(json.dumps(document).encode())
    return compile_plan(definition, dict(enumerate(MODELS.values())))


GOOD = [
    [infer("a")],
    [infer("a"), infer("b"), check("out.z[1] > 1")],
    [infer("a", "counts"), audit(1), MULTI, check("out.y[0] > 1 and in.x[0] > 1")],
    [infer("a", "deep"), {"Nth": {"index": 0}}, infer("b")],
    [infer("a", "a"), AVERAGE],
    [split("a", "deep"), check("is_null(out._model_split[0])")],
    [key_split("a", gold="counts"), check("in.card == 'gold' and out.y[0] > 0")],
    [SELECT, infer("a"), SELECT, infer("b")],
    [rows_to((0, "a"), (1, "a"))],
]


@pytest.mark.parametrize("steps", GOOD)
def test_the_definitions_that_are_mutated_below_can_run(steps):
    compile_steps(steps)


WRONG = [
    # steps that do not belong together
    ([], r"\$\.steps"),
    ([check("true")], r"\$\.steps: no step runs a model"),
    ([SELECT], r"\$\.steps: no step runs a model"),
    ([infer("a"), SELECT], r"steps\[1\]\.ColumnsSelect: there is no step after it"),
    (
        [MULTI],
        r"steps\[0\]\.MultiOut: .* must follow a ModelInference of several; before it is the",
    ),
    ([infer("a"), MULTI], r"steps\[1\]\.MultiOut: .* before it is ModelInference"),
    ([infer("a"), audit(1)], r"steps\[1\]\.AuditResults: it works on the results of several"),
    ([infer("a"), {"Nth": {"index": 0}}], r"steps\[1\]\.Nth: it works on the results of several"),
    ([infer("a"), AVERAGE], r"steps\[1\]\.Average: it works on the results of several"),
    ([infer("a", "b")], r"steps\[0\]\.ModelInference: 2 models give 2 results; follow it with"),
    ([infer("a", "b"), check("true")], r"steps\[0\]\.ModelInference: 2 models give 2 results"),
    ([infer("a", "b"), audit(1), infer("a")], r"steps\[0\]\.ModelInference: 2 models give"),
    ([infer("a", "a"), audit(2), MULTI], r"steps\[1\]\.AuditResults: results 2 to 2 of 2 models"),
    ([infer("a", "a"), audit(0, 3), MULTI], r"steps\[1\]\.AuditResults: results 0 to 3 of 2"),
    ([infer("a", "a"), {"Nth": {"index": 2}}], r"steps\[1\]\.Nth: result 2 of 2 models"),
    ([infer("b", "a", "a"), MULTI], r"steps\[0\]\.ModelInference: several challengers are named a"),
    # models that do not fit one another
    (
        [infer("a"), infer("a")],
        r"steps\[1\]\.ModelInference\.models\[0\]: model 'a' takes x: float "
        r"\[rows, 2\], which the step before does not give .*'a' gives y: float \[rows, 2\]\): "
        r"name the column to read in the model's tensor_fields",
    ),
    ([infer("a"), infer("typo")], r"models\[0\]: model 'typo' takes yy: .*; did you mean 'y'\?"),
    (
        [infer("a"), infer("wide")],
        r"models\[0\]: model 'wide' takes y: float \[rows, 5\], but model "
        r"'a' before it gives y: float \[rows, 2\]",
    ),
    (
        [infer("a"), infer("flat")],
        r"takes y: float \[rows\], but model 'a' before it gives y: float",
    ),
    (
        [infer("a"), infer("double")],
        r"takes y: double \[rows, 2\], but .* gives y: float \[rows, 2\]",
    ),
    (
        [infer("counts"), infer("b")],
        r"takes y: float \[rows, 2\], but .* gives y: int64 \[rows, 2\]",
    ),
    (
        [infer("deep"), infer("b")],
        r"takes y: float \[rows, 2\], but .*'deep'.* float \[rows, 2, 2\]",
    ),
    (
        [split("a", "counts"), infer("b")],
        r"steps\[1\].*but model 'counts' before it gives y: int64",
    ),
    (
        [infer("a"), infer("b", "wide"), MULTI],
        r"steps\[1\]\.ModelInference\.models\[1\]: model 'wide'",
    ),
    ([infer("a"), split("b", "double")], r"steps\[1\]\.RandomSplit\.weights\[1\]: model 'double'"),
    ([infer("a"), key_split("b", gold="wide")], r"MetaValueSplit\.routes\['gold'\]: model 'wide'"),
    ([infer("a"), key_split("wide", gold="b")], r"MetaValueSplit\.control: model 'wide' takes y"),
    (
        [infer("a", "counts"), AVERAGE],
        r"models\[1\]: outputs of one kind have an average: model "
        r"'counts' gives y: int64 \[rows, 2\], model 'a' gives y: float \[rows, 2\]",
    ),
    ([infer("text", "text"), AVERAGE], r"ModelInference: there is no average of text \(y: string"),
    ([rows_to((0, "a"), (1, "deep"))], r"rows_to_models\[1\]: the rows stand in one reply: model"),
    (
        [rows_to((0, "a"), (2, "a"))],
        r"RowsToModels\.rows_to_models: the rows are \[0, 2\]: each row",
    ),
    ([rows_to((0, "a"), (0, "a"))], r"rows_to_models: the rows are \[0, 0\]: each row from 0 on"),
    # columns that are rearranged
    ([SELECT, infer("two")], r"steps\[0\]\.ColumnsSelect: .* one input; it has x: .*; w: "),
    ([infer("two"), SELECT, infer("b")], r"steps\[1\]\.ColumnsSelect: .* gives y: .*; v: .*'two'"),
    (
        [infer("deep"), SELECT, infer("b")],
        r"steps\[1\]\.ColumnsSelect: .* gives y: float \[rows, 2, 2",
    ),
    (
        [infer("a"), {"ColumnsSelect": {"columns": [2, 0]}}, infer("b")],
        r"steps\[1\]\.ColumnsSelect\.columns: number 2 \(counted from 0\) of y: float \[rows, 2\]",
    ),
    (
        [{"ColumnsSelect": {"columns": [0]}}, infer("a")],
        r"takes x: float \[rows, 2\], but ColumnsSel",
    ),
    (
        [TO_ROWS, infer("a")],
        r"models\[0\]: model 'a' takes x: float \[rows, 2\], but ColumnsToRows",
    ),
    # checks
    (
        [infer("a"), check("out.z[0] > 1")],
        r"steps\[1\]\.Check\.tree\[0\]\.Alias.*no column 'out\.z'",
    ),
    ([infer("a"), infer("b"), check("out.y[0] > 1")], r"steps\[2\]\.Check.*no column 'out\.y'"),
    (
        [check("out.y[0] > 1"), infer("a")],
        r"steps\[0\]\.Check.*no column 'out\.y' \(columns: in\.x",
    ),
    ([infer("a"), check("in.y[0] > 1")], r"steps\[1\]\.Check.* no column 'in\.y'; did you mean"),
    ([infer("a"), check("out.y > 1")], r"steps\[1\]\.Check.*there is a list in each row"),
    ([infer("text"), check("out.y[0] > 1")], r"steps\[1\]\.Check.*text and int32 do not meet"),
    ([split("a", "b"), check("out.y[0] > 1")], r"steps\[1\]\.Check.*no column 'out\.y'.*out\.z"),
    ([split("a", "text"), check("out.y[0] > 1")], r"steps\[1\]\.Check.*text and int32 do not meet"),
    (
        [infer("a"), check("true"), check("out.y[0] >")],
        r"steps\[2\]\.Check\.tree\[0\]: .*character",
    ),
    ([TO_ROWS, rows_to((0, "a")), check("true")], r"takes x"),
]


@pytest.mark.parametrize(("steps", "message"), WRONG)
def test_what_cannot_run_is_refused_at_its_place(steps, message):
    with pytest.raises(StartupError, match=message) as error:
        compile_steps(steps)

    assert "$.steps" in str(error.value)


def test_after_columns_became_rows_there_is_nothing_to_check_or_to_split_by():
    one = FakeModel("one", inputs=[spec("x", shape=(None, 1))])
    for step in (check("true"), split("one", "one")):
        document = json.dumps({"id": "p", "steps": [TO_ROWS, step, infer("one")]}).encode()
        with pytest.raises(StartupError, match=r"steps\[1\].*the rows are not the request's"):
            compile_plan(parse_definition(document), {0: one})
