"""A connection without a kernel: what stands for the socket records, and reads when it is told."""

import asyncio
import contextlib

import pytest
from support import http2

from engine.http2.connection import Connection
from engine.http2.server import GrpcServer


class Transport:
    """The kernel's side of a connection, with a client that reads at once unless told otherwise."""

    def __init__(self):
        self.protocol = None
        self.written = bytearray()  # what the client has read
        self.unread = bytearray()
        self.is_reading = True  # the client
        self.is_paused = False  # the engine
        self.has_ended = False  # write_eof
        self.state = "open"
        self.high = 1 << 16

    def set_write_buffer_limits(self, high):
        self.high = high

    def write(self, content):
        assert self.state == "open", "written to a closed transport"
        assert not self.has_ended, "written after the end"
        self.unread += content
        if self.is_reading:
            self.written += self.unread
            self.unread.clear()
        elif len(self.unread) > self.high and not self.protocol.is_paused:
            self.protocol.pause_writing()

    def read(self):
        """The client reads all there is, and goes on reading."""
        self.is_reading = True
        self.written += self.unread
        self.unread.clear()
        if self.protocol.is_paused:
            self.protocol.resume_writing()

    def get_write_buffer_size(self):
        return len(self.unread)

    def pause_reading(self):
        self.is_paused = True

    def resume_reading(self):
        assert not self.is_closing()
        self.is_paused = False

    def is_closing(self):
        return self.state != "open"

    def can_write_eof(self):
        return True

    def write_eof(self):
        self.has_ended = True

    def close(self):
        self.state = "closed"

    def abort(self):
        self.state = "aborted"


class Client:
    """The other side of one connection."""

    def __init__(self, server, loop):
        async def connect():
            return Connection(server)

        self.server = server
        self.loop = loop
        self.transport = Transport()
        self.connection = loop.run_until_complete(connect())
        self.transport.protocol = self.connection
        self.connection.connection_made(self.transport)

    def greet(self, *settings):
        self.send(http2.PREFACE + http2.settings(*settings))
        self.transport.written.clear()
        return self

    def send(self, content, most_bytes=1 << 30):
        """Bytes arrive, so many at a time, and are taken."""
        left = memoryview(bytes(content))
        while left:
            buffer = self.connection.get_buffer(-1)
            size = min(len(left), len(buffer), most_bytes)
            buffer[:size] = left[:size]
            self.connection.buffer_updated(size)
            left = left[size:]
            while self.transport.is_paused and self.transport.is_reading:
                self.step()

    def step(self):
        """What is due on the loop is run, and nothing that it makes due."""
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()

    def frames(self, kind=None):
        """What it has read so far."""
        frames, rest = http2.split(bytes(self.transport.written))
        assert not rest
        return [one for one in frames if kind is None or one.kind == kind]

    def replies(self):
        return http2.Replies(self.frames())

    def opened_bytes(self, stream=1):
        """By how much the engine has opened a call's window."""
        return sum(one.code for one in self.frames(http2.WINDOW) if one.stream == stream)

    def fault(self):
        """The code of the connection's end; None where it goes on."""
        codes = [one.code for one in self.frames(http2.GOAWAY)]
        assert self.transport.has_ended == bool(codes)
        return codes[0] if codes else None

    def lose(self):
        self.connection.connection_lost(None)

    def run_until(self, future):
        self.loop.run_until_complete(asyncio.wait_for(future, 10))


class Service:
    """Takes every call, and notes what it is told; ``on_take`` and so on say what it does then.

    ``answers`` says whether a message is one that is answered at once.
    """

    def __init__(self):
        self.calls = []
        self.on_accept = self.on_take = self.on_end = self.on_drained = lambda *_: None
        self.has_memory = True
        self.answers = lambda _message: False

    def __call__(self, call):
        noted = Noted(self, call)
        self.calls.append(noted)
        self.on_accept(call)
        return noted

    @property
    def only(self):
        (call,) = self.calls
        return call


class Noted:
    """The handler of one call."""

    def __init__(self, service, call):
        self.service = service
        self.call = call
        self.messages = []
        self.placed = []
        self.answered = []  # at once
        self.had = []  # either, in their order
        self.events = []  # all but messages
        self.left = asyncio.Event()

    def place(self, size_bytes, first):
        self.placed.append((size_bytes, bytes(first)))
        if not self.service.has_memory:
            raise MemoryError
        return memoryview(bytearray(size_bytes))

    def take_at_once(self, message):
        is_answered = self.service.answers(message)
        if is_answered:
            self.answered.append(bytes(message))
            self._have(message)
        return is_answered

    def take(self, message):
        self.messages.append(bytes(message))
        self._have(message)

    def _have(self, message):
        assert not self.events or self.events[-1] == "drained", "a message after the end"
        self.had.append(bytes(message))
        self.service.on_take(self.call, message)

    def end(self):
        self.events.append("end")
        self.service.on_end(self.call)

    def drained(self):
        self.events.append("drained")
        self.service.on_drained(self.call)

    def leave(self):
        self.events.append("leave")
        self.left.set()


@pytest.fixture
def service():
    return Service()


@pytest.fixture
def connect(service):
    """Clients of one server that takes messages up to 16 MiB."""
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        server = GrpcServer(service, max_message_bytes=16 << 20)
        yield lambda: Client(server, loop)


@pytest.fixture
def client(connect):
    """A client that has greeted."""
    return connect().greet()
