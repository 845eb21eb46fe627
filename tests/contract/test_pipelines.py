"""Pipelines of several models, served by a real engine: the recorded ones, and ones that misbehave.

A challenger's result joins the reply when it is ready in time, which on a busy machine it may not
be: ``complete`` asks again until it is.
"""

import json
import time

import numpy as np
import orjson
import pyarrow as pa
import pytest
from pyarrow import flight
from support import models
from support.engine import ARROW_FILE, DEADLINE_S, RECORDS, Engine

MISSING = ({"variable": None}, {"y": None})
SHOW_ALL = "/infer?dataset[]=*"
FLAT = "/infer?dataset[]=*&dataset.exclude[]=metadata&dataset.separator=."


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    """An engine for a definition and its model files; tests that ask for the same share it."""
    running = {}

    def get(definition, files):
        key = (json.dumps(definition), tuple(sorted(files)))
        if key not in running:
            folder = tmp_path_factory.mktemp("pipeline")
            for name, content in files.items():
                (folder / name).write_bytes(content)
            (folder / "pipeline.json").write_text(json.dumps(definition))
            running[key] = Engine({"PIPELINE_URL": str(folder), "FLIGHT_PORT": "0"})
        return running[key].ready()

    yield get
    for engine in running.values():
        engine.stop()


def golden_pipeline(golden, name):
    document = json.loads((golden / "pipelines" / f"{name}.json").read_text())
    files = {
        sha: (golden / "models" / file).read_bytes()
        for sha, file in document["model_files"].items()
    }
    return document, files


def post(engine, path, body, content_type=RECORDS, **headers):
    text = body.encode() if isinstance(body, str) else body
    response = engine.post(path, text, content_type, **headers)
    assert response.status == 200, response.body
    return response


def complete(engine, path, body, names, content_type=RECORDS):
    """The reply once every challenger was in time."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        (element,) = post(engine, path, body, content_type).json
        held = element.get("shadow_data", element)
        if all(name in held and held[name] not in MISSING for name in names):
            return element
        assert time.monotonic() < deadline, element


def onnx(name, **extra):
    return {"name": name, "runtime": "onnx", "file": f"{name}.onnx", **extra}


def infer(*names):
    return {"ModelInference": {"models": [{"name": name} for name in names]}}


SHADOW_END = [{"AuditResults": {"from": 1, "to": None}}, {"MultiOut": {}}]


def test_ccshadow_answers_as_recorded(serve, golden):
    document, files = golden_pipeline(golden, "ccshadow")
    engine = serve(document["config"], files)
    body = (golden / document["input"]).read_bytes()

    record = complete(engine, SHOW_ALL, body, ["out_ccfraud-rf", "out_ccfraud-xgb"])

    expected = document["expected_records"]
    assert {name: record[name] for name in expected} == expected
    assert list(record) == [
        "time", "in", "out", "out_ccfraud-xgb", "out_ccfraud-rf", "anomaly", "metadata"
    ]  # fmt: skip
    assert json.loads(record["metadata"]["last_model"])["model_name"] == "ccfraud-lstm"
    assert len(record["metadata"]["elapsed"]) == 2


def test_ccshadow_legacy_reply_has_the_recorded_shadow_data(serve, golden):
    document, files = golden_pipeline(golden, "ccshadow")
    engine = serve(document["config"], files)
    body = (golden / "inputs" / "shadow_smoke_test.legacy.json").read_bytes()

    reply = complete(engine, "/infer", body, ["ccfraud-rf", "ccfraud-xgb"], "application/json")

    assert reply["shadow_data"] == document["expected_legacy_shadow_data"]
    assert reply["model_name"] == "ccfraud-lstm"
    assert reply["outputs"] == [{"Float": {"data": [0.001497417688369751], "dim": [1, 1], "v": 1}}]
    assert reply["original_data"] == json.loads(body)
    assert reply["check_failures"] == []


def test_ccshadow_arrow_reply_has_a_struct_per_challenger(serve, golden):
    document, files = golden_pipeline(golden, "ccshadow")
    engine = serve(document["config"], files)
    body = (golden / "inputs" / "cc_data_1k.arrow").read_bytes()
    deadline = time.monotonic() + DEADLINE_S
    nulls = 1
    while nulls and time.monotonic() < deadline:
        reply = post(engine, "/infer", body, ARROW_FILE, accept=ARROW_FILE)
        table = pa.ipc.open_file(reply.body).read_all()
        names = table.column_names
        nulls = sum(
            table[name].combine_chunks().field("variable").null_count for name in names[3:5]
        )

    assert names == [
        "time",
        "in",
        "out",
        "out_ccfraud-xgb",
        "out_ccfraud-rf",
        "anomaly",
        "metadata",
    ]
    field = table.schema.field("out_ccfraud-xgb")
    assert not field.nullable
    assert str(field.type) == "struct<variable: list<inner: float not null>>"
    assert field.type.field("variable").metadata == {b"tensor_type": b'{"shape":[1]}'}
    recorded = json.loads(
        (golden / "recorded" / "ops_infer_ccfraud_xgb_1001_2025.json").read_bytes()
    )
    assert table["out_ccfraud-xgb"].combine_chunks().field("variable").flatten().to_pylist() == [
        float(np.float32(row["out"]["variable"][0])) for row in recorded
    ]


def test_recorded_shadow_numbers_of_2023(serve, golden):
    recorded = json.loads(
        (golden / "recorded_legacy" / "sdk_inferenceresults_old.json").read_text()
    )
    expected = recorded[0]["result"]
    files = {
        "housing-rf.onnx": (golden / "models" / "rf_model.onnx").read_bytes(),
        "housing-xgb.onnx": (golden / "models" / "xgb_model.onnx").read_bytes(),
    }
    fields = {"tensor_fields": ["tensor"]}
    engine = serve(
        {
            "id": expected["pipeline_name"],
            "steps": [infer("housing-rf", "housing-xgb"), *SHADOW_END],
            "models": [onnx("housing-rf", **fields), onnx("housing-xgb", **fields)],
        },
        files,
    )

    body = json.dumps(expected["original_data"])
    reply = complete(engine, "/infer", body, ["housing-xgb"], "application/json")

    wanted = {"housing-xgb": expected["shadow_data"]["housing-xgb"]}
    assert reply["shadow_data"] == wanted
    assert reply["outputs"][0]["Float"]["data"] == expected["outputs"][0]["Float"]["data"]
    assert reply["original_data"] == expected["original_data"]


@pytest.mark.parametrize("file", ["dev_smoke_test.df.json", "dev_high_fraud.df.json"])
def test_recorded_validations_of_one_row(serve, golden, file):
    document, files = golden_pipeline(golden, "ccfraud-validation-demo")
    engine = serve(document["config"], files)
    (case,) = (case for case in document["cases"] if case["input"].endswith(file))
    body = (golden / "inputs" / file).read_bytes()

    (record,) = post(engine, FLAT, body).json
    (legacy,) = post(engine, "/infer", body).json

    assert {name: record[name] for name in case["expected"]} == case["expected"]
    true = [name for name, value in record.items() if value is True]
    assert legacy["check_failures"] == [
        {"True": {"expr": name.removeprefix("anomaly.")}} for name in true
    ]


@pytest.mark.parametrize("arrow", [False, True])
def test_recorded_validations_of_1001_rows(serve, golden, arrow):
    document, files = golden_pipeline(golden, "ccfraud-validation-demo")
    engine = serve(document["config"], files)
    with pa.ipc.open_file(golden / "inputs" / "cc_data_1k.arrow") as file:
        table = file.read_all().rename_columns(["dense_input"])  # as the published model calls it
    if arrow:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        reply = post(engine, FLAT, sink.getvalue().to_pybytes(), ARROW_FILE, accept=ARROW_FILE)
        replied = pa.ipc.open_file(reply.body).read_all()
        names = ["anomaly.count", "anomaly.fraud", "anomaly.in_between_2", "anomaly.too_low"]
        assert [name for name in replied.column_names if name.startswith("anomaly")] == names
        assert str(replied.schema.field("anomaly.count").type) == "uint32"
        assert str(replied.schema.field("anomaly.fraud").type) == "bool"
        columns = replied.to_pydict()
    else:
        rows = post(engine, FLAT, orjson.dumps(table.to_pylist())).json
        columns = {name: [row[name] for row in rows] for name in rows[0]}

    assert len(columns["time"]) == 1001
    assert sum(columns["anomaly.in_between_2"]) == 179
    assert sum(columns["anomaly.fraud"]) == 6
    assert sum(columns["anomaly.too_low"]) == 816
    assert columns["anomaly.count"] == [1] * 1001


def test_recorded_ab_log_comes_out_of_infer(serve, golden):
    recorded = pa.ipc.open_file(golden / "recorded" / "sdk_logs_abtest_19.arrow").read_all()
    chosen = [json.loads(text[0]) for text in recorded["out._model_split"].to_pylist()]
    files = {"logcontrol": "rf_model", "logcontrolchallenger01": "xgb_model"}
    versions = {one["name"]: {**one, "tensor_fields": ["tensor"]} for one in chosen}
    definition = {
        "id": "logtest",
        "steps": [
            {
                "RandomSplit": {
                    "hash_key": "pick",  # stands for the number that was drawn
                    "weights": [
                        {"model": {"name": "logcontrol"}, "weight": 2},
                        {"model": {"name": "logcontrolchallenger01"}, "weight": 1},
                    ],
                }
            }
        ],
        "models": [{**versions[name], "runtime": "onnx"} for name in files],
    }
    contents = {
        versions[name]["sha"]: (golden / "models" / f"{file}.onnx").read_bytes()
        for name, file in files.items()
    }
    engine = serve(definition, contents)
    kept = [row for row, one in enumerate(chosen) if one["name"] in files]
    picks = [0.1 if chosen[row]["name"] == "logcontrol" else 0.9 for row in kept]
    sent = [
        {"index": row["in.index"], "tensor": row["in.tensor"], "pick": pick}
        for row, pick in zip(recorded.take(kept).to_pylist(), picks, strict=True)
    ]

    replies = [
        pa.ipc.open_file(post(engine, FLAT, orjson.dumps([row]), accept=ARROW_FILE).body).read_all()
        for row in sent
    ]
    together = pa.ipc.open_file(
        post(engine, FLAT, orjson.dumps(sent), accept=ARROW_FILE).body
    ).read_all()

    # time and check_failures were changed by the client that exported the recording
    same = ["in.index", "in.tensor", "out._model_split", "out.variable"]
    for table in (pa.concat_tables(replies), together):
        assert [name for name in table.column_names if name.startswith(("in.", "out."))] == [
            "in.index", "in.pick", "in.tensor", "out._model_split", "out.variable"
        ]  # fmt: skip
        for name in same:
            assert table.schema.field(name).type == recorded.schema.field(name).type
            assert table[name].to_pylist() == recorded[name].take(kept).to_pylist()
        assert table.schema.field("out._model_split").nullable is False

    rows = post(engine, SHOW_ALL, orjson.dumps(sent)).json
    told = [json.loads(row["metadata"]["last_model"])["model_name"] for row in rows]
    assert told == [chosen[row]["name"] for row in kept]
    (legacy,) = post(engine, "/infer", orjson.dumps(sent[:1])).json
    assert legacy["model_name"] == chosen[kept[0]]["name"]
    assert [list(output) for output in legacy["outputs"]] == [["Float"]]


def test_a_random_split_draws_for_each_request(serve):
    weights = [{"model": {"name": name}, "weight": 1} for name in "ab"]
    definition = {
        "id": "split",
        "steps": [{"RandomSplit": {"hash_key": None, "weights": weights}}],
        "models": [onnx("a"), onnx("b")],
    }
    engine = serve(definition, {f"{name}.onnx": models.linear() for name in "ab"})
    body = json.dumps([{"x": [1, 2, 3, 4]}, {"x": [0, 0, 0, 1]}])

    split = [
        {
            json.loads(row["out"]["_model_split"][0])["name"]
            for row in post(engine, SHOW_ALL, body).json
        }
        for _ in range(60)
    ]

    assert {len(names) for names in split} == {1}
    assert set.union(*split) == {"a", "b"}


CHAIN = {
    "id": "chain",
    "steps": [infer("first"), infer("second"), {"Check": {"tree": ["big: out.z[1] > 20"]}}],
    "models": [onnx("first"), onnx("second", tensor_fields=["y"])],
}


def chain_files():
    y, z = models.value("y_in", ["N", 2]), models.value("z", ["N", 2])
    node = models.helper.make_node("Add", ["y_in", "y_in"], ["z"])
    return {"first.onnx": models.linear(), "second.onnx": models.model([node], [y], [z])}


def test_a_chain_answers_with_its_last_model(serve):
    engine = serve(CHAIN, chain_files())

    (record, _) = post(engine, SHOW_ALL, '[{"x":[1,0,0,0]},{"x":[0,0,1,1]}]').json
    (legacy,) = post(engine, "/infer", '[{"x":[1,0,0,0]},{"x":[0,0,1,1]}]').json

    assert record["out"] == {"z": [0.0, 2.0]}
    assert json.loads(record["metadata"]["last_model"])["model_name"] == "second"
    assert len(record["metadata"]["elapsed"]) == 3
    assert legacy["model_name"] == "second"
    assert len(legacy["elapsed"]) == 3
    assert legacy["outputs"] == [{"Float": {"data": [0.0, 2.0, 20.0, 24.0], "dim": [2, 2], "v": 1}}]
    assert legacy["check_failures"] == [{"True": {"expr": "big"}}]
    assert [model["name"] for model in engine.get("/models").json["models"]] == ["first", "second"]


def test_a_request_without_rows_is_answered_by_every_kind_of_pipeline(serve):
    engine = serve(CHAIN, chain_files())

    assert post(engine, "/infer", "[]").json == []
    assert post(engine, SHOW_ALL, "[]").json == []


def test_older_validations_are_printed_as_recorded(serve):
    root = {
        "node": "binop",
        "op": "<",
        "left": {
            "node": "variable",
            "variant_id": {"name": "house"},
            "position": "output",
            "key": [0, 0],
        },
        "right": {"node": "literal", "float": 100.0},
    }
    values = {"price too high": {"root": root, "required_data": [{"name": "house"}]}}
    tree = {"values": values, "gauges": [], "validations": ["price too high"]}
    definition = {
        "id": "old",
        "steps": [infer("house"), {"Check": {"tree": [json.dumps(tree)]}}],
        "models": [onnx("house")],
    }
    engine = serve(definition, {"house.onnx": models.identity()})

    (legacy,) = post(engine, "/infer", '[{"x":[350.5,1]}]').json
    (fine,) = post(engine, "/infer", '[{"x":[50,1]}]').json
    (record,) = post(engine, SHOW_ALL, '[{"x":[350.5,1]}]').json

    assert legacy["check_failures"] == [{"False": {"expr": "house.outputs[0][0] < 100"}}]
    assert fine["check_failures"] == []
    assert record["anomaly"] == {"count": 1, "price too high": True}


def missing(engine, model, reason):
    name = f'sagitta_shadow_missing_total{{model="{model}",reason="{reason}"}}'
    return engine.metrics().get(name, 0)


def test_a_challenger_that_fails_changes_nothing_but_a_metric(serve):
    definition = {
        "id": "shadow",
        "steps": [infer("steady", "failing"), *SHADOW_END],
        "models": [onnx("steady"), onnx("failing")],
    }
    files = {"steady.onnx": models.identity(), "failing.onnx": models.failing()}
    engine = serve(definition, files)

    record = complete(engine, SHOW_ALL, '[{"x":[3,2]}]', ["out_failing"])
    before = missing(engine, "failing", "failed")
    (failed,) = post(engine, SHOW_ALL, '[{"x":[5,2]}]').json

    assert record["out"] == {"y": [3.0, 2.0]}
    assert failed["out"] == {"y": [5.0, 2.0]}
    assert failed["out_failing"] == {"y": None}
    assert failed["anomaly"] == {"count": 0}
    engine.until_metric('sagitta_shadow_missing_total{model="failing",reason="failed"}', before + 1)
    engine.wait_for("warning: challenger 'failing' failed")
    assert engine.metrics().get('sagitta_errors_total{code="inference_failed"}', 0) == 0


def test_a_flight_stream_of_records_outlives_a_challenger_that_fails(serve):
    definition = {
        "id": "shadow",
        "steps": [
            infer("steady", "failing"),
            *SHADOW_END,
            {"Check": {"tree": ["odd: out.y[0] > 4"]}},
        ],
        "models": [onnx("steady"), onnx("failing")],
    }
    files = {"steady.onnx": models.identity(), "failing.onnx": models.failing()}
    engine = serve(definition, files)
    port = engine.wait_for(r"^Listening: Flight on .*?:(\d+)").group(1)
    command = flight.FlightDescriptor.for_command(b'{"reply": "REPLY_RECORDS"}')
    schema = pa.schema([pa.field("x", pa.list_(pa.float32(), 2))])
    rows = [[5.0, 2.0], [3.0, 2.0], [5.0, 2.0]]  # the challenger fails on those that begin with 5

    records = []
    with flight.FlightClient(f"grpc://127.0.0.1:{port}") as client:
        writer, reader = client.do_exchange(command)
        with writer:
            writer.begin(schema)
            for row in rows:
                writer.write_batch(
                    pa.record_batch([pa.array([row], schema.field("x").type)], schema)
                )
                records += reader.read_chunk().data.to_pylist()

    assert [record["out"] for record in records] == [{"y": row} for row in rows]
    assert [record["anomaly"]["odd"] for record in records] == [True, False, True]
    assert [record["out_failing"]["y"] for record in records][::2] == [None, None]


def test_a_challenger_that_hangs_holds_no_answer_up(serve):
    definition = {
        "id": "shadow",
        "steps": [infer("steady", "slow"), *SHADOW_END],
        "models": [onnx("steady"), onnx("slow")],
    }
    files = {"steady.onnx": models.identity(shape=("N", 1)), "slow.onnx": models.slow()}
    engine = serve(definition, files)
    complete(engine, SHOW_ALL, '[{"x":[1]}]', ["out_slow"])
    late = missing(engine, "slow", "late")

    (first,) = post(engine, SHOW_ALL, '[{"x":[1000000]}]').json  # some 3 s for the challenger
    (second,) = post(engine, SHOW_ALL, '[{"x":[2]}]').json

    # both left before the challenger had ended: it could not have counted to 2 in between
    assert (first["out"], second["out"]) == ({"y": [1000000.0]}, {"y": [2.0]})
    assert (first["out_slow"], second["out_slow"]) == ({"y": None}, {"y": None})
    assert missing(engine, "slow", "late") == late + 2
    # once it is through, its results are back
    assert complete(engine, SHOW_ALL, '[{"x":[3]}]', ["out_slow"])["out_slow"] == {"y": [3.0]}


REFUSED = [
    ({"steps": [infer("first"), infer("first")]}, r"\$\.steps\[1\]\.ModelInference\.models\[0\]"),
    (
        {"steps": [infer("first"), {"Check": {"tree": ["big: out.why[0] > 1"]}}]},
        r"\$\.steps\[1\]\.Check\.tree\[0\].*no column 'out\.why'; did you mean 'out\.y'",
    ),
    ({"steps": [infer("first"), {"MultiOut": {}}]}, r"\$\.steps\[1\]\.MultiOut"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_a_definition_that_cannot_run_ends_the_start(tmp_path, change, message):
    (tmp_path / "first.onnx").write_bytes(models.linear())
    definition = {"id": "wrong", "models": [onnx("first")], **change}
    (tmp_path / "pipeline.json").write_text(json.dumps(definition))
    engine = Engine({"PIPELINE_URL": str(tmp_path)})

    engine.wait_for(message)

    assert engine.wait() == 3
