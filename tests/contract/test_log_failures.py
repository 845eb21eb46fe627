"""Failed requests: ``POST /logs/failures`` and the flight ``logs-failures`` tell the same."""

import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.flight as fl
import pytest
from support import models
from support.engine import ARROW_FILE, ARROW_STREAM, RECORDS
from support.flight import connect
from support.shells import Flight, Rest

from engine.logring.failures import FAILURE_SCHEMA

LOG = {"LOCAL_INFERENCE_STORAGE": "100m", "PLATEAU_PAGE_SIZE": "100"}
FAILURES = fl.FlightDescriptor.for_path("logs-failures")
BAD, GOOD, WRONG = [{"x": [5, 0]}], [{"x": [0, 0]}], [{"x": ["a", 0]}]


@pytest.fixture(scope="module")
def failed(serving, tmp_path_factory):
    """An engine whose model failed on three requests of five, and what their callers were told."""
    persist = str(tmp_path_factory.mktemp("persist"))
    engine = serving("failing", environ={**LOG, "PERSIST_DIR": persist}, version="v7")
    told = [fail(shell(engine)) for shell in (Rest, Flight, Rest)]
    assert Rest(engine).refused(WRONG)[0] == 400
    assert len(Rest(engine).records(GOOD)) == 1
    return engine, told


def fail(shell):
    code, text = shell.refused(BAD)
    assert code == 500
    return text


def page(engine, query="", body=b"{}", accept="*/*"):
    reply = engine.post(f"/logs/failures{query}", body, accept=accept)
    assert reply.status == 200, reply.body
    return reply


def status(reply):
    return orjson.loads(reply.headers["x-iteration-status"])


def errors(table):
    return table["error"].to_pylist()


def partition(engine):
    ((name, _),) = status(engine.post("/logs?page_size=1", b"{}"))["next"].items()
    return name


@pytest.mark.parametrize("shell", [Rest, Flight], ids=["rest", "flight"])
def test_a_failure_is_there_once_its_caller_knows(serving, tmp_path, shell):
    engine = serving("failing", environ={**LOG, "PERSIST_DIR": str(tmp_path)})

    for count in range(1, 4):
        told = fail(shell(engine))
        for reader in (Rest(engine), Flight(engine)):
            table, _ = reader.log(failures=True)
            assert (table.num_rows, errors(table)[-1]) == (count, told)
        assert engine.output.count(told.rpartition(" ")[2]) == 1  # the reason is told once


def test_a_page_of_records(failed):
    engine, told = failed

    reply = page(engine)

    assert reply.headers["content-type"] == RECORDS
    assert status(reply) == {"status": "All", "next": {partition(engine): 3}}
    assert [list(row) for row in reply.json] == [["time", "error", "metadata"]] * 3
    assert [row["error"] for row in reply.json] == told
    metadata = {"pipeline_version": "v7", "partition": partition(engine)}
    assert [row["metadata"] for row in reply.json] == [metadata] * 3
    kept = engine.post("/logs", b"{}").json
    assert len(kept) == 1
    assert reply.json[0]["time"] <= kept[0]["time"]
    assert engine.metrics()["sagitta_log_failures_kept_total"] == 3


def test_arrow_by_either_way(client, failed):
    engine, told = failed

    table, words = client(engine).log(failures=True)

    assert table.schema.remove_metadata().equals(FAILURE_SCHEMA)
    assert table.to_pylist() == page(engine).json
    assert words == {"status": "All", "next": {partition(engine): 3}}
    stream = pa.ipc.open_stream(page(engine, accept=ARROW_STREAM).body).read_all()
    assert errors(stream) == told
    assert orjson.loads(stream.schema.metadata[b"status"]) == words


def test_a_cursor_and_an_order(client, failed):
    engine, told = failed
    shell, name = client(engine), partition(engine)

    def read(query, cursor=None):
        table, words = shell.log(query, cursor, failures=True)
        return errors(table), words["status"], words["next"][name]

    assert read("page_size=2") == (told[:2], "RecordLimited", 2)
    assert read("page_size=2", {name: 2}) == (told[2:], "All", 3)
    assert read("order=desc&page_size=1") == (told[2:], "RecordLimited", 2)
    assert read("order=desc&page_size=5", {name: 2}) == (told[1::-1], "All", 0)
    assert read("", {"another-edge": 2}) == (told, "All", 3)
    assert read("", {name: 1_000_000}) == ([], "All", 3)


@pytest.mark.parametrize("body", [b"", b"anything", b"\xff\xfe", b"[1]", b'{"x":-1}'])
def test_any_body_that_is_no_cursor_means_from_the_start(failed, body):
    engine, told = failed

    assert [row["error"] for row in page(engine, body=body).json] == told


def test_times_and_columns(client, failed):
    engine, told = failed
    times = [row["time"] for row in page(engine).json]
    low, high = (pd.Timestamp(time, unit="ms", tz="UTC").isoformat() for time in times[::2])

    def read(query):
        return client(engine).log(query.replace("+", "%2B"), failures=True)[0]

    assert errors(read(f"time.start={low}&time.end={high}")) == told
    assert read("time.start=2100-01-01T00:00:00Z&time.end=2101-01-01T00:00:00Z").num_rows == 0
    assert read("dataset[]=error").column_names == ["error"]
    assert read("dataset[]=*&dataset.separator=.").column_names == [
        "time",
        "error",
        "metadata.pipeline_version",
        "metadata.partition",
    ]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("page_size=no", "page_size"),
        ("order=sideways", "order"),
        ("time.start=2026-01-01T00:00:00Z", "time.end"),
        ("dataset[]=out", "out"),
    ],
)
def test_a_bad_parameter_is_refused_by_name(client, failed, query, words):
    code, text = client(failed[0]).log_refused(query, failures=True)

    assert (code, words in text) == (400, True)


def test_what_http_refuses(failed):
    engine, _ = failed
    assert engine.post("/logs/failures", b"{}", accept="image/png").status == 406
    assert engine.get("/logs/failures").status == 405
    assert "POST /logs/failures" in engine.get("/nothing").error


def test_without_the_variables_the_text_names_them(client, serving):
    code, text = client(serving("linear")).log_refused(failures=True)

    assert code == 404
    assert "LOCAL_INFERENCE_STORAGE and PLATEAU_PAGE_SIZE" in text


def test_the_flight_is_listed_and_its_ticket_fetches_it(failed):
    engine, told = failed
    client = connect(engine)

    _pipeline, _log, info = client.list_flights()

    assert info.descriptor == FAILURES
    assert info.schema.equals(FAILURE_SCHEMA)
    assert (info.total_records, info.total_bytes) == (-1, -1)
    assert client.get_schema(FAILURES).schema.equals(FAILURE_SCHEMA)
    for found in (info, client.get_flight_info(FAILURES)):
        (endpoint,) = found.endpoints
        assert errors(client.do_get(endpoint.ticket).read_all()) == told


def test_no_failures_have_their_columns_all_the_same(client, serving, tmp_path_factory):
    persist = str(tmp_path_factory.mktemp("persist"))
    engine = serving("linear", environ={**LOG, "PERSIST_DIR": persist})

    table, words = client(engine).log(failures=True)

    assert table.schema.remove_metadata().equals(FAILURE_SCHEMA)
    assert (table.num_rows, words["status"]) == (0, "All")
    assert page(engine).body == b"[]"


def test_failures_outlive_a_restart_and_their_numbers_go_on(client, engine_process, tmp_path):
    models.write_pipeline(tmp_path / "pipe", models.failing())
    variables = {"PIPELINE_URL": str(tmp_path / "pipe"), "PERSIST_DIR": str(tmp_path)}
    told = []
    for _ in range(2):
        engine = engine_process(**LOG, **variables, FLIGHT_PORT="0").ready()
        shell = client(engine)
        told.append(fail(shell))
        table, words = shell.log(failures=True)
        assert (errors(table), list(words["next"].values())) == (told, [len(told)])
        engine.stop()


def test_more_failures_than_there_is_room_for(client, engine_process, tmp_path):
    """The smallest log has room for some hundreds: the oldest leave, and a cursor goes on."""
    models.write_pipeline(tmp_path / "pipe", models.failing())
    variables = {"PIPELINE_URL": str(tmp_path / "pipe"), "PERSIST_DIR": str(tmp_path)}
    variables |= {**LOG, "LOCAL_INFERENCE_STORAGE": "1Mi", "FLIGHT_PORT": "0"}
    engine = engine_process(**variables).ready()
    body, count = orjson.dumps(BAD), 900
    for number in range(count):
        assert engine.post("/infer", body).status == 500
        if number % 300 == 299:
            page(engine, "?page_size=1")  # which writes what waits

    table, words = client(engine).log("page_size=10000", {partition(engine): 1}, failures=True)

    assert 0 < table.num_rows < count
    assert words == {"status": "All", "next": {partition(engine): count}}
    assert table.num_rows == len(set(errors(table)))
    reply = engine.post("/logs/failures?page_size=10000", b"{}", accept=ARROW_FILE)
    assert pa.ipc.open_file(reply.body).read_all()["time"].to_pylist() == table["time"].to_pylist()
