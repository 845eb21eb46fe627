"""The fields of protobuf messages that come in: found by hand, and not copied unless wanted.

Rules that hold here:
- A message has few fields, and what describes its content is small: whatever is not so is refused
  before it costs anything. The event loop reads them.
Source of the numbers: ``Flight.proto`` of Apache Arrow; the protobuf encoding.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from engine.errors import DecodeError, PayloadTooLargeError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

__all__ = ["FlightData", "body_start", "read_fields", "read_flight_data"]

BYTES_FIELD: Final = 2  # protobuf's wire types
FIXED_BYTES: Final = {0: 0, 1: 8, 5: 4}
MAX_VARINT_BYTES: Final = 10
MAX_FIELDS: Final = 64  # a ``FlightData`` has four
MAX_HEADER_BYTES: Final = 8 << 20  # more than ``ipc_guard`` takes, which says it better
MAX_DESCRIPTOR_BYTES: Final = 128 << 10
MAX_BEFORE_BYTES: Final = 16 << 10
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
        before: all bytes before the body; empty where they are many.
    """

    descriptor: bytes | None = None
    header: bytes = b""
    body: tuple[int, int] = (0, 0)
    before: bytes = b""


def read_flight_data(message: bytes | memoryview) -> FlightData:
    """Find the fields of a ``FlightData``; of several with one number, the last counts.

    Raises:
        DecodeError: it is no protobuf message.
        PayloadTooLargeError: what describes its content is too large to be read.
    """
    data, size = FlightData(), len(message)
    for fields, (number, kind, begin, end) in enumerate(read_fields(message)):
        if end > size:
            raise DecodeError("a message of the stream is cut short")
        if fields >= MAX_FIELDS:
            raise DecodeError("a message of the stream has more fields than a FlightData")
        if kind != BYTES_FIELD:
            continue
        if number == DATA_BODY:
            data.body = begin, end
        elif number == DATA_HEADER:
            _check_size("header", end - begin, MAX_HEADER_BYTES)
            data.header = bytes(message[begin:end])
        elif number == DESCRIPTOR:
            _check_size("descriptor", end - begin, MAX_DESCRIPTOR_BYTES)
            data.descriptor = bytes(message[begin:end])
    begin = data.body[0]
    if begin <= MAX_BEFORE_BYTES:
        data.before = bytes(message[:begin])
    return data


def body_start(first: memoryview) -> int:
    """Where the body of a message begins whose first bytes are here; 0 where they do not say."""
    try:
        for fields, (number, _, begin, _) in enumerate(read_fields(first)):
            if number == DATA_BODY:
                return begin
            if fields >= MAX_FIELDS:
                break
    except DecodeError:
        pass  # whatever it is, reading the whole message will tell
    return 0


def read_fields(message: bytes | memoryview) -> Iterator[tuple[int, int, int, int]]:
    """The fields of a message, as far as it reaches.

    Yields:
        Number and wire type of a field, and where its content begins and ends.

    Raises:
        DecodeError: it is not protobuf.
    """
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if not number or (kind != BYTES_FIELD and kind not in FIXED_BYTES):
            raise DecodeError("a message is not protobuf")
        if kind == BYTES_FIELD:
            size, at = _varint(message, at)
            end = at + size
        else:
            end = at + FIXED_BYTES[kind] if kind else _varint(message, at)[1]
        yield number, kind, at, end
        at = end


def _check_size(what: str, size_bytes: int, most_bytes: int) -> None:
    if size_bytes > most_bytes:
        raise PayloadTooLargeError(
            f"a message of the stream has a {what} of {size_bytes} bytes: at most {most_bytes} "
            "are read"
        )


def _varint(message: bytes | memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    for index in range(at, min(at + MAX_VARINT_BYTES, len(message))):
        byte = message[index]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, index + 1
        shift += 7
    raise DecodeError("a message is not protobuf")
