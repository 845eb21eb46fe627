"""What one HTTP/2 connection can do to the engine: it is refused or bounded, and others go on."""

import contextlib
import gzip
import itertools
import shutil
import socket
import ssl
import subprocess
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
from support import http2, models
from support.arrow import vectors
from support.engine import DEADLINE_S, impatient_engine
from support.flight import DO_EXCHANGE, connect, exchange, wire_messages
from support.http2 import (
    END_STREAM,
    PREFACE,
    data,
    frame,
    message,
    request,
    reset,
    settings,
    window,
)

from engine.http2.inbox import WINDOW_BYTES

pytestmark = pytest.mark.fault

MIB = 1 << 20
FLIGHT = {"FLIGHT_PORT": "0"}
BATCH = pa.record_batch({"x": vectors([[1, 2, 3, 4], [5, 6, 7, 8]])})
ANSWER = [{"out.y": [40.0, 50.0]}, {"out.y": [88.0, 114.0]}]
PATH = DO_EXCHANGE.encode()
MESSAGES = [message(content) for content in wire_messages([BATCH])]
CALL = request(1, path=PATH)
GOOD = PREFACE + settings() + CALL + data(1, b"".join(MESSAGES), END_STREAM)
OPEN = settings((http2.INITIAL_WINDOW_SIZE, 1 << 30)) + window(0, 1 << 30)
DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL = 4, 8, 12, 13
CONNECTIONS = 2_000
OTHERS = 20  # exchanges of a client that means well


@pytest.fixture
def engine(serving):
    return serving("linear", environ=FLIGHT)


@pytest.fixture(scope="module")
def impatient(tmp_path_factory):
    """The real engine with deadlines of 1 s and 2 s in place of 10 s and 30 s."""
    folder = models.write_pipeline(tmp_path_factory.mktemp("pipeline"), models.linear())
    timeouts_s = {
        "http2.connection.GREET_TIMEOUT_S": 1.0,
        "http2.connection.WRITE_TIMEOUT_S": 2.0,
        "http2.call.STUCK_TIMEOUT_S": 2.0,
    }
    engine = impatient_engine(folder, timeouts_s, **FLIGHT)
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def secured(serving, tmp_path_factory):
    """An engine with TLS, and what its clients trust."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = str(folder / "key.pem"), str(folder / "certificate.pem")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-nodes", "-days", "2", "-newkey", "ec"),
            *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", key, "-out", certificate),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
        ],
        check=True,
        capture_output=True,
        timeout=30,
    )
    trust = ssl.create_default_context(cafile=certificate)
    trust.set_alpn_protocols(["h2"])
    environ = {**FLIGHT, "TLS_CERT_FILE": certificate, "TLS_KEY_FILE": key}
    return serving("linear", environ=environ), trust


def is_well(engine):
    (reply, _), = exchange(connect(engine), [BATCH])  # fmt: skip
    return engine.is_alive() and reply.to_pylist() == ANSWER


class Wire:
    """A raw connection to the Flight port."""

    def __init__(self, engine, begin=b"", trust=None):
        self.socket = socket.create_connection(("127.0.0.1", engine.flight_port), timeout=20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if trust is not None:
            self.socket = trust.wrap_socket(self.socket, server_hostname="localhost")
        self.replies = http2.Replies()
        self.frames = []
        self.rest = b""
        if begin:
            self.send(begin)

    def send(self, content, size=None):
        for at in range(0, len(content), size or len(content)):
            self.socket.sendall(content[at : at + (size or len(content))])

    def read(self):
        """Some frames; whether there may be more."""
        try:
            received = self.socket.recv(1 << 18)
        except ConnectionResetError:
            received = b""
        frames, self.rest = http2.split(self.rest + received)
        self.frames += frames
        for one in frames:
            self.replies.add(one)
        return bool(received)

    def until(self, condition):
        while not condition():
            assert self.read(), "the engine has ended the connection"

    def status(self, stream=1):
        self.until(lambda: stream in self.replies.ended)
        return self.replies.status(stream)

    def codes(self, kind):
        return [one.code for one in self.frames if one.kind == kind]

    def end(self):
        """Read to the end of the connection; the code of the engine's last word."""
        while self.read():
            pass
        return (self.codes(http2.GOAWAY) or [None])[0]

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def has_good_answer(wire):
    schema, answer = (wire.status() == 0 and wire.replies.messages()) or (b"", b"")
    return bool(schema) and np.float32(114).tobytes() in answer


# who they are


@pytest.mark.parametrize("size", [0, 3 * MIB])
def test_an_http_client_is_told_where_it_is(engine, size):
    """Even where it sends a body first, of which nothing is wanted."""
    reply = engine.request("POST", "/infer", bytes(size), port=engine.flight_port)

    assert reply.status == 505
    assert b"Arrow Flight" in reply.body
    assert b"HTTP_PORT" in reply.body


def test_a_client_may_be_slow(engine):
    with Wire(engine) as wire:
        wire.send(GOOD, 1)

        assert has_good_answer(wire)


def test_frames_before_settings_are_refused(engine):
    with Wire(engine, PREFACE + CALL) as wire:
        assert wire.end() == http2.PROTOCOL_ERROR
    assert is_well(engine)


@pytest.mark.slow
@pytest.mark.parametrize("begun", [b"", PREFACE[:-1], PREFACE], ids=["nothing", "some", "alone"])
def test_a_client_that_does_not_greet_is_cut_off(impatient, begun):
    with Wire(impatient, begun) as wire:
        assert wire.end() is None
    assert is_well(impatient)


def test_a_client_that_has_gone_half_is_gone(engine):
    """A killed client looks the same: its call ends, and nothing is left of it."""
    with Wire(engine, PREFACE + OPEN + CALL + data(1, MESSAGES[0])) as wire:
        wire.until(lambda: any(one.flags == http2.ACK for one in wire.frames))
        engine.until_metric("sagitta_flight_calls", 1)
        wire.socket.shutdown(socket.SHUT_WR)

        assert wire.end() is None
    engine.until_metric("sagitta_flight_calls", 0)
    assert is_well(engine)


# what they send


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"\xff\xff\xff\x06" + bytes(5), http2.FRAME_SIZE_ERROR),
        (frame(http2.HEADERS, 4, 3, b"\xff" * 40), http2.COMPRESSION_ERROR),
        (
            frame(http2.HEADERS, 4, 3, b"\x40\1a\x7e" + bytes(126) + b"\xbe" * 16_000),
            http2.ENHANCE_YOUR_CALM,
        ),
        (
            request(3, flags=0) + frame(9, 0, 3, b"\0\1a\x7e" + bytes(126)) * 10_000,
            http2.ENHANCE_YOUR_CALM,
        ),
        (data(1, bytes(5)) * 60_000, None),
    ],
    ids=["frame", "nonsense", "bomb", "endless", "empty messages"],
)
def test_what_breaks_the_rules_ends_the_connection_in_words(engine, content, code):
    """Even while the client goes on sending; and its calls are over."""
    with Wire(engine, PREFACE + OPEN + CALL) as wire:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            wire.send(content)
        if code is None:
            assert wire.status() is not None
        else:
            wire.until(lambda: wire.codes(http2.GOAWAY))
            assert wire.end() == code
    engine.until_metric("sagitta_flight_calls", 0)
    assert is_well(engine)


FLOODS = {
    "ping": frame(http2.PING, 0, 0, bytes(8)),
    "settings": settings((http2.INITIAL_WINDOW_SIZE, 70_000)),
    "empty data": data(1),
    "window": window(1, 1) + settings((http2.INITIAL_WINDOW_SIZE, 0)),
    "priority": frame(http2.PRIORITY, 0, 1, bytes(5)),
    "unknown": frame(0x77, 0, 0, bytes(9)),
    "padding": http2.padded(1, b"", 3),
    "end": data(1, b"", END_STREAM),
}


def others_are_served(engine, wire, chunks):
    """Whether they are while a client sends all this, which may have no end, and reads nothing."""
    stopped = threading.Event()

    def send():
        wire.socket.settimeout(DEADLINE_S if isinstance(chunks, list) else 1.0)
        with contextlib.suppress(TimeoutError, ConnectionResetError, BrokenPipeError):
            for chunk in chunks:
                if stopped.is_set():
                    return
                wire.send(chunk)

    client = connect(engine)
    exchange(client, [BATCH])
    engine.reset_peak_rss()
    before = engine.peak_rss_bytes()
    sender = threading.Thread(target=send)
    sender.start()
    replies = [exchange(client, [BATCH])[0][0].to_pylist() for _ in range(OTHERS)]
    if not isinstance(chunks, list):
        stopped.set()
    sender.join()
    assert engine.peak_rss_bytes() - before < 24 * MIB
    return replies == [ANSWER] * OTHERS


@pytest.mark.parametrize("name", FLOODS)
def test_floods_are_bounded_and_others_are_served(engine, name):
    with Wire(engine, PREFACE + OPEN + CALL) as wire:
        assert others_are_served(engine, wire, itertools.repeat(FLOODS[name] * 1000))
    engine.until_metric("sagitta_flight_calls", 0)
    assert is_well(engine)


@pytest.mark.parametrize("path", [PATH, b"/no/method"], ids=["calls", "refusals"])
def test_ten_thousand_rapid_resets_are_bounded(engine, path):
    """Calls that are begun and given up at once."""
    pairs = [request(n, path=path) + reset(n) for n in range(1, 20_001, 2)]
    chunks = [b"".join(pairs[at : at + 100]) for at in range(0, len(pairs), 100)]

    with Wire(engine, PREFACE + settings()) as wire:
        assert others_are_served(engine, wire, chunks)
        wire.socket.settimeout(20)
        wire.send(frame(http2.PING, 0, 0, bytes(8)))
        wire.until(lambda: any(one.kind == http2.PING for one in wire.frames))
    engine.until_metric("sagitta_flight_calls", 0)
    assert is_well(engine)


@pytest.mark.parametrize("size", [1 << 31, (1 << 32) - 1])
def test_messages_over_the_limit_are_refused(engine, size):
    with Wire(engine, PREFACE + settings() + CALL) as wire:
        wire.send(data(1, b"\0" + size.to_bytes(4, "big") + bytes(1000)))

        assert wire.status() == RESOURCE_EXHAUSTED
    assert is_well(engine)


def test_an_announced_message_takes_no_memory(engine):
    engine.reset_peak_rss()
    before = engine.peak_rss_bytes()
    announced = data(1, b"\0" + (1 << 30).to_bytes(4, "big") + bytes(1000))

    with contextlib.ExitStack() as stack:
        begun = PREFACE + settings() + CALL + data(1, MESSAGES[0]) + announced
        for _ in range(20):
            stack.enter_context(Wire(engine, begun))
        engine.until_metric("sagitta_flight_calls", 1)  # who is first has all the room
        assert is_well(engine)
        assert engine.peak_rss_bytes() - before < 16 * MIB
    engine.until_metric("sagitta_flight_calls", 0)


@pytest.mark.slow
def test_a_message_that_does_not_go_on_frees_its_room(impatient):
    announced = data(1, b"\0" + (1 << 30).to_bytes(4, "big") + bytes(1000))

    with Wire(impatient, PREFACE + settings() + CALL + data(1, MESSAGES[0]) + announced) as wire:
        assert wire.status() == DEADLINE_EXCEEDED
    assert is_well(impatient)


@pytest.mark.parametrize(("name", "pack"), [(b"gzip", gzip.compress), (b"deflate", zlib.compress)])
def test_compressed_messages_are_read(engine, name, pack):
    packed = b"".join(message(pack(one[5:]), 1) for one in MESSAGES)
    begun = request(1, (b"grpc-encoding", name), path=PATH)

    with Wire(engine, PREFACE + settings() + begun + data(1, packed, END_STREAM)) as wire:
        assert has_good_answer(wire)


@pytest.mark.parametrize(
    ("name", "packed", "status"),
    [
        (b"gzip", gzip.compress(bytes(256 * MIB)), RESOURCE_EXHAUSTED),
        (b"zstd", b"hello", UNIMPLEMENTED),
        (b"identity", b"hello", UNIMPLEMENTED),
        (b"gzip", b"hello", INTERNAL),
    ],
    ids=["bomb", "unknown", "none", "nonsense"],
)
def test_what_cannot_be_decompressed_is_refused(engine, name, packed, status):
    content, engine_peak = message(packed, 1), engine.peak_rss_bytes()
    begun = PREFACE + settings() + request(1, (b"grpc-encoding", name), path=PATH)

    with Wire(engine, begun) as wire:
        for at in range(0, len(content), 16_384):
            wire.send(data(1, content[at : at + 16_384]))
        assert wire.status() == status
    assert engine.peak_rss_bytes() - engine_peak < 48 * MIB
    assert is_well(engine)


def test_tls_changes_nothing(secured):
    """Bytes one at a time, many frames at once, a large message, a fault."""
    engine, trust = secured
    pings = frame(http2.PING, 0, 0, bytes(8)) * 5000
    with Wire(engine, trust=trust) as wire:
        wire.send(PREFACE + OPEN + CALL + data(1, MESSAGES[0]), 1)
        wire.send(pings)
        wire.until(lambda: sum(one.kind == http2.PING for one in wire.frames) == 5000)
        wire.send(data(1, MESSAGES[1], END_STREAM))
        assert has_good_answer(wire)
        send_as_allowed(wire, large_call(3), 3)
        wire.send(data(3, b"", END_STREAM))
        assert wire.status(3) == 0
        assert len(wire.replies.content[3]) > 4 * MIB
        wire.send(window(0, 0))
        assert wire.end() == http2.PROTOCOL_ERROR
    assert engine.is_alive()


# what they do not read


def large_call(stream=1):
    """A batch whose answer has 4 MB, on one stream."""
    values = pa.array(np.zeros(16 * MIB // 4, np.float32))
    batch = pa.record_batch({"x": pa.FixedSizeListArray.from_arrays(values, 4)})
    content = b"".join(map(message, wire_messages([batch])))
    size = 16_384
    frames = [data(stream, content[at : at + size]) for at in range(0, len(content), size)]
    return request(stream, path=PATH) + b"".join(frames)


def send_as_allowed(wire, content, stream=1):
    """Frames of one call, within its window."""
    frames, _ = http2.split(content)

    def opened_bytes():
        return sum(one.code for one in wire.frames if (one.kind, one.stream) == opening)

    opening = (http2.WINDOW, stream)
    allowed, taken = 256 << 10, 0
    for one in frames:
        if one.kind == http2.DATA:
            while allowed + opened_bytes() - taken < len(one.payload):
                assert wire.read()
            taken += len(one.payload)
        wire.send(frame(one.kind, one.flags, one.stream, one.payload))


def test_a_client_that_never_opens_its_window_is_held_and_others_are_served(engine):
    """As slowly as a client reads it is answered; nothing more is taken from it meanwhile."""
    large = large_call()
    with Wire(engine, PREFACE + settings()) as wire:
        send_as_allowed(wire, large)
        wire.until(lambda: len(wire.replies.content.get(1, b"")) == 65_535)
        assert is_well(engine)
        assert engine.metrics()["sagitta_flight_calls"] == 1
        for _ in range(WINDOW_BYTES // (64 << 10) + 1):
            wire.send(data(1, bytes(64 << 10)))
        wire.until(lambda: wire.codes(http2.GOAWAY))
        assert wire.end() == http2.FLOW_CONTROL_ERROR
    engine.until_metric("sagitta_flight_calls", 0)
    assert is_well(engine)


@pytest.mark.slow
def test_a_client_that_stops_reading_is_cut_off(impatient):
    with Wire(impatient, PREFACE + OPEN) as wire:
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        send_as_allowed(wire, large_call())
        impatient.until_metric("sagitta_flight_calls", 1)
        assert is_well(impatient)
        impatient.until_metric("sagitta_flight_calls", 0)
    assert is_well(impatient)


# anything


def test_two_thousand_damaged_connections_do_not_end_the_process(engine):
    """Seeded mutations of a good connection's bytes, and bytes at random."""
    rng = np.random.default_rng(2026)

    def damaged(seed):
        mutate = np.random.default_rng(seed)
        content = bytearray(GOOD)
        if seed % 5 == 0:
            content = bytearray(PREFACE + settings() + mutate.bytes(mutate.integers(1, 400)))
        for _ in range(mutate.integers(1, 9)):
            content[mutate.integers(len(PREFACE), len(content))] = mutate.integers(256)
        if seed % 3 == 0:
            del content[mutate.integers(len(PREFACE), len(content)) :]
        return bytes(content)

    def send(seed):
        with Wire(engine) as wire:
            with contextlib.suppress(ConnectionResetError, BrokenPipeError, OSError):
                wire.send(damaged(seed))
                wire.socket.shutdown(socket.SHUT_WR)
            while wire.read():
                pass
            told = b"".join(one.payload for one in wire.frames)
        assert b"Traceback" not in told
        assert b".py" not in told
        codes = wire.codes(http2.GOAWAY)
        return ("end", codes[0]) if codes else ("status", wire.replies.status())

    seeds = rng.integers(1 << 31, size=CONNECTIONS).tolist()
    with ThreadPoolExecutor(4) as pool:
        outcomes = set(pool.map(send, seeds))

    assert len(outcomes) > 5, outcomes
    engine.until_metric("sagitta_flight_calls", 0)
    assert is_well(engine)
    assert "Traceback" not in engine.output
