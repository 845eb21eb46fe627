"""All frames of a connection but DATA: they begin and end calls, and say what the client takes.

Rules that hold here:
- Everything runs on the event loop.
- The header block of every request is decompressed, wanted or not: the next one builds upon it.
Source: RFC 9113, 6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.http2.call import Call
from engine.http2.frames import (
    ACK,
    END_HEADERS,
    END_STREAM,
    INITIAL_WINDOW_BYTES,
    LEAST_FRAME_BYTES,
    MAX_WINDOW,
    MOST_FRAME_BYTES,
    NO_TABLE,
    U32,
    Code,
    ConnectionFault,
    Kind,
    Setting,
    frame,
    header_block,
    header_frames,
)
from engine.http2.heads import BlockReader, read_head

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from engine.http2.connection import Connection
    from engine.http2.handler import Handler
    from engine.http2.heads import RequestHead

__all__ = ["Control"]

SETTING_BYTES: Final = 6
PING_BYTES: Final = 8


class Control:
    """Takes the frames of one connection.

    Attributes:
        last_stream: the newest call's.
    """

    def __init__(self, connection: Connection, accept: Callable[[Call], Handler]) -> None:
        """Begin with what HTTP/2 begins with.

        Args:
            connection: whose frames they are.
            accept: takes every new call.
        """
        self.last_stream = 0
        self._connection = connection
        self._accept = accept
        self._client_window = INITIAL_WINDOW_BYTES  # of a new call
        self._block = BlockReader()

    @property
    def is_block_open(self) -> bool:
        """Whether a header block is still to be ended; nothing else may come before that."""
        return self._block.stream != 0

    def take(self, kind: int, flags: int, stream: int, body: bytes) -> None:
        """Take a frame.

        Raises:
            ConnectionFault: it breaks the rules of the connection.
        """
        if self._block.stream and (kind != Kind.CONTINUATION or stream != self._block.stream):
            raise ConnectionFault(Code.PROTOCOL_ERROR, "a header block was interrupted")
        match kind:
            case Kind.HEADERS | Kind.CONTINUATION:
                self._take_headers(kind, flags, stream, body)
            case Kind.RST_STREAM:
                self._take_reset(stream, body)
            case Kind.SETTINGS:
                self._take_settings(flags, stream, body)
            case Kind.PING:
                _check(len(body) == PING_BYTES, Code.FRAME_SIZE_ERROR)
                _check(not stream)
                if not flags & ACK:
                    self._connection.write(frame(Kind.PING, ACK, 0, body))
            case Kind.WINDOW_UPDATE:
                self._take_window(stream, body)
            case Kind.PUSH_PROMISE:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "a client pushes nothing")

    def _take_headers(self, kind: int, flags: int, stream: int, body: bytes) -> None:
        block = self._block
        if kind == Kind.HEADERS:
            _check(stream & 1 == 1)
            block.begin(flags, stream, body, is_new=stream > self.last_stream)
            self.last_stream = max(stream, self.last_stream)
        else:
            block.go_on(body)
        if not flags & END_HEADERS:
            return
        call = self._connection.calls.get(stream)
        is_new, has_ended = block.is_new, bool(block.flags & END_STREAM)
        fields = block.end()
        if is_new:
            self._begin(stream, read_head(fields), has_ended=has_ended)
        elif call is not None:
            _check(has_ended)
            if not call.inbox.has_ended:
                call.inbox.end()

    def _begin(self, stream: int, head: RequestHead | None, *, has_ended: bool) -> None:
        """Begin a call, or refuse what is none."""
        connection = self._connection
        if head is None:
            connection.reset(stream, Code.PROTOCOL_ERROR)
            return
        if head.refused:
            block = NO_TABLE + header_block([(b":status", b"%d" % head.refused)])
            connection.write(header_frames(END_STREAM, stream, block))
            if not has_ended:
                connection.reset(stream, Code.NO_ERROR)
            return
        call = Call(connection, stream, head.path, head.headers, self._client_window)
        call.inbox.has_ended = has_ended
        connection.calls[stream] = call
        call.handler = self._accept(call)
        if not call.is_over:
            call.set_deadline(head.timeout_s)
        if has_ended:
            call.inbox.end()

    def _take_reset(self, stream: int, body: bytes) -> None:
        _check(len(body) == U32.size, Code.FRAME_SIZE_ERROR)
        _check(0 < stream <= self.last_stream)
        call = self._connection.calls.get(stream)
        if call is not None:
            call.lost()

    def _take_settings(self, flags: int, stream: int, body: bytes) -> None:
        _check(not stream)
        _check(len(body) % SETTING_BYTES == 0, Code.FRAME_SIZE_ERROR)
        if flags & ACK:
            _check(not body, Code.FRAME_SIZE_ERROR)
            return
        connection = self._connection
        for at in range(0, len(body), SETTING_BYTES):
            key, value = int.from_bytes(body[at : at + 2], "big"), U32.unpack_from(body, at + 2)[0]
            if key == Setting.INITIAL_WINDOW_SIZE:
                _check(value <= MAX_WINDOW, Code.FLOW_CONTROL_ERROR)
                more, self._client_window = value - self._client_window, value
                for call in connection.calls.values():
                    call.send_window += more
                    _check(call.send_window <= MAX_WINDOW, Code.FLOW_CONTROL_ERROR)
            elif key == Setting.MAX_FRAME_SIZE:
                _check(LEAST_FRAME_BYTES <= value <= MOST_FRAME_BYTES)
                connection.max_frame_bytes = value
        connection.write(frame(Kind.SETTINGS, ACK, 0))
        connection.pump()

    def _take_window(self, stream: int, body: bytes) -> None:
        _check(len(body) == U32.size, Code.FRAME_SIZE_ERROR)
        _check(stream <= self.last_stream)
        more = U32.unpack(body)[0] & MAX_WINDOW
        _check(more > 0)
        connection = self._connection
        if not stream:
            connection.send_window += more
            _check(connection.send_window <= MAX_WINDOW, Code.FLOW_CONTROL_ERROR)
            connection.pump()
            return
        call = connection.calls.get(stream)
        if call is not None:
            call.send_window += more
            _check(call.send_window <= MAX_WINDOW, Code.FLOW_CONTROL_ERROR)
            if call.unsent_bytes:
                call.pump()


def _check(is_fine: bool, code: Code = Code.PROTOCOL_ERROR) -> None:
    if not is_fine:
        raise ConnectionFault(code, "a frame is malformed, or comes where it may not")
