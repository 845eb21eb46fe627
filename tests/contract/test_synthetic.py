"""What was worked out by hand or with ONNX Runtime alone for small models: ``expected.json``."""

import numpy as np
import orjson
import pyarrow as pa
import pytest
from support import models
from support.engine import ARROW_FILE, ARROW_STREAM
from support.models import DTYPES

ARROW = {
    key: pa.from_numpy_dtype({"float": "float32"}.get(spelling, spelling))
    for key, (_, spelling, _) in DTYPES.items()
    if spelling not in {"double", "string"}
} | {"f64": pa.float64(), "s": pa.string()}
SHOW_OUT = "/infer?dataset[]=out"


@pytest.fixture
def expected(golden):
    return orjson.loads((golden / "synthetic" / "expected.json").read_bytes())


def serve_file(serving, golden, name, **definition):
    return serving((golden / "synthetic" / f"{name}.onnx").read_bytes(), **definition)


def arrow_file(table):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("name", ["dyn_linear", "fixed_batch1"])
@pytest.mark.parametrize("batch_config", [None, "single"])
def test_rows(serving, golden, expected, name, batch_config):
    """A model that takes one row at a time is run row by row, also where it does not say so."""
    engine = serve_file(serving, golden, name, batch_config=batch_config)
    rows, wanted = expected[name]["rows"], expected[name]["y"]
    for first, last in ((0, 3), (1, 2)):
        request = [{"x": row} for row in rows[first:last]]

        (legacy,) = engine.post("/infer", request).json
        records = engine.post(SHOW_OUT, request).json

        flat = [value for row in wanted[first:last] for value in row]
        assert legacy["outputs"] == [{"Float": {"data": flat, "dim": [last - first, 2], "v": 1}}]
        assert records == [{"y": row} for row in wanted[first:last]]


def test_scalar_columns(serving, golden, expected):
    engine = serve_file(serving, golden, "scalar_add")
    case = expected["scalar_add"]

    records = engine.post("/infer?dataset[]=*", case["records_in"]).json

    assert [record["in"] for record in records] == case["records_in"]
    assert [record["out"] for record in records] == [{"sum": value} for value in case["sum"]]


def test_nested_lists(serving, golden, expected):
    engine = serve_file(serving, golden, "rank3_transpose")
    case = expected["rank3_transpose"]
    flat = [{"x": [value for row in case["records_in"][0]["x"] for value in row]}]
    for request in (case["records_in"], flat):
        (record,) = engine.post("/infer?dataset[]=*", request).json

        assert record["in"] == request[0]
        assert record["out"]["y"] == case["y"][0]


def test_house_price_keras(serving, golden):
    content = (golden / "models" / "house_price_keras.onnx").read_bytes()
    engine = serving(content, tensor_fields=["tensor"])
    file = golden / "recorded" / "reference_outputs_by_ort.json"
    case = orjson.loads(file.read_bytes())["house_price_keras"]

    (ours,) = engine.post("/infer", [{"tensor": row} for row in case["rows"]]).json

    tensor = ours["outputs"][0]["Float"]
    wanted = case["outputs"]["dense_2"]
    assert tensor["dim"] == wanted["shape"]
    assert np.float32(tensor["data"]).tobytes() == np.float32(wanted["data"]).tobytes()


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


@pytest.mark.parametrize("accept", [ARROW_FILE, ARROW_STREAM])
def test_every_element_type_comes_back_unchanged_in_arrow(serving, expected, accept):
    engine = serving("every_type")
    row = expected["dtypes"]["row"]
    table = pa.table({f"in_{k}": pa.array([row[f"in_{k}"]], pa.list_(ARROW[k])) for k in DTYPES})

    reply = engine.post("/infer", arrow_file(table), ARROW_FILE, accept=accept)
    read = (pa.ipc.open_file if accept == ARROW_FILE else pa.ipc.open_stream)(reply.body).read_all()

    assert reply.headers["content-type"] == accept
    out = read.column("out").combine_chunks()
    for key in DTYPES:
        answered = out.field(f"out_{key}")
        assert answered.type.value_type == ARROW[key]
        assert answered.flatten().equals(table.column(f"in_{key}").combine_chunks().flatten())


def test_other_row_count_than_the_request(serving, expected):
    """Answered in the legacy body, whose outputs need not have the request's rows."""
    engine = serving("rowcount_change")
    case = expected["rowcount_change"]
    request = [{"x": row} for row in case["rows"]]

    (legacy,) = engine.post("/infer", request).json
    records = engine.post("/infer?dataset[]=*", request)
    (one,) = engine.post(SHOW_OUT, request[:1]).json

    assert legacy["outputs"] == [{"Float": {"data": case["y"][0], "dim": [1, 4], "v": 1}}]
    assert records.status == 400
    assert "output 'y' has the shape [1, 4] for 3 rows" in records.error
    assert one["y"] in ([case["rows"][0]], case["rows"][0])


def test_outputs_that_are_not_batch_shaped(serving, expected):
    """K detections for one row, as of an object detector; also K = 0."""
    case = expected["var_len"]
    for name, engine in (
        ("plain", serving("var_len")),
        ("single", serving("var_len", batch_config="single")),
    ):
        request = [{"x": case["row"]}]

        (legacy,) = engine.post("/infer", request).json
        (record,) = engine.post(SHOW_OUT, request).json
        (nothing,) = engine.post("/infer", [{"x": [0.0] * 8}]).json
        (empty,) = engine.post(SHOW_OUT, [{"x": [0.0] * 8}]).json

        classes, scores = legacy["outputs"]
        assert classes == {"Int64": {"data": case["classes"], "dim": [4], "v": 1}}, name
        assert (scores["Float"]["data"], scores["Float"]["dim"]) == (case["scores"], [4])
        assert record["classes"] == case["classes"]
        assert np.float32(record["scores"]).tobytes() == np.float32(case["scores"]).tobytes()
        assert [output.popitem()[1]["dim"] for output in nothing["outputs"]] == [[0], [0]]
        assert empty == {"classes": [], "scores": []}


def test_outputs_of_unequal_length_per_row(serving, expected):
    """Published for single rows, a list per row in records; the legacy body cannot hold them."""
    engine = serving("var_len", batch_config="single")
    row = expected["var_len"]["row"]
    request = [{"x": row}, {"x": [0.0] * 8}, {"x": [1.0] * 8}]

    records = engine.post(SHOW_OUT, request).json
    legacy = engine.post("/infer", request)

    assert [len(record["classes"]) for record in records] == [4, 0, 8]
    assert legacy.status == 400
    assert "unequal shapes" in legacy.error


def test_models_are_what_the_expectations_say(golden):
    """Our own builds of the published synthetic models compute the same."""
    import onnxruntime as ort  # noqa: PLC0415

    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    theirs = ort.InferenceSession(golden / "synthetic" / "dyn_linear.onnx")
    ours = ort.InferenceSession(models.linear())
    assert (theirs.run(None, {"x": rows})[0] == ours.run(None, {"x": rows})[0]).all()
