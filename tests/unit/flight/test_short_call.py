"""A call that asks once: its thread, a client that reads slowly, and its only end."""

import asyncio
import threading

import pytest

from engine.errors import NotFoundError
from engine.flight.short_call import ShortCall
from engine.http2.call import HIGH_BYTES

DEADLINE_S = 30
PART = (bytes(HIGH_BYTES + 1),)  # a call with no more than that unsent is never told to go on


class Client:
    """A call whose client reads when it is told to, and what the call was sent."""

    def __init__(self, answer):
        self.loop = asyncio.get_running_loop()
        self.sent, self.ends, self.outcome = [], 0, "none"
        self.unsent_bytes = 0
        self.is_over = False
        self.over = asyncio.Event()
        self.arrived = asyncio.Event()
        self.handler = ShortCall(self, answer, lambda: None, self.fail, self.end)

    def send(self, *pieces):
        self.sent.append(b"".join(pieces))
        self.unsent_bytes += len(self.sent[-1])
        self.arrived.set()

    def finish(self):
        self.outcome, self.is_over = "finished", True

    def fail(self, call, error):
        assert call is self
        self.outcome, self.is_over = error, True

    def end(self, handler):
        assert handler is self.handler
        self.ends += 1
        self.over.set()

    async def read(self):
        """Wait until something was sent, and read all of it."""
        await asyncio.wait_for(self.arrived.wait(), DEADLINE_S)
        self.arrived.clear()
        self.unsent_bytes = 0
        self.handler.drained()

    def leave(self):
        self.is_over = True
        self.handler.leave()

    async def wait(self):
        await asyncio.wait_for(self.over.wait(), DEADLINE_S)
        await asyncio.sleep(0)
        assert self.ends == 1


def with_client(answer):
    """Run a test's function on an event loop, with a client whose request gets this answer."""

    def wrap(function):
        def test():
            async def run():
                await function(Client(answer))

            asyncio.run(run())

        test.__name__ = function.__name__
        return test

    return wrap


def small(_call, request):
    yield (request, b"!")
    yield (threading.current_thread().name.encode(),)


@with_client(small)
async def test_an_answer(client):
    client.handler.take(memoryview(b"ask"))
    client.handler.take(b"a second request is none")
    client.handler.end()

    await client.wait()

    assert client.sent == [b"ask!", b"flight-call"]
    assert client.outcome == "finished"


def failing(_call, _request):
    yield (b"a part",)
    raise NotFoundError("the rest")


@with_client(failing)
async def test_an_error_comes_after_what_was_sent(client):
    client.handler.take(b"")

    await client.wait()

    assert client.sent == [b"a part"]
    assert isinstance(client.outcome, NotFoundError)


made = []


def large(_call, _request):
    made.clear()
    try:
        for number in range(5):
            made.append(number)
            yield PART
    finally:
        made.append("closed")


@with_client(large)
async def test_a_slow_reader_is_waited_for(client):
    client.handler.take(b"")
    for number in range(5):
        await asyncio.wait_for(client.arrived.wait(), DEADLINE_S)
        assert len(client.sent) == number + 1  # nothing more before it is read
        assert len(made) <= number + 3
        await client.read()

    await client.wait()

    assert made == [*range(5), "closed"]
    assert client.outcome == "finished"


@with_client(large)
async def test_nothing_is_made_for_a_client_that_has_gone(client):
    client.handler.take(b"")
    await asyncio.wait_for(client.arrived.wait(), DEADLINE_S)

    client.leave()
    await client.wait()

    assert len(client.sent) == 1
    assert made[-1] == "closed"
    assert len(made) <= 3


@with_client(small)
async def test_a_client_may_leave_before_it_asks(client):
    client.leave()

    await client.wait()

    assert client.sent == []


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (lambda handler: handler.end(), "decode_error"),
        (lambda handler: handler.place(2 << 20, memoryview(b"")), "payload_too_large"),
        (lambda handler: handler.refuse_new(), "shutting_down"),
    ],
    ids=["no request", "a large one", "the engine stops"],
)
def test_a_call_without_a_request_to_answer(end, code):
    async def run():
        client = Client(small)
        end(client.handler)
        await client.wait()
        assert client.outcome.code == code

    asyncio.run(run())


def test_a_request_may_be_large_within_bounds():
    async def run():
        client = Client(small)
        memory = client.handler.place(100_000, memoryview(b"x"))
        memory[:] = b"x" * 100_000
        client.handler.take(memory)
        await client.wait()
        assert client.sent[0] == b"x" * 100_000 + b"!"

    asyncio.run(run())


def as_much_as_may_wait(_call, _request):
    yield (bytes(HIGH_BYTES),)
    yield (b"more",)


@with_client(as_much_as_may_wait)
async def test_nobody_tells_that_just_as_much_was_read_as_may_wait(client):
    client.handler.take(b"")

    while len(client.sent) < 2:
        client.arrived.clear()
        await asyncio.wait_for(client.arrived.wait(), DEADLINE_S)

    assert client.sent[1] == b"more"
    assert client.ends == 0  # its place is given back once that is read
    await client.read()
    await client.wait()


def test_an_error_keeps_nothing_of_its_call():
    async def run():
        client = Client(failing)
        client.handler.take(b"")
        await client.wait()
        frame = client.outcome.__traceback__.tb_frame
        assert frame.f_code.co_name == "_run"
        assert all(value is not client.outcome for value in frame.f_locals.values())

    asyncio.run(run())
