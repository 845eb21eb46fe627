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
from support.engine import DEADLINE_S, RECORDS, Engine, stop_all

MISSING = ({"variable": None}, {"y": None})
SHOW_ALL = "/infer?dataset[]=*"


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
    stop_all(running.values())


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


def complete(ask, names):
    """The only element of the reply, once every challenger was in time."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        (element,) = ask()
        held = element.get("shadow_data", element)
        if all(name in held and held[name] not in MISSING for name in names):
            return element
        assert time.monotonic() < deadline, element


def as_float32(value):
    """A recorded or answered value, its floats as what they stand for."""
    if isinstance(value, dict):
        return {name: as_float32(one) for name, one in value.items()}
    if isinstance(value, list):
        return [as_float32(one) for one in value]
    return float(np.float32(value)) if isinstance(value, float) else value


def flat(record):
    """A record with its groups' columns under joined names."""
    return {f"{group}.{name}": value for group in ("in", "out", "anomaly")
            for name, value in record[group].items()}  # fmt: skip


def onnx(name, **extra):
    return {"name": name, "runtime": "onnx", "file": f"{name}.onnx", **extra}


def infer(*names):
    return {"ModelInference": {"models": [{"name": name} for name in names]}}


SHADOW_END = [{"AuditResults": {"from": 1, "to": None}}, {"MultiOut": {}}]


def test_ccshadow_answers_as_recorded(client, serve, golden):
    document, files = golden_pipeline(golden, "ccshadow")
    shell = client(serve(document["config"], files))

    record = complete(
        lambda: shell.records(golden / document["input"]), ["out_ccfraud-rf", "out_ccfraud-xgb"]
    )

    expected = document["expected_records"]
    assert as_float32({name: record[name] for name in expected}) == as_float32(expected)
    assert list(record) == [
        "time", "in", "out", "out_ccfraud-xgb", "out_ccfraud-rf", "anomaly", "metadata"
    ]  # fmt: skip
    assert json.loads(record["metadata"]["last_model"])["model_name"] == "ccfraud-lstm"
    assert len(record["metadata"]["elapsed"]) == 2


def test_ccshadow_legacy_reply_has_the_recorded_shadow_data(serve, golden):
    document, files = golden_pipeline(golden, "ccshadow")
    engine = serve(document["config"], files)
    body = (golden / "inputs" / "shadow_smoke_test.legacy.json").read_bytes()

    reply = complete(
        lambda: post(engine, "/infer", body, "application/json").json, ["ccfraud-rf", "ccfraud-xgb"]
    )

    assert reply["shadow_data"] == document["expected_legacy_shadow_data"]
    assert reply["model_name"] == "ccfraud-lstm"
    assert reply["outputs"] == [{"Float": {"data": [0.001497417688369751], "dim": [1, 1], "v": 1}}]
    assert reply["original_data"] == json.loads(body)
    assert reply["check_failures"] == []


def test_ccshadow_arrow_reply_has_a_struct_per_challenger(client, serve, golden):
    document, files = golden_pipeline(golden, "ccshadow")
    shell = client(serve(document["config"], files))
    deadline = time.monotonic() + DEADLINE_S
    nulls = 1
    while nulls and time.monotonic() < deadline:
        table = shell.table(golden / "inputs" / "cc_data_1k.arrow")
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
    reply = complete(lambda: post(engine, "/infer", body, "application/json").json, ["housing-xgb"])

    wanted = {"housing-xgb": expected["shadow_data"]["housing-xgb"]}
    assert reply["shadow_data"] == wanted
    assert reply["outputs"][0]["Float"]["data"] == expected["outputs"][0]["Float"]["data"]
    assert reply["original_data"] == expected["original_data"]


@pytest.mark.parametrize("file", ["dev_smoke_test.df.json", "dev_high_fraud.df.json"])
def test_recorded_validations_of_one_row(client, serve, golden, file):
    document, files = golden_pipeline(golden, "ccfraud-validation-demo")
    engine = serve(document["config"], files)
    (case,) = (case for case in document["cases"] if case["input"].endswith(file))
    body = (golden / "inputs" / file).read_bytes()

    (record,) = map(flat, client(engine).records(golden / "inputs" / file))
    (legacy,) = post(engine, "/infer", body).json

    expected = case["expected"]
    assert as_float32({name: record[name] for name in expected}) == as_float32(expected)
    true = [name for name, value in record.items() if value is True]
    assert legacy["check_failures"] == [
        {"True": {"expr": name.removeprefix("anomaly.")}} for name in true
    ]


@pytest.mark.parametrize("arrow", [False, True])
def test_recorded_validations_of_1001_rows(client, serve, golden, arrow):
    document, files = golden_pipeline(golden, "ccfraud-validation-demo")
    shell = client(serve(document["config"], files))
    with pa.ipc.open_file(golden / "inputs" / "cc_data_1k.arrow") as file:
        table = file.read_all().rename_columns(["dense_input"])  # as the published model calls it
    if arrow:
        anomaly = shell.table(table).column("anomaly").combine_chunks()
        assert [(one.name, str(one.type)) for one in anomaly.type] == [
            ("count", "uint32"), ("fraud", "bool"), ("in_between_2", "bool"), ("too_low", "bool")
        ]  # fmt: skip
        rows = anomaly.to_pylist()
    else:
        rows = [record["anomaly"] for record in shell.records(table.to_pylist())]

    assert len(rows) == 1001
    assert sum(row["in_between_2"] for row in rows) == 179
    assert sum(row["fraud"] for row in rows) == 6
    assert sum(row["too_low"] for row in rows) == 816
    assert [row["count"] for row in rows] == [1] * 1001


def test_recorded_ab_log_comes_out_of_infer(client, serve, golden):
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
    shell = client(engine)
    kept = [row for row, one in enumerate(chosen) if one["name"] in files]
    picks = [0.1 if chosen[row]["name"] == "logcontrol" else 0.9 for row in kept]
    sent = [
        {"index": row["in.index"], "tensor": row["in.tensor"], "pick": pick}
        for row, pick in zip(recorded.take(kept).to_pylist(), picks, strict=True)
    ]

    replies = pa.concat_tables([shell.table([row]) for row in sent])
    together = shell.table(sent)

    # time and check_failures were changed by the client that exported the recording
    same = [("in", "index"), ("in", "tensor"), ("out", "_model_split"), ("out", "variable")]
    for table in (replies, together):
        groups = {group: table[group].combine_chunks() for group in ("in", "out")}
        assert [field.name for field in groups["in"].type] == ["index", "pick", "tensor"]
        assert [field.name for field in groups["out"].type] == ["_model_split", "variable"]
        for group, name in same:
            theirs = recorded[f"{group}.{name}"]
            assert groups[group].type.field(name).type == theirs.type
            assert groups[group].field(name).to_pylist() == theirs.take(kept).to_pylist()
        assert groups["out"].type.field("_model_split").nullable is False

    told = [json.loads(row["metadata"]["last_model"])["model_name"] for row in shell.records(sent)]
    assert told == [chosen[row]["name"] for row in kept]
    (legacy,) = post(engine, "/infer", orjson.dumps(sent[:1])).json
    assert legacy["model_name"] == chosen[kept[0]]["name"]
    assert [list(output) for output in legacy["outputs"]] == [["Float"]]


def test_a_random_split_draws_for_each_request(client, serve):
    weights = [{"model": {"name": name}, "weight": 1} for name in "ab"]
    definition = {
        "id": "split",
        "steps": [{"RandomSplit": {"hash_key": None, "weights": weights}}],
        "models": [onnx("a"), onnx("b")],
    }
    shell = client(serve(definition, {f"{name}.onnx": models.linear() for name in "ab"}))
    rows = [{"x": [1, 2, 3, 4]}, {"x": [0, 0, 0, 1]}]

    split = [
        {json.loads(row["out"]["_model_split"][0])["name"] for row in shell.records(rows)}
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


def test_a_chain_answers_with_its_last_model(client, serve):
    engine = serve(CHAIN, chain_files())

    (record, _) = client(engine).records([{"x": [1, 0, 0, 0]}, {"x": [0, 0, 1, 1]}])
    (legacy,) = post(engine, "/infer", '[{"x":[1,0,0,0]},{"x":[0,0,1,1]}]').json

    assert record["out"] == {"z": [0.0, 2.0]}
    assert json.loads(record["metadata"]["last_model"])["model_name"] == "second"
    assert len(record["metadata"]["elapsed"]) == 3
    assert legacy["model_name"] == "second"
    assert len(legacy["elapsed"]) == 3
    assert legacy["outputs"] == [{"Float": {"data": [0.0, 2.0, 20.0, 24.0], "dim": [2, 2], "v": 1}}]
    assert legacy["check_failures"] == [{"True": {"expr": "big"}}]
    assert [model["name"] for model in engine.get("/models").json["models"]] == ["first", "second"]


def test_a_request_without_rows_is_answered_by_every_kind_of_pipeline(client, serve):
    engine = serve(CHAIN, chain_files())

    assert post(engine, "/infer", "[]").json == []
    assert post(engine, SHOW_ALL, "[]").json == []
    table = client(engine).table(pa.table({"x": pa.array([], pa.list_(pa.float32(), 4))}))
    assert table.num_rows == 0
    assert [field.name for field in table.schema.field("out").type] == ["z"]


def test_older_validations_are_printed_as_recorded(client, serve):
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
    (record,) = client(engine).records([{"x": [350.5, 1]}])

    assert legacy["check_failures"] == [{"False": {"expr": "house.outputs[0][0] < 100"}}]
    assert fine["check_failures"] == []
    assert record["anomaly"] == {"count": 1, "price too high": True}


def missing(engine, model, reason):
    name = f'sagitta_shadow_missing_total{{model="{model}",reason="{reason}"}}'
    return engine.metrics().get(name, 0)


def test_a_challenger_that_fails_changes_nothing_but_a_metric(client, serve):
    definition = {
        "id": "shadow",
        "steps": [infer("steady", "failing"), *SHADOW_END],
        "models": [onnx("steady"), onnx("failing")],
    }
    files = {"steady.onnx": models.identity(), "failing.onnx": models.failing()}
    engine = serve(definition, files)
    shell = client(engine)

    record = complete(lambda: shell.records([{"x": [3, 2]}]), ["out_failing"])
    before = missing(engine, "failing", "failed")
    (failed,) = shell.records([{"x": [5, 2]}])

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


def test_a_challenger_that_hangs_holds_no_answer_up(client, serve):
    definition = {
        "id": "shadow",
        "steps": [infer("steady", "slow"), *SHADOW_END],
        "models": [onnx("steady"), onnx("slow")],
    }
    files = {"steady.onnx": models.identity(shape=("N", 1)), "slow.onnx": models.slow()}
    engine = serve(definition, files)
    shell = client(engine)
    complete(lambda: shell.records([{"x": [1]}]), ["out_slow"])
    late = missing(engine, "slow", "late")

    (first,) = shell.records([{"x": [1000000]}])  # some 3 s for the challenger
    (second,) = shell.records([{"x": [2]}])

    # both left before the challenger had ended: it could not have counted to 2 in between
    assert (first["out"], second["out"]) == ({"y": [1000000.0]}, {"y": [2.0]})
    assert (first["out_slow"], second["out_slow"]) == ({"y": None}, {"y": None})
    assert missing(engine, "slow", "late") == late + 2
    # once it is through, its results are back
    third = complete(lambda: shell.records([{"x": [3]}]), ["out_slow"])
    assert third["out_slow"] == {"y": [3.0]}


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
