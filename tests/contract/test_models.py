"""Models of every kind, asked through both shells."""

import json
import re

import numpy as np
import pyarrow as pa
import pytest
from support import models
from support.arrow import vectors
from support.shells import Rest


@pytest.mark.parametrize("shape", [("N",), ("N", 1)])
def test_hostile_45_text(client, serving, shape):
    """Exactly what was sent, or a refusal; never the text of Python's own bytes or None."""
    shell = client(
        serving(models.identity(models.TensorProto.STRING, shape), name=f"text-{len(shape)}")
    )
    texts = ["", "héllo", "𝄞 non-BMP 😀", "null", "a" * (1 << 20), '"quoted"\\\n\t\u2028']
    cells = texts if len(shape) == 1 else [[text] for text in texts]
    rows = [{"x": cell} for cell in cells]

    (outputs,) = shell.outputs(pa.table({"x": pa.array(cells)}))

    assert [row["out"]["y"] for row in shell.records(rows)] == cells
    assert outputs.ravel().tolist() == texts
    out = shell.table(rows).column("out").combine_chunks()
    assert out.field("y").to_pylist() == cells
    for wrong in (None, 1, True, ["a", "b"], {}):
        assert shell.refused([{"x": wrong if len(shape) == 1 else [wrong]}])[0] == 400
    for array in (pa.array([b"bytes"]), pa.array(["a", None]), pa.array([1])):
        assert shell.refused(pa.table({"x": array}))[0] == 400


@pytest.mark.parametrize("labels", [(0, 1, 2), ("cat", "dog", "ant")])
def test_hostile_46_zip_map(client, serving, labels):
    """One column for each class, in every format."""
    shell = client(serving(models.zip_map(labels), name=f"zip-{labels[0]}"))
    rows = [{"x": [1.0, 2.0, 3.0]}, {"x": [3.0, 1.0, 1.0]}]

    records = [row["out"] for row in shell.records(rows)]
    outputs = shell.outputs(rows)

    names = sorted(["label", *(f"probabilities_{label}" for label in labels)])
    assert [list(row) for row in records] == [names, names]
    assert [row["label"] for row in records] == [2, 0]
    for row in records:
        assert sum(row[f"probabilities_{label}"][0] for label in labels) == pytest.approx(1)
    assert [output.shape for output in outputs] == [(2,), (2, 1), (2, 1), (2, 1)]
    assert shell.table(rows).schema.field("out").type.names == names


def test_hostile_46_sequence_of_tensors(client, serving):
    engine = serving("sequence")
    shell = client(engine)

    outputs = shell.outputs([{"x": [1, 2]}])
    (record,) = shell.records([{"x": [1, 2]}])
    in_the_legacy_body = Rest(engine).outputs([{"x": [1, 2]}, {"x": [3, 4]}])

    assert [output.ravel().tolist() for output in outputs] == [[1, 2], [2, 4]]
    assert [output.ravel().tolist() for output in in_the_legacy_body] == [
        [1, 2, 3, 4],
        [2, 4, 6, 8],
    ]
    assert list(record["out"]) == ["parts_0", "parts_1"]
    assert np.ravel(record["out"]["parts_1"]).tolist() == [2, 4]


@pytest.mark.parametrize("fields", [None, ["left", "right"]])
def test_several_inputs_and_outputs(client, serving, fields):
    """``tensor_fields`` names the inputs by position; outputs are ordered by name."""
    engine = serving("two_in_three_out", **({"tensor_fields": fields} if fields else {}))
    shell = client(engine)
    first, second = fields or ["b", "a"]
    row = {second: [1, 1, 1], first: [1, 5, 3], "id": "kept"}

    (record,) = shell.records([row])
    outputs = shell.outputs([{name: row[name] for name in (first, second)}])
    code, text = shell.refused([{first: [1, 5, 3]}])

    assert list(record["out"]) == ["difference", "first", "sum"]
    assert record["out"] == {"difference": [0, 4, 2], "first": 5, "sum": [2, 6, 4]}
    assert list(record["in"]) == sorted(row)
    assert [output.shape for output in outputs] == [(1, 3), (1,), (1, 3)]
    assert (code, f"column {second!r} is missing" in text) == (400, True)


def test_the_legacy_dict_of_several_inputs(serving):
    (legacy,) = (
        serving("two_in_three_out").post("/infer", {"b": [[1, 5, 3]], "a": [[1, 1, 1]]}).json
    )

    assert [output["Float"]["dim"] for output in legacy["outputs"]] == [[1, 3], [1], [1, 3]]


@pytest.mark.parametrize("fixed", [2, 4])
@pytest.mark.parametrize("count", [1, 2, 3, 8, 9])
def test_fixed_rows_of_a_run(client, serving, fixed, count):
    engine = serving(models.linear(rows=fixed), name=f"fixed-{fixed}")
    values = np.arange(4 * count, dtype=np.float32).reshape(count, 4)

    (y,) = client(engine).outputs(pa.table({"x": vectors(values.tolist())}))

    assert y.tolist() == (values @ models.WEIGHTS).tolist()


def test_many_rows_are_one_run(client, serving):
    """100,000 rows in one request and one answer."""
    values = np.random.default_rng(1).random((100_000, 4), np.float32)

    (y,) = client(serving("linear")).outputs(pa.table({"x": vectors(values.tolist())}))

    assert y.shape == (100_000, 2)
    assert y.tobytes() == (values @ models.WEIGHTS).tobytes()


def test_a_model_that_fails_fails_alone(client, serving):
    engine = serving("failing")
    shell = client(engine)
    name = 'sagitta_errors_total{code="inference_failed"}'
    failed = engine.metrics().get(name, 0)

    for value in (0, 5, 0, 5, 0):
        if value:
            assert shell.refused([{"x": [value, 0]}])[0] == 500
        else:
            assert len(shell.records([{"x": [value, 0]}])) == 1

    assert engine.metrics()[name] == failed + 2


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
