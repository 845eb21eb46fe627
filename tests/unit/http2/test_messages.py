"""Messages of a client: put together, placed, held back, decompressed, and refused."""

import gc
import gzip
import tracemalloc
import weakref
import zlib

import pytest
from support import http2
from support.http2 import END_STREAM, FLOW_CONTROL_ERROR, data, message, request

from engine.http2.inbox import LARGE_BYTES, MAX_COMPRESSED_BYTES, WINDOW_BYTES

INTERNAL, RESOURCE_EXHAUSTED, UNIMPLEMENTED, DEADLINE_EXCEEDED = 13, 8, 12, 4
HELLO = message(b"hello")
FRAME = 1 << 14


def frames(stream, content, flags=0, size=FRAME):
    """DATA frames of so many bytes each; the last one with the flags."""
    cuts = [content[at : at + size] for at in range(0, len(content), size)]
    return b"".join(data(stream, cut) for cut in cuts[:-1]) + data(stream, cuts[-1], flags)


def hold(call, _message):
    call.hold()


@pytest.mark.parametrize(
    "cuts", [(), (1,), (4,), (5,), (6,), (10,), (3, 7), (10, 10), (5, 10, 15)], ids=str
)
def test_frames_may_cut_messages_anywhere(client, service, cuts):
    content = HELLO + HELLO + message(b"")
    client.send(request())

    for begin, end in zip((0, *cuts), (*cuts, len(content)), strict=True):
        client.send(data(1, content[begin:end], END_STREAM if end == len(content) else 0))

    assert service.only.messages == [b"hello", b"hello", b""]
    assert service.only.events == ["end"]


@pytest.mark.parametrize("size", [LARGE_BYTES, LARGE_BYTES + 1, 200_000, 1 << 20])
@pytest.mark.parametrize("step", [1000, FRAME, 100_000, 1 << 20])
def test_large_messages_are_placed(client, service, size, step):
    content = bytes(n % 251 for n in range(size))
    client.send(request())

    client.send(data(1, message(content)[:100]))
    client.send(frames(1, message(content)[100:] + HELLO, END_STREAM, step), 50_000)

    assert service.only.messages == [content, b"hello"]
    is_placed = size > LARGE_BYTES
    assert service.only.placed == [(size, content[:95])] * is_placed
    assert service.only.events == ["end"]


@pytest.mark.parametrize("size", [1, LARGE_BYTES, LARGE_BYTES + 1, 200_000])
@pytest.mark.parametrize("step", [1000, 1 << 20], ids=["in pieces", "whole"])
def test_a_message_that_is_answered_at_once_is_not_taken(client, service, size, step):
    """Only where it has come in pieces does a large one need a place."""
    content = [bytes((n,)) * size for n in range(100)]
    service.answers = lambda _message: True
    client.send(request())

    for one in content:
        client.send(frames(1, message(one), size=step))
    client.send(data(1, b"", END_STREAM))

    assert service.only.answered == content
    assert service.only.messages == []
    assert len(service.only.placed) == 100 * (size > LARGE_BYTES and step < size)
    assert service.only.events == ["end"]
    assert client.fault() is None


@pytest.mark.parametrize("size", [1000, LARGE_BYTES + 1])
def test_a_message_that_is_not_answered_at_once_is_taken_in_its_place(client, service, size):
    content = [bytes((n,)) * size for n in range(6)]
    service.answers = lambda message: message[0] % 2 == 0
    client.send(request())

    for one in content:
        client.send(data(1, message(one)))

    assert service.only.answered == content[::2]
    assert service.only.messages == content[1::2]
    assert len(service.only.placed) == (3 if size > LARGE_BYTES else 0)


@pytest.mark.parametrize("is_answered", [True, False])
@pytest.mark.parametrize(
    ("content", "cut"),
    [([message(b"inner")], 5), ([b"\0", bytes(251)], 1)],
    ids=["after its prefix", "within its prefix"],
)
def test_a_piece_that_looks_like_a_message_is_none(client, service, content, cut, is_answered):
    service.answers = lambda _message: is_answered
    sent = b"".join(map(message, content))
    client.send(request())

    client.send(data(1, sent[:cut]))
    client.send(data(1, sent[cut:]))

    assert service.only.had == content
    assert service.only.answered == content * is_answered


@pytest.mark.parametrize("size", [1000, LARGE_BYTES + 1])
def test_a_held_message_is_offered_once_it_is_delivered(client, service, size):
    service.on_take = hold
    client.send(request())
    client.send(data(1, message(b"first")))
    service.answers = lambda _message: True

    client.send(data(1, message(bytes(size))))
    assert service.only.answered == []
    service.only.call.go_on()

    assert service.only.answered == [bytes(size)]
    assert service.only.messages == [b"first"]


@pytest.mark.parametrize("first", range(4, 12))
def test_the_window_never_stays_shut(client, service, first):
    """A message as large as what is left of the window, received where it stands."""
    client.send(request())
    before = message(bytes(60_000))
    for _ in range(2):
        client.send(data(1, before))
    left = WINDOW_BYTES - 2 * len(before) + client.opened_bytes()
    large = message(bytes(left - 5))

    rest = data(1, large[first:])
    client.send(data(1, large[:first]) + rest[:100])
    client.send(rest[100:])

    assert len(service.only.messages) == 3
    sent_bytes = 2 * len(before) + len(large)
    assert WINDOW_BYTES + client.opened_bytes() - sent_bytes >= WINDOW_BYTES // 2


def test_padding_takes_of_the_window_and_is_given_back(client, service):
    client.send(request())

    for _ in range(3 * WINDOW_BYTES // 250):
        client.send(http2.padded(1, b"", 249))

    assert client.fault() is None
    assert client.opened_bytes() >= 2 * WINDOW_BYTES


def test_who_sends_more_than_the_window_is_cut_off(client, service):
    service.on_accept = lambda call: call.hold()
    client.send(request())

    client.send(frames(1, message(bytes(1000)) * (WINDOW_BYTES // 1005)))
    assert client.fault() is None
    client.send(data(1, bytes(1005)))

    assert client.fault() == FLOW_CONTROL_ERROR
    assert service.only.messages == []


def test_who_sends_more_than_the_window_straight_into_a_message_is_cut_off(client, service):
    service.on_accept = lambda call: call.hold()
    client.send(request())

    client.send(data(1, message(bytes(4 << 20))), 100_000)

    assert client.fault() == FLOW_CONTROL_ERROR
    assert service.only.events == ["leave"]


@pytest.mark.parametrize("size", [FRAME, 1005])
def test_held_messages_wait_in_order_and_the_window_shuts(client, service, size):
    service.on_take = hold
    client.send(request())
    content = [bytes((n,)) * 1000 for n in range(200)]

    client.send(frames(1, b"".join(map(message, content)), END_STREAM, size))
    assert service.only.messages == content[:1]
    assert client.opened_bytes() == 0
    for _ in range(199):
        service.only.call.go_on()
        assert service.only.events == []

    assert service.only.messages == content
    service.only.call.go_on()
    assert service.only.events == ["end"]


def test_a_window_that_was_shut_opens_when_the_call_goes_on(client, service):
    service.on_take = hold
    client.send(request())

    client.send(frames(1, message(bytes(1000)) * 200))
    service.on_take = lambda *_: None
    service.only.call.go_on()

    assert len(service.only.messages) == 200
    assert client.opened_bytes() == 200 * 1005


def test_a_large_message_that_comes_while_held_waits_in_the_window(client, service):
    service.on_accept = lambda call: call.hold()
    client.send(request())
    large = message(bytes(range(256)) * 10_000)

    client.send(data(1, large[:5]) + data(1, large[5 : WINDOW_BYTES - 5]), 70_000)
    assert client.opened_bytes() == 0
    service.only.call.go_on()
    assert client.opened_bytes() >= len(large) - WINDOW_BYTES
    service.only.call.hold()
    client.send(data(1, large[WINDOW_BYTES - 5 :] + HELLO, END_STREAM), 70_000)
    assert service.only.messages == []
    service.only.call.go_on()

    assert service.only.messages == [large[5:], b"hello"]
    assert service.only.events == ["end"]


def test_go_on_from_within_a_message_keeps_the_order(client, service):
    def again(call, _message):
        call.hold()
        call.go_on()

    service.on_accept = lambda call: call.hold()
    service.on_take = again
    client.send(request() + data(1, b"".join(message(bytes((n,))) for n in range(50)), END_STREAM))

    service.only.call.go_on()

    assert service.only.messages == [bytes((n,)) for n in range(50)]
    assert service.only.events == ["end"]


@pytest.mark.parametrize("is_held", [False, True])
def test_nothing_is_taken_after_finish(client, service, is_held):
    """Whatever the frame, or what was held, still has."""
    service.on_take = lambda call, _message: call.finish(3, "enough")
    service.on_accept = lambda call: call.hold() if is_held else None
    client.send(request())

    client.send(data(1, HELLO * 3 + message(bytes(100_000)), END_STREAM), 20)
    service.only.call.go_on()

    assert service.only.messages == [b"hello"]
    assert service.only.events == []
    assert client.replies().status() == 3
    assert not client.connection.calls


@pytest.mark.parametrize("at", [0, 5, 10])
def test_the_rest_of_a_frame_is_nothing_once_its_call_has_ended(client, service, at):
    client.send(request())
    whole = data(1, HELLO * 2, END_STREAM)

    client.send(whole[: 9 + at])
    service.only.call.finish()
    client.send(whole[9 + at :] + request(3) + data(3, HELLO))

    assert service.calls[0].messages == [b"hello"] * (at // 10)
    assert service.calls[1].messages == [b"hello"]
    assert client.fault() is None


def test_a_call_may_end_while_its_message_is_being_received(client, service):
    client.send(request())
    whole = data(1, message(bytes(200_000)))

    client.send(whole[:50_000])
    assert client.connection.get_buffer(-1) is not client.connection._shared
    service.only.call.finish(13, "enough")
    assert client.connection.get_buffer(-1) is client.connection._shared
    client.send(whole[50_000:] + request(3) + data(3, HELLO))

    assert service.calls[0].messages == []
    assert service.calls[1].messages == [b"hello"]


@pytest.mark.parametrize("cut", [1, 4, 5, 9])
def test_an_end_in_the_middle_of_a_message_is_an_error(client, service, cut):
    client.send(request() + data(1, HELLO[:cut], END_STREAM))

    assert service.only.events == ["leave"]
    assert client.replies().status() == INTERNAL
    assert "middle" in client.replies().text()


@pytest.mark.parametrize(
    ("prefix", "status"),
    [
        (b"\0\xff\xff\xff\xff", RESOURCE_EXHAUSTED),
        (b"\0\x01\0\0\x01", RESOURCE_EXHAUSTED),
        (b"\x01\xff\xff\xff\xff", RESOURCE_EXHAUSTED),
        (b"\x02\0\0\0\x05hello", INTERNAL),
        (b"\x01\0\0\0\x05hello", UNIMPLEMENTED),
    ],
    ids=str,
)
def test_messages_that_are_not_accepted_end_their_call_alone(client, service, prefix, status):
    client.send(request(1) + request(3))

    client.send(data(1, prefix + HELLO * 20) + data(3, HELLO))

    assert service.calls[0].messages == []
    assert service.calls[0].events == ["leave"]
    assert client.replies().status() == status
    assert service.calls[1].messages == [b"hello"]


def test_a_message_that_finds_no_memory_ends_its_call_alone(client, service):
    service.has_memory = False
    client.send(request(1) + request(3))

    client.send(data(1, message(bytes(100_000))) + data(3, HELLO))

    assert client.replies().status() == RESOURCE_EXHAUSTED
    assert service.calls[0].events == ["leave"]
    assert service.calls[1].messages == [b"hello"]


@pytest.mark.parametrize(("name", "pack"), [(b"gzip", gzip.compress), (b"deflate", zlib.compress)])
@pytest.mark.parametrize("size", [0, 5, 1 << 20])
def test_messages_may_be_compressed(client, service, name, pack, size):
    content = bytes(n * n % 256 for n in range(size))
    client.send(request(1, (b"grpc-encoding", name)))

    client.send(frames(1, message(pack(content), 1) + HELLO, END_STREAM))

    assert service.only.messages == [content, b"hello"]


@pytest.mark.parametrize(
    ("packed", "status"),
    [
        (b"hello", INTERNAL),
        (gzip.compress(b"hello")[:-9], RESOURCE_EXHAUSTED),
        (gzip.compress(bytes(MAX_COMPRESSED_BYTES + 1)), RESOURCE_EXHAUSTED),
    ],
    ids=["nonsense", "cut short", "bomb"],
)
def test_what_cannot_be_decompressed_ends_its_call(client, service, packed, status):
    client.send(request(1, (b"grpc-encoding", b"gzip")))

    client.send(frames(1, message(packed, 1)))

    assert service.only.messages == []
    assert client.replies().status() == status


def test_messages_that_are_held_back_stay_compressed(client, service):
    """What 256 KiB of them would be, of every call that is held, is a thousandfold."""
    service.on_accept = lambda call: call.hold()
    client.send(request(1, (b"grpc-encoding", b"gzip")))
    packed = frames(1, message(gzip.compress(bytes(1 << 20)), 1) * 20)

    tracemalloc.start()
    try:
        client.send(packed)
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert held_bytes < 1 << 20
    service.only.call.go_on()
    assert service.only.messages == [bytes(1 << 20)] * 20


def test_what_is_held_stays_compressed(client, service):
    """It may become a thousandfold, uncounted; seen here by what does not end the call."""
    service.on_take = hold
    client.send(request(1, (b"grpc-encoding", b"gzip")))

    client.send(data(1, message(gzip.compress(b"hello"), 1) * 3 + message(b"nonsense", 1) + HELLO))
    assert service.only.messages == [b"hello"]
    service.only.call.go_on()
    service.only.call.go_on()
    assert service.only.messages == [b"hello"] * 3
    assert service.only.events == []
    service.only.call.go_on()

    assert service.only.messages == [b"hello"] * 3
    assert service.only.events == ["leave"]
    assert client.replies().status() == INTERNAL


class Memory(bytearray):
    """Where a message stands, that can be watched."""


@pytest.mark.parametrize("end", ["taken", "finished", "reset", "lost", "faulty"])
def test_no_message_outlives_its_use(client, service, end):
    """Large ones, without waiting for the garbage collector to find a ring."""
    watched = []

    client.send(request())
    handler = service.only
    handler.messages = None

    def place(size_bytes, _first):
        memory = Memory(size_bytes)
        watched.append(weakref.ref(memory))
        return memoryview(memory)

    handler.place = place
    handler.take = lambda _message: None
    gc.disable()
    try:
        client.send(frames(1, message(bytes(70_000)) + message(bytes(90_000))[: 1 << 16]))
        if end == "taken":
            client.send(frames(1, message(bytes(90_000))[1 << 16 :]))
        assert len(watched) == 2
        {
            "taken": lambda: None,
            "finished": handler.call.finish,
            "reset": lambda: client.send(http2.reset(1)),
            "lost": client.lose,
            "faulty": lambda: client.send(http2.window(0, 0)),
        }[end]()

        assert [memory() for memory in watched] == [None, None]
    finally:
        gc.enable()
