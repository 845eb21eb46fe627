"""Reads the sizes that Arrow IPC bytes declare, before anything is decompressed or allocated.

A compressed buffer of 8 KB can stand for 256 MiB, and a null column of 400 bytes for two billion
rows. This walk follows the encapsulated messages (a length, a flatbuffer, a body), adds up rows,
values and declared buffer sizes, and refuses what passes a limit. It costs some 10 microseconds for
a usual request and never reads a body, so that it is done before ``pyarrow`` sees a single byte.

Rules that hold here:
- Only offsets inside the message are followed; whatever leads outside is a DecodeError.
- The walk covers exactly the bytes that are decoded afterwards. That is why an IPC *file* is read
  as the stream that lies between its magics and its footer: the footer's block table could point
  at messages that the walk has not seen.
- A batch says in one place whether its buffers are compressed. Arrow 0.17 said so in the message's
  custom metadata, which the library still reads: such a message is refused.
Source of the layout: the Arrow columnar format, "Encapsulated message format" and Message.fbs.
"""

from __future__ import annotations

import dataclasses
import struct
from typing import TYPE_CHECKING

from engine.errors import DecodeError, PayloadTooLargeError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final, TypeAlias

    _Sums: TypeAlias = tuple[int, int, int]

__all__ = ["IpcLimits", "check_stream", "check_sums", "is_compressed", "stream_part"]

MAGIC: Final = b"ARROW1"
CONTINUATION: Final = -1
SCHEMA: Final = 1
DICTIONARY_BATCH: Final = 2
RECORD_BATCH: Final = 3
VERSION_5: Final = 4  # of the metadata, since Arrow 1.0; the enumeration begins with 0 for V1
UNCOMPRESSED: Final = -1  # a length prefix that says: this buffer was left as it is

_I32 = struct.Struct("<i")
_U32 = struct.Struct("<I")
_U16 = struct.Struct("<H")
_I64 = struct.Struct("<q")
_PAIR = struct.Struct("<qq")


@dataclasses.dataclass(frozen=True, slots=True)
class IpcLimits:
    """How much one request may declare.

    Attributes:
        rows: rows in all its record batches.
        decoded_bytes: bytes of all buffers after decompression.
        values: values at all levels of all columns, lists included: an eighth of a byte can be one,
            and in JSON each takes several. As many as the largest body has bytes.
        lists: lists inside the lists of a column whose lists are not all of one shape.
        columns: top-level columns.
        messages: schema, dictionary and record batch messages.
        metadata_bytes: one message's flatbuffer; 1,024 columns need some 200 KB.
    """

    rows: int = 1 << 20
    decoded_bytes: int = 512 << 20
    values: int = 256 << 20
    lists: int = 4 << 20
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


def check_stream(stream: memoryview, limits: IpcLimits) -> tuple[int, int]:
    """Walk every message of an IPC stream and refuse what declares too much.

    Args:
        stream: the bytes that will be decoded; nothing is copied.
        limits: what the request may declare.

    Returns:
        How many rows it declares, and how many bytes its buffers take once they are decoded.

    Raises:
        DecodeError: the messages are malformed.
        PayloadTooLargeError: rows, values or decoded bytes pass their limit.
    """
    try:
        return _walk(stream, limits)
    except (struct.error, IndexError) as error:
        raise DecodeError("the Arrow data is malformed: a message points outside itself") from error


def is_compressed(metadata: memoryview) -> bool:
    """Whether the buffers of a record batch that ``check_stream`` has let through are compressed.

    Args:
        metadata: of its IPC message.
    """
    root = _U32.unpack_from(metadata, 0)[0]
    batch = _target(metadata, _field(metadata, root, 2))
    return bool(_field(metadata, batch, 3))


def _walk(stream: memoryview, limits: IpcLimits) -> tuple[int, int]:
    position = messages = rows = values = decoded_bytes = 0
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
        declared, body_bytes = _message(metadata, stream, position)
        position += body_bytes
        rows += declared[0]
        values += declared[1]
        decoded_bytes += declared[2]
        check_sums(rows, values, decoded_bytes, limits)
    if not messages:
        raise DecodeError("the Arrow data holds no message")
    return rows, decoded_bytes


def check_sums(rows: int, values: int, decoded_bytes: int, limits: IpcLimits) -> None:
    """Refuse what is more than the limits.

    Raises:
        PayloadTooLargeError: which of them, and what to do.
    """
    advice = "send several requests"
    if rows > limits.rows:
        raise PayloadTooLargeError(f"more than {limits.rows} rows: {advice}")
    if values > limits.values:
        raise PayloadTooLargeError(f"more than {limits.values} values: {advice}")
    if decoded_bytes > limits.decoded_bytes:
        raise PayloadTooLargeError(
            f"the Arrow data would decode to more than {limits.decoded_bytes} bytes: {advice}"
        )


def _message(metadata: memoryview, stream: memoryview, body_at: int) -> tuple[_Sums, int]:
    """Rows, values and decoded bytes that one message declares, and the length of its body."""
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
        return (0, 0, 0), body_bytes
    version_at = _field(metadata, root, 0)
    version = _U16.unpack_from(metadata, version_at)[0] if version_at else 0
    if version < VERSION_5 and _field(metadata, root, 4):
        raise DecodeError(
            "a message of the Arrow data is of an old version and has custom metadata, which is "
            "not read: write it with Arrow 1.0 or newer"
        )
    batch = _target(metadata, _field(metadata, root, 2))
    if kind == DICTIONARY_BATCH:
        batch = _target(metadata, _field(metadata, batch, 1))
    rows_at = _field(metadata, batch, 0)
    rows = _I64.unpack_from(metadata, rows_at)[0] if rows_at else 0
    if rows < 0:
        raise DecodeError("the Arrow data is malformed: a batch of fewer than no rows")
    body = stream[body_at : body_at + body_bytes]
    values = 0
    for length, _nulls in _pairs(metadata, batch, 1):
        values += max(length, 0)
    return (rows, values, _decoded_bytes(metadata, batch, body)), body_bytes


def _decoded_bytes(metadata: memoryview, batch: int, body: memoryview) -> int:
    """Sum of a batch's buffers as they will be in memory."""
    compressed = bool(_field(metadata, batch, 3))
    total = 0
    for offset, length in _pairs(metadata, batch, 2):
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


def _pairs(metadata: memoryview, batch: int, index: int) -> Iterator[tuple[int, int]]:
    """A batch's vector of structs of two int64: its nodes, or its buffers."""
    vector_at = _field(metadata, batch, index)
    if not vector_at:
        return iter(())
    vector = _target(metadata, vector_at)
    count = _U32.unpack_from(metadata, vector)[0]
    if count * _PAIR.size > metadata.nbytes - vector - 4:
        raise DecodeError("the Arrow data is malformed: a batch lists more than it holds")
    return _PAIR.iter_unpack(metadata[vector + 4 : vector + 4 + _PAIR.size * count])


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
