"""Recordings of models that are not at hand: their results, written again by the codecs.

The result is built from the recording itself, so the numbers prove nothing; the layout, the names,
their order, the types and the dimensions are what is compared.
"""

import numpy as np
import orjson
import pytest

from engine.codecs.json_body import read_json
from engine.codecs.legacy import write_legacy
from engine.codecs.pandas_records import write_records
from engine.values import InferResult, ModelIdentity, Output, PipelineIdentity

NUMPY = {"Float": np.float32, "Double": np.float64, "Int64": np.int64, "String": object}


def result_of(frame, outputs, like):
    """A result as the engine would make it, with the moment and the identities of ``like``."""
    last_model = orjson.loads(like["metadata"]["last_model"]) if "metadata" in like else {}
    metadata = like.get("metadata", {})
    return InferResult(
        frame=frame,
        outputs=tuple(outputs),
        time_ms=like["time"],
        elapsed_ns=tuple(metadata.get("elapsed") or like["elapsed"]),
        model=ModelIdentity(
            last_model.get("model_name") or like["model_name"],
            like.get("model_version", ""),
            last_model.get("model_sha", ""),
        ),
        pipeline=PipelineIdentity(like.get("pipeline_name", ""), metadata.get("pipeline_version")),
        partition=metadata.get("partition", ""),
    )


@pytest.mark.parametrize(
    ("file", "output"),
    [
        ("ops_infer_hf_summarizer_string", "summary_text"),  # text and booleans in, text out
        ("ops_infer_vgg16_ints_2rows", "predictions"),  # nested integers in, a bare integer out
    ],
)
def test_records(golden, file, output):
    recorded = orjson.loads((golden / "recorded" / f"{file}.json").read_bytes())
    frame = read_json(orjson.dumps([record["in"] for record in recorded]), ())
    values = np.array([record["out"][output] for record in recorded])
    if values.dtype.kind == "U":
        values = values.astype(object)

    text = write_records(result_of(frame, [Output(output, values, per_row=True)], recorded[0]))

    for record in recorded:  # of 2023-09: no anomaly, no partition
        if record.pop("check_failures", None) == []:
            record["anomaly"] = {"count": 0}
            record["metadata"] = {**record.pop("metadata"), "partition": ""}
    assert text == orjson.dumps(recorded)


@pytest.mark.parametrize(
    "file", ["edge_hf_string", "edge_resnet50_1row", "edge_xgb_ccfraud_10254_from_dfjson"]
)
def test_legacy(golden, file):
    (recorded,) = orjson.loads((golden / "recorded_legacy" / f"{file}.json").read_bytes())
    outputs = []
    for output in recorded["outputs"]:
        ((kind, tensor),) = output.items()
        values = np.array(tensor["data"], NUMPY[kind]).reshape(tensor["dim"])
        outputs.append(Output("output", values, per_row=True))
    rows = recorded["outputs"][0].popitem()[1]["dim"][0]
    frame = read_json(orjson.dumps([{"x": 0}] * rows), ())

    text = write_legacy(result_of(frame, outputs, recorded))

    again = orjson.loads((golden / "recorded_legacy" / f"{file}.json").read_bytes())
    assert text == orjson.dumps(again)


def test_double_results_keep_every_digit(golden):
    document = orjson.loads((golden / "recorded" / "demand_curve_double_case.json").read_bytes())
    for case in document["cases"]:
        values = np.array([case["variable"]])
        frame = read_json(b'[{"tensor": [4.21, 0, 0]}]', ())
        like = {"time": 0, "elapsed": [0, 0], "model_name": "demand_curve_v1"}
        result = result_of(frame, [Output("variable", values, per_row=True)], like)

        (legacy,) = orjson.loads(write_legacy(result))
        (record,) = orjson.loads(write_records(result))

        assert legacy["outputs"] == [{"Double": {"data": case["variable"], "dim": [1, 1], "v": 1}}]
        assert record["out"] == {"variable": case["variable"]}


@pytest.mark.parametrize(
    "model",
    [
        "isolet_logistic",
        "pytorchbikeshare",
        "demand_curve_v1",
        "demand_curve_skl",
        "housing_model_xgb",
    ],
)
def test_expected_results_of_models_that_are_not_at_hand(golden, model):
    expected = orjson.loads((golden / "recorded" / "reference_outputs_by_ort.json").read_bytes())[
        model
    ]
    kinds = {"tensor(float)": "Float", "tensor(double)": "Double", "tensor(int64)": "Int64"}
    outputs, legacy = [], []
    for name, output in expected["outputs"].items():
        kind = kinds[output["type"]]
        values = np.array(output["data"], NUMPY[kind]).reshape(output["shape"])
        outputs.append(Output(name, values, per_row=True))
        flat = values.ravel().tolist()
        legacy.append({kind: {"data": flat, "dim": output["shape"], "v": 1}})
    rows = [{expected["input_name"]: row} for row in expected["rows"]]
    like = {"time": 0, "elapsed": [0, 0], "model_name": model}
    result = result_of(read_json(orjson.dumps(rows), ()), outputs, like)

    (ours,) = orjson.loads(write_legacy(result))
    records = orjson.loads(write_records(result))

    assert ours["outputs"] == legacy
    assert [record["in"] for record in records] == rows
    for name, output in expected["outputs"].items():
        read = np.array([record["out"][name] for record in records])
        wanted = np.array(output["data"], NUMPY[kinds[output["type"]]])
        assert read.astype(wanted.dtype).tobytes() == wanted.tobytes()
