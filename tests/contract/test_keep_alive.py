"""Requests on one connection whose heads are alike, which the engine does not parse again."""

import json
import time

import numpy as np
import pyarrow as pa
import pytest

BODY = b'[{"x": [1, 2, 3, 4]}]'
LARGE = b'[{"x": [1, 2, 3, 4]}' + b" " * 2000 + b"]"


def request(body, *fields):
    head = [
        b"POST /infer HTTP/1.1",
        b"Host: engine",
        b"Content-Length: %d" % len(body),
        *fields,
    ]
    return b"\r\n".join([*head, b"", body])


def outputs(reply):
    assert reply.status == 200
    return json.loads(reply.body)[0]["outputs"]


@pytest.fixture
def engine(serving):
    return serving("linear", environ={"MAX_BODY_BYTES": "1k"})


def test_every_request_has_its_own_answer(engine):
    with engine.connect() as connection:
        connection.send(request(BODY))
        first = outputs(connection.receive())
        connection.send(request(BODY))
        assert outputs(connection.receive()) == first
        longer = b'[{"x": [1, 2, 3, 4]}, {"x": [10, 2, 3, 4]}]'
        connection.send(request(longer))
        both = outputs(connection.receive())

    assert both[0]["Float"]["dim"][0] == 2
    assert both[0]["Float"]["data"][:2] == first[0]["Float"]["data"]


@pytest.mark.parametrize("cut", [1, 20, 60, -5])
def test_a_known_head_may_arrive_in_pieces(engine, cut):
    with engine.connect() as connection:
        connection.send(request(BODY))
        first = outputs(connection.receive())
        for _ in range(2):
            connection.send(request(BODY)[:cut])
            connection.send(request(BODY)[cut:])
            assert outputs(connection.receive()) == first


@pytest.mark.parametrize("cut", [-1, -15])
def test_a_body_of_no_declared_type_may_arrive_in_pieces(engine, cut):
    """Pieces are gathered in a buffer of another type than a body that came whole."""
    with engine.connect() as connection:
        for _ in range(20):
            connection.send(request(BODY)[:cut])
            time.sleep(0.01)
            connection.send(request(BODY)[cut:])
            outputs(connection.receive())


def test_known_heads_may_come_at_once(engine):
    with engine.connect() as connection:
        connection.send(request(BODY))
        first = outputs(connection.receive())
        connection.send(request(BODY) * 3)
        assert [outputs(connection.receive()) for _ in range(3)] == [first] * 3


def test_another_head_is_read_anew(engine):
    with engine.connect() as connection:
        connection.send(request(BODY))
        outputs(connection.receive())
        connection.send(request(BODY, b"Content-Type: text/csv"))
        assert connection.receive().status == 415
        connection.send(request(BODY, b"Expect: 100-continue"))
        assert connection.receive().status == 100
        outputs(connection.receive())
        connection.send(request(BODY))
        outputs(connection.receive())


def test_the_limit_holds_for_a_known_head(engine):
    with engine.connect() as connection:
        connection.send(request(BODY))
        outputs(connection.receive())
        connection.send(request(LARGE))
        assert connection.receive().status == 413
        assert connection.receive() is None


def test_a_token_is_checked_for_every_request(serving, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("first\n")
    engine = serving("linear", environ={"API_TOKEN_FILE": str(tokens)})
    with engine.connect() as connection:
        connection.send(request(BODY, b"Authorization: Bearer first"))
        outputs(connection.receive())
        connection.send(request(BODY, b"Authorization: Bearer other"))
        assert connection.receive().status == 401
        connection.send(request(BODY, b"Authorization: Bearer first"))
        outputs(connection.receive())
        tokens.write_text("second, and longer\n")
        deadline_s = time.monotonic() + 10
        status = 200
        while status == 200 and time.monotonic() < deadline_s:  # the file is looked at now and then
            connection.send(request(BODY, b"Authorization: Bearer first"))
            status = connection.receive().status
    assert status == 401


@pytest.mark.parametrize(("body", "status"), [(BODY, 200), (b"[1", 400)])
def test_many_requests_may_wait_behind_another(engine, body, status):
    """Each reply lets the next request begin: not from within its own end, hundreds deep."""
    many = 500
    with engine.connect() as connection:
        connection.send(request(BODY))
        outputs(connection.receive())
        connection.send(b"GET /models HTTP/1.1\r\nHost: engine\r\n\r\n" + request(body) * many)
        assert connection.receive().status == 200
        assert [connection.receive().status for _ in range(many)] == [status] * many


def test_a_lone_row_is_logged_and_counted_as_any_other(serving):
    """One small row on the only connection goes the shortest way, and leaves the same traces."""
    log = {"LOCAL_INFERENCE_STORAGE": "100m", "PLATEAU_PAGE_SIZE": "100"}
    engine = serving("linear", environ=log)
    wrong = b'[{"x": [1, 2, 3]}]'
    with engine.connect() as connection:
        for body, status in ((BODY, 200), (b"[]", 200), (BODY, 200), (wrong, 400), (BODY, 200)):
            connection.send(request(body))
            assert connection.receive().status == status
    with engine.connect() as connection:
        connection.send(b"POST /logs HTTP/1.1\r\nHost: engine\r\nContent-Length: 2\r\n\r\n{}")
        rows = json.loads(connection.receive().body)
    counted = engine.metrics()

    assert engine.request("GET", "/healthz").json["log"] == {
        "status": "Keeping",
        "rows_kept": 3,
        "rows_not_kept": 0,
        "rows_evicted_before_upload": 0,
    }
    assert [row["in"]["x"] for row in rows] == [[1, 2, 3, 4]] * 3
    assert [value for name, value in counted.items() if "latency_histogram_ns_count" in name] == [4]
    assert [value for name, value in counted.items() if "errors" in name and "schema" in name] == [
        1
    ]


@pytest.mark.parametrize(
    ("model", "width"),
    [
        ("linear", 4),
        ("centred", 4),
        ("dense", 16),
        ("failing", 2),
        ("not_finite", 2),
        ("var_len", 8),
        ("zip_map", 3),
        ("pooling", 2),
    ],
)
def test_the_shortest_way_answers_as_the_usual_one(serving, model, width):
    """The first request of a connection is parsed, the next, of the same head, goes short."""
    engine = serving(model)
    told = "outputs", "check_failures", "model_name", "code"
    rows = [[0.25] * width, [1] * width, [5, *[0] * (width - 1)], [-1e30] * width, [True] * width]
    for row in [*rows, [None] * width, [1.5] * (width + 1), [[1.5] * width]]:
        for name in ("x", "a", "p"):
            body = json.dumps([{name: row}]).encode()
            answers = []
            with engine.connect() as connection:
                for _ in range(3):
                    connection.send(request(body))
                    reply = connection.receive()
                    document = json.loads(reply.body)
                    first = document[0] if isinstance(document, list) else document
                    error = first.get("error", "").partition(" under request ")[0]
                    answers.append((reply.status, error, [first.get(key) for key in told]))

            assert answers == answers[:1] * 3


def arrow(model, start, rows):
    """A request of that many rows for a model of ``support.models``; its tensor's width differs."""
    width = {"linear": 4, "centred": 4, "dense": 16, "failing": 2, "var_len": 8}[model]
    values = np.arange(start, start + rows * width, dtype=np.float32) / 100
    column = pa.FixedSizeListArray.from_arrays(pa.array(values), width)
    batch = pa.RecordBatch.from_pydict({"x": column})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    "accept", [b"*/*", b"application/json", b"application/vnd.apache.arrow.file"]
)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("model", ["linear", "centred", "dense", "failing", "var_len"])
def test_tables_like_the_one_before_are_answered_as_any_other(serving, model, rows, accept):
    """Three on one connection, of which the last goes the shortest way; and each on its own."""
    engine = serving(model)
    head = b"Content-Type: application/vnd.apache.arrow.file", b"Accept: " + accept
    for round_ in range(3):
        bodies = [arrow(model, start, rows) for start in (0, 500 + round_, -900)]
        together = []
        with engine.connect() as connection:
            for body in bodies * 2:
                connection.send(request(body, *head))
                together.append(told(connection.receive()))
        apart = []
        for body in bodies:
            with engine.connect() as connection:
                connection.send(request(body, *head))
                apart.append(told(connection.receive()))

        assert together == apart * 2


def told(reply):
    """What does not differ from one request to the next."""
    if not reply.body.startswith(b"ARROW1"):
        document = json.loads(reply.body)
        first = document[0] if isinstance(document, list) else document
        error = first.get("error", "").partition(" under request ")[0]
        return reply.status, error, first.get("outputs"), first.get("check_failures")
    table = pa.ipc.open_file(reply.body).read_all()
    return reply.status, table.select(["in", "out", "anomaly"]).to_pylist()


def test_a_known_table_is_logged_as_any_other(serving):
    log = {"LOCAL_INFERENCE_STORAGE": "101m", "PLATEAU_PAGE_SIZE": "100"}  # of its own
    engine = serving("linear", environ=log)
    with engine.connect() as connection:
        for start in range(6):
            connection.send(request(arrow("linear", 100 * start, 2)))
            assert connection.receive().status == 200
    rows = engine.request("POST", "/logs", b"{}").json

    wanted = [np.arange(100 * start, 100 * start + 8) / 100 for start in range(6)]
    wanted = np.concatenate(wanted).astype(np.float32).reshape(12, 4)
    assert np.array([row["in"]["x"] for row in rows], np.float32).tolist() == wanted.tolist()


def test_line_ends_between_requests_never_add_up_to_a_head(engine):
    """Some clients send one more than they announce; a parser skips it."""
    with engine.connect() as connection:
        connection.send(request(BODY))
        first = outputs(connection.receive())
        for _ in range(9):
            connection.send(b"\r\n" * 4096)
            connection.send(request(BODY))
            assert outputs(connection.receive()) == first
