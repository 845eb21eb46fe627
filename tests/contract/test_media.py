"""Content-Type and Accept as leniently as recorded clients need, and as strictly as is safe."""

import orjson
import pyarrow as pa
import pytest
from support.engine import ARROW_FILE, ARROW_STREAM, RECORDS

ROWS = [{"x": [0.0, 1.0, 2.0, 3.0]}]
LEGACY = {"x": [[0.0, 1.0, 2.0, 3.0]]}
WANTED = [{"Float": {"data": [28.0, 34.0], "dim": [1, 2], "v": 1}}]
ARROW_TABLE = pa.table({"x": pa.array([[0.0, 1.0, 2.0, 3.0]], pa.list_(pa.float32(), 4))})


def arrow_body(open_writer=pa.ipc.new_file):
    sink = pa.BufferOutputStream()
    with open_writer(sink, ARROW_TABLE.schema) as writer:
        writer.write_table(ARROW_TABLE)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def engine(serving):
    return serving("linear")


@pytest.mark.parametrize(
    "content_type",
    [
        RECORDS,
        "application/json;format=pandas-records",
        "Content-Type: application/json; format=pandas-records",
        "Content-Type:application/json",
        "application/json",
        "application/json; format=wallaroo",
        "application/json; charset=utf-8",
        "APPLICATION/JSON",
        "application/x-www-form-urlencoded",
        "application/octet-stream",
        "",
        None,
    ],
)
@pytest.mark.parametrize("body", [ROWS, LEGACY, ROWS[0]], ids=["records", "legacy", "object"])
def test_json_bodies(engine, content_type, body):
    reply = engine.post("/infer", body, content_type)

    assert reply.status == 200, reply.body
    assert reply.json[0]["outputs"] == WANTED
    assert reply.headers["content-type"] == RECORDS


@pytest.mark.parametrize(
    "content_type", [ARROW_FILE, ARROW_STREAM, "application/octet-stream", None]
)
@pytest.mark.parametrize("open_writer", [pa.ipc.new_file, pa.ipc.new_stream])
def test_arrow_bodies(engine, content_type, open_writer):
    """File or stream is told from the bytes; an Arrow request is answered in JSON by default."""
    reply = engine.post("/infer", arrow_body(open_writer), content_type)

    assert reply.status == 200, reply.body
    assert reply.json[0]["outputs"] == WANTED
    assert reply.headers["content-type"] == RECORDS


@pytest.mark.parametrize(
    "body",
    [
        (LEGACY, LEGACY),  # the request itself, as documented
        (ROWS, None),
        (orjson.dumps(ROWS), None),
    ],
)
def test_original_data(engine, body):
    request, original = body
    assert engine.post("/infer", request, "application/json").json[0]["original_data"] == original


def test_original_data_of_arrow_is_null(engine):
    assert engine.post("/infer", arrow_body(), ARROW_FILE).json[0]["original_data"] is None


@pytest.mark.parametrize(
    ("accept", "answered"),
    [
        ("*/*", RECORDS),
        ("application/json", RECORDS),
        (RECORDS, RECORDS),
        ("application/json; format=wallaroo", RECORDS),
        ("application/*", RECORDS),
        (ARROW_FILE, ARROW_FILE),
        (ARROW_STREAM, ARROW_STREAM),
        (f"text/html, {ARROW_FILE}", ARROW_FILE),
        (f"{RECORDS};q=0.5, {ARROW_FILE}", ARROW_FILE),
        (f"{ARROW_FILE};q=0, */*", RECORDS),
        (f"Accept: {ARROW_FILE}", ARROW_FILE),
    ],
)
def test_accept(engine, accept, answered):
    reply = engine.post("/infer", ROWS, accept=accept)

    assert reply.status == 200
    assert reply.headers["content-type"] == answered
    if answered == ARROW_FILE:
        assert pa.ipc.open_file(reply.body).num_record_batches == 1
    elif answered == ARROW_STREAM:
        assert pa.ipc.open_stream(reply.body).read_all().num_rows == 1
    else:
        assert reply.json[0]["outputs"] == WANTED


@pytest.mark.parametrize("content_type", ["text/csv", "application/xml", "image/png", "nonsense"])
def test_hostile_24_unknown_content_type_is_415(engine, content_type):
    reply = engine.post("/infer", ROWS, content_type)

    assert reply.status == 415
    assert repr(content_type) in reply.error
    assert ARROW_FILE in reply.error


@pytest.mark.parametrize("accept", ["text/html", "application/xml", f"{RECORDS};q=0"])
def test_hostile_24_bad_accept_is_406(engine, accept):
    reply = engine.post("/infer", ROWS, accept=accept)

    assert reply.status == 406
    assert "Accept" in reply.error


def test_hostile_24_wrong_method_is_405(engine):
    assert engine.get("/infer").status == 405


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "zstd"])
def test_hostile_24_content_encoding_is_415(engine, encoding):
    reply = engine.post("/infer", ROWS, content_encoding=encoding)

    assert reply.status == 415
    assert encoding in reply.error


def test_content_encoding_identity_is_nothing(engine):
    assert engine.post("/infer", ROWS, content_encoding="identity").status == 200
