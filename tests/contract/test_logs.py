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
        variables = {"PIPELINE_URL": str(folder), "PERSIST_DIR": persist, **LOG, **environ}
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


def test_the_page_of_the_reference_is_the_recorded_one(logging_engine, golden):
    """Two requests, then the documented call: the recorded page, key for key."""
    recorded = orjson.loads((golden / "recorded" / "edge_logs_lowconn_1000.json").read_bytes())
    engine = logging_engine()
    infer(engine, golden / "inputs" / "xtest-1.df.json")
    infer(engine, golden / "inputs" / "smallinputs.df.json")

    response = logs(engine)

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


def test_arrow_page_has_the_schema_of_the_recorded_segment(logging_engine, golden):
    segment = pa.ipc.open_file(golden / "edge" / "plateau" / "ws60_1row.recovery.arrow")
    engine = logging_engine()
    infer(engine, golden / "inputs" / "xtest-1.df.json")

    page = logs(engine, accept=ARROW_FILE)
    table = pa.ipc.open_file(page.body)

    assert page.headers["content-type"] == ARROW_FILE
    recorded = segment.schema.remove_metadata()
    assert table.schema.remove_metadata().equals(recorded, check_metadata=True)
    assert orjson.loads(table.schema.metadata[b"status"]) == status(page)
    assert table.num_record_batches == 1
    (ours,), (theirs,) = table.read_all().to_pylist(), segment.read_all().to_pylist()
    assert comparable(ours, theirs) == comparable(theirs, theirs)
    stream = logs(engine, accept=ARROW_STREAM)
    assert pa.ipc.open_stream(stream.body).read_all().to_pylist() == [ours]


def test_a_cursor_walks_through_the_log(logging_engine, golden):
    engine = logging_engine()
    for _ in range(3):
        infer(engine, golden / "inputs" / "biginputs.df.json")
    seen, body = [], b"{}"
    while True:
        page = logs(engine, "?page_size=4", body)
        seen += page.json
        body = orjson.dumps(status(page)["next"])
        if status(page)["status"] == "All":
            break

    assert len(seen) == 27
    assert seen == logs(engine).json
    newest_first = logs(engine, "?order=desc").json
    assert newest_first == seen[::-1]
    assert logs(engine, body=b'{"another-edge": 5}').json == seen
    assert logs(engine, body=body).json == []


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


def test_times_limit_a_page(serving_log):
    first = logs(serving_log).json[0]["time"]
    low, high = (pd.Timestamp(first + step, unit="ms", tz="UTC").isoformat() for step in (-1, 1))

    def rows(low, high):
        query = f"?time.start={low}&time.end={high}".replace("+", "%2B")
        return len(logs(serving_log, query).json)

    assert rows(low, high) == 2
    assert rows(high, "2100-01-01T00:00:00Z") == 0


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("?page_size=no", "page_size"),
        ("?order=sideways", "order"),
        ("?time.start=2026-01-01T00:00:00Z", "time.end"),
        ("?dataset[]=nothing", "nothing"),
        ("?dataset.unknown=1", "dataset.unknown"),
    ],
)
def test_a_bad_parameter_is_refused_by_name(serving_log, query, words):
    response = serving_log.post(f"/logs{query}", b"{}")

    assert response.status == 400
    assert words in response.error


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


def test_without_the_variables_the_text_names_them(serving):
    response = serving("linear").post("/logs", b"{}")

    assert response.status == 404
    assert "LOCAL_INFERENCE_STORAGE" in response.error
    assert "PLATEAU_PAGE_SIZE" in response.error


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


def test_an_answer_is_in_the_log_when_it_arrives(logging_engine, golden):
    """kill -9 right behind every answer loses none of them."""
    for count in range(1, 4):
        engine = logging_engine()
        infer(engine, golden / "inputs" / "biginputs.df.json")
        engine.process.kill()
        engine.process.wait()
        engine = logging_engine()
        assert len(logs(engine).json) == 9 * count
        engine.stop()
