"""What one HTTP connection can make the engine hold, and whether it can be made to hang."""

import sys
import threading

import orjson
import pytest
from support import models
from support.engine import RECORDS, Engine, has_data, impatient_engine, inference_head

pytestmark = pytest.mark.fault

MIB = 1 << 20
ROW = b'[{"x": [0, 1, 2, 3]}]'
CHUNKED = (
    b"POST /infer HTTP/1.1\r\nHost: edge\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


@pytest.fixture
def engine(serving):
    return serving("linear")


@pytest.fixture
def slow(serving):
    """One slot, and a model that has shown that it is slow."""
    engine = serving("slow", environ={"MAX_BODY_BYTES": "1Mi"})
    engine.show_slowness(b'[{"x": [200000]}]')
    return engine


@pytest.fixture(scope="module")
def impatient(tmp_path_factory):
    """The real engine with deadlines of 1 s and 2 s in place of 30 s, for tests that wait."""
    folder = models.write_pipeline(tmp_path_factory.mktemp("pipeline"), models.linear())
    timeouts_s = {"rest.connection.BODY_TIMEOUT_S": 1.0, "rest.flow.WRITE_TIMEOUT_S": 2.0}
    engine = impatient_engine(folder, timeouts_s)
    yield engine
    engine.stop()


def slow_request(steps, extra=""):
    body = b'[{"x": [%d]}]' % steps
    return inference_head(len(body), content_type="application/json", extra=extra) + body


def large_reply():
    """A request whose reply, of 8 MB, is more than the system's buffers take."""
    rows = orjson.dumps([{"x": [0, 1, 2, 3]}] * 50_000)
    return inference_head(len(rows), "/infer?dataset[]=*", RECORDS) + rows


@pytest.mark.slow
def test_requests_that_come_faster_than_their_answers_are_not_hoarded(engine):
    request, count = b"GET /livez HTTP/1.1\r\nHost: edge\r\n\r\n", 40_000
    engine.get("/livez")
    engine.reset_peak_rss()
    before = engine.peak_rss_bytes()
    with engine.connect() as wire:
        sender = threading.Thread(target=wire.send, args=[request * count])
        sender.start()
        answers = [wire.receive().status for _ in range(count)]
        sender.join()

    assert answers == [200] * count
    assert engine.peak_rss_bytes() - before < 48 * MIB


def test_an_announced_body_takes_no_memory(engine):
    before = engine.rss_bytes()
    wires = [engine.connect() for _ in range(4)]
    for wire in wires:
        wire.send(inference_head(200 * MIB) + b"A")
    assert engine.post("/infer", ROW).status == 200  # the first pieces have been read by then
    for wire in wires:
        wire.send(b"R")
    assert engine.post("/infer", ROW).status == 200

    assert engine.rss_bytes() - before < 16 * MIB
    for wire in wires:
        wire.close()


def test_trailers_are_no_headers_and_have_a_limit(engine):
    body = CHUNKED + b"15\r\n" + ROW + b"\r\n0\r\n"
    with engine.connect() as wire:
        wire.send(body + b"Content-Encoding: gzip\r\nX-Note: b\r\n\r\n")
        assert wire.receive().status == 200
        wire.send(body + b"X-Note: " + b"a" * MIB)
        reply = wire.receive()
        assert (reply.status, "head is too large" in reply.error) == (431, True)
        assert wire.receive() is None


@pytest.mark.parametrize(
    ("rest", "status"),
    [(b"5\r\n[{ \r\nzz\r\n", 400), (b"200000\r\n" + b" " * (MIB + 1000), 413)],
    ids=["no chunk", "too large"],
)
def test_a_refusal_waits_for_the_answers_before_it(slow, rest, status):
    with slow.connect() as wire:
        wire.send(slow_request(300_000))
        slow.until_metric("sagitta_slots_busy", 1)
        wire.send(CHUNKED + rest)

        assert wire.receive().json[0]["outputs"][0]["Float"]["data"] == [300_000.0]
        reply = wire.receive()
        assert (reply.status, reply.headers["connection"]) == (status, "close")
        assert wire.receive() is None
    slow.until_connections_are(0)


def test_a_client_that_waits_for_its_turn_is_told_to_continue(slow):
    head, _, body = slow_request(7, "Expect: 100-continue\r\n").partition(b"\r\n\r\n")
    with slow.connect() as wire:
        wire.send(slow_request(300_000))
        slow.until_metric("sagitta_slots_busy", 1)
        wire.send(head + b"\r\n\r\n")

        assert wire.receive().status == 200
        assert wire.receive().status == 100
        wire.send(body)
        assert wire.receive().json[0]["outputs"][0]["Float"]["data"] == [7.0]


def test_http_1_0_knows_of_no_reply_before_the_reply(engine):
    head = inference_head(
        len(ROW), content_type="application/json", extra="Expect: 100-continue\r\n"
    )
    with engine.connect() as wire:
        wire.send(head.replace(b"HTTP/1.1", b"HTTP/1.0") + ROW)

        assert wire.receive().status == 200
        assert wire.receive() is None


def test_bodies_over_the_bound_of_all_are_asked_to_come_again(serving):
    engine = serving("linear", environ={"QUEUE_MAX_BYTES": "1Mi", "MAX_BODY_BYTES": "1Mi"})
    with engine.connect() as holding, engine.connect() as refused:
        holding.send(inference_head(MIB) + b"ARROW1" + bytes(MIB // 2))
        refused.send(inference_head(MIB) + b"ARROW1" + bytes(MIB - 6))
        reply = refused.receive()

    assert (reply.status, reply.headers["retry-after"]) == (429, "1")
    assert "QUEUE_MAX_BYTES" in reply.error


def test_who_leaves_in_the_middle_of_a_question_for_the_log_is_no_news(serving, tmp_path):
    log = {"LOCAL_INFERENCE_STORAGE": "1Mi", "PLATEAU_PAGE_SIZE": "10"}
    engine = serving("linear", environ={**log, "PERSIST_DIR": str(tmp_path)})
    lines = len(engine.lines)
    with engine.connect() as wire:
        wire.send(b"POST /logs HTTP/1.1\r\nHost: edge\r\nContent-Length: 10\r\n\r\n{")
        engine.until_connections_are(1)
    engine.until_connections_are(0)

    assert engine.get("/livez").status == 200
    assert engine.lines[lines:] == []


@pytest.mark.slow
def test_a_body_that_stalls_behind_an_unread_reply_has_its_deadline(impatient):
    with impatient.connect() as wire:
        wire.send(large_reply() + inference_head(100) + b"A")

        assert wire.receive().status == 200
        assert wire.receive().status == 408
        assert wire.receive() is None


@pytest.mark.slow
def test_a_client_that_does_not_read_is_dropped_whatever_it_asked_next(impatient):
    for more in (inference_head(100) + b"A", b"GET /livez HTTP/1.1\r\nHost: edge\r\n\r\n"):
        with impatient.connect() as wire:
            wire.send(large_reply() + more)
            assert has_data(wire, 30)
            impatient.until_connections_are(0)


@pytest.mark.slow
def test_a_client_that_reads_slowly_gets_its_whole_reply(impatient):
    """It takes twice as long as a client has that reads nothing."""
    with impatient.connect() as wire, impatient.connect() as silent:
        wire.send(large_reply())
        pieces = []
        for _ in range(40):
            pieces.append(wire.file.read(100_000))
            assert not has_data(silent, 0.1)
        head, _, _ = pieces[0].partition(b"\r\n\r\n")
        length = int(head.partition(b"content-length: ")[2].split()[0])
        left = len(head) + 4 + length - 4_000_000

        assert len(wire.file.read(left)) == left


def test_more_connections_than_files_are_allowed_at_first(tmp_path):
    """As in a container that leaves a low limit with a high one above it."""
    folder = models.write_pipeline(tmp_path, models.linear())
    allow = 'ulimit -Sn 64; ulimit -Hn 512; exec "$0" -m engine serve'
    engine = Engine({"PIPELINE_URL": str(folder)}, ("sh", "-c", allow, sys.executable)).ready()
    request = inference_head(len(ROW), content_type=RECORDS) + ROW
    wires = [engine.connect() for _ in range(150)]
    try:
        for wire in wires:
            wire.send(request)
        assert [wire.receive().status for wire in wires] == [200] * 150
    finally:
        for wire in wires:
            wire.close()
        engine.stop()
