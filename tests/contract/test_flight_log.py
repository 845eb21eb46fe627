"""The inference log over Arrow Flight: the rows, words and refusals of ``POST /logs``."""

import json
import re

import grpc
import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.flight as fl
import pytest
from support import models
from support.arrow import read_file, vectors
from support.engine import ARROW_FILE, ROOT
from support.flight import INFER, connect, exchange, refusal

FLIGHT = {"FLIGHT_PORT": "0"}
LOG = {**FLIGHT, "LOCAL_INFERENCE_STORAGE": "100m", "PLATEAU_PAGE_SIZE": "100"}
LOGS = fl.FlightDescriptor.for_path("logs")
DO_GET = "/arrow.flight.protocol.FlightService/DoGet"
ROWS, BATCHES = 2_000, 15


def numbers(first, rows):
    return [[float(first + row), 0, 0, 0] for row in range(rows)]


@pytest.fixture(scope="module")
def engine(serving, tmp_path_factory):
    """An engine whose log has 30,000 rows of one schema and then two of another."""
    persist = str(tmp_path_factory.mktemp("persist"))
    engine = serving("linear", environ={**LOG, "PERSIST_DIR": persist})
    batches = [
        pa.record_batch({"x": vectors(numbers(first, ROWS))})
        for first in range(0, ROWS * BATCHES, ROWS)
    ]
    exchange(connect(engine), batches)
    other = pa.record_batch({"id": pa.array(["a", "b"]), "x": vectors(numbers(30_000, 2))})
    exchange(connect(engine), [other])
    return engine


def partition(engine):
    return next(iter(http_page(engine, "page_size=1")[1]["next"]))


def http_page(engine, query="", cursor=None):
    reply = engine.post(f"/logs?{query}", orjson.dumps(cursor or {}), accept=ARROW_FILE)
    assert reply.status == 200, reply.body
    return read_file(reply.body), orjson.loads(reply.headers["x-iteration-status"])


def stream(engine, **query):
    """The batches of a stream, and what each says."""
    chunks = list(connect(engine).do_get(fl.Ticket(json.dumps({"log": query}))))
    return [chunk.data for chunk in chunks], [
        orjson.loads(chunk.app_metadata.to_pybytes()) for chunk in chunks
    ]


QUERIES = {
    "page_size=7": {"page_size": 7},
    "page_size=9999": {"page_size": 9999},
    "order=desc&page_size=2": {"order": "desc", "page_size": 2},
    "page_size=3&dataset[]=time&dataset[]=out": {"page_size": 3, "dataset": ["time", "out"]},
    "page_size=3&dataset[]=out": {"page_size": 3, "dataset": ["out"]},
    "page_size=3&dataset.exclude[]=metadata&dataset.separator=/": {
        "page_size": 3,
        "dataset_exclude": ["metadata"],
        "dataset_separator": "/",
    },
    "page_size=3&dataset.flatten=true": {"page_size": 3, "dataset_flatten": True},
}


@pytest.mark.parametrize("query", QUERIES)
def test_the_rows_and_the_words_of_a_page(engine, query):
    table, status = http_page(engine, query)

    batches, told = stream(engine, **QUERIES[query])

    ours = pa.Table.from_batches(batches)
    assert ours.equals(table.replace_schema_metadata(None), check_metadata=True)
    assert told[-1] == status


def test_a_stream_ends_where_the_columns_change_and_goes_on_from_its_cursor(engine):
    batches, told = stream(engine)

    assert [one["status"] for one in told[:-1]] == ["ByteLimited"] * (len(told) - 1)
    assert told[-1] == {"status": "SchemaChange", "next": {partition(engine): 30_000}}
    table = pa.Table.from_batches(batches)
    table.validate(full=True)
    values = table["in"].combine_chunks().field("x").flatten().to_pylist()
    assert values[::4] == [float(number) for number in range(30_000)]

    rest, after = stream(engine, cursor=told[-1]["next"])
    assert [row["in"]["id"] for batch in rest for row in batch.to_pylist()] == ["a", "b"]
    assert [one["status"] for one in after] == ["All"]
    nothing, still = stream(engine, cursor=after[-1]["next"])
    assert [batch.num_rows for batch in nothing] == [0]
    assert still == [{"status": "All", "next": after[-1]["next"]}]


def test_every_batch_says_where_to_go_on(engine):
    whole, told = stream(engine)
    for position, one in enumerate(told[:-1]):
        rest, _ = stream(engine, cursor=one["next"], page_size=5)
        following = pa.Table.from_batches(whole[position + 1 :]).slice(0, 5)
        assert pa.Table.from_batches(rest).equals(following)
    other_edge, _ = stream(engine, cursor={"another-edge": 5}, page_size=1)
    assert other_edge[0].equals(whole[0].slice(0, 1))


def test_a_time_range(engine):
    table, _ = http_page(engine, "dataset[]=time&page_size=10000")
    first, last = table["time"][0].as_py(), table["time"][-1].as_py()

    def moment(milliseconds):
        return pd.Timestamp(milliseconds, unit="ms", tz="UTC").isoformat()

    inside, _ = stream(engine, time_start=moment(first), time_end=moment(last))
    after, told = stream(engine, time_start="2100-01-01T00:00:00Z", time_end="2101-01-01T00:00:00Z")

    assert sum(batch.num_rows for batch in inside) >= table.num_rows
    assert [batch.num_rows for batch in after] == [0]
    assert told[-1]["status"] == "All"


@pytest.mark.parametrize(
    ("query", "parameters"),
    [
        ({"page_size": 0}, "page_size=0"),
        ({"order": "sideways"}, "order=sideways"),
        ({"time_start": "2026-01-01T00:00:00Z"}, "time.start=2026-01-01T00:00:00Z"),
        (
            {"time_start": "yesterday", "time_end": "2026-01-01T00:00:00Z"},
            "time.start=yesterday&time.end=2026-01-01T00:00:00Z",
        ),
        ({"dataset": ["nothing"]}, "dataset[]=nothing"),
    ],
)
def test_the_same_refusal_by_both_shells(engine, query, parameters):
    reply = engine.post(f"/logs?{parameters}", b"{}")

    body, error = refusal(lambda: stream(engine, **query))

    assert (body["code"], body["error"]) == (reply.status, reply.error)
    assert isinstance(error, fl.FlightServerError)


def test_a_ticket_that_is_none_is_refused(engine):
    for text in (b"", b'{"log":{"colour":"red"}}', b'{"log":', b"\xff\xff", b'{"results":""}'):
        body, _ = refusal(lambda t=text: connect(engine).do_get(fl.Ticket(t)).read_all())
        assert (body["code"], '{"log":{}}' in body["error"]) == (400, True)


def test_the_log_is_listed_and_its_ticket_fetches_it(engine):
    client = connect(engine)
    pipeline, log, _failures = client.list_flights()

    assert pipeline.descriptor.path == [b"pipelines", b"pipe"]
    assert log.descriptor.path == [b"logs"]
    assert log.schema.names == ["time", "in", "out", "anomaly", "metadata"]
    assert log.total_records == 30_002
    assert 0 < log.total_bytes <= 100_000_000
    for info in (log, client.get_flight_info(LOGS)):
        (endpoint,) = info.endpoints
        assert endpoint.locations == []
        table = client.do_get(endpoint.ticket).read_all()
        assert table.num_rows == 30_000
        assert table.schema.equals(info.schema, check_metadata=True)
    assert client.get_schema(LOGS).schema.equals(log.schema, check_metadata=True)


def test_a_command_describes_a_part_of_the_log(engine):
    client = connect(engine)
    command = {"log": {"dataset": ["out"], "page_size": 3}}
    descriptor = fl.FlightDescriptor.for_command(json.dumps(command))

    info = client.get_flight_info(descriptor)

    assert (info.schema.names, info.total_records, info.total_bytes) == (["y"], -1, -1)
    assert client.get_schema(descriptor).schema.equals(info.schema)
    assert client.do_get(info.endpoints[0].ticket).read_all().num_rows == 3


@pytest.mark.parametrize("extra", [{}, {"id": [7]}], ids=["one column", "a column more"])
def test_the_log_keeps_the_same_of_every_batch_of_a_stream(engine_process, tmp_path, extra):
    """Later batches of a stream go the shortest way; those of DoPut never do."""
    models.write_pipeline(tmp_path / "pipe", models.linear())
    environ = {"PIPELINE_URL": str(tmp_path / "pipe"), "PERSIST_DIR": str(tmp_path)}
    engine = engine_process(**LOG, **environ).ready()
    sizes = [1, 0, 3, 30_000]
    batches = [
        pa.record_batch(
            {
                "x": vectors(numbers(rows, rows), 4),
                **{name: pa.array(value * rows, pa.int64()) for name, value in extra.items()},
            }
        )
        for rows in sizes
    ]

    for batch in batches:
        writer, told = connect(engine).do_put(INFER, batch.schema)
        with writer:
            writer.write_batch(batch)
            told.read()
        exchange(connect(engine), [batch] * 4)

    kept, words = stream(engine)
    assert words[-1]["status"] == "All"
    table = pa.Table.from_batches(kept).combine_chunks()
    assert table.num_rows == 5 * sum(sizes)
    assert {str(row["dropped"]) for row in table["metadata"].to_pylist()} == {"[]"}
    values, at = table.select(["in", "out", "anomaly"]), 0
    for rows, batch in zip(sizes, batches, strict=True):
        first = values.slice(at, rows)
        assert first["in"].combine_chunks().field("x").to_pylist() == batch["x"].to_pylist()
        assert [values.slice(at + number * rows, rows).equals(first) for number in range(5)] == (
            [True] * 5
        )
        at += 5 * rows


def test_the_log_takes_no_batches(engine):
    client, batch = connect(engine), pa.record_batch({"x": vectors([[1, 2, 3, 4]])})

    body, _ = refusal(lambda: exchange(client, [batch], LOGS))

    assert (body["code"], "read it with DoGet" in body["error"]) == (400, True)


def test_an_empty_log_is_one_empty_batch(serving, tmp_path):
    engine = serving("linear", environ={**LOG, "PERSIST_DIR": str(tmp_path)})

    batches, told = stream(engine)

    assert [(batch.num_rows, batch.schema.names) for batch in batches] == [(0, [])]
    assert [(one["status"], list(one["next"].values())) for one in told] == [("All", [0])]
    _, info, _ = connect(engine).list_flights()
    assert (info.schema.names, info.total_records) == ([], 0)


def test_without_the_variables_the_text_names_them(serving):
    engine = serving("linear", environ=FLIGHT)
    client = connect(engine)

    for call in (lambda: stream(engine), lambda: client.get_flight_info(LOGS)):
        body, _ = refusal(call)
        assert body["code"] == 404
        assert body["error"] == engine.post("/logs", b"{}").error
        assert "LOCAL_INFERENCE_STORAGE and PLATEAU_PAGE_SIZE" in body["error"]
    assert [info.descriptor.path[0] for info in client.list_flights()] == [b"pipelines"]


def test_messages_fit_clients_that_take_4_mib(engine):
    """The default limit of gRPC, which other languages' clients have."""
    ticket = b"\x0a" + bytes([len(b'{"log":{}}')]) + b'{"log":{}}'
    with grpc.insecure_channel(f"127.0.0.1:{engine.flight_port}") as channel:
        messages = list(channel.unary_stream(DO_GET)(ticket))

    assert sum(map(len, messages)) > 4 << 20
    assert max(map(len, messages)) < 4 << 20


def documented(page):
    """The Python lines of a page that read the log over Flight."""
    text = (ROOT / page).read_text(encoding="utf-8")
    (lines,) = [code for code in re.findall(r"```python\n(.*?)```", text, re.S) if '"log"' in code]
    return lines


@pytest.mark.parametrize("page", ["README.md", "docs/flight.md", "docs/logs.md"])
def test_the_documented_lines_read_the_log(engine, page):
    lines = documented(page).replace("localhost:8815", f"127.0.0.1:{engine.flight_port}")
    names = {"fl": fl}  # README has imported it above

    exec(compile(lines, page, "exec"), names)

    assert names["table"].num_rows == 30_000
    if "newest" in names:
        assert names["newest"].read_all().num_rows == 2  # and then the columns change
    if "tables" in names:
        assert [table.num_rows for table in names["tables"]] == [30_000, 2]
