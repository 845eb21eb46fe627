"""Hostile HTTP: limits, framing, heads, slow and vanished clients, at the level of bytes."""

import contextlib

import orjson
import pytest
from support import models
from support.engine import RECORDS, has_data, impatient_engine, inference_head

pytestmark = pytest.mark.fault

BODY = b'[{"x": [0, 1, 2, 3]}]'
LIMIT = 1 << 20
MIB = 1 << 20
HOST = b"Host: edge\r\n"
JSON = b"Content-Type: application/json\r\n"


@pytest.fixture
def engine(serving):
    return serving("linear")


@pytest.fixture
def small(serving):
    """An engine that accepts bodies of 1 MiB at most."""
    return serving("linear", environ={"MAX_BODY_BYTES": "1Mi"})


def good(path=b"/infer", headers=b""):
    return b"POST %b HTTP/1.1\r\n%b%b%bContent-Length: %d\r\n\r\n%b" % (
        path,
        HOST,
        JSON,
        headers,
        len(BODY),
        BODY,
    )


def is_fine(reply):
    return reply.status == 200 and reply.json[0]["outputs"][0]["Float"]["data"] == [28.0, 34.0]


def chunked(pieces):
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def test_keep_alive_requests_are_answered_one_after_the_other(engine):
    with engine.connect() as wire:
        for _ in range(50):
            wire.send(good())
            assert is_fine(wire.receive())
        wire.send(b"GET /models HTTP/1.1\r\n" + HOST + b"\r\n")
        assert "models" in wire.receive().json


def test_pipelined_requests_are_answered_in_order(engine):
    """Of both kinds, good and bad, whole and in pieces; 60 replies to 60 requests."""
    get = b"GET /pipelines HTTP/1.1\r\n" + HOST + b"\r\n"
    bad = good().replace(b"[0, 1,", b"[0, -,")
    other = good(b"/pipelines/other")
    stream = b"".join((good(), get, bad, good(b"/infer?dataset[]=out"), other, get) * 10)
    with engine.connect() as wire:
        for start in range(0, len(stream), 97):
            wire.send(stream[start : start + 97])
        replies = [wire.receive() for _ in range(60)]

    assert [reply.status for reply in replies] == [200, 200, 400, 200, 404, 200] * 10
    assert all(is_fine(reply) for reply in replies[::6])
    assert all("pipelines" in reply.json for reply in replies[1::6])
    assert all(reply.json == [{"y": [28.0, 34.0]}] for reply in replies[3::6])


def test_connection_close_and_http_1_0(engine):
    for request in (good(headers=b"Connection: close\r\n"), good().replace(b"1.1", b"1.0")):
        with engine.connect() as wire:
            wire.send(request)
            reply = wire.receive()
            assert is_fine(reply)
            assert reply.headers["connection"] == "close"
            assert wire.receive() is None
    with engine.connect() as wire:
        wire.send(good(headers=b"Connection: keep-alive\r\n").replace(b"1.1", b"1.0", 1) * 2)
        assert is_fine(wire.receive())


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_chunked_bodies(engine, size):
    pieces = [BODY[start : start + size] for start in range(0, len(BODY), size)]
    head = b"POST /infer HTTP/1.1\r\n" + HOST + JSON + b"Transfer-Encoding: chunked\r\n\r\n"
    with engine.connect() as wire:
        wire.send(head + chunked(pieces) + good())
        assert is_fine(wire.receive())
        assert is_fine(wire.receive())
        for start in range(0, len(head + chunked(pieces)), 7):
            wire.send((head + chunked(pieces))[start : start + 7])
        assert is_fine(wire.receive())


def test_expect_100_continue(engine):
    head = good(headers=b"Expect: 100-continue\r\n")[: -len(BODY)]
    with engine.connect() as wire:
        wire.send(head)
        assert wire.receive().status == 100
        wire.send(BODY)
        assert is_fine(wire.receive())


def test_expect_100_continue_of_a_body_that_is_too_large(small):
    """Refused before it is sent."""
    head = b"POST /infer HTTP/1.1\r\n%b%bExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    with small.connect() as wire:
        wire.send(head % (HOST, JSON, LIMIT + 1))
        reply = wire.receive()
        assert reply.status == 413
        assert "MAX_BODY_BYTES" in reply.error
        assert wire.receive() is None


def test_a_body_of_exactly_the_limit_is_read(small):
    body = BODY + b" " * (LIMIT - len(BODY))
    assert is_fine(small.post("/infer", body))
    assert small.post("/infer", body + b" ").status == 413


def test_hostile_19_announced_body_over_the_limit(small):
    small.reset_peak_rss()
    before = small.peak_rss_bytes()
    for length in (LIMIT + 1, 1 << 40, (1 << 63) - 1):
        with small.connect() as wire:
            wire.send(inference_head(length) + b"x" * 100)
            reply = wire.receive()
            assert reply.status == 413
            assert "MAX_BODY_BYTES" in reply.error
            assert reply.headers["connection"] == "close"
            assert wire.receive() is None
    assert small.peak_rss_bytes() - before < 4 * MIB


@pytest.mark.parametrize("path", [b"/infer", b"/pipelines/pipe", b"/logs", b"/nothing"])
def test_hostile_19_chunked_body_over_the_limit(small, path):
    """Counted as it comes; what a client sends before it looks is read past for a while."""
    small.reset_peak_rss()
    before = small.peak_rss_bytes()
    head = b"POST %b HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n" % (path, HOST)
    piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    with small.connect() as wire:
        wire.send(head)
        try:
            for _ in range(1024):  # 64 MiB
                wire.send(piece)
                if has_data(wire, 0):
                    break
        except (BrokenPipeError, ConnectionResetError):
            pass
        reply = wire.receive()
        assert reply is None or reply.status in {404, 413}
        if path in {b"/infer", b"/pipelines/pipe"}:
            assert reply.status == 413
            assert reply.error
    assert small.peak_rss_bytes() - before < 8 * MIB


@pytest.fixture(scope="module")
def impatient(tmp_path_factory):
    """The real engine with deadlines of 1 s in place of 10 s and 30 s, for tests that wait."""
    folder = models.write_pipeline(tmp_path_factory.mktemp("pipeline"), models.linear())
    names = ("connection.HEAD_TIMEOUT_S", "connection.BODY_TIMEOUT_S", "flow.WRITE_TIMEOUT_S")
    engine = impatient_engine(folder, {f"rest.{name}": 1.0 for name in names})
    yield engine
    engine.stop()


@pytest.mark.slow
def test_hostile_20_slowloris(impatient):
    """300 connections that never finish their heads are closed; the others are served meanwhile."""
    wires = [impatient.connect() for _ in range(300)]
    for wire in wires:
        wire.send(b"POST /infer HTTP/1.1\r\nHost: ed")

    assert is_fine(impatient.post("/infer", BODY))

    replies = [wire.receive() for wire in wires]
    assert {reply.status for reply in replies} == {408}
    assert "did not arrive in time" in replies[0].error
    assert all(wire.receive() is None for wire in wires)
    for wire in wires:
        wire.close()
    assert is_fine(impatient.post("/infer", BODY))


@pytest.mark.slow
def test_hostile_20_byte_by_byte_does_not_reset_the_deadline(impatient):
    request = good()
    with impatient.connect() as wire:
        for index in range(len(request)):
            wire.send(request[index : index + 1])
            if has_data(wire, 0.2):
                break
        reply = wire.receive()
    assert reply.status == 408


@pytest.mark.slow
def test_hostile_21_stalled_body(impatient):
    """Closed at its deadline; no slot was held, nothing of it stays."""
    wires = [impatient.connect() for _ in range(20)]
    for wire in wires:
        wire.send(inference_head(1000, content_type=RECORDS) + BODY)

    assert impatient.metrics()["sagitta_slots_busy"] == 0
    assert is_fine(impatient.post("/infer", BODY))

    for wire in wires:
        assert wire.receive().status == 408
        assert wire.receive() is None
        wire.close()


@pytest.mark.slow
def test_hostile_27_a_client_that_does_not_read_is_dropped(impatient):
    rows = orjson.dumps([{"x": [0, 1, 2, 3]}] * 50_000)  # a reply of some 8 MB
    head = inference_head(len(rows), "/infer?dataset[]=*", RECORDS)
    with impatient.connect() as wire:
        wire.send(head + rows)
        assert has_data(wire, 30)
        impatient.until_connections_are(0)
    assert is_fine(impatient.post("/infer", BODY))


FRAMING = {
    "length and chunked": b"Content-Length: 21\r\nTransfer-Encoding: chunked\r\n\r\n"
    + chunked([BODY]),
    "chunked and length": b"Transfer-Encoding: chunked\r\nContent-Length: 21\r\n\r\n"
    + chunked([BODY]),
    "two lengths": b"Content-Length: 21\r\nContent-Length: 20\r\n\r\n" + BODY,
    "two equal lengths": b"Content-Length: 21\r\nContent-Length: 21\r\n\r\n" + BODY,
    "list of lengths": b"Content-Length: 21, 21\r\n\r\n" + BODY,
    "negative length": b"Content-Length: -1\r\n\r\n" + BODY,
    "signed length": b"Content-Length: +21\r\n\r\n" + BODY,
    "length overflow": b"Content-Length: 18446744073709551637\r\n\r\n" + BODY,
    "huge length": b"Content-Length: " + b"9" * 400 + b"\r\n\r\n" + BODY,
    "hex length": b"Content-Length: 0x15\r\n\r\n" + BODY,
    "folded header": b"X-Note: a\r\n b\r\nContent-Length: 21\r\n\r\n" + BODY,
    "bare line feed": b"X-Note: a\nContent-Length: 21\n\n" + BODY,
    "space before colon": b"Content-Length : 21\r\n\r\n" + BODY,
    "no colon": b"Content-Length 21\r\n\r\n" + BODY,
    "nul in a value": b"X-Note: a\0b\r\nContent-Length: 21\r\n\r\n" + BODY,
    "unknown coding": b"Transfer-Encoding: gzip\r\n\r\n" + BODY,
    "chunked not last": b"Transfer-Encoding: chunked, gzip\r\n\r\n" + chunked([BODY]),
    "twice chunked": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"
    + chunked([BODY]),
    "bad chunk size": b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + BODY,
    "negative chunk": b"Transfer-Encoding: chunked\r\n\r\n-5\r\n" + BODY,
    "huge chunk": b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 17 + b"\r\n" + BODY,
    "chunk without its end": b"Transfer-Encoding: chunked\r\n\r\n5\r\n" + BODY,
}


@pytest.mark.parametrize("case", FRAMING)
def test_hostile_22_ambiguous_framing(engine, case):
    """400 and the connection is closed, so that nothing after it is taken for a request."""
    smuggled = b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n"
    with engine.connect() as wire:
        wire.send(b"POST /infer HTTP/1.1\r\n" + HOST + JSON + FRAMING[case] + smuggled)
        reply = wire.receive()
        assert reply.status in {400, 413}, reply
        assert reply.error
        assert wire.receive() is None


NO_HTTP = {
    "tls hello": bytes.fromhex("16030100c8010000c40303") + bytes(60),
    "http/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "garbage": b"\0\xff" * 50 + b"\r\n\r\n",
    "odd version": b"GET /livez HTTP/9.9\r\n\r\n",
    "lower case method": b"get /livez HTTP/1.1\r\n\r\n",
    "unknown method": b"FROBNICATE /infer HTTP/1.1\r\n\r\n",
    "connect": b"CONNECT edge:80 HTTP/1.1\r\nHost: edge:80\r\n\r\n",
}


@pytest.mark.parametrize("case", NO_HTTP)
def test_hostile_22_what_is_no_http(engine, case):
    with engine.connect() as wire:
        wire.send(NO_HTTP[case])
        reply = wire.receive()
        assert reply is not None
        assert reply.status in {400, 404, 405}
        assert reply.error
    assert engine.get("/livez").status == 200


def test_hostile_22_upgrade_is_not_taken(engine):
    """Offered, as some clients do for HTTP/2, and answered as if it were not."""
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    with engine.connect() as wire:
        wire.send(good(headers=offer))
        assert is_fine(wire.receive())


def test_a_connection_ends_as_asked_where_an_upgrade_was_offered_too(engine):
    offer = b"Connection: Upgrade, close\r\nUpgrade: h2c\r\n"
    with engine.connect() as wire:
        wire.send(good(headers=offer))
        reply = wire.receive()
        assert (is_fine(reply), reply.headers["connection"]) == (True, "close")
        assert wire.receive() is None
    offer = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
    with engine.connect() as wire:
        wire.send(good(headers=offer).replace(b"HTTP/1.1", b"HTTP/1.0"))
        reply = wire.receive()
        assert (is_fine(reply), reply.headers["connection"]) == (True, "close")
        assert wire.receive() is None


HEADS = {
    "header of 1 MB": b"POST /infer HTTP/1.1\r\n" + HOST + b"X-Big: " + b"a" * MIB + b"\r\n\r\n",
    "name of 1 MB": b"POST /infer HTTP/1.1\r\n" + HOST + b"a" * MIB + b": x\r\n\r\n",
    "url of 70 kB": b"POST /infer?" + b"a" * 70_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "path of 1 MB": b"GET /" + b"a" * MIB + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "1,000 headers": b"POST /infer HTTP/1.1\r\n" + b"X-A: b\r\n" * 1000 + b"\r\n",
    "10,000 headers": b"GET /livez HTTP/1.1\r\n" + b"X-A: b\r\n" * 10_000 + b"\r\n",
    "method of 1 MB": b"P" * MIB + b" /infer HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("case", HEADS)
def test_hostile_23_large_heads(engine, case):
    with engine.connect() as wire:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            wire.send(HEADS[case])
        reply = wire.receive()
        assert reply is not None
        assert 400 <= reply.status < 500
        assert reply.error
        assert wire.receive() is None


def test_hostile_23_heads_within_the_limits(engine):
    with engine.connect() as wire:
        wire.send(good(headers=b"X-A: b\r\n" * 150 + b"X-Big: " + b"a" * 30_000 + b"\r\n"))
        assert is_fine(wire.receive())


PATHS = [
    "/pipelines/..%2f..",
    "/pipelines/..%2f..%2fetc%2fpasswd",
    "/pipelines/%2e%2e",
    "/pipelines/../../etc/passwd",
    "/pipelines/%00",
    "/pipelines/pipe%00",
    "/pipelines/%ff%fe",
    "/pipelines/%zz",
    "/pipelines/" + "a" * 10_000,
    "/pipelines/" + "%41" * 5_000,
    "/pipelines/",
    "/pipelines//pipe",
    "/pipelines/pipe/",
    "/pipelines/pipe/logs",
    "//infer",
    "/infer/",
    "/INFER",
    "/infer%00",
    "/infer;x",
    "/./infer",
    "/healthz/../infer",
    "/%2e%2e/",
    "*",
]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path[:30])
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_hostile_60_paths(engine, method, path):
    """Only the names that are served are found; a path never reaches the file system."""
    with engine.connect() as wire:
        body = BODY if method == "POST" else b""
        head = f"{method} {path} HTTP/1.1\r\nHost: edge\r\nContent-Length: {len(body)}\r\n\r\n"
        wire.send(head.encode() + body)
        reply = wire.receive()
        assert reply.status in {400, 404, 405}, reply
        assert len(reply.error) < 1000
        assert "root:" not in reply.error


@pytest.mark.slow
def test_hostile_22_two_thousand_mutated_heads(engine):
    """Bytes changed anywhere in a request: documented answers or a closed connection, one PID."""
    import random  # noqa: PLC0415

    chance = random.Random(22)
    statuses = set()
    base = good(headers=b"Accept: */*\r\nX-Note: something\r\n")
    for _ in range(2_000):
        request = bytearray(base)
        for _ in range(chance.randint(1, 4)):
            request[chance.randrange(len(base) - len(BODY))] = chance.randrange(256)
        with engine.connect() as wire:
            wire.send(bytes(request) + b"\r\n\r\n")
            wire.connection.shutdown(1)
            reply = wire.receive()
            if reply is not None:
                statuses.add(reply.status)
                assert reply.status == 200 or reply.error
    assert statuses <= {200, 400, 404, 405, 406, 408, 413, 415, 431}, statuses
    assert len(statuses) >= 4
    assert is_fine(engine.post("/infer", BODY))
