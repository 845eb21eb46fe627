"""The DATA frames of a connection: bytes of messages, to the calls that they belong to.

Rules that hold here:
- Everything runs on the event loop.
- A frame need not be here whole: what has come of it is passed on.
Source: RFC 9113, 6.1 and 6.9.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.http2.frames import END_STREAM, PADDED, Code, ConnectionFault, window_update

if TYPE_CHECKING:
    from typing import Final

    from engine.http2.call import Call
    from engine.http2.connection import Connection

__all__ = ["DataFrames"]

DIRECT_BYTES: Final = 64 << 10  # still to come of a frame, that are worth a read of their own
REOPEN_BYTES: Final = 1 << 30  # received on the connection before its window is opened again


class DataFrames:
    """The one DATA frame that a connection can be in the middle of."""

    def __init__(self, connection: Connection) -> None:
        """Expect a frame."""
        self._connection = connection
        self._received_bytes = 0  # since the connection's window was opened
        self._left = 0
        self._pad = 0
        self._flags = 0
        self._call: Call | None = None  # whose it is; None where nobody wants it

    @property
    def is_open(self) -> bool:
        """Whether a frame is not here whole."""
        return bool(self._left or self._pad)

    def begin(self, size: int, flags: int, stream: int, data: memoryview) -> int | None:
        """Begin a frame.

        Args:
            size: what its head says.
            flags: what its head says.
            stream: whose it is.
            data: what has come after its head, and maybe after it.

        Returns:
            How many bytes were used; None where more must come first.

        Raises:
            ConnectionFault: it breaks the rules of the connection.
        """
        connection = self._connection
        call = connection.calls.get(stream)
        if connection.control.is_block_open:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "a header block was interrupted")
        if call is None and (not stream & 1 or stream > connection.control.last_stream):
            raise ConnectionFault(Code.PROTOCOL_ERROR, "data of a call that was not begun")
        if call is not None and (call.is_over or call.inbox.has_ended):
            call = None  # what was on its way when it ended
        if not flags and call is not None and size <= len(data):
            self._count(size)
            call.inbox.feed(data[:size])  # nearly always: here whole, and nothing else
            return size
        used = pad = 0
        if flags & PADDED:
            if size and not len(data):
                return None
            used, pad = 1, data[0] if size else 0
            if pad >= size:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "a frame is all padding")
        self._count(size)
        self._call, self._flags = call, flags
        self._left, self._pad = size - used - pad, pad
        if used + pad and call is not None:
            call.inbox.pad(used + pad)
        self._end_if_whole()
        return used

    def take(self, data: memoryview) -> int:
        """Take what has come of the frame; how many bytes of it that is."""
        taken = data[: self._left]
        size, call = len(taken), self._call
        if call is not None and call.is_over:
            call = self._call = None  # it has ended meanwhile
        if size:
            self._left -= size
            if call is not None:
                call.inbox.feed(taken)
        skipped = 0
        if not self._left:
            skipped = min(self._pad, len(data) - size)
            self._pad -= skipped
        self._end_if_whole()
        return size + skipped

    def target(self) -> memoryview | None:
        """Where the next bytes are to be received, if that is worth it."""
        if self._left < DIRECT_BYTES or self._call is None:
            return None
        return self._call.inbox.target(self._left)

    def filled(self, size: int) -> None:
        """Bytes have come to where ``target`` wanted them."""
        self._left -= size
        if self._call is not None:
            self._call.inbox.filled(size)
        self._end_if_whole()

    def _count(self, size: int) -> None:
        self._received_bytes += size
        if self._received_bytes >= REOPEN_BYTES:
            self._connection.write(window_update(0, self._received_bytes))
            self._received_bytes = 0

    def _end_if_whole(self) -> None:
        if self._left or self._pad:
            return
        call, self._call = self._call, None
        if call is not None and self._flags & END_STREAM:
            call.inbox.end()
