"""What the documented engine answered, answered again: the recordings whose model we have.

The numbers are equal bit for bit in the model's own type, the bodies equal key for key and in
their order. Set aside is what no two runs share: ``time``, ``elapsed``, version ids, and the host
in ``partition``. ``CONFIG_CPUS`` is what the recorded engine ran with, since the sums of a tree
ensemble depend on the threads; the engine of 2023 took 16 whatever it was told.

Recordings of 2023 differ from today's body in two documented ways, undone by ``_as_of_today``:
``check_failures`` where ``anomaly`` is now, and a ``metadata`` that was empty or partly filled.
"""

import dataclasses
import socket

import numpy as np
import orjson
import pyarrow as pa
import pytest
from support.engine import ARROW_FILE, RECORDS

SHOW_ALL = "/infer?dataset[]=*"
METADATA = ["last_model", "pipeline_version", "elapsed", "dropped", "partition"]


@dataclasses.dataclass(frozen=True)
class Recording:
    file: str
    model: str
    request: str
    cpus: int = 1
    first: int = 0
    last: int | None = None

    def __str__(self):
        return f"{self.file}-{self.first}-{self.request}-{self.cpus}"


RECORDINGS = [
    Recording("edge_infer_1row", "rf_model", "xtest-1.df.json"),
    Recording("edge_infer_1row", "rf_model", "xtest-1.df.json", cpus=4),
    Recording("edge_infer_biginputs_9rows_a", "rf_model", "biginputs.df.json"),
    Recording("edge_infer_xtest1k_2023_check_failures", "rf_model", "xtest-1k.df.json", cpus=16),
    # a page of the log: one request of 1 row, then the first 999 rows of one of 1000
    Recording("edge_logs_lowconn_1000", "rf_model", "xtest-1.df.json", last=1),
    Recording("edge_logs_lowconn_1000", "rf_model", "smallinputs.df.json", first=1),
    Recording("ops_infer_ccfraud_xgb_1001_2025", "xgboost_ccfraud", "cc_data_1k.arrow"),
    Recording("ops_infer_ccfraud_keras_1001_2023_no_elapsed", "ccfraud", "cc_data_1k.arrow"),
]


def serve_golden(serving, golden, model, *, cpus=1, **definition):
    content = (golden / "models" / f"{model}.onnx").read_bytes()
    definition.setdefault("tensor_fields", ["tensor"])
    return serving(content, environ={"CONFIG_CPUS": str(cpus)}, **definition)


def post_file(engine, path, file, accept="*/*"):
    kind = ARROW_FILE if file.suffix == ".arrow" else RECORDS
    response = engine.post(path, file.read_bytes(), kind, accept=accept)
    assert response.status == 200, response.body
    return response


def _as_of_today(record):
    """A record of 2023 in today's layout."""
    renamed = {}
    for name, value in record.items():
        if name == "check_failures":
            assert value == []
            renamed["anomaly"] = {"count": 0}
        else:
            renamed[name] = value
    return renamed


def _without_the_moment(record, recorded):
    """A reply's record with what differs from run to run taken from the recorded one."""
    metadata = record["metadata"]
    assert list(metadata) == METADATA
    assert type(record["time"]) is int
    assert [type(step) for step in metadata["elapsed"]] == [int, int]
    assert metadata["partition"] == socket.gethostname()
    told = {name: metadata[name] for name in METADATA if name in recorded["metadata"]}
    for name in told.keys() & {"pipeline_version", "elapsed", "partition"}:
        told[name] = recorded["metadata"][name]
    return {**record, "time": recorded["time"], "metadata": told}


def _text(record, groups=("out",)):
    """Keys in their order, values with their types, results as the float32 that they stand for.

    Of two shortest decimals that are equally near (1886959.25 is 1886959.2 or 1886959.3) the
    recorded engine took the other one.
    """
    exact = {
        group: {name: [_exact(value) for value in values] for name, values in record[group].items()}
        for group in groups
    }
    return orjson.dumps({**record, **exact})


def _exact(value):
    assert type(value) is float
    return float(np.float32(value))


@pytest.mark.parametrize("case", RECORDINGS, ids=str)
def test_records_reply_is_the_recorded_one(client, serving, golden, case):
    document = orjson.loads((golden / "recorded" / f"{case.file}.json").read_bytes())
    recorded = [_as_of_today(record) for record in document[case.first : case.last]]
    name = orjson.loads(recorded[0]["metadata"]["last_model"])["model_name"]
    engine = serve_golden(serving, golden, case.model, cpus=case.cpus, name=name)

    reply = client(engine).records(golden / "inputs" / case.request)

    assert len(reply) >= len(recorded)
    groups = ("in", "out") if case.request.endswith(".arrow") else ("out",)  # sent as float32
    for ours, theirs in zip(reply, recorded, strict=False):
        assert _text(_without_the_moment(ours, theirs), groups) == _text(theirs, groups)


def test_log_rows_of_the_reference_page_come_out_of_infer(client, serving, golden):
    document = orjson.loads((golden / "seed" / "seed_logs_rows.json").read_bytes())
    rows = [row["record"] for row in document]
    engine = serve_golden(serving, golden, "rf_model", name="rf-house-price-estimator")

    reply = client(engine).records([row["in"] for row in rows])

    assert len(reply) == len(rows) == 10
    for ours, theirs in zip(reply, rows, strict=True):
        assert _text(_without_the_moment(ours, theirs)) == _text(theirs)


def test_legacy_reply_to_the_legacy_request_is_the_recorded_one(serving, golden):
    document = orjson.loads(
        (golden / "recorded_legacy" / "sdk_inferenceresults_old.json").read_bytes()
    )
    recorded = document[0]["result"]  # of 2023-03: one elapsed number, a dtype beside the values
    del recorded["outputs"][0]["Float"]["dtype"]
    recorded["shadow_data"] = {}  # its challengers; this pipeline has one model
    engine = serve_golden(
        serving, golden, "rf_model", name=recorded["model_name"], pipeline=recorded["pipeline_name"]
    )

    body = (golden / "inputs" / "xtest-1.legacy.json").read_bytes()
    (ours,) = engine.post("/infer", body, "application/json").json

    moment = {name: recorded[name] for name in ("time", "elapsed", "model_version")}
    assert orjson.dumps({**ours, **moment}) == orjson.dumps(recorded)


def _log_rows(golden, name):
    return pa.ipc.open_file(golden / "recorded" / f"{name}.arrow").read_all().to_pylist()


def test_log_export_of_the_keras_fraud_model(client, serving, golden):
    rows = _log_rows(golden, "sdk_logs_ccfraud_keras_100")
    engine = serve_golden(serving, golden, "ccfraud")

    reply = client(engine).records([{"tensor": row["in.tensor"]} for row in rows])

    wanted = [[np.float32(v) for v in row["out.dense_1"]] for row in rows]
    assert [[np.float32(v) for v in row["out"]["dense_1"]] for row in reply] == wanted
    assert [row["in"]["tensor"] for row in reply] == [row["in.tensor"] for row in rows]


def test_log_export_of_a_pipeline_with_validations(client, serving, golden):
    """The rows of one request of 2025, of an engine with four CPUs; nothing was an anomaly."""
    rows = _log_rows(golden, "sdk_logs_anomaly_100")
    engine = serve_golden(serving, golden, "rf_model", cpus=4)

    reply = client(engine).records([{"tensor": row["in.tensor"]} for row in rows])

    assert [list(map(np.float32, row["out"]["variable"])) for row in reply] == [
        row["out.variable"] for row in rows
    ]
    assert [row["anomaly"]["count"] for row in reply] == [row["anomaly.count"] for row in rows]


def test_log_export_of_an_ab_test_by_the_model_that_answered(client, serving, golden):
    """Each row was a request of its own, with a text column that no model reads."""
    rows = _log_rows(golden, "sdk_logs_abtest_19")
    answered = 0
    for file in sorted((golden / "models").glob("*_model.onnx")):
        engine = serve_golden(serving, golden, file.stem)
        shell = client(engine)
        sha = orjson.loads(shell.told("models"))["models"][0]["sha"]
        for row in rows:
            if orjson.loads(row["out._model_split"][0])["sha"] == sha:
                request = [{"index": row["in.index"], "tensor": row["in.tensor"]}]
                (ours,) = shell.records(request)
                assert ours["in"] == request[0]
                assert list(map(np.float32, ours["out"]["variable"])) == row["out.variable"]
                answered += 1

    assert answered == 12  # the other seven were answered by a model that is not published


def test_log_export_of_the_two_step_pipeline(client, serving, golden):
    """Its second step was Python code that renamed the column; the number is the model's."""
    (row,) = _log_rows(golden, "sdk_logs_keras_step")
    engine = serve_golden(serving, golden, "house_price_keras")

    (ours,) = client(engine).records([{"tensor": row["in.tensor"]}])

    assert list(map(np.float32, ours["out"]["dense_2"])) == row["out.output"]


def test_flat_log_rows_of_an_edge_have_these_keys(serving, golden):
    file = golden / "recorded" / "sdk_logs_edge_partition_meta.jsonl"
    recorded = [orjson.loads(line) for line in file.read_bytes().splitlines()]
    engine = serve_golden(serving, golden, "rf_model", name="rf-house-price-estimator")
    query = "dataset[]=*&dataset.exclude[]=in&dataset.exclude[]=anomaly&dataset.separator=."

    reply = post_file(engine, f"/infer?{query}", golden / "inputs" / "smallinputs.df.json").json

    assert {tuple(row) for row in reply} == {tuple(row) for row in recorded}
    assert [type(value) for value in reply[0].values()] == [
        type(value) for value in recorded[0].values()
    ]
    ours, theirs = (
        {orjson.loads(row["metadata.last_model"])["model_name"] for row in rows}
        for rows in (reply, recorded)
    )
    assert ours == theirs


@pytest.mark.parametrize("request_file", ["image_224x224.arrow", "image_224x224.df.json"])
def test_documented_image_request(client, serving, golden, request_file):
    engine = serving(
        (golden / "synthetic" / "resnet_like.onnx").read_bytes(),
        name="resnet-50",
        tensor_fields=["tensor"],
    )
    expected = orjson.loads((golden / "synthetic" / "expected.json").read_bytes())["resnet_like"]

    labels, probabilities = client(engine).outputs(golden / "inputs" / request_file)

    wanted = expected["outputs"]["softmax_tensor:0"]
    assert (labels.dtype, labels.tolist()) == (np.int64, expected["outputs"]["ArgMax:0"])
    assert (probabilities.dtype, probabilities.shape) == (np.float32, (1, 1001))
    assert probabilities.tobytes() == np.float32(wanted["data"]).tobytes()


def test_arrow_reply_has_the_schema_of_the_recorded_log_segment(client, serving, golden):
    """Names, nesting, nullability and field metadata, for a JSON request of doubles."""
    segment = pa.ipc.open_file(golden / "edge" / "plateau" / "ws60_1row.recovery.arrow")
    engine = serve_golden(serving, golden, "rf_model", name="rf-house-price-estimator")

    table = client(engine).table(golden / "inputs" / "xtest-1.df.json")

    recorded = segment.schema.remove_metadata()
    assert table.schema.equals(recorded, check_metadata=False)
    assert _described(table.schema) == _described(recorded)
    (ours,), (theirs,) = table.to_pylist(), segment.read_all().to_pylist()
    assert _without_the_moment(ours, theirs) == theirs


def _described(schema):
    """Every field with its nullability and metadata, down to the items of lists."""
    described = []

    def walk(field, path):
        described.append((path, str(field.type), field.nullable, dict(field.metadata or {})))
        for index in range(field.type.num_fields):
            walk(field.type.field(index), (*path, field.type.field(index).name))

    for field in schema:
        walk(field, (field.name,))
    return described
