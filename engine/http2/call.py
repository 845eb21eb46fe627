"""One gRPC call: the messages of its client in, the engine's out, and the status at the end.

Rules that hold here:
- Everything runs on the event loop.
- What the client does not read waits here, whole; ``unsent_bytes`` says how much, and a handler
  sends no more than one message beyond ``HIGH_BYTES``.
- A handler hears of the end of a call exactly once, by ``leave``, unless it has called ``finish``.
Source: gRPC over HTTP/2, Requests and Responses.
"""

from __future__ import annotations

import base64
import math
import urllib.parse
from collections import deque
from typing import TYPE_CHECKING

from engine.http2.frames import (
    END_STREAM,
    HEAD,
    NO_TABLE,
    U32,
    Code,
    Kind,
    frame,
    header_block,
    header_frames,
)
from engine.http2.handler import NOBODY
from engine.http2.inbox import PREFIX_BYTES, Inbox

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence
    from typing import Final

    from engine.http2.connection import Connection
    from engine.http2.handler import Handler

__all__ = ["HIGH_BYTES", "Call"]

HIGH_BYTES: Final = 256 << 10  # of a call that wait to be read: send no more for now
DATA: Final = int(Kind.DATA)
STUCK_TIMEOUT_S: Final = 30.0
DEADLINE_EXCEEDED: Final = 4
PRINTABLE: Final = "".join(chr(code) for code in range(0x20, 0x7F) if code != ord("%"))
REPLY_HEAD: Final = NO_TABLE + header_block(
    [
        (b":status", b"200"),
        (b"content-type", b"application/grpc"),
        (b"grpc-accept-encoding", b"identity,deflate,gzip"),
    ]
)


class Call:
    """One call.

    Attributes:
        loop: the event loop.
        path: of the method.
        headers: of the request, by lower-case name, the last of each.
        handler: what answers it; ``NOBODY`` once it is over, so that neither keeps the other.
        stream: its number on the connection.
        inbox: puts its client's messages together.
        is_over: nothing that is sent goes anywhere any more.
        send_window: bytes that the client is ready to take.
        unsent_bytes: of messages that wait for the client to read.
    """

    handler: Handler

    def __init__(
        self,
        connection: Connection,
        stream: int,
        path: bytes,
        headers: dict[bytes, bytes],
        send_window: int,
    ) -> None:
        """Begin a call; its deadline is ``set_deadline``'s."""
        self.loop: asyncio.AbstractEventLoop = connection.loop
        self.path = path
        self.headers = headers
        self.stream = stream
        self.is_over = False
        self.send_window = send_window
        self.unsent_bytes = 0
        self._connection = connection
        self._timer: asyncio.TimerHandle | None = None
        self.inbox = Inbox(connection, self)
        self._is_head_sent = False
        self._trailers: bytes | None = None  # as frames, once they wait behind messages
        self._is_high = False
        self._left_bytes = 0  # that the client was to get on with, when it was last looked at
        self._since_s = 0.0
        self._unsent: deque[memoryview] = deque()

    # -- what a service does ---------------------------------------------------------------------

    def send(self, *pieces: bytes | memoryview) -> None:
        """Send one message.

        Args:
            pieces: of its bytes, which must not change until they are sent.
        """
        if self.is_over:
            return
        size = sum(map(len, pieces))
        sent, connection = size + PREFIX_BYTES, self._connection
        prefix = b"\0" + U32.pack(size)
        if not self._is_head_sent:
            self._send_head()
        if (
            sent > self.send_window
            or sent > connection.send_window
            or sent > connection.max_frame_bytes
            or self.unsent_bytes
            or connection.is_paused
        ):
            self._unsent.append(memoryview(prefix))
            self._unsent.extend(memoryview(piece) for piece in pieces if len(piece))
            self.unsent_bytes += sent
            self.pump()
            self._is_high = self.unsent_bytes > HIGH_BYTES
            return
        self.send_window -= sent
        connection.send_window -= sent
        head = HEAD.pack(sent >> 8, sent & 0xFF, DATA, 0, self.stream)
        connection.write(b"".join((head, prefix, *pieces)))

    def finish(
        self, status: int = 0, text: str = "", trailers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        """End the call, once what was sent is read.

        Args:
            status: of gRPC; 0 is success.
            text: what a failure was.
            trailers: names and values; those of ``-bin`` names as the bytes that they stand for.
        """
        if self.is_over:
            return
        fields = [(b"grpc-status", b"%d" % status)]
        if text:
            fields.append((b"grpc-message", _percent_encoded(text)))
        for name, value in trailers:
            is_binary = name.endswith(b"-bin")
            fields.append((name, base64.b64encode(value).rstrip(b"=") if is_binary else value))
        block = header_block(fields)
        if not self._is_head_sent:
            self._is_head_sent = True
            block = REPLY_HEAD + block
        self._trailers = header_frames(END_STREAM, self.stream, block)
        self._end()
        self.pump()

    def hold(self) -> None:
        """Deliver no messages for now; the client may fill its window."""
        self.inbox.hold()

    def go_on(self) -> None:
        """Deliver messages again, those first that have come meanwhile."""
        self.inbox.go_on()

    # -- what the connection does ----------------------------------------------------------------

    def set_deadline(self, timeout_s: float) -> None:
        """Give up after so long."""
        if timeout_s < math.inf:
            self._timer = self.loop.call_later(timeout_s, self._expire)

    def lost(self) -> None:
        """The client has reset the stream, or is gone."""
        self._trailers = None
        self._drop_unsent()
        if not self.is_over:
            handler = self.handler
            self._end()
            handler.leave()
        self._connection.forget(self)

    def abort(self, status: int, text: str) -> None:
        """End a call that its handler has not ended."""
        if not self.is_over:
            handler = self.handler
            self._drop_unsent()
            self.finish(status, text)
            handler.leave()

    def check(self, now_s: float) -> None:
        """End it where its client gets on with nothing, once it has begun to.

        That is to read what is left of a call that is over, or to send a message: what is held for
        either is lost to others.
        """
        left_bytes = self.unsent_bytes if self.is_over else self.inbox.left_bytes
        if left_bytes != self._left_bytes:
            self._left_bytes, self._since_s = left_bytes, now_s
        if left_bytes and now_s - self._since_s > STUCK_TIMEOUT_S:
            if self.is_over:
                self._connection.reset(self.stream, Code.CANCEL)
                self.lost()
            else:
                text = f"nothing more of a message has come for {STUCK_TIMEOUT_S:g} s"
                self.abort(DEADLINE_EXCEEDED, text)

    def pump(self) -> None:
        """Send what waits, as far as the client takes it."""
        connection = self._connection
        while self._unsent and not connection.is_paused:
            most = min(self.send_window, connection.send_window, connection.max_frame_bytes)
            if most <= 0:
                break
            self._send_frame(most)
        if self._is_high and self.unsent_bytes < HIGH_BYTES:
            self._is_high = False
            if not self.is_over:
                self.handler.drained()
        if self._trailers is not None and not self._unsent:
            trailers, self._trailers = self._trailers, None
            connection.write(trailers)
            if not self.inbox.has_ended:  # it need send no more
                connection.write(frame(Kind.RST_STREAM, 0, self.stream, U32.pack(Code.NO_ERROR)))
            connection.forget(self)

    # -- its own -----------------------------------------------------------------------------------

    def _send_head(self) -> None:
        self._is_head_sent = True
        self._connection.write(header_frames(0, self.stream, REPLY_HEAD))

    def _send_frame(self, most: int) -> None:
        """One DATA frame of what waits."""
        pieces, size = [], 0
        while self._unsent and size < most:
            piece = self._unsent[0]
            taken = piece[: most - size]
            if len(taken) == len(piece):
                self._unsent.popleft()
            else:
                self._unsent[0] = piece[len(taken) :]
            pieces.append(taken)
            size += len(taken)
        connection = self._connection
        self.unsent_bytes -= size
        self.send_window -= size
        connection.send_window -= size
        connection.write(HEAD.pack(size >> 8, size & 0xFF, DATA, 0, self.stream))
        for piece in pieces:
            connection.write(piece)

    def _drop_unsent(self) -> None:
        self._unsent.clear()
        self.unsent_bytes = 0

    def _end(self) -> None:
        self.is_over = True
        self.handler = NOBODY
        if self._timer is not None:
            self._timer.cancel()
        self.inbox.clear()

    def _expire(self) -> None:
        self.abort(DEADLINE_EXCEEDED, "Deadline Exceeded")


def _percent_encoded(text: str) -> bytes:
    return urllib.parse.quote(text, PRINTABLE, errors="replace").encode()
