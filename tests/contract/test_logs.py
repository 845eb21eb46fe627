"""``POST /logs``: the documented call, the recorded page, the cursor, and Arrow on request."""

import io
import socket

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
import pytest
from support import models
from support.engine import ARROW_FILE, ARROW_STREAM, RECORDS
from support.shells import Flight, Rest

HOST = socket.gethostname()
LOG = {"LOCAL_INFERENCE_STORAGE": "100m", "PLATEAU_PAGE_SIZE": "100"}
DOCUMENTED = ("Content-Type: application/json; format=pandas-records", b"{}")


@pytest.fixture
def logging_engine(engine_process, tmp_path, golden):
    """An engine with a log, serving the reference page's model; starts once more on request."""

    def start(model="rf_model", name="rf-house-price-estimator", **environ):
        content = (golden / "models" / f"{model}.onnx").read_bytes()
        folder = tmp_path / "pipeline"
        folder.mkdir(exist_ok=True)
        models.write_pipeline(folder, content, name=name, tensor_fields=["tensor"])
        persist = str(tmp_path / "persist")
        variables = {"PIPELINE_URL": str(folder), "PERSIST_DIR": persist, "FLIGHT_PORT": "0"}
        variables |= {**LOG, **environ}
        return engine_process(**variables).ready()

    return start


def infer(engine, file, accept="*/*"):
    kind = ARROW_FILE if file.suffix == ".arrow" else RECORDS
    response = engine.post("/infer", file.read_bytes(), kind, accept=accept)
    assert response.status == 200, response.body
    return response


def logs(engine, query="", body=b"{}", kind=DOCUMENTED[0], accept="*/*"):
    response = engine.post(f"/logs{query}", body, kind, accept=accept)
    assert response.status == 200, response.body
    return response


def status(response):
    return orjson.loads(response.headers["x-iteration-status"])


def comparable(record, recorded):
    """A record's text, with what no two runs share taken from the recorded one.

    Results count as the float32 that they stand for: of two shortest decimals that are equally near
    (1886959.25 is 1886959.2 or 1886959.3) the recorded engine printed the other one.
    """
    metadata = {**record["metadata"]}
    assert metadata["partition"] in {HOST, recorded["metadata"]["partition"]}
    assert len(metadata["elapsed"]) == len(recorded["metadata"]["elapsed"])
    for name in ("pipeline_version", "elapsed", "partition"):
        metadata[name] = recorded["metadata"][name]
    out = {name: [float(np.float32(v)) for v in values] for name, values in record["out"].items()}
    return orjson.dumps({**record, "time": recorded["time"], "out": out, "metadata": metadata})


@pytest.fixture(scope="module")
def reference_log(serving, golden, tmp_path_factory):
    """An engine whose log the reference page shows: a request of one row, then one of 1,000."""
    engine = serving(
        (golden / "models" / "rf_model.onnx").read_bytes(),
        environ={**LOG, "PERSIST_DIR": str(tmp_path_factory.mktemp("reference"))},
        name="rf-house-price-estimator",
        tensor_fields=["tensor"],
    )
    infer(engine, golden / "inputs" / "xtest-1.df.json")
    infer(engine, golden / "inputs" / "smallinputs.df.json")
    return engine


def test_the_page_of_the_reference_is_the_recorded_one(reference_log, golden):
    """Two requests, then the documented call: the recorded page, key for key."""
    recorded = orjson.loads((golden / "recorded" / "edge_logs_lowconn_1000.json").read_bytes())

    response = logs(reference_log)

    assert response.headers["content-type"] == RECORDS
    assert status(response) == {"status": "RecordLimited", "next": {HOST: 1000}}
    assert [comparable(*pair) for pair in zip(response.json, recorded, strict=True)] == [
        comparable(record, record) for record in recorded
    ]
    assert len({record["time"] for record in response.json}) == 2

    frame = pd.read_json(io.BytesIO(response.body), orient="records")
    assert list(frame.columns) == ["time", "in", "out", "anomaly", "metadata"]
    assert len(frame) == 1000
    assert frame["in"][0] == recorded[0]["in"]


def test_the_page_of_the_reference_as_arrow(client, reference_log, golden):
    recorded = orjson.loads((golden / "recorded" / "edge_logs_lowconn_1000.json").read_bytes())

    table, told = client(reference_log).log("page_size=1000")

    assert told == {"status": "RecordLimited", "next": {HOST: 1000}}
    assert [comparable(*pair) for pair in zip(table.to_pylist(), recorded, strict=True)] == [
        comparable(record, record) for record in recorded
    ]


def test_rows_of_the_log_are_the_rows_of_the_reply(logging_engine, golden):
    engine = logging_engine(model="ccfraud")
    body = (golden / "inputs" / "cc_data_1k.arrow").read_bytes()
    start = 0
    for query in (
        "dataset[]=*",
        "dataset[]=*&dataset.exclude[]=metadata&dataset.separator=.",
        "dataset[]=out",
        "dataset[]=*&dataset.exclude[]=in",
    ):
        reply = engine.post(f"/infer?{query}", body, ARROW_FILE)
        page = logs(engine, f"?page_size=10000&{query}", orjson.dumps({HOST: start}))
        start += 1001
        assert page.body == reply.body
        assert status(page) == {"status": "All", "next": {HOST: start}}

    for infer_shell in (Rest(engine), Flight(engine)):
        table = infer_shell.table(golden / "inputs" / "cc_data_1k.arrow")
        for log_shell in (Rest(engine), Flight(engine)):
            kept, told = log_shell.log("page_size=10000", {HOST: start})
            assert kept.replace_schema_metadata(None).equals(table, check_metadata=True)
            assert told == {"status": "All", "next": {HOST: start + 1001}}
        start += 1001


def test_arrow_page_has_the_schema_of_the_recorded_segment(client, reference_log, golden):
    segment = pa.ipc.open_file(golden / "edge" / "plateau" / "ws60_1row.recovery.arrow")

    table, _ = client(reference_log).log("page_size=1")

    recorded = segment.schema.remove_metadata()
    assert table.schema.remove_metadata().equals(recorded, check_metadata=True)
    (ours,), (theirs,) = table.to_pylist(), segment.read_all().to_pylist()
    assert comparable(ours, theirs) == comparable(theirs, theirs)


def test_arrow_page_is_a_file_or_a_stream_with_its_status(reference_log):
    page = logs(reference_log, "?page_size=1", accept=ARROW_FILE)
    stream = logs(reference_log, "?page_size=1", accept=ARROW_STREAM)
    table = pa.ipc.open_file(page.body)

    assert page.headers["content-type"] == ARROW_FILE
    assert orjson.loads(table.schema.metadata[b"status"]) == status(page)
    assert table.num_record_batches == 1
    assert pa.ipc.open_stream(stream.body).read_all().equals(table.read_all())


def test_a_cursor_walks_through_the_log(client, reference_log):
    shell = client(reference_log)
    rows, cursor, told = [], None, {"status": None}
    while told["status"] != "All":
        table, told = shell.log("page_size=300", cursor)
        rows += table.to_pylist()
        cursor = told["next"]

    assert len(rows) == 1001
    assert rows == shell.log("page_size=10000")[0].to_pylist()
    newest_first, _ = shell.log("page_size=10000&order=desc")
    assert newest_first.to_pylist() == rows[::-1]
    assert shell.log("page_size=5", {"another-edge": 5})[0].to_pylist() == rows[:5]
    assert shell.log("", cursor)[0].num_rows == 0


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b"{}"),
        ("application/json; format=pandas-records", b""),
        ("application/x-www-form-urlencoded", b"{}"),
        ("application/vnd.apache.arrow.file", b"{}"),
        ("text/plain", b"anything"),
        ("", b"\xff\xfe"),
    ],
)
def test_any_content_type_and_any_body_means_from_the_start(serving_log, kind, body):
    assert len(logs(serving_log, kind=kind, body=body).json) == 2


@pytest.fixture(scope="module")
def serving_log(serving, tmp_path_factory):
    """A shared engine with two rows in its log."""
    persist = str(tmp_path_factory.mktemp("persist"))
    engine = serving("linear", environ={**LOG, "PERSIST_DIR": persist})
    if not logs(engine).json:
        assert engine.post("/infer", [{"x": [1.0, 2.0, 3.0, 4.0]}] * 2).status == 200
    return engine


def test_times_limit_a_page(client, serving_log):
    first = logs(serving_log).json[0]["time"]
    low, high = (pd.Timestamp(first + step, unit="ms", tz="UTC").isoformat() for step in (-1, 1))

    def rows(low, high):
        query = f"time.start={low}&time.end={high}".replace("+", "%2B")
        return client(serving_log).log(query)[0].num_rows

    assert rows(low, high) == 2
    assert rows(high, "2100-01-01T00:00:00Z") == 0


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("page_size=no", "page_size"),
        ("order=sideways", "order"),
        ("time.start=2026-01-01T00:00:00Z", "time.end"),
        ("dataset[]=nothing", "nothing"),
        ("dataset.unknown=1", "dataset.unknown"),
    ],
)
def test_a_bad_parameter_is_refused_by_name(client, serving_log, query, words):
    code, text = client(serving_log).log_refused(query)

    assert code == 400
    assert words in text or words.replace(".", "_") in text  # as a message spells it


def test_what_cannot_be_written_is_refused(serving_log):
    assert serving_log.post("/logs", b"{}", accept="image/png").status == 406
    assert serving_log.get("/logs").status == 405


def test_health_and_metrics_tell_about_the_log(serving_log):
    logs(serving_log)
    health = serving_log.get("/healthz").json["log"]
    metrics = serving_log.metrics()

    assert (health["status"], health["rows_kept"], health["rows_not_kept"]) == ("Keeping", 2, 0)
    assert metrics["sagitta_log_rows_kept_total"] == 2
    assert metrics["sagitta_log_keeping"] == 1
    assert metrics["sagitta_log_commit_ns_count"] == 1
    assert metrics['sagitta_log_commit_ns_bucket{le="+Inf"}'] == 1


def test_without_the_variables_the_text_names_them(client, serving):
    code, text = client(serving("linear")).log_refused()

    assert code == 404
    assert "LOCAL_INFERENCE_STORAGE" in text
    assert "PLATEAU_PAGE_SIZE" in text


def test_the_log_outlives_the_engine_that_wrote_it(logging_engine, golden):
    engine = logging_engine()
    infer(engine, golden / "inputs" / "biginputs.df.json")
    before = logs(engine).json
    engine.stop()

    engine = logging_engine()
    infer(engine, golden / "inputs" / "xtest-1.df.json")

    after = logs(engine).json
    assert after[:9] == before
    assert len(after) == 10


def test_an_answer_is_in_the_log_when_it_arrives(client, logging_engine, golden):
    """kill -9 right behind every answer loses none of them."""
    for count in range(1, 4):
        engine = logging_engine()
        shell = client(engine)
        assert shell.log()[0].num_rows == 9 * (count - 1)
        shell.records(golden / "inputs" / "biginputs.df.json")
        engine.process.kill()
        engine.process.wait()
    assert client(logging_engine()).log()[0].num_rows == 27


def test_rows_are_kept_whatever_their_request_holds_besides(engine_process, tmp_path):
    folder = models.write_pipeline(tmp_path / "pipeline", models.linear())
    environ = {"PIPELINE_URL": str(folder), "PERSIST_DIR": str(tmp_path / "persist"), **LOG}
    engine = engine_process(**environ).ready()
    rows = [{"x": [1, 2, 3, 4], "id": value} for value in (1, "a")]
    assert engine.post("/infer", rows).status == 200

    kept = logs(engine).json

    assert [row["in"] for row in kept] == [{"x": [1, 2, 3, 4]}] * 2
    assert [row["metadata"]["dropped"] for row in kept] == [["in.id"]] * 2
    assert "rows are missing" not in engine.output
