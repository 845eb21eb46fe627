"""The messages of one call as they come: put together from the bytes of its stream.

Rules that hold here:
- Everything runs on the event loop.
- A client may send no more than is taken: its window is opened by what was, and for a large message
  by as much as that is announced to have. What is announced takes no memory here.
- A message that comes by itself and whole is offered where it was received, memory that is used
  again: nearly all are answered before that. Memory of its own costs a large one 30 us.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from engine.http2.frames import U32, Code, ConnectionFault, window_update

if TYPE_CHECKING:
    from typing import Final

    from engine.http2.call import Call
    from engine.http2.connection import Connection

__all__ = ["PREFIX_BYTES", "WINDOW_BYTES", "Inbox"]

WINDOW_BYTES: Final = 2 << 20  # that a client may send ahead, of a call: less makes it wait
LARGE_BYTES: Final = 64 << 10  # of a message; a larger one is placed by its handler
PREFIX_BYTES: Final = 5  # of a message: whether it is compressed, and its length
MAX_COMPRESSED_BYTES: Final = 16 << 20  # that a compressed message may have without compression
GZIP_BITS: Final = 32 + zlib.MAX_WBITS  # reads gzip's and zlib's framing alike

RESOURCE_EXHAUSTED: Final = 8
UNIMPLEMENTED: Final = 12
INTERNAL: Final = 13


class Inbox:
    """What a client sends in one call; its messages go to the call's handler.

    Attributes:
        has_ended: the client has sent its last byte.
    """

    def __init__(self, connection: Connection, call: Call) -> None:
        """Expect the first message of ``call``."""
        self.has_ended = False
        self._connection = connection
        self._call = call
        self._window = WINDOW_BYTES
        self._is_held = False
        self._is_end_told = False
        self._waiting = b""  # what came while it was held: bytes, since messages may be tiny
        self._waiting_at = 0  # what of it was taken
        self._coming = bytearray()  # after that
        self._is_gathering = False
        self._prefix = b""
        self._is_compressed = False
        self._left = 0  # bytes of the message that are still to come; 0 between messages
        self._small = bytearray()
        self._placed: memoryview | None = None  # where a large one stands
        self._filled = 0

    @property
    def left_bytes(self) -> int:
        """Of the message that has begun, what the client may send and has not."""
        return 0 if self._is_held or self._has_waiting() else self._left

    def feed(self, data: memoryview) -> None:
        """Take bytes of messages.

        Raises:
            ConnectionFault: more than the window.
        """
        self._count(len(data))
        size, message = len(data) - PREFIX_BYTES, data[PREFIX_BYTES:]
        is_one = (  # nearly always: a message, whole, and nothing else
            size > 0
            and not (self._left or self._prefix or self._is_held or self._waiting)
            and not self._coming
            and data[0] == 0
            and U32.unpack_from(data, 1)[0] == size
        )
        handler = self._call.handler
        if not (is_one and handler.take_at_once(message)):
            if is_one and size <= LARGE_BYTES:
                handler.take(bytes(message))
            else:
                self._take_in_turn(data)
        if self._window < WINDOW_BYTES // 2 or self._left > self._window:
            self._open_window()

    def target(self, most_bytes: int) -> memoryview | None:
        """Where the next bytes of a large message are to stand, at most so many."""
        placed = self._placed
        if placed is None or self._is_held or self._has_waiting():
            return None
        return placed[self._filled : self._filled + min(most_bytes, self._left)]

    def filled(self, size: int) -> None:
        """Bytes have come to where ``target`` wanted them.

        Raises:
            ConnectionFault: more than the window.
        """
        self._count(size)
        self._filled += size
        self._left -= size
        if not self._left:
            self._complete()
            if self._window < WINDOW_BYTES // 2:
                self._open_window()

    def pad(self, size: int) -> None:
        """Bytes have come that stand for nothing.

        Raises:
            ConnectionFault: more than the window.
        """
        self._count(size)
        self._open_window()

    def end(self) -> None:
        """The client has sent its last byte."""
        self.has_ended = True
        self._tell_end()

    def hold(self) -> None:
        """Deliver no messages for now; the client may fill its window."""
        self._is_held = True

    def go_on(self) -> None:
        """Deliver messages again, those first that have come meanwhile."""
        self._is_held = False
        if self._is_gathering:  # who takes a message goes on with the next by itself
            return
        while self._has_waiting() and not self._is_held and not self._call.is_over:
            if self._waiting_at == len(self._waiting):
                self._waiting, self._waiting_at = bytes(self._coming), 0
                self._coming = bytearray()
            left = self._gather_while_free(memoryview(self._waiting)[self._waiting_at :])
            self._waiting_at = len(self._waiting) - left
        if not self._has_waiting():
            self._waiting, self._waiting_at = b"", 0
        self._tell_end()
        self._open_window()

    def clear(self) -> None:
        """Nothing is wanted any more."""
        self._waiting, self._waiting_at, self._coming = b"", 0, bytearray()
        self._placed = None
        self._small = bytearray()

    def _has_waiting(self) -> bool:
        return self._waiting_at < len(self._waiting) or bool(self._coming)

    def _take_in_turn(self, data: memoryview) -> None:
        """Take bytes after those that wait."""
        left = len(data)
        if not self._is_held and not self._has_waiting():
            left = self._gather_while_free(data)
        if left and not self._call.is_over:
            self._coming += data[len(data) - left :]

    def _gather_while_free(self, data: memoryview) -> int:
        """Take bytes until they are used up, or the call is held or over; how many are left."""
        self._is_gathering = True
        while len(data) and not self._is_held and not self._call.is_over:
            data = self._gather(data)
        self._is_gathering = False
        return len(data)

    def _tell_end(self) -> None:
        is_due = self.has_ended and not (self._has_waiting() or self._is_held or self._is_end_told)
        if not is_due or self._call.is_over:
            return
        self._is_end_told = True
        if self._left or self._prefix:
            self._call.abort(INTERNAL, "the client ended the call in the middle of a message")
        else:
            self._call.handler.end()

    def _count(self, size: int) -> None:
        self._window -= size
        if self._window < 0:
            raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "more was sent than the window allows")

    def _open_window(self) -> None:
        """Let the client send on: the rest of its message, and a little ahead."""
        if self._is_held or self._has_waiting() or self._call.is_over or self.has_ended:
            return
        more = WINDOW_BYTES + self._left - self._window
        if more > 0:
            self._window += more
            self._connection.write(window_update(self._call.stream, more))

    def _gather(self, data: memoryview) -> memoryview:
        """Take bytes of one message; what is left of them."""
        if not self._left:
            missing = PREFIX_BYTES - len(self._prefix)
            self._prefix += bytes(data[:missing])
            if len(self._prefix) < PREFIX_BYTES:
                return data[:0]
            data = data[missing:]
            self._begin(data)
            if not self._left:  # it has none, or is refused
                return data
        taken = data[: self._left]
        if self._placed is not None:
            self._placed[self._filled : self._filled + len(taken)] = taken
        else:
            self._small += taken
        self._filled += len(taken)
        self._left -= len(taken)
        if not self._left:
            self._complete()
        return data[len(taken) :]

    def _begin(self, data: memoryview) -> None:
        """Read a message's prefix, and find room for what follows."""
        flag, size = self._prefix[0], U32.unpack_from(self._prefix, 1)[0]
        self._prefix = b""
        most = MAX_COMPRESSED_BYTES if flag else self._connection.max_message_bytes
        if flag > 1:
            self._call.abort(INTERNAL, "the call's messages are not those of gRPC")
        elif size > most:
            text = f"a message of {size} bytes: at most {most} are accepted"
            self._call.abort(RESOURCE_EXHAUSTED, text)
        elif size > LARGE_BYTES and not flag:
            self._placed = self._place(size, data[:size])
            self._left, self._filled = 0 if self._placed is None else size, 0
        else:
            self._left, self._is_compressed = size, bool(flag)
            if not size:
                self._complete()

    def _place(self, size: int, first: memoryview) -> memoryview | None:
        """Where a large message is to stand; None where the call was ended for it."""
        try:
            return self._call.handler.place(size, first)
        except MemoryError:
            text = f"there is no memory for a message of {size} bytes: send smaller ones"
            self._call.abort(RESOURCE_EXHAUSTED, text)
            return None

    def _complete(self) -> None:
        message: bytes | memoryview | None
        if self._placed is not None:
            message, self._placed = self._placed, None
        else:
            message, self._small = bytes(self._small), bytearray()
            if self._is_compressed:
                self._is_compressed = False
                message = self._decompress(message)
        handler = self._call.handler
        if message is not None and not handler.take_at_once(message):
            handler.take(message)

    def _decompress(self, content: bytes) -> bytes | None:
        """A compressed message as it was; None where the call was ended for it."""
        call = self._call
        if call.headers.get(b"grpc-encoding") not in {b"gzip", b"deflate"}:
            text = (
                "messages may be compressed with gzip or deflate, as the header grpc-encoding says"
            )
            call.abort(UNIMPLEMENTED, text)
            return None
        reader = zlib.decompressobj(GZIP_BITS)
        try:
            plain = reader.decompress(content, MAX_COMPRESSED_BYTES)
        except zlib.error:
            call.abort(INTERNAL, "a compressed message cannot be read")
            return None
        if not reader.eof:
            call.abort(
                RESOURCE_EXHAUSTED,
                f"a compressed message is cut short, or has more than {MAX_COMPRESSED_BYTES} "
                "bytes: send it as it is (Arrow data may be compressed inside, with LZ4 or ZSTD "
                "buffers)",
            )
            return None
        return plain
