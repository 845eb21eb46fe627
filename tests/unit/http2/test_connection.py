"""Frames of a client as they come, whole or not, and how a connection ends."""

import pytest
from support import http2
from support.http2 import (
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    PREFACE,
    PROTOCOL_ERROR,
    data,
    frame,
    message,
    request,
    reset,
    settings,
    window,
)

from engine.http2.connection import GREET_TIMEOUT_S, WRITE_TIMEOUT_S

HELLO = message(b"hello")
LARGE = message(bytes(range(256)) * 1024)


def echo(call, content):
    call.send(bytes(content))


def test_a_client_is_greeted_once_it_has_shown_what_it_speaks(connect):
    client = connect()

    client.send(PREFACE)
    assert client.frames() == []
    client.send(settings())

    told, opened, acknowledged = client.frames()
    assert (told.kind, told.flags) == (http2.SETTINGS, 0)
    assert (opened.kind, opened.stream, opened.code) == (http2.WINDOW, 0, (1 << 31) - 1 - 65535)
    assert (acknowledged.kind, acknowledged.flags) == (http2.SETTINGS, http2.ACK)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10, 33, 1000])
def test_it_does_not_matter_where_reads_end(connect, service, size):
    service.on_take = echo
    service.on_end = lambda call: call.finish()
    client = connect()
    large = LARGE[:70_000]

    client.send(PREFACE + settings((http2.INITIAL_WINDOW_SIZE, 1 << 20)) + window(0, 1 << 20), size)
    client.send(request(1) + data(1, HELLO + HELLO[:3]), size)
    client.send(http2.padded(1, HELLO[3:], 200) + frame(http2.PING, 0, 0, b"12345678"), size)
    client.send(data(1, message(large[:66_000]) + HELLO, END_STREAM), size)

    assert service.only.messages == [b"hello", b"hello", large[:66_000], b"hello"]
    assert service.only.events == ["end"]
    replies = client.replies()
    assert replies.messages() == service.only.messages
    assert (replies.status(), replies.ended) == (0, {1})
    (ping,) = client.frames(http2.PING)
    assert (ping.flags, ping.payload) == (http2.ACK, b"12345678")


@pytest.mark.parametrize(
    "begun",
    [
        b"GET /livez HTTP/1.1\r\nHost: edge\r\n\r\n",
        b"P",
        b"\x16\x03\x01",
        b"PRI * HTTP/2.0\r\n\r\nXX",
    ],
    ids=["HTTP/1", "one byte", "TLS", "almost"],
)
def test_other_protocols_are_told_what_is_spoken_here(connect, begun):
    client = connect()

    client.send(begun + b"OST /infer HTTP/1.1\r\n" * (begun == b"P"))

    written = bytes(client.transport.written)
    assert written.startswith(b"HTTP/1.1 505 ")
    assert b"Arrow Flight" in written
    assert client.transport.has_ended


def test_the_first_frame_is_settings(connect):
    client = connect()

    client.send(PREFACE + request())

    assert client.frames()[0].kind == http2.SETTINGS
    assert client.fault() == PROTOCOL_ERROR


FAULTS = {
    "a ping of seven bytes": (frame(http2.PING, 0, 0, bytes(7)), FRAME_SIZE_ERROR),
    "a ping of a call": (frame(http2.PING, 0, 1, bytes(8)), PROTOCOL_ERROR),
    "half a setting": (frame(http2.SETTINGS, 0, 0, bytes(5)), FRAME_SIZE_ERROR),
    "settings of a call": (frame(http2.SETTINGS, 0, 1), PROTOCOL_ERROR),
    "acknowledged settings": (frame(http2.SETTINGS, http2.ACK, 0, bytes(6)), FRAME_SIZE_ERROR),
    "too large a window": (settings((4, 1 << 31)), FLOW_CONTROL_ERROR),
    "too small frames": (settings((5, 16_383)), PROTOCOL_ERROR),
    "too large frames": (settings((5, 1 << 24)), PROTOCOL_ERROR),
    "a promise": (frame(http2.PUSH, END_HEADERS, 1, bytes(4)), PROTOCOL_ERROR),
    "data of the connection": (data(0, b"x"), PROTOCOL_ERROR),
    "data of no call": (data(3, b"x"), PROTOCOL_ERROR),
    "data of the engine's call": (data(2, b"x"), PROTOCOL_ERROR),
    "headers of the connection": (request(0), PROTOCOL_ERROR),
    "headers of the engine's call": (request(2), PROTOCOL_ERROR),
    "a reset of no call": (reset(3), PROTOCOL_ERROR),
    "a reset of the connection": (reset(0), PROTOCOL_ERROR),
    "a reset of three bytes": (frame(http2.RST, 0, 1, bytes(3)), FRAME_SIZE_ERROR),
    "a window of no call": (window(3, 1), PROTOCOL_ERROR),
    "a window of nothing": (window(0, 0), PROTOCOL_ERROR),
    "a window of three bytes": (frame(http2.WINDOW, 0, 0, bytes(3)), FRAME_SIZE_ERROR),
    "a window that overflows": (window(0, (1 << 31) - 1), FLOW_CONTROL_ERROR),
    "a call's window that overflows": (window(1, (1 << 31) - 1), FLOW_CONTROL_ERROR),
    "a setting that overflows one": (
        window(1, (1 << 31) - 65_536) + settings((4, 65_537)),
        FLOW_CONTROL_ERROR,
    ),
    "headers that go on from nothing": (frame(http2.CONTINUATION, 4, 1, b"x"), PROTOCOL_ERROR),
    "an interrupted block": (request(3, flags=0) + frame(http2.PING, 0, 0, bytes(8)), 1),
    "data in a block": (request(3, flags=0) + data(1, b"x"), PROTOCOL_ERROR),
    "another's block": (request(3, flags=0) + frame(9, 4, 5, b"x"), PROTOCOL_ERROR),
    "an empty continuation": (request(3, flags=0) + frame(9, 0, 3), PROTOCOL_ERROR),
    "headers all padding": (frame(http2.HEADERS, 12, 3, b"\x05" + bytes(4)), PROTOCOL_ERROR),
    "headers without their pad": (frame(http2.HEADERS, 12, 3), PROTOCOL_ERROR),
    "headers without priority": (frame(http2.HEADERS, 0x24, 3, bytes(4)), PROTOCOL_ERROR),
    "data all padding": (data(1, b"\x05" + bytes(4), http2.PADDED), PROTOCOL_ERROR),
    "data without its pad": (data(1, b"", http2.PADDED), PROTOCOL_ERROR),
    "trailers that end nothing": (request(1), PROTOCOL_ERROR),
    "a frame of 16 MB": (b"\xff\xff\xff\x06" + bytes(5), FRAME_SIZE_ERROR),
    "headers without end": (
        request(3, flags=0) + frame(9, 0, 3, b"\0\1a\x7e" + bytes(126)) * 200,
        ENHANCE_YOUR_CALM,
    ),
    "headers that grow": (
        frame(http2.HEADERS, 4, 3, b"\x40\1a\x7e" + bytes(126) + b"\xbe" * 200),
        ENHANCE_YOUR_CALM,
    ),
    "headers that are nonsense": (frame(http2.HEADERS, 4, 3, b"\xff" * 9), 9),
    "an index of no header": (frame(http2.HEADERS, 4, 3, b"\xbe"), 9),
    "a header cut short": (frame(http2.HEADERS, 4, 3, b"\0\x05ab"), 9),
}


@pytest.mark.parametrize("size", [1, 1 << 20])
@pytest.mark.parametrize("name", FAULTS)
def test_what_breaks_the_rules_ends_the_connection(client, service, name, size):
    content, code = FAULTS[name]
    client.send(request(1))

    client.send(content + request(9) + data(9, HELLO), size)

    assert client.fault() == code
    assert service.only.events == ["leave"]  # and no call after it
    assert client.frames()[-1].kind == http2.GOAWAY
    assert not client.connection.calls


def test_unknown_frames_and_settings_are_passed_over(client, service):
    client.send(frame(0xFA, 0xFF, 7, b"whatever") + frame(http2.PRIORITY, 0, 3, bytes(5)))
    client.send(settings((0xFFFF, 7), (1, 0), (3, 0)) + frame(http2.GOAWAY, 0, 0, bytes(8)))
    client.send(request() + data(1, HELLO))

    assert service.only.messages == [b"hello"]
    assert client.fault() is None


def test_a_faulty_client_has_some_time_to_go(client, service):
    """It may still be sending; what it sends is nothing, and the last word reaches it."""
    client.transport.is_reading = False
    client.send(request() + frame(http2.PING, 0, 0, b""))
    since_s = client.connection._since_s

    client.send(request(3) + data(3, HELLO) + b"nonsense" * 100)
    client.connection.check(since_s + GREET_TIMEOUT_S - 1)
    assert client.transport.state == "open"
    client.transport.read()
    client.connection.check(since_s + GREET_TIMEOUT_S - 1)
    client.connection.check(since_s + 2 * GREET_TIMEOUT_S)

    assert len(service.calls) == 1
    assert client.fault() == FRAME_SIZE_ERROR
    assert client.transport.state == "aborted"


@pytest.mark.parametrize("begun", [b"", PREFACE[:-1], PREFACE])
def test_a_client_that_does_not_greet_is_left(connect, begun):
    client = connect()
    client.send(begun)
    since_s = client.connection._since_s

    client.server.sweep(since_s + GREET_TIMEOUT_S - 1)
    assert client.transport.state == "open"
    client.server.sweep(since_s + GREET_TIMEOUT_S + 1)

    assert client.transport.state == "aborted"


def test_an_idle_client_may_stay(client):
    client.connection.check(client.connection._since_s + 1_000_000)

    assert client.transport.state == "open"


def test_a_client_that_reads_nothing_is_left(client, service):
    service.on_accept = lambda call: call.send(bytes(1000))
    client.transport.is_reading = False
    client.send(request())
    now_s = client.connection._since_s + 1_000

    client.connection.check(now_s)
    client.connection.check(now_s + WRITE_TIMEOUT_S - 1)
    assert client.transport.state == "open"
    client.connection.check(now_s + WRITE_TIMEOUT_S + 1)

    assert client.transport.state == "aborted"


def test_a_client_that_reads_a_little_is_not_left(client, service):
    service.on_accept = lambda call: call.send(bytes(1000))
    client.transport.is_reading = False
    client.send(request())
    now_s = client.connection._since_s + 1_000

    for step in range(20):
        del client.transport.unread[:10]
        client.connection.check(now_s + step * (WRITE_TIMEOUT_S - 1))

    assert client.transport.state == "open"


def test_nothing_more_is_taken_from_a_client_that_does_not_read(client):
    client.transport.is_reading = False
    ping = frame(http2.PING, 0, 0, bytes(8))

    while not client.transport.is_paused:
        client.send(ping)
    unread = len(client.transport.unread)
    client.transport.read()

    assert unread <= client.transport.high + len(ping)
    assert not client.transport.is_paused
    assert len(client.frames(http2.PING)) == unread // len(ping)


def test_a_client_that_is_to_go_is_read_again_once_it_has_read(client):
    """Else it would never be seen to go."""
    client.transport.is_reading = False
    while not client.transport.is_paused:
        client.send(frame(http2.PING, 0, 0, bytes(8)))
    client.send(frame(http2.PING, 0, 0, b""))  # on its way when reading stopped

    client.transport.read()

    assert client.fault() == FRAME_SIZE_ERROR
    assert not client.transport.is_paused


def test_many_frames_at_once_let_others_have_their_turn(client):
    content = b"".join(frame(http2.PING, 0, 0, n.to_bytes(8, "big")) for n in range(1000))
    buffer = client.connection.get_buffer(-1)
    buffer[: len(content)] = content

    client.connection.buffer_updated(len(content))
    answered = [len(client.frames())]
    assert client.transport.is_paused
    while client.transport.is_paused:
        client.step()
        answered.append(len(client.frames()))

    assert answered == [256, 512, 768, 1000]
    assert [one.payload for one in client.frames()] == [n.to_bytes(8, "big") for n in range(1000)]


@pytest.mark.parametrize("end", ["leave", "lose"])
def test_what_was_received_is_nothing_once_the_connection_ends(client, service, end):
    content = frame(http2.PING, 0, 0, bytes(8)) * 300 + request()
    client.connection.get_buffer(-1)[: len(content)] = content
    client.connection.buffer_updated(len(content))

    if end == "leave":
        client.connection.leave()
    else:
        client.transport.close()
        client.lose()
    client.step()

    assert service.calls == []
    assert client.transport.is_paused == (end == "lose")


def test_a_client_that_does_not_read_has_no_turn(client):
    client.transport.is_reading = False
    client.transport.high = 1000
    content = frame(http2.PING, 0, 0, bytes(8)) * 1000
    client.connection.get_buffer(-1)[: len(content)] = content

    client.connection.buffer_updated(len(content))
    for _ in range(3):
        client.step()
    assert len(client.transport.unread) == 256 * 17
    client.transport.read()
    while client.transport.is_paused:
        client.step()

    assert len(client.frames()) == 1000


def test_a_lost_connection_ends_its_calls(client, service):
    client.send(request(1) + request(3) + data(3, LARGE[:1000]))

    client.lose()

    assert [call.events for call in service.calls] == [["leave"], ["leave"]]
    assert not client.server.connections
    for noted in service.calls:  # whoever has not heard may go on for a while
        noted.call.send(b"late")
        noted.call.go_on()
        noted.call.finish()


def test_a_server_that_closes_ends_every_call(connect, service):
    first, second = connect().greet(), connect().greet()
    first.send(request())
    second.send(request())

    first.server.go_away()
    assert [one.code for one in first.frames(http2.GOAWAY)] == [0]
    first.server.close()

    assert [call.events for call in service.calls] == [["leave"], ["leave"]]
    assert [client.transport.has_ended for client in (first, second)] == [True, True]
    first.server.abort()
    assert {client.transport.state for client in (first, second)} == {"aborted"}
