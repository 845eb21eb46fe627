import json
import os
import pathlib

import pytest

from engine.errors import StartupError
from engine.pipeline.definition import (
    DynamicBatching,
    ModelDraft,
    ModelVersion,
    parse_definition,
)
from engine.pipeline.steps import (
    AuditResults,
    Average,
    Check,
    ColumnsSelect,
    ColumnsToRows,
    MetaValueSplit,
    ModelInference,
    MultiOut,
    Nth,
    RandomSplit,
    Route,
    RowModel,
    RowsToModels,
    WeightedModel,
)

GOLDEN = pathlib.Path(os.environ.get("SAGITTA_GOLDEN", "../shared/golden")) / "pipelines"
SHA_A, SHA_B = "a" * 64, "b" * 64
A = {"name": "a", "version": "1", "sha": SHA_A}
B = {"name": "b", "version": "1", "sha": SHA_B}


def document(*steps, **rest):
    return json.dumps({"id": "pipe-1", "steps": steps, **rest}).encode()


def inference(*models):
    return {"ModelInference": {"models": list(models)}}


STEPS = [
    (inference(A, B), ModelInference((0, 1))),
    ({"AuditResults": {"from": 1, "to": None}}, AuditResults(1, None)),
    ({"AuditResults": {"from": 0, "to": 2}}, AuditResults(0, 2)),
    ({"MultiOut": {}}, MultiOut()),
    ({"Nth": {"index": 1}}, Nth(1)),
    ({"Average": {}}, Average()),
    ({"ColumnsSelect": {"columns": [2, 0]}}, ColumnsSelect((2, 0))),
    ({"ColumnsToRows": {}}, ColumnsToRows()),
    (
        {
            "RandomSplit": {
                "hash_key": "session_id",
                "weights": [{"model": A, "weight": 2}, {"model": B, "weight": 0.5}],
            }
        },
        RandomSplit("session_id", (WeightedModel(0, 2.0), WeightedModel(1, 0.5))),
    ),
    (
        {"MetaValueSplit": {"split_key": "card", "control": A, "routes": {"gold": B}}},
        MetaValueSplit("card", 0, (Route("gold", 1),)),
    ),
    (
        {"RowsToModels": {"rows_to_models": [{"row_index": 0, "model": B}]}},
        RowsToModels((RowModel(0, 1),)),
    ),
    ({"Check": {"tree": ['{"Alias": []}']}}, Check(('{"Alias": []}',))),
]


@pytest.mark.parametrize(("step", "expected"), STEPS, ids=lambda value: type(value).__name__)
def test_every_step_kind_is_read(step, expected):
    draft = parse_definition(document(step, models=[A, B]))

    assert draft.steps == (expected,)


def test_models_may_be_left_out():
    split = {"MetaValueSplit": {"split_key": "k", "control": {"name": "c"}, "routes": {"x": A}}}
    draft = parse_definition(document(inference(A), split))

    assert draft.models == (ModelDraft("a", "1", SHA_A), ModelDraft("c", None, None))
    assert draft.steps[1] == MetaValueSplit("k", 1, (Route("x", 0),))


def test_a_step_completes_a_model_without_sha():
    draft = parse_definition(document(inference(A), models=[{"name": "a", "file": "m.onnx"}]))

    assert draft.models == (ModelDraft("a", "1", SHA_A, file="m.onnx"),)


def test_resolving_takes_sha_and_version_from_the_files():
    draft = parse_definition(
        document(inference({"name": "a"}), models=[{"name": "a", "tensor_fields": ["x"]}])
    )
    definition = draft.resolve([ModelVersion("a", "v2", SHA_B)])

    assert definition.models == (ModelVersion("a", "v2", SHA_B, tensor_fields=("x",)),)
    assert (definition.id, definition.steps) == ("pipe-1", (ModelInference((0,)),))


def test_the_nested_model_shape_is_read():
    config = {
        "model_version_id": 24,
        "runtime": "onnx",
        "tensor_fields": ["tensor"],
        "batch_config": "single",
        "input_schema": None,
    }
    info = {"version": "1", "sha": SHA_A, "file_name": "a.onnx"}
    nested = {"model_version": {"name": "a", "id": 7, "file_info": info}, "config": config}
    draft = parse_definition(document(inference(A), models=[nested]))

    assert draft.models == (
        ModelDraft(
            "a", "1", SHA_A, tensor_fields=("tensor",), batch_config="single", model_version_id=24
        ),
    )


def test_dynamic_batching_has_the_documented_defaults():
    draft = parse_definition(
        document(inference(A), models=[A | {"dynamic_batching_config": {"batch_size_target": 8}}])
    )

    assert draft.models[0].dynamic_batching == DynamicBatching(10.0, 8, None)


MODELS = "$.steps[0].ModelInference.models"
REFUSED = [
    (b"{", "not JSON"),
    (b"[]", "$: found [], expected an object"),
    (document(inference(A)).replace(b"pipe-1", b"Pipe"), '$.id: found "Pipe"'),
    (document(), "$.steps: found [], expected at least one step"),
    (document({"Frobnicate": {}}), "$.steps[0]: step kind 'Frobnicate' is not known"),
    (document({"Nth": {"index": 0}, "MultiOut": {}}), "$.steps[0]: found"),
    (document({"Nth": {"index": True}}), "$.steps[0].Nth.index: found true"),
    (document(inference()), f"{MODELS}: found [], expected at least one model"),
    (document(inference({"name": ""})), f'{MODELS}[0].name: found ""'),
    (document(inference(A | {"sha": "A" * 64})), f"{MODELS}[0].sha: found"),
    (document(inference(A | {"sha": "../x"})), f'{MODELS}[0].sha: found "../x"'),
    (document(inference(A, B), models=[A]), f"{MODELS}[1]: found"),
    (document(inference({"name": "a"}), models=[A, A | {"version": "2"}]), "which 'a'"),
    (document(inference(A), models=[A, A]), "$.models[1]: found"),
    (document(inference(A), models=[A | {"tensor_fields": ["x", "x"]}]), "$.models[0].tensor_f"),
    (document(inference(A), models=[A | {"batch_config": "two"}]), "$.models[0].batch_config"),
    (
        document(inference(A), models=[A | {"runtime": "flight"}]),
        "$.models[0].runtime: runtime 'flight' of model 'a' is not supported; this engine runs",
    ),
    (
        document(
            inference(A), models=[A | {"batch_config": "single", "dynamic_batching_config": {}}]
        ),
        "Dynamic batching is not supported with single batch mode",
    ),
    (
        document({"RandomSplit": {"weights": [{"model": A, "weight": 0}]}}),
        "$.steps[0].RandomSplit.weights: found",
    ),
]


@pytest.mark.parametrize(("text", "place"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_is_wrong_is_named_with_its_place(text, place):
    with pytest.raises(StartupError) as caught:
        parse_definition(text)

    assert place in str(caught.value)


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="SAGITTA_GOLDEN is absent")
@pytest.mark.parametrize(
    "name", ["ccfraud-validation-demo", "ccshadow", "edge-observability-pipeline"]
)
def test_published_definitions_are_read(name):
    config = json.loads((GOLDEN / f"{name}.json").read_text())["config"]
    draft = parse_definition(json.dumps(config).encode())

    assert draft.id == name
    assert [model.sha for model in draft.models] == [model["sha"] for model in config["models"]]
