"""Frames and a service's doings in any order: seeded, and checked for what must always hold."""

import random
from itertools import pairwise

import pytest
from support import http2
from support.http2 import END_HEADERS, END_STREAM, data, frame, message, request, reset, window

from engine.http2.inbox import LARGE_BYTES, WINDOW_BYTES

ROUNDS = 150
SIZES = (0, 1, 5, 300, 3_000, LARGE_BYTES, LARGE_BYTES + 1, 150_000)


def some_frame(rng, newest):
    """A frame that is mostly right, of a call that mostly is there."""
    stream = rng.choice([1, 3, 5, newest, newest, newest])
    size = rng.choice([0, 1, 4, 100, 3_000, 16_000, 70_000, 200_000])
    content = message(bytes(size))
    cut = rng.choice([0, 3, 5, len(content) // 2, len(content)])
    return rng.choice(
        [
            lambda: request(newest + 2, flags=END_HEADERS | rng.choice([0, 0, 0, END_STREAM])),
            lambda: request(newest + 2, (b"grpc-encoding", b"gzip")),
            lambda: data(stream, content),
            lambda: data(stream, content, rng.choice([0, END_STREAM])),
            lambda: data(stream, content[:cut]) + data(stream, content[cut:]),
            lambda: data(stream, content[:cut]) + data(newest, content) + reset(stream),
            lambda: http2.padded(stream, content[:200], 100),
            lambda: data(stream, bytes(rng.randrange(8))),
            lambda: reset(stream),
            lambda: window(rng.choice([0, stream]), rng.choice([1, 1000, 100_000])),
            lambda: http2.settings(
                (http2.INITIAL_WINDOW_SIZE, rng.choice([0, 10, 65_535, 1 << 20]))
            ),
            lambda: frame(http2.HEADERS, END_HEADERS | END_STREAM, stream, b""),
            lambda: frame(http2.PING, 0, 0, bytes(8)),
            lambda: frame(rng.choice([2, 6, 11]), rng.randrange(256), 0, bytes(8)),
            lambda: frame(rng.randrange(12), rng.randrange(256), stream, bytes(rng.randrange(9))),
        ]
    )()


def something(rng, call):
    """What a service may do at any time."""
    rng.choice(
        [
            call.hold,
            call.go_on,
            call.go_on,
            lambda: call.send(bytes(rng.choice([0, 10, 20_000, 300_000])), b""),
            lambda: call.send(b"hello"),
            lambda: call.finish(rng.randrange(3), "text"),
            lambda: None,
            lambda: None,
        ]
    )()


def begin(connect):
    """A client that has some calls."""
    client = connect().greet()
    client.send(request(1) + request(3) + request(5))
    return client


def talk(rng, client, newest):
    """The client reads, or does not, and sends, unless it is not read itself."""
    client.transport.is_reading = rng.random() < 0.8
    if client.transport.is_paused and client.transport.is_reading:
        client.transport.read()
    if not client.transport.is_paused:
        client.send(some_frame(rng, newest), rng.choice([1000, 20_000, 1 << 20]))


@pytest.mark.parametrize("seed", range(40))
def test_whatever_comes_calls_end_once_and_nothing_is_raised(connect, service, seed):
    rng = random.Random(seed)
    client = begin(connect)
    now_s, depth = 0.0, 0

    def act(call, *_):
        nonlocal depth
        if depth < 5 and rng.random() < 0.7:
            depth += 1
            something(rng, call)
            depth -= 1

    service.on_accept = lambda call: rng.choice([call.hold, call.finish, int, int, int])()
    service.on_take = service.on_end = service.on_drained = act
    service.answers = lambda _message: rng.random() < 0.3
    for _ in range(ROUNDS):
        newest = client.connection.control.last_stream
        if client.transport.has_ended or client.transport.is_closing():
            client.lose()
            client = begin(connect)
        talk(rng, client, newest)
        for noted in rng.sample(service.calls, min(3, len(service.calls))):
            something(rng, noted.call)
        now_s += rng.choice([0.0, 0.0, 0.0, 40.0])
        if rng.random() < 0.05:
            client.connection.check(now_s)
        for call in client.connection.calls.values():
            assert (call.unsent_bytes > 0) >= bool(call.is_over)  # else it would not be there
            assert call.unsent_bytes == sum(map(len, call._unsent))
    client.lose()

    assert sum(len(noted.messages) for noted in service.calls) > 0
    assert sum(len(noted.answered) for noted in service.calls) > 0
    assert not client.connection.calls
    for noted in service.calls:
        assert noted.call.is_over
        assert noted.call.unsent_bytes == 0
        assert noted.events.count("leave") <= 1
        assert noted.events.count("end") <= 1
        assert "leave" not in noted.events[:-1]


def any_messages(rng):
    """Some that a client may send before its window has to be opened."""
    messages = [rng.randbytes(rng.choice(SIZES)) for _ in range(rng.randrange(1, 40))]
    while sum(map(len, messages)) > WINDOW_BYTES * 3 // 4:
        messages.pop()
    return messages


def any_frames(rng, messages):
    """Their bytes in DATA frames: one message each, halves, several together, cut anywhere."""
    content, cuts = b"".join(map(message, messages)), [0]
    for one in messages:
        end = cuts[-1] + 5 + len(one)
        if rng.random() < 0.3:
            cuts += sorted(rng.randrange(cuts[-1], end + 1) for _ in range(rng.randrange(1, 4)))
        cuts.append(end)
    kept = [0, *(cut for cut in cuts[1:-1] if rng.random() < 0.8), len(content)]
    return [data(1, content[start:end]) for start, end in pairwise(kept)]


@pytest.mark.parametrize("seed", range(100))
def test_however_messages_come_all_are_had_once_and_in_their_order(client, service, seed):
    """Some are taken at once and some are not, and the call is held now and then."""
    rng = random.Random(seed)
    messages, is_held = any_messages(rng), False
    share = rng.choice([0.1, 0.5, 0.9, 1.0])

    def hold(call, *_):
        nonlocal is_held
        is_held = True
        call.hold()

    def go_on(call):
        nonlocal is_held
        is_held = False
        call.go_on()

    def answers(_message):
        assert not is_held, "a message for a call that is held"
        return rng.random() < share

    def act(call, _message):
        assert not is_held, "a message for a call that is held"
        if rng.random() < 0.3:
            hold(call)
        if rng.random() < 0.1:
            go_on(call)

    service.answers, service.on_take = answers, act
    client.send(request())
    frames = any_frames(rng, messages)
    while frames:
        together = rng.choice([1, 1, 1, 2, 5])
        client.send(b"".join(frames[:together]), rng.choice([100, 1_000, 20_000, 1 << 20]))
        del frames[:together]
        rng.choice([hold, go_on, go_on, lambda _call: None])(service.only.call)
    client.send(data(1, b"", END_STREAM))
    while is_held:
        go_on(service.only.call)

    assert service.only.had == messages
    assert service.only.events == ["end"]
    assert client.fault() is None
