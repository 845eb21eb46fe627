"""Models of every kind, asked over HTTP in both formats."""

import json
import re

import numpy as np
import pyarrow as pa
import pytest
from support import models
from support.arrow import file_bytes, read_file, vectors
from support.engine import ARROW_FILE

SHOW_OUT = "/infer?dataset[]=out"


def out_column(body, name):
    return read_file(body).column("out").combine_chunks().field(name)


@pytest.mark.parametrize("shape", [("N",), ("N", 1)])
def test_hostile_45_text(serving, shape):
    """Exactly what was sent, or a refusal; never the text of Python's own bytes or None."""
    engine = serving(models.identity(models.TensorProto.STRING, shape), name=f"text-{len(shape)}")
    texts = ["", "héllo", "𝄞 non-BMP 😀", "null", "a" * (1 << 20), '"quoted"\\\n\t\u2028']
    cells = texts if len(shape) == 1 else [[text] for text in texts]

    json_out = engine.post(SHOW_OUT, [{"x": cell} for cell in cells])
    from_arrow = engine.post("/infer", file_bytes({"x": pa.array(cells)}), ARROW_FILE)
    to_arrow = engine.post("/infer", [{"x": cell} for cell in cells], accept=ARROW_FILE)

    assert [row["y"] for row in json_out.json] == cells
    assert from_arrow.json[0]["outputs"][0]["String"]["data"] == texts
    assert out_column(to_arrow.body, "y").to_pylist() == cells
    for wrong in (None, 1, True, ["a", "b"], {}):
        assert engine.post("/infer", [{"x": wrong if len(shape) == 1 else [wrong]}]).status == 400
    for array in (pa.array([b"bytes"]), pa.array(["a", None]), pa.array([1])):
        assert engine.post("/infer", file_bytes({"x": array}), ARROW_FILE).status == 400


@pytest.mark.parametrize("labels", [(0, 1, 2), ("cat", "dog", "ant")])
def test_hostile_46_zip_map(serving, labels):
    """One column for each class, in every format."""
    engine = serving(models.zip_map(labels), name=f"zip-{labels[0]}")
    rows = [{"x": [1.0, 2.0, 3.0]}, {"x": [3.0, 1.0, 1.0]}]

    records = [row for row in engine.post(SHOW_OUT, rows).json]
    (legacy,) = engine.post("/infer", rows).json
    arrow = engine.post("/infer", rows, accept=ARROW_FILE)

    names = sorted(["label", *(f"probabilities_{label}" for label in labels)])
    assert [list(row) for row in records] == [names, names]
    assert [row["label"] for row in records] == [2, 0]
    for row in records:
        assert sum(row[f"probabilities_{label}"][0] for label in labels) == pytest.approx(1)
    assert [output.popitem()[1]["dim"] for output in legacy["outputs"]] == [
        [2],
        [2, 1],
        [2, 1],
        [2, 1],
    ]
    assert read_file(arrow.body).schema.field("out").type.names == names


def test_hostile_46_sequence_of_tensors(serving):
    engine = serving("sequence")

    (legacy,) = engine.post("/infer", [{"x": [1, 2]}, {"x": [3, 4]}]).json
    (record,) = engine.post(SHOW_OUT, [{"x": [1, 2]}]).json

    assert [output["Float"]["data"] for output in legacy["outputs"]] == [[1, 2, 3, 4], [2, 4, 6, 8]]
    assert list(record) == ["parts_0", "parts_1"]
    assert np.ravel(record["parts_1"]).tolist() == [2, 4]


@pytest.mark.parametrize("fields", [None, ["left", "right"]])
def test_several_inputs_and_outputs(serving, fields):
    """``tensor_fields`` names the inputs by position; outputs are ordered by name."""
    engine = serving("two_in_three_out", **({"tensor_fields": fields} if fields else {}))
    first, second = fields or ["b", "a"]
    row = {second: [1, 1, 1], first: [1, 5, 3], "id": "kept"}

    (record,) = engine.post("/infer?dataset[]=*", [row]).json
    (legacy,) = engine.post("/infer", {name: [row[name]] for name in (first, second)}).json
    missing = engine.post("/infer", [{first: [1, 5, 3]}])

    assert list(record["out"]) == ["difference", "first", "sum"]
    assert record["out"] == {"difference": [0, 4, 2], "first": 5, "sum": [2, 6, 4]}
    assert list(record["in"]) == sorted(row)
    assert [output["Float"]["dim"] for output in legacy["outputs"]] == [[1, 3], [1], [1, 3]]
    assert f"column {second!r} is missing" in missing.error


@pytest.mark.parametrize("fixed", [2, 4])
@pytest.mark.parametrize("count", [1, 2, 3, 8, 9])
def test_fixed_rows_of_a_run(serving, fixed, count):
    engine = serving(models.linear(rows=fixed), name=f"fixed-{fixed}")
    values = np.arange(4 * count, dtype=np.float32).reshape(count, 4)

    reply = engine.post(
        "/infer", file_bytes({"x": vectors(values.tolist())}), ARROW_FILE, accept=ARROW_FILE
    )

    assert out_column(reply.body, "y").to_pylist() == (values @ models.WEIGHTS).tolist()


def test_many_rows_are_one_run(serving):
    """100,000 rows in one request and one element."""
    engine = serving("linear")
    values = np.random.default_rng(1).random((100_000, 4), np.float32)

    reply = engine.post("/infer", file_bytes({"x": vectors(values.tolist())}), ARROW_FILE)

    (element,) = reply.json
    tensor = element["outputs"][0]["Float"]
    assert tensor["dim"] == [100_000, 2]
    assert np.float32(tensor["data"]).tobytes() == (values @ models.WEIGHTS).tobytes()


def test_a_model_that_fails_fails_alone(serving):
    engine = serving("failing")

    statuses = [engine.post("/infer", [{"x": [value, 0]}]).status for value in (0, 5, 0, 5, 0)]

    assert statuses == [200, 500, 200, 500, 200]
    assert engine.metrics()['sagitta_errors_total{code="inference_failed"}'] == 2


def test_error_bodies_have_the_published_shape(serving, golden):
    """Each status of the published interface that this engine gives, with all of its keys."""
    text = (golden / "openapi" / "vgg16-spec.yaml").read_text()
    schema = text[text.index("ErrorResponse:") : text.index("\n  responses:")]
    published = re.findall(r"^ {8}(\w+):$", schema, re.MULTILINE)
    engine, failing = serving("linear", pipeline="p"), serving("failing")

    replies = [
        engine.post("/infer", [{"x": [1, None, 2, 3]}]),
        engine.post("/pipelines/other", [{"x": [0, 1, 2, 3]}]),
        engine.post("/infer/openai/v1/completions", {}),
        failing.post("/infer", [{"x": [5, 0]}]),
    ]

    assert published == ["code", "status", "error", "source"]
    assert [reply.status for reply in replies] == [400, 404, 409, 500]
    for reply in replies:
        assert list(json.loads(reply.body)) == published
        assert type(reply.json["code"]) is int
        assert all(type(reply.json[name]) is str for name in published[1:])
    assert "tensor values may not be null" in replies[0].error  # the published example
