"""One client's HTTP/2 connection: frames in, calls made of them, frames out.

Rules that hold here:
- Everything runs on the event loop. No timer per connection: ``check`` looks once a second.
- A frame that breaks the rules of its connection ends it, with a word to the client (GOAWAY); what
  is wrong with one call ends that call.
- What a client can make the engine hold is bounded: one header block, what calls have not read of
  their windows, and what the client itself does not read, beyond which nothing is read from it.
- Bytes of a large message are received where the message is to stand; all others in memory that
  the connections share, since what is received is used up before anything else is.
- A connection that ends for a fault ends in order: its calls at once, then a last word, and then
  the client has some time to go. Were it cut off while it sends, the word would be lost.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, cast

from engine.http2.control import Control
from engine.http2.data import DataFrames
from engine.http2.frames import (
    HEAD,
    INITIAL_WINDOW_BYTES,
    LEAST_FRAME_BYTES,
    MAX_WINDOW,
    U32,
    Code,
    ConnectionFault,
    Kind,
    frame,
    go_away,
)
from engine.http2.greeting import GREETING, KIND_AT, NOT_HTTP2, preface_bytes

if TYPE_CHECKING:
    from typing import Any, Final

    from engine.http2.call import Call
    from engine.http2.server import GrpcServer

__all__ = ["Connection"]

DATA: Final = int(Kind.DATA)
FRAME_HEAD_BYTES: Final = 9
MAX_CONTROL_BYTES: Final = 32 << 10  # of any frame but DATA: more than any block of headers
FRAMES_AT_ONCE: Final = 256  # then others have their turn: calls that are refused take 0.1 ms each
WRITE_BUFFER_BYTES: Final = 1 << 20
GREET_TIMEOUT_S: Final = 10.0  # of a client that comes, and of one that is to go
WRITE_TIMEOUT_S: Final = 30.0


class Connection(asyncio.BufferedProtocol):
    """One connection.

    Attributes:
        loop: the event loop.
        max_message_bytes: largest message that is accepted.
        send_window: bytes that the client is ready to take, over all calls.
        max_frame_bytes: largest frame that it takes.
        calls: by stream, until the last of them is read.
        control: takes all frames but DATA.
        is_paused: what was written waits to be read.
        write: sends bytes.
    """

    def __init__(self, server: GrpcServer) -> None:
        """Wait for a client."""
        self.loop = asyncio.get_running_loop()
        self.max_message_bytes = server.max_message_bytes
        self.send_window = INITIAL_WINDOW_BYTES
        self.max_frame_bytes = LEAST_FRAME_BYTES
        self.is_paused = False
        self.write: Any = None
        self._server = server
        self._shared = server.buffer
        self._transport: asyncio.Transport | None = None
        self._carry = b""  # of a frame, or of the preface
        self._since_s = time.monotonic()  # when the client was last seen to get on
        self._unread_bytes = 0
        self._is_greeted = False
        self._is_closing = False
        self._has_more = False  # received, than was taken at once
        self.calls: dict[int, Call] = {}
        self.control = Control(self, server.accept)
        self._data = DataFrames(self)
        self._direct: memoryview | None = None

    # -- asyncio's side ----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come."""
        self._transport = cast("asyncio.Transport", transport)
        self.write = self._transport.write
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self._server.connections.add(self)

    def connection_lost(self, _error: Exception | None) -> None:
        """The client is gone, and its calls with it."""
        self._server.connections.discard(self)
        self._end_calls()

    def get_buffer(self, _size_hint: int) -> memoryview:
        """Where the next bytes are to be put."""
        self._direct = None if self._is_closing else self._data.target()
        return self._shared if self._direct is None else self._direct

    def buffer_updated(self, size: int) -> None:
        """Take what has come."""
        is_direct, self._direct = self._direct is not None, None
        if self._is_closing:
            return
        try:
            if is_direct:
                self._data.filled(size)
            else:
                self._take(self._shared[:size])
        except ConnectionFault as fault:
            self._fail(fault)
        if self._has_more and self._transport is not None:
            self._transport.pause_reading()
            self._read_on()

    def pause_writing(self) -> None:
        """The client does not read: nothing more is taken from it, or written."""
        self.is_paused = True
        self._since_s = time.monotonic()
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """The client has read."""
        self.is_paused = False
        self._read_on()
        self.pump()

    # -- the server's side -------------------------------------------------------------------------

    def check(self, now_s: float) -> None:
        """Cut off a client that does not greet, does not go, or reads nothing."""
        if self._transport is None:
            return
        unread_bytes = self._transport.get_write_buffer_size()
        if unread_bytes != self._unread_bytes:
            self._unread_bytes, self._since_s = unread_bytes, now_s
        waits_s = now_s - self._since_s
        is_awaited = self._is_closing or not self._is_greeted
        if (is_awaited and waits_s > GREET_TIMEOUT_S) or (
            unread_bytes and waits_s > WRITE_TIMEOUT_S
        ):
            self._transport.abort()
            return
        for call in list(self.calls.values()):
            call.check(now_s)

    def go_away(self) -> None:
        """Tell the client that no new calls are welcome."""
        if not self._is_closing:
            self.write(go_away(self.control.last_stream, Code.NO_ERROR, b""))

    def leave(self) -> None:
        """End all calls, and wait for the client to read what was written, and to go."""
        self._end_calls()
        self._since_s = time.monotonic()
        if self._transport is not None and self._transport.can_write_eof():
            self._transport.write_eof()
        elif self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Wait no longer."""
        if self._transport is not None:
            self._transport.abort()

    # -- the calls' side ---------------------------------------------------------------------------

    def forget(self, call: Call) -> None:
        """A call is over, and all of it read or dropped."""
        self.calls.pop(call.stream, None)

    def pump(self) -> None:
        """Send what calls hold back, as far as the client takes it; each has its turn."""
        for call in list(self.calls.values()):
            unsent_bytes = call.unsent_bytes
            if self.is_paused or self.send_window <= 0:
                break
            if unsent_bytes:
                call.pump()
                if 0 < call.unsent_bytes < unsent_bytes:
                    self.calls[call.stream] = self.calls.pop(call.stream)

    def reset(self, stream: int, code: Code) -> None:
        """End a stream without another word."""
        self.write(frame(Kind.RST_STREAM, 0, stream, U32.pack(code)))

    # -- frames ------------------------------------------------------------------------------------

    def _read_on(self) -> None:
        """Receive again, once what was received is taken."""
        transport = self._transport
        if self._has_more:
            self.loop.call_soon(self._take_more)
        elif transport is not None and not transport.is_closing() and not self.is_paused:
            transport.resume_reading()

    def _take_more(self) -> None:
        """Go on with what was received, now that others had their turn."""
        if self.is_paused:
            return
        self._has_more = False
        try:
            if not self._is_closing:
                self._take(memoryview(b""))
        except ConnectionFault as fault:
            self._fail(fault)
        self._read_on()

    def _take(self, data: memoryview) -> None:
        if self._carry or not self._is_greeted:
            data = self._go_on(data)
        at, end, frames, turns = 0, len(data), self._data, FRAMES_AT_ONCE
        while at < end and turns:
            turns -= 1
            if frames.is_open:
                at += frames.take(data[at:])
                continue
            if end - at < FRAME_HEAD_BYTES:
                break
            high, low, kind, flags, stream = HEAD.unpack_from(data, at)
            size, body = high << 8 | low, at + FRAME_HEAD_BYTES
            if kind == DATA:
                used = frames.begin(size, flags, stream & MAX_WINDOW, data[body:])
                if used is None:
                    break
                at = body + used
                continue
            if size > MAX_CONTROL_BYTES:
                raise ConnectionFault(Code.FRAME_SIZE_ERROR, "the frame is too large")
            if body + size > end:
                break
            self.control.take(kind, flags, stream & MAX_WINDOW, bytes(data[body : body + size]))
            at = body + size
        if at < end:
            self._carry = bytes(data[at:])
            self._has_more = not turns

    def _go_on(self, data: memoryview) -> memoryview:
        """What has come, with what came before, and without the preface."""
        if self._carry:
            data = memoryview(self._carry + data)
            self._carry = b""
        return data if self._is_greeted else self._greet(data)

    def _greet(self, data: memoryview) -> memoryview:
        """Read the client's preface, and greet it; what has come after that."""
        taken = preface_bytes(data)
        if not taken:  # to another protocol's client the greeting would be no answer
            self._carry = bytes(data)
            return data[:0]
        self._is_greeted = True
        self.write(GREETING)
        if data[KIND_AT] != Kind.SETTINGS:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "settings come first")
        return data[taken:]

    def _fail(self, fault: ConnectionFault) -> None:
        """Say what is wrong, and wait for the client to go."""
        word = NOT_HTTP2
        if self._is_greeted:
            word = go_away(self.control.last_stream, fault.code, fault.text.encode())
        self.write(word)
        self.leave()

    def _end_calls(self) -> None:
        self._is_closing = True
        self.write = _drop
        for call in list(self.calls.values()):
            call.lost()


def _drop(_data: object) -> None:
    """Write to a client that is gone."""
