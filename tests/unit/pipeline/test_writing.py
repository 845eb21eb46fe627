import json
from types import SimpleNamespace

import pytest

from engine.pipeline.definition import parse_definition
from engine.pipeline.steps import models_of
from engine.pipeline.writing import draw_steps, write_definition

A = {"name": "a", "version": "1", "sha": "a" * 64}
B = {"name": "b", "version": "2", "sha": "b" * 64}
TREE = '{"Alias": [{"Column": "out.x"}, "too_high"]}'
STEPS = [
    ({"ModelInference": {"models": [A, B]}}, ["ModelInference", "a", "b (shadow)"], (0, 1)),
    ({"AuditResults": {"from": 1, "to": None}}, ["AuditResults: keep results 1 to the last"], ()),
    ({"AuditResults": {"from": 0, "to": 2}}, ["AuditResults: keep results 0 to 2"], ()),
    ({"MultiOut": {}}, ["MultiOut"], ()),
    ({"Nth": {"index": 1}}, ["Nth: go on with result 1"], ()),
    ({"Average": {}}, ["Average"], ()),
    ({"ColumnsSelect": {"columns": [2, 0]}}, ["ColumnsSelect 2, 0"], ()),
    ({"ColumnsToRows": {}}, ["ColumnsToRows"], ()),
    (
        {
            "RandomSplit": {
                "hash_key": None,
                "weights": [{"model": A, "weight": 2.0}, {"model": B, "weight": 1.0}],
            }
        },
        ["RandomSplit by chance", "a (67%)", "b (33%)"],
        (0, 1),
    ),
    (
        {"MetaValueSplit": {"split_key": "card", "control": A, "routes": {"gold": B}}},
        ["MetaValueSplit by the column card", "gold → b", "any other → a"],
        (0, 1),
    ),
    (
        {"RowsToModels": {"rows_to_models": [{"row_index": 0, "model": B}]}},
        ["RowsToModels", "row 0 → b"],
        (1,),
    ),
    ({"Check": {"tree": [TREE, "x"]}}, ["Check", "too_high: out.x", "x"], ()),
]


def read(step):
    document = {"id": "p", "version": "v", "steps": [step], "models": [A, B]}
    return parse_definition(json.dumps(document).encode())


def kind(value):
    return next(iter(value)) if isinstance(value, dict) else ""


@pytest.mark.parametrize(("step", "drawing", "models"), STEPS, ids=kind)
def test_every_step_is_written_as_it_is_read(step, drawing, models):
    draft = read(step)
    definition = draft.resolve([SimpleNamespace(**A), SimpleNamespace(**B)])
    written = write_definition(definition)

    assert json.loads(written)["steps"] == [step]
    again = parse_definition(written)
    assert again.resolve(definition.models) == definition
    assert models_of(draft.steps[0]) == models


@pytest.mark.parametrize(("step", "drawing", "models"), STEPS, ids=kind)
def test_every_step_is_drawn(step, drawing, models):
    draft = read(step)
    lines = draw_steps(draft.steps, draft.models)

    assert [line.lstrip("└├─│ ").removeprefix("1. ") for line in lines] == drawing


def test_a_drawing():
    steps = [STEPS[0][0], STEPS[3][0]]
    document = {"id": "p", "steps": steps, "models": [A, B]}
    draft = parse_definition(json.dumps(document).encode())

    assert draw_steps(draft.steps, draft.models) == [
        "├─ 1. ModelInference",
        "│     ├─ a",
        "│     └─ b (shadow)",
        "└─ 2. MultiOut",
    ]


def test_what_a_model_has_is_written_and_what_it_has_not_is_left_out():
    model = {
        **A,
        "runtime": "onnx",
        "tensor_fields": ["x"],
        "model_version_id": 7,
        "dynamic_batching_config": {
            "max_batch_delay_ms": 5.0,
            "batch_size_target": 8,
            "batch_size_limit": None,
        },
    }
    steps = [{"ModelInference": {"models": [A]}}]
    document = {"id": "p", "steps": steps, "models": [model]}
    draft = parse_definition(json.dumps(document).encode())

    assert json.loads(write_definition(draft.resolve([SimpleNamespace(**A)]))) == document
