"""Reads the sizes that Arrow IPC bytes declare, before anything is decompressed or allocated.

A compressed buffer of 8 KB can stand for 256 MiB, and a null column of 400 bytes for two billion
rows. This walk follows the encapsulated messages (a length, a flatbuffer, a body), adds up rows and
declared buffer sizes, and refuses what passes a limit. It costs some 10 microseconds for a usual
request and never reads a body, so that it is done before ``pyarrow`` sees a single byte.

Rules that hold here:
- Only offsets inside the message are followed; whatever leads outside is a DecodeError.
- The walk covers exactly the bytes that are decoded afterwards. That is why an IPC *file* is read
  as the stream that lies between its magics and its footer: the footer's block table could point
  at messages that the walk has not seen.
Source of the layout: the Arrow columnar format, "Encapsulated message format" and Message.fbs.
"""

from __future__ import annotations

import dataclasses
import struct
from typing import TYPE_CHECKING

from engine.errors import DecodeError, PayloadTooLargeError

if TYPE_CHECKING:
    from typing import Final

__all__ = ["IpcLimits", "check_stream", "stream_part"]

MAGIC: Final = b"ARROW1"
CONTINUATION: Final = -1
SCHEMA: Final = 1
DICTIONARY_BATCH: Final = 2
RECORD_BATCH: Final = 3
UNCOMPRESSED: Final = -1  # a length prefix that says: this buffer was left as it is

_I32 = struct.Struct("<i")
_U32 = struct.Struct("<I")
_U16 = struct.Struct("<H")
_I64 = struct.Struct("<q")
_BUFFER = struct.Struct("<qq")


@dataclasses.dataclass(frozen=True, slots=True)
class IpcLimits:
    """How much one request may declare.

    Attributes:
        rows: rows in all its record batches.
        decoded_bytes: bytes of all buffers after decompression.
        columns: top-level columns.
        messages: schema, dictionary and record batch messages.
        metadata_bytes: one message's flatbuffer; 1,024 columns need some 200 KB.
    """

    rows: int = 1 << 20
    decoded_bytes: int = 512 << 20
    columns: int = 1024
    messages: int = 10_000
    metadata_bytes: int = 4 << 20


def stream_part(body: memoryview) -> memoryview:
    """The stream inside an IPC file, or the body itself where it is a stream.

    Args:
        body: a whole request body.

    Returns:
        A view of ``body``.

    Raises:
        DecodeError: it begins like a file but has no footer, or is too short to be either.
    """
    if body.nbytes < 8:
        raise DecodeError(f"the body has {body.nbytes} bytes: that is no Arrow IPC file or stream")
    if bytes(body[:6]) != MAGIC:
        return body
    if body.nbytes < 18 or bytes(body[-6:]) != MAGIC:
        raise DecodeError(
            "the Arrow file does not end with its footer: it was cut short, or sent with --data "
            "(which drops line ends) where --data-binary was needed"
        )
    footer_bytes = _I32.unpack_from(body, body.nbytes - 10)[0]
    end = body.nbytes - 10 - footer_bytes
    if footer_bytes <= 0 or end < 8:
        raise DecodeError("the Arrow file's footer length does not fit the file")
    return body[8:end]


def check_stream(stream: memoryview, limits: IpcLimits) -> None:
    """Walk every message of an IPC stream and refuse what declares too much.

    Args:
        stream: the bytes that will be decoded; nothing is copied.
        limits: what the request may declare.

    Raises:
        DecodeError: the messages are malformed.
        PayloadTooLargeError: rows or decoded bytes pass their limit.
    """
    try:
        _walk(stream, limits)
    except (struct.error, IndexError) as error:
        raise DecodeError("the Arrow data is malformed: a message points outside itself") from error


def _walk(stream: memoryview, limits: IpcLimits) -> None:
    position = messages = rows = decoded_bytes = 0
    while position + 4 <= stream.nbytes:
        length = _I32.unpack_from(stream, position)[0]
        position += 4
        if length == CONTINUATION:
            length = _I32.unpack_from(stream, position)[0]
            position += 4
        if length == 0:
            break
        if not 0 < length <= stream.nbytes - position:
            raise DecodeError(f"the Arrow data is malformed: message {messages} is cut short")
        if length > limits.metadata_bytes:
            raise PayloadTooLargeError(
                f"an Arrow message has {length} bytes of metadata, at most "
                f"{limits.metadata_bytes} are read: send fewer columns"
            )
        messages += 1
        if messages > limits.messages:
            raise PayloadTooLargeError(f"more than {limits.messages} Arrow messages: merge batches")
        metadata = stream[position : position + length]
        position += length
        batch_rows, batch_bytes, body_bytes = _message(metadata, stream, position)
        position += body_bytes
        rows += batch_rows
        decoded_bytes += batch_bytes
        if rows > limits.rows:
            raise PayloadTooLargeError(f"more than {limits.rows} rows: send several requests")
        if decoded_bytes > limits.decoded_bytes:
            raise PayloadTooLargeError(
                f"the Arrow data would decode to more than {limits.decoded_bytes} bytes: "
                "send several requests"
            )
    if not messages:
        raise DecodeError("the Arrow data holds no message")


def _message(metadata: memoryview, stream: memoryview, body_at: int) -> tuple[int, int, int]:
    """Rows, decoded bytes and body length that one message declares."""
    root = _U32.unpack_from(metadata, 0)[0]
    type_at = _field(metadata, root, 1)
    kind = metadata[type_at] if type_at else 0
    length_at = _field(metadata, root, 3)
    body_bytes = _I64.unpack_from(metadata, length_at)[0] if length_at else 0
    if not 0 <= body_bytes <= stream.nbytes - body_at:
        raise DecodeError("the Arrow data is malformed: a message body is cut short")
    if kind not in {SCHEMA, DICTIONARY_BATCH, RECORD_BATCH}:
        raise DecodeError(f"the Arrow data is malformed: unknown message type {kind}")
    if kind == SCHEMA:
        return 0, 0, body_bytes
    batch = _target(metadata, _field(metadata, root, 2))
    if kind == DICTIONARY_BATCH:
        batch = _target(metadata, _field(metadata, batch, 1))
    rows_at = _field(metadata, batch, 0)
    rows = _I64.unpack_from(metadata, rows_at)[0] if rows_at else 0
    if rows < 0:
        raise DecodeError("the Arrow data is malformed: a batch of fewer than no rows")
    body = stream[body_at : body_at + body_bytes]
    return rows, _decoded_bytes(metadata, batch, body), body_bytes


def _decoded_bytes(metadata: memoryview, batch: int, body: memoryview) -> int:
    """Sum of a batch's buffers as they will be in memory."""
    buffers_at = _field(metadata, batch, 2)
    if not buffers_at:
        return 0
    vector = _target(metadata, buffers_at)
    count = _U32.unpack_from(metadata, vector)[0]
    if count * _BUFFER.size > metadata.nbytes - vector - 4:
        raise DecodeError("the Arrow data is malformed: a batch lists buffers outside itself")
    compressed = bool(_field(metadata, batch, 3))
    total = 0
    for offset, length in _BUFFER.iter_unpack(metadata[vector + 4 : vector + 4 + 16 * count]):
        if offset < 0 or length < 0 or offset + length > body.nbytes:
            raise DecodeError("the Arrow data is malformed: a buffer lies outside its message")
        if compressed and length >= 8:
            size = _I64.unpack_from(body, offset)[0]
            if size < UNCOMPRESSED:
                raise DecodeError("the Arrow data is malformed: a buffer of negative size")
            total += length - 8 if size == UNCOMPRESSED else size
        else:
            total += length
    return total


def _field(table: memoryview, position: int, index: int) -> int:
    """Where a flatbuffer table's field lies; 0 where the table does not have it."""
    vtable = position - _I32.unpack_from(table, position)[0]
    if vtable < 0:
        raise DecodeError("the Arrow data is malformed: a table points outside its message")
    slot = 4 + 2 * index
    if slot + 2 > _U16.unpack_from(table, vtable)[0]:
        return 0
    offset = _U16.unpack_from(table, vtable + slot)[0]
    return position + offset if offset else 0


def _target(table: memoryview, position: int) -> int:
    """Follow an offset field; an absent field leads to the start, where no table can be."""
    return position + int(_U32.unpack_from(table, position)[0])
