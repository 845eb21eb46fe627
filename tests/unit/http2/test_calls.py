"""What a service says in a call, and when: replies, windows of the client, ends and deadlines."""

import base64

import pytest
from support import http2
from support.http2 import (
    END_HEADERS,
    END_STREAM,
    INITIAL_WINDOW_SIZE,
    MAX_FRAME_SIZE,
    PROTOCOL_ERROR,
    data,
    frame,
    message,
    request,
    reset,
    settings,
    window,
)

from engine.http2 import HIGH_BYTES
from engine.http2.call import STUCK_TIMEOUT_S
from engine.http2.handler import NOBODY

HELLO = message(b"hello")
DEADLINE_EXCEEDED = 4


def resets(client, stream=1):
    return [one.code for one in client.frames(http2.RST) if one.stream == stream]


def test_a_call_has_its_path_and_headers(client, service):
    client.send(request(1, (b"name", b"one"), (b"name", b"two"), path=b"/x/y"))

    call = service.only.call
    assert call.path == b"/x/y"
    assert call.headers == {
        b"content-type": b"application/grpc",
        b"te": b"trailers",
        b"name": b"two",
    }


def test_a_reply_is_headers_messages_and_trailers(client, service):
    client.send(request() + data(1, b"", END_STREAM))
    call = service.only.call

    call.send(b"he", memoryview(b""), memoryview(b"llo"))
    call.send()
    call.finish(5, "50 % of Zürich\n\ud800", [(b"plain", b"a b"), (b"raw-bin", b"\0\xff")])

    head, first, second, last = client.frames()
    assert (head.kind, head.flags) == (http2.HEADERS, END_HEADERS)
    assert (first.payload, second.payload) == (HELLO, message(b""))
    assert (last.kind, last.flags) == (http2.HEADERS, END_HEADERS | END_STREAM)
    assert client.replies().headers[1] == {
        b":status": b"200",
        b"content-type": b"application/grpc",
        b"grpc-accept-encoding": b"identity,deflate,gzip",
        b"grpc-status": b"5",
        b"grpc-message": b"50 %25 of Z%C3%BCrich%0A?",
        b"plain": b"a b",
        b"raw-bin": base64.b64encode(b"\0\xff").rstrip(b"="),
    }
    assert not client.connection.calls


def test_a_reply_without_messages_is_trailers_alone(client, service):
    service.on_accept = lambda call: call.finish(14, "not now")

    client.send(request() + data(1, HELLO) + data(1, HELLO, END_STREAM))

    only, stop = client.frames()
    assert only.flags == END_HEADERS | END_STREAM
    assert client.replies().headers[1][b":status"] == b"200"
    assert (stop.kind, stop.code) == (http2.RST, 0)  # nothing more need be sent
    assert service.only.messages == service.only.events == []


def test_who_has_sent_everything_is_not_told_to_stop(client, service):
    service.on_accept = lambda call: call.finish()
    client.send(request(1, flags=END_HEADERS | END_STREAM))

    service.on_accept = lambda _call: None
    service.on_end = lambda call: call.finish()
    client.send(request(3, flags=END_HEADERS | END_STREAM))

    assert client.frames(http2.RST) == []
    assert [call.events for call in service.calls] == [[], ["end"]]
    assert client.replies().ended == {1, 3}


@pytest.mark.parametrize("length", [125, 126, 127, 128, 254, 255, 256, 5_000, 16_000, 50_000])
def test_trailers_of_any_length_are_read(client, service, length):
    client.send(request())

    service.only.call.finish(13, "x" * length)

    assert client.replies().text() == "x" * length
    assert max(len(one.payload) for one in client.frames()) <= 1 << 14


def test_nothing_is_sent_after_the_end(client, service):
    client.send(request())
    call = service.only.call
    call.finish()
    frames = client.frames()

    call.send(b"late")
    call.finish(3, "late")

    assert client.frames() == frames
    assert call.is_over


# the client's windows


@pytest.mark.parametrize("size", [0, 1, 10, 65_535 - 5, 65_535 - 4, 100_000, 1 << 20])
def test_no_more_is_sent_than_the_client_takes(client, service, size):
    client.send(request())
    content = bytes(n % 251 for n in range(size))

    service.only.call.send(content[: size // 2], content[size // 2 :], b"")
    service.only.call.finish()

    received = 0
    for _ in range(2 + size // 30_000):
        if client.replies().status() is not None:
            break
        waiting = client.replies().content[1]
        assert len(waiting) == min(65_535 + received, len(content) + 5)
        client.send(window(0, 30_000) + window(1, 30_000))
        received += 30_000
    assert client.replies().messages() == [content]
    assert max(len(one.payload) for one in client.frames()) <= 1 << 14


def test_a_message_that_ends_with_the_window_ends_its_call(client, service):
    """An empty piece after the last byte that the client takes."""
    client.send(request())
    call = service.only.call

    call.send(bytes(65_530), b"")
    call.finish()

    assert client.replies().ended == {1}


def test_frames_are_as_large_as_the_client_takes_them(connect, service):
    client = connect().greet((MAX_FRAME_SIZE, 50_000), (INITIAL_WINDOW_SIZE, 1 << 20))
    client.send(request() + window(0, 1 << 20))

    service.only.call.send(bytes(120_000))

    assert [len(one.payload) for one in client.frames(http2.DATA)] == [50_000, 50_000, 20_005]


def test_a_window_of_nothing_lets_the_headers_through(connect, service):
    client = connect().greet((INITIAL_WINDOW_SIZE, 0))
    client.send(request())
    call = service.only.call

    call.send(b"hello")
    call.finish()
    assert [one.kind for one in client.frames()] == [http2.HEADERS]
    client.send(window(1, 10))

    assert client.replies().messages() == [b"hello"]
    assert client.replies().status() == 0


def test_a_window_may_shrink_below_nothing(connect, service):
    client = connect().greet()
    client.send(request())
    call = service.only.call
    call.send(bytes(50_000))

    client.send(settings((INITIAL_WINDOW_SIZE, 10_000)))
    call.send(b"hello")
    call.finish()
    client.send(window(1, 40_000 - 65_535 + 50_000))
    assert len(client.replies().messages()) == 1
    client.send(settings((INITIAL_WINDOW_SIZE, 1 << 20)))

    assert client.replies().messages()[1:] == [b"hello"]
    assert client.replies().status() == 0


def test_a_service_hears_when_the_client_has_read(client, service):
    client.send(request())
    call = service.only.call

    call.send(bytes(2 * HIGH_BYTES))
    assert call.unsent_bytes > HIGH_BYTES
    client.send(window(0, 2 * HIGH_BYTES) + window(1, HIGH_BYTES - 65_530))
    assert call.unsent_bytes == HIGH_BYTES
    assert service.only.events == []
    client.send(window(1, HIGH_BYTES))

    assert service.only.events == ["drained"]
    assert call.unsent_bytes == 0


def test_a_service_may_send_when_it_hears_that_the_client_has_read(client, service):
    def again(call):
        if len(parts) < 5:
            parts.append(None)
            call.send(bytes(2 * HIGH_BYTES))
        else:
            call.finish()

    parts = []
    service.on_drained = again
    client.send(request())

    again(service.only.call)
    client.send(b"".join(window(n, HIGH_BYTES) for _ in range(11) for n in (0, 1)))

    assert [len(one) for one in client.replies().messages()] == [2 * HIGH_BYTES] * 5
    assert client.replies().status() == 0
    assert service.only.events == ["drained"] * 5


def test_nothing_is_sent_to_a_client_that_does_not_read_and_all_of_it_later(connect, service):
    client = connect().greet((INITIAL_WINDOW_SIZE, 1 << 30))
    client.send(window(0, 1 << 30) + request(1) + request(3))
    first, second = (noted.call for noted in service.calls)
    client.transport.is_reading = False

    for _ in range(30):
        first.send(bytes(100_000))
    second.send(b"hello")
    first.finish()
    second.finish()
    assert len(client.transport.unread) < client.transport.high + (1 << 18)
    for _ in range(100):
        client.transport.read()
        client.transport.is_reading = False
    client.transport.read()

    assert client.replies().messages(1) == [bytes(100_000)] * 30
    assert client.replies().messages(3) == [b"hello"]
    assert client.replies().ended == {1, 3}


def test_calls_take_turns_at_the_window_of_the_connection(connect, service):
    client = connect().greet((INITIAL_WINDOW_SIZE, 1 << 30))
    client.send(b"".join(map(request, (1, 3, 5))))
    for noted in service.calls:
        noted.call.send(bytes(1 << 20))

    for _ in range(6):
        client.send(window(0, 10_000))

    sent = [len(client.replies().content[stream]) for stream in (1, 3, 5)]
    assert sorted(count % 65_535 for count in sent) == [20_000] * 3


# how calls end


def test_a_reset_ends_a_call_and_what_waits(client, service):
    client.send(request(1) + request(3))
    call = service.calls[0].call
    call.send(bytes(1 << 20))

    client.send(reset(1) + reset(1) + window(1, 100) + data(1, HELLO) + window(0, 1 << 20))

    assert service.calls[0].events == ["leave"]
    assert (call.is_over, call.unsent_bytes) == (True, 0)
    assert set(client.connection.calls) == {3}
    assert client.fault() is None


def test_a_reset_of_a_call_that_is_over_drops_what_waits(client, service):
    client.send(request())
    call = service.only.call
    call.send(bytes(1 << 20))
    call.finish()

    client.send(reset(1) + window(0, 1 << 21))

    assert service.only.events == []
    assert call.unsent_bytes == 0
    assert not client.connection.calls


def test_what_nobody_reads_of_a_call_that_is_over_is_dropped(client, service):
    client.send(request())
    call = service.only.call
    call.send(bytes(1 << 20))
    client.connection.check(0.0)
    call.finish()

    for now_s, more in ((0, 0), (STUCK_TIMEOUT_S - 1, 1), (2 * STUCK_TIMEOUT_S - 2, 1)):
        if more:
            client.send(window(1, more) + window(0, more))
        client.connection.check(now_s)
        assert call.unsent_bytes
    client.connection.check(3 * STUCK_TIMEOUT_S)

    assert resets(client) == [8]
    assert call.unsent_bytes == 0
    assert not client.connection.calls


def test_a_message_that_does_not_go_on_ends_its_call(client, service):
    """Its memory would be nobody's."""
    client.send(request(1) + request(3) + request(5))
    held = service.calls[1].call
    client.send(data(1, message(bytes(100_000))[:1000]) + data(5, HELLO))
    held.hold()
    client.send(data(3, message(bytes(100_000))[:1000]))

    for now_s, more in ((0, 0), (STUCK_TIMEOUT_S - 1, 1), (2 * STUCK_TIMEOUT_S - 2, 1)):
        client.send(data(1, bytes(more)))
        client.connection.check(now_s)
        assert service.calls[0].events == []
    client.connection.check(3 * STUCK_TIMEOUT_S)

    assert [call.events for call in service.calls] == [["leave"], [], []]
    assert client.replies().status(1) == DEADLINE_EXCEEDED
    assert "message" in client.replies().text(1)
    held.go_on()
    client.connection.check(4 * STUCK_TIMEOUT_S)
    client.connection.check(5 * STUCK_TIMEOUT_S + 1)
    assert client.replies().status(3) == DEADLINE_EXCEEDED


def test_a_deadline_ends_a_call(client, service):
    client.send(request(1, (b"grpc-timeout", b"1n")) + request(3, (b"grpc-timeout", b"99999999H")))
    service.calls[0].call.send(bytes(1 << 20))

    client.run_until(service.calls[0].left.wait())

    assert [call.events for call in service.calls] == [["leave"], []]
    assert client.replies().status() == DEADLINE_EXCEEDED
    assert set(client.connection.calls) == {3}
    client.lose()


def test_a_call_that_is_over_has_no_deadline(client, service):
    service.on_accept = lambda call: call.finish()
    client.send(request(1, (b"grpc-timeout", b"1n")))
    service.on_accept = lambda _call: None
    client.send(request(3, (b"grpc-timeout", b"1n")) + request(5, (b"grpc-timeout", b"1m")))
    service.calls[1].call.finish()

    client.run_until(service.calls[2].left.wait())

    assert [call.events for call in service.calls] == [[], [], ["leave"]]


def test_messages_and_trailers_of_a_half_closed_call_are_nothing(client, service):
    client.send(request() + data(1, HELLO, END_STREAM))

    client.send(data(1, HELLO) + request(1, flags=END_HEADERS | END_STREAM) + data(1, b"", 1))

    assert service.only.messages == [b"hello"]
    assert service.only.events == ["end"]
    assert client.fault() is None


def test_trailers_of_the_client_end_its_messages(client, service):
    trailers = frame(http2.HEADERS, END_HEADERS | END_STREAM, 1, http2.block([(b"a", b"b")]))

    client.send(request() + data(1, HELLO) + trailers)

    assert service.only.messages == [b"hello"]
    assert service.only.events == ["end"]


def test_headers_may_come_in_pieces_with_padding_and_priority(client, service):
    fields = http2.block(http2.REQUEST)
    payload = b"\x07" + bytes(4) + b"\x10" + fields[:20] + bytes(7)
    client.send(frame(http2.HEADERS, 0x28, 1, payload))

    client.send(frame(http2.CONTINUATION, 0, 1, fields[20:21]))
    client.send(frame(http2.CONTINUATION, END_HEADERS, 1, fields[21:]) + data(1, HELLO))

    assert service.only.messages == [b"hello"]


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [(b":path", b"/a/b")],
        [*http2.REQUEST, (b":path", b"/late")],
        [(b":method", b"POST"), *http2.REQUEST],
        [*http2.REQUEST, (b"connection", b"close")],
        [*http2.REQUEST, (b"Upper", b"case")],
        [*http2.REQUEST, (b"grpc-timeout", b"soon")],
        [*http2.REQUEST, (b"grpc-timeout", b"")],
        [*http2.REQUEST, (b"grpc-timeout", b"-1S")],
        [*http2.REQUEST, (b"grpc-timeout", b"123456789S")],
    ],
    ids=str,
)
def test_malformed_requests_are_reset(client, service, fields):
    client.send(frame(http2.HEADERS, END_HEADERS, 1, http2.block(fields)))
    client.send(data(1, HELLO) + request(3) + data(3, HELLO))

    assert resets(client) == [PROTOCOL_ERROR]
    assert service.only.messages == [b"hello"]


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [(b":method", b"GET", b"405"), (b"content-type", b"text/html", b"415")],
)
def test_what_is_no_grpc_is_refused_as_http(client, service, name, value, status):
    fields = [(key, value if key == name else old) for key, old in http2.REQUEST]

    client.send(frame(http2.HEADERS, END_HEADERS, 1, http2.block(fields)))

    assert client.replies().headers[1] == {b":status": status}
    assert client.replies().ended == {1}
    assert resets(client) == [0]
    assert service.calls == []


@pytest.mark.parametrize("end", ["finished", "reset", "lost"])
def test_a_call_that_is_over_keeps_its_handler_no_more(client, service, end):
    """They know one another: together they would wait for the garbage collector."""
    client.send(request())
    call = service.only.call

    {
        "finished": call.finish,
        "reset": lambda: client.send(http2.reset(1)),
        "lost": client.lose,
    }[end]()

    assert call.handler is NOBODY
    assert service.only.events == ([] if end == "finished" else ["leave"])
