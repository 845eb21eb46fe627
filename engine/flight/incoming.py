"""The messages of a stream that comes in: ``FlightData`` to schema and record batches.

Rules that hold here:
- The sizes that a message declares are checked before pyarrow reads a byte of it (``ipc_guard``).
- A large message is received where it stays: its batch's columns are views of it, and its body is
  put where numbers lie aligned. What Arrow wants to find before the body is written there, over
  what stood there.
- Any thread may call ``read_batch``; everything else is the event loop's.
Source of the numbers: ``Flight.proto`` of Apache Arrow; the Arrow columnar format, "Encapsulated
message format".
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

if TYPE_CHECKING:
    from typing import Final

    from engine.codecs.ipc_guard import IpcLimits

__all__ = ["FlightData", "Incoming", "OpenBatch"]

ALIGNMENT: Final = 64
HEADROOM: Final = 64  # before a large message, for what Arrow wants to find before the body
CONTINUATION: Final = b"\xff\xff\xff\xff"
BYTES_FIELD: Final = 2  # protobuf's wire types
FIXED_BYTES: Final = {0: 0, 1: 8, 5: 4}
MAX_VARINT_BYTES: Final = 10
DESCRIPTOR: Final = 1
DATA_HEADER: Final = 2
DATA_BODY: Final = 1000


@dataclasses.dataclass(slots=True)
class FlightData:
    """Where the fields of a message lie.

    Attributes:
        descriptor: serialized; None where it has none.
        header: metadata of an IPC message; empty where it carries none.
        body: first byte of the IPC message's body, and the one after its last.
        before: all bytes before the body.
    """

    descriptor: bytes | None = None
    header: bytes = b""
    body: tuple[int, int] = (0, 0)
    before: bytes = b""


@dataclasses.dataclass(frozen=True, slots=True)
class OpenBatch:
    """A message that holds a batch, by what it declares.

    Attributes:
        data: its fields.
        content: an IPC message whose body is at its end.
        rows: how many it declares.
    """

    data: FlightData
    content: memoryview
    rows: int


class Incoming:
    """Reads the messages of one stream.

    Attributes:
        descriptor: serialized; None before it has come.
    """

    def __init__(self, limits: IpcLimits) -> None:
        """Expect a schema; ``limits`` say what a batch may declare."""
        self.descriptor: bytes | None = None
        self._limits = limits
        self._schema: pa.Schema | None = None
        self._placed: deque[int] = deque()  # where large messages begin in their memory

    def place(self, size_bytes: int, first: memoryview) -> memoryview:
        """Memory for a large message, in which its body will be aligned.

        Args:
            size_bytes: of the message.
            first: its first bytes; where they do not reach to the body, it falls where it falls.

        Returns:
            Exactly so many bytes; they belong to the message.
        """
        body_at = _body_start(first)
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
        data = _read_fields(message)
        if data.descriptor is not None:
            self.descriptor = data.descriptor
        if not data.header:
            return None
        content = self._encapsulated(message, data, start)
        check_stream(content, self._limits)
        try:
            self._schema = pa.ipc.read_schema(pa.py_buffer(content))
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise _unreadable(error) from None
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
        data = _read_fields(message)
        if not data.header:
            return None
        content = self._encapsulated(message, data, start)
        return OpenBatch(data, content, check_stream(content, self._limits))

    def read_batch(self, opened: OpenBatch) -> pa.RecordBatch:
        """The batch, not validated; its columns are views of the message. Any thread.

        Raises:
            DecodeError: it is no record batch of the stream's schema.
        """
        try:
            return pa.ipc.read_record_batch(pa.py_buffer(opened.content), self._schema)
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


def _read_fields(message: bytes | memoryview) -> FlightData:
    """Find the fields of a ``FlightData``.

    Raises:
        DecodeError: it is no protobuf message.
    """
    data, at, size = FlightData(), 0, len(message)
    while at < size:
        number, kind, begin, end = _field(message, at)
        if end > size:
            raise DecodeError("a message of the stream is cut short")
        if kind == BYTES_FIELD:
            if number == DATA_HEADER:
                data.header = bytes(message[begin:end])
            elif number == DATA_BODY:
                data.body, data.before = (begin, end), bytes(message[:begin])
            elif number == DESCRIPTOR:
                data.descriptor = bytes(message[begin:end])
        at = end
    return data


def _body_start(first: memoryview) -> int:
    """Where the body of a message begins whose first bytes are here; 0 where they do not say."""
    at = 0
    try:
        while at < len(first):
            number, _, begin, at = _field(first, at)
            if number == DATA_BODY:
                return begin
    except DecodeError:
        pass  # whatever it is, reading the whole message will tell
    return 0


def _field(message: bytes | memoryview, at: int) -> tuple[int, int, int, int]:
    """Number and wire type of a field, and where its content begins and ends."""
    tag, at = _varint(message, at)
    number, kind = tag >> 3, tag & 7
    if not number or (kind != BYTES_FIELD and kind not in FIXED_BYTES):
        raise DecodeError("a message of the stream is not protobuf")
    if kind == BYTES_FIELD:
        size, at = _varint(message, at)
        return number, kind, at, at + size
    return number, kind, at, at + FIXED_BYTES[kind] if kind else _varint(message, at)[1]


def _varint(message: bytes | memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    for index in range(at, min(at + MAX_VARINT_BYTES, len(message))):
        byte = message[index]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, index + 1
        shift += 7
    raise DecodeError("a message of the stream is not protobuf")


def _unreadable(error: Exception) -> DecodeError:
    return DecodeError(f"the stream cannot be read as Arrow data: {first_line(error)}")
