"""What was worked out by hand or with ONNX Runtime alone for small models: ``expected.json``."""

import numpy as np
import orjson
import pyarrow as pa
import pytest
from support import models
from support.models import DTYPES
from support.shells import Flight

ARROW = {
    key: pa.from_numpy_dtype({"float": "float32"}.get(spelling, spelling))
    for key, (_, spelling, _) in DTYPES.items()
    if spelling not in {"double", "string"}
} | {"f64": pa.float64(), "s": pa.string()}


@pytest.fixture
def expected(golden):
    return orjson.loads((golden / "synthetic" / "expected.json").read_bytes())


def serve_file(serving, golden, name, **definition):
    return serving((golden / "synthetic" / f"{name}.onnx").read_bytes(), **definition)


@pytest.mark.parametrize("name", ["dyn_linear", "fixed_batch1"])
@pytest.mark.parametrize("batch_config", [None, "single"])
def test_rows(client, serving, golden, expected, name, batch_config):
    """A model that takes one row at a time is run row by row, also where it does not say so."""
    shell = client(serve_file(serving, golden, name, batch_config=batch_config))
    rows, wanted = expected[name]["rows"], expected[name]["y"]
    for first, last in ((0, 3), (1, 2)):
        request = [{"x": row} for row in rows[first:last]]

        (y,) = shell.outputs(request)
        records = shell.records(request)

        assert (y.dtype, y.tolist()) == (np.float32, wanted[first:last])
        assert [record["out"] for record in records] == [{"y": row} for row in wanted[first:last]]


def test_scalar_columns(client, serving, golden, expected):
    engine = serve_file(serving, golden, "scalar_add")
    case = expected["scalar_add"]

    records = client(engine).records(case["records_in"])

    assert [record["in"] for record in records] == case["records_in"]
    assert [record["out"] for record in records] == [{"sum": value} for value in case["sum"]]


def test_nested_lists(client, serving, golden, expected):
    engine = serve_file(serving, golden, "rank3_transpose")
    case = expected["rank3_transpose"]
    flat = [{"x": [value for row in case["records_in"][0]["x"] for value in row]}]
    for request in (case["records_in"], flat):
        (record,) = client(engine).records(request)

        assert record["in"] == request[0]
        assert record["out"]["y"] == case["y"][0]


def test_house_price_keras(client, serving, golden):
    content = (golden / "models" / "house_price_keras.onnx").read_bytes()
    engine = serving(content, tensor_fields=["tensor"])
    file = golden / "recorded" / "reference_outputs_by_ort.json"
    case = orjson.loads(file.read_bytes())["house_price_keras"]

    (ours,) = client(engine).outputs([{"tensor": row} for row in case["rows"]])

    wanted = case["outputs"]["dense_2"]
    assert list(ours.shape) == wanted["shape"]
    assert ours.tobytes() == np.float32(wanted["data"]).tobytes()


def test_every_element_type_comes_back_unchanged_in_json(serving, expected):
    engine = serving("every_type")
    row = expected["dtypes"]["row"]

    (record,) = engine.post("/infer?dataset[]=*", [row]).json
    (legacy,) = engine.post("/infer", [row]).json

    assert set(row) == {f"in_{key}" for key in DTYPES}
    for key, (_, _, legacy_name) in DTYPES.items():
        given, answered = row[f"in_{key}"], record["out"][f"out_{key}"]
        position = sorted(DTYPES).index(key)
        ((kind, tensor),) = legacy["outputs"][position].items()
        assert kind == legacy_name
        assert tensor["dim"] == [1, 2]
        for values in (answered, tensor["data"]):
            if key == "f32":
                assert np.float32(values).tobytes() == np.float32(given).tobytes()
            else:
                assert values == given
                assert list(map(type, values)) == list(map(type, given))


def test_every_element_type_comes_back_unchanged_in_arrow(client, serving, expected):
    engine = serving("every_type")
    row = expected["dtypes"]["row"]
    table = pa.table({f"in_{k}": pa.array([row[f"in_{k}"]], pa.list_(ARROW[k])) for k in DTYPES})

    out = client(engine).table(table).column("out").combine_chunks()

    for key in DTYPES:
        answered = out.field(f"out_{key}")
        assert answered.type.value_type == ARROW[key]
        assert answered.flatten().equals(table.column(f"in_{key}").combine_chunks().flatten())


def test_other_row_count_than_the_request(client, serving, expected):
    """No row of the answer belongs to one of the request: records refuse, one row is taken."""
    shell = client(serving("rowcount_change"))
    case = expected["rowcount_change"]
    request = [{"x": row} for row in case["rows"]]

    code, text = shell.refused(request, as_records=True)
    (one,) = shell.records(request[:1])

    assert code == 400
    assert "output 'y' has the shape [1, 4] for 3 rows" in text
    assert one["out"]["y"] in ([case["rows"][0]], case["rows"][0])


def test_other_row_count_than_the_request_in_the_legacy_body(serving, expected):
    """Its outputs need not have the request's rows; those of Flight are columns, and do."""
    engine = serving("rowcount_change")
    case = expected["rowcount_change"]
    request = [{"x": row} for row in case["rows"]]

    (legacy,) = engine.post("/infer", request).json
    code, text = Flight(engine).refused(request)

    assert legacy["outputs"] == [{"Float": {"data": case["y"][0], "dim": [1, 4], "v": 1}}]
    assert code == 400
    assert "output 'y' has the shape [1, 4] for 3 rows" in text


@pytest.mark.parametrize("batch_config", [None, "single"])
def test_outputs_that_are_not_batch_shaped(client, serving, expected, batch_config):
    """K detections for one row, as of an object detector; also K = 0."""
    case = expected["var_len"]
    shell = client(serving("var_len", batch_config=batch_config))

    classes, scores = shell.outputs([{"x": case["row"]}])
    (record,) = shell.records([{"x": case["row"]}])
    (empty,) = shell.records([{"x": [0.0] * 8}])

    assert (classes.dtype, classes.ravel().tolist()) == (np.int64, case["classes"])
    assert (scores.dtype, scores.ravel().tobytes()) == (
        np.float32,
        np.float32(case["scores"]).tobytes(),
    )
    assert record["out"]["classes"] == case["classes"]
    assert np.float32(record["out"]["scores"]).tobytes() == np.float32(case["scores"]).tobytes()
    assert empty["out"] == {"classes": [], "scores": []}


def test_outputs_that_are_not_batch_shaped_in_the_legacy_body(serving, expected):
    engine = serving("var_len", batch_config=None)

    (legacy,) = engine.post("/infer", [{"x": expected["var_len"]["row"]}]).json
    (nothing,) = engine.post("/infer", [{"x": [0.0] * 8}]).json

    assert [output.popitem()[1]["dim"] for output in legacy["outputs"]] == [[4], [4]]
    assert [output.popitem()[1]["dim"] for output in nothing["outputs"]] == [[0], [0]]


def test_outputs_of_unequal_length_per_row(client, serving, expected):
    """Published for single rows, a list per row in records; the legacy body cannot hold them."""
    engine = serving("var_len", batch_config="single")
    row = expected["var_len"]["row"]
    request = [{"x": row}, {"x": [0.0] * 8}, {"x": [1.0] * 8}]

    records = client(engine).records(request)
    legacy = engine.post("/infer", request)

    assert [len(record["out"]["classes"]) for record in records] == [4, 0, 8]
    assert legacy.status == 400
    assert "unequal shapes" in legacy.error


def test_models_are_what_the_expectations_say(golden):
    """Our own builds of the published synthetic models compute the same."""
    import onnxruntime as ort  # noqa: PLC0415

    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    theirs = ort.InferenceSession(golden / "synthetic" / "dyn_linear.onnx")
    ours = ort.InferenceSession(models.linear())
    assert (theirs.run(None, {"x": rows})[0] == ours.run(None, {"x": rows})[0]).all()
