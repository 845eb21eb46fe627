"""The messages of a stream that comes in: ``FlightData`` to schema and record batches.

Rules that hold here:
- The sizes that a message declares are checked before pyarrow reads a byte of it (``ipc_guard``).
- A large message is received where it stays: its batch's columns are views of it, and its body is
  put where numbers lie aligned. What Arrow wants to find before the body is written there, over
  what stood there.
- Any thread may call ``read_batch``; everything else is the event loop's.
Source of the layout: the Arrow columnar format, "Encapsulated message format".
"""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from engine.codecs.arrow_frame import first_line
from engine.codecs.ipc_guard import check_stream
from engine.errors import DecodeError
from engine.flight.fields import body_start, read_flight_data

if TYPE_CHECKING:
    from typing import Final

    from engine.codecs.ipc_guard import IpcLimits
    from engine.flight.fields import FlightData

__all__ = ["Incoming", "OpenBatch"]

ALIGNMENT: Final = 64
HEADROOM: Final = 64  # before a large message, for what Arrow wants to find before the body
MAX_METADATA_BYTES: Final = 1 << 20  # five times what 1,024 columns need: read in 50 ms at most
CONTINUATION: Final = b"\xff\xff\xff\xff"


@dataclasses.dataclass(frozen=True, slots=True)
class OpenBatch:
    """A message that holds a batch, by what it declares.

    Attributes:
        data: its fields.
        content: an IPC message whose body is at its end.
        rows: how many it declares.
        decoded_bytes: what its buffers will take in memory, by what it declares.
    """

    data: FlightData
    content: memoryview
    rows: int
    decoded_bytes: int


class Incoming:
    """Reads the messages of one stream.

    Attributes:
        descriptor: serialized; None before it has come.
    """

    def __init__(self, limits: IpcLimits) -> None:
        """Expect a schema; ``limits`` say what a batch may declare."""
        self.descriptor: bytes | None = None
        self._limits = dataclasses.replace(
            limits, messages=1, metadata_bytes=min(limits.metadata_bytes, MAX_METADATA_BYTES)
        )
        self._schema: pa.Schema | None = None
        self._foreign = b""  # the schema's message, where numbers have the other byte order
        self._placed: deque[int] = deque()  # where large messages begin in their memory

    def place(self, size_bytes: int, first: memoryview) -> memoryview:
        """Memory for a large message, in which its body will be aligned.

        Args:
            size_bytes: of the message.
            first: its first bytes; where they do not reach to the body, it falls where it falls.

        Returns:
            Exactly so many bytes; they belong to the message.
        """
        body_at = body_start(first)
        start = HEADROOM + -(HEADROOM + body_at) % ALIGNMENT
        memory = np.empty(start + size_bytes + ALIGNMENT, np.uint8)
        shift = -memory.ctypes.data % ALIGNMENT
        self._placed.append(start + shift)
        return memory.data[start + shift : start + shift + size_bytes]

    def read_schema(self, message: bytes | memoryview) -> pa.Schema | None:
        """Read a message before the first batch.

        Returns:
            The schema of the batches; None where the message holds none: clients may send the
            descriptor on its own.

        Raises:
            DecodeError: it is no schema.
        """
        start = self._start(message)
        data = read_flight_data(message)
        if data.descriptor is not None:
            self.descriptor = data.descriptor
        if not data.header:
            return None
        content = self._encapsulated(message, data, start)
        check_stream(content, self._limits)
        try:
            declared = pa.ipc.read_schema(pa.py_buffer(content))
            self._schema = pa.ipc.open_stream(pa.py_buffer(content)).schema
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise _unreadable(error) from None
        if not declared.equals(self._schema):  # the reader has turned it to this machine's order
            self._foreign = bytes(content)
        return self._schema

    def open_batch(self, message: bytes | memoryview) -> OpenBatch | None:
        """Look at what a message after the first declares, and nothing else.

        Returns:
            What can be read by ``read_batch``; None for a message that holds no batch.

        Raises:
            DecodeError: the message is malformed.
            PayloadTooLargeError: it declares more than the limits.
        """
        start = self._start(message)
        data = read_flight_data(message)
        if not data.header:
            return None
        content = self._encapsulated(message, data, start)
        return OpenBatch(data, content, *check_stream(content, self._limits))

    def read_batch(self, opened: OpenBatch) -> pa.RecordBatch:
        """The batch, not validated; its columns are views of the message. Any thread.

        Only the reader of a whole stream turns numbers of the other byte order around.

        Raises:
            DecodeError: it is no record batch of the stream's schema.
        """
        content, foreign = opened.content, self._foreign
        try:
            if foreign:
                stream = pa.py_buffer(foreign + bytes(content))
                return pa.ipc.open_stream(stream).read_next_batch()
            return pa.ipc.read_record_batch(pa.py_buffer(content), self._schema)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise _unreadable(error) from None

    def skip(self, message: bytes | memoryview) -> None:
        """Note that a message was taken some other way."""
        self._start(message)

    def _start(self, message: bytes | memoryview) -> int:
        """Where a large message begins in its memory; 0 for any other."""
        return self._placed.popleft() if isinstance(message, memoryview) else 0

    def _encapsulated(
        self, message: bytes | memoryview, data: FlightData, start: int
    ) -> memoryview:
        """An IPC message as it stands in a stream of its own."""
        header, (begin, end) = data.header, data.body
        head = b"%b%b%b%b" % (
            CONTINUATION,
            (len(header) + -len(header) % 8).to_bytes(4, "little"),
            header,
            bytes(-len(header) % 8),
        )
        body_at = start + begin
        if not isinstance(message, memoryview) or body_at < len(head):
            return memoryview(head + bytes(message[begin:end]))
        memory = memoryview(message.obj)  # numpy's, see ``place``
        memory[body_at - len(head) : body_at] = head
        return memory[body_at - len(head) : start + end]


def _unreadable(error: Exception) -> DecodeError:
    return DecodeError(f"the stream cannot be read as Arrow data: {first_line(error)}")
