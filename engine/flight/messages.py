"""The messages that go out, as the pieces of their bytes: ``FlightData`` and the few small ones.

Rules that hold here:
- What holds the numbers of a batch is a piece of its own and is not copied; what stands before it
  is one piece.
- A batch has a body also where it is empty: Arrow's readers ask for one.
Source of the numbers: ``Flight.proto`` of Apache Arrow; a ``FlightData`` has the metadata of an
IPC message without the eight bytes before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final

    import pyarrow as pa

    Piece = bytes | memoryview

__all__ = ["batch_pieces", "data_pieces", "field", "schema_pieces"]

DATA_HEADER: Final = b"\x12"  # field 2
APP_METADATA: Final = b"\x1a"  # field 3
DATA_BODY: Final = b"\xc2\x3e"  # field 1000
PREFIX_BYTES: Final = 8  # of an IPC message, before its metadata


def batch_pieces(batch: pa.RecordBatch, app_metadata: bytes) -> tuple[Piece, ...]:
    """A ``FlightData`` with a record batch.

    Args:
        batch: of the schema that was sent before.
        app_metadata: what is told with it.

    Returns:
        Its pieces, in order; the numbers are copied once, out of the batch.
    """
    header, body = _message(batch.serialize())
    return data_pieces(header, app_metadata, body)


def schema_pieces(schema: pa.Schema) -> tuple[Piece, ...]:
    """A ``FlightData`` with a schema: the first message of a stream."""
    header, _ = _message(schema.serialize())
    return data_pieces(header, b"")


def data_pieces(header: Piece, app_metadata: bytes, *body: Piece) -> tuple[Piece, ...]:
    """A ``FlightData`` of parts that are made already.

    Args:
        header: metadata of an IPC message.
        app_metadata: what is told with it.
        body: of the IPC message, in order; none where it has no body.

    Returns:
        Its pieces, in order: what stands before the body, and ``body``.
    """
    pieces = [DATA_HEADER, _varint(len(header)), header]
    if app_metadata:
        pieces += (APP_METADATA, _varint(len(app_metadata)), app_metadata)
    if body:
        pieces += (DATA_BODY, _varint(sum([len(piece) for piece in body])))
    return (b"".join(pieces), *body)


def field(number: int, content: Piece) -> bytes:
    """A field of bytes or text of a protobuf message.

    Args:
        number: of the field, below 16.
        content: what it holds.
    """
    return b"".join((bytes((number << 3 | 2,)), _varint(len(content)), content))


def _message(encapsulated: pa.Buffer) -> tuple[memoryview, memoryview]:
    """Metadata and body of an IPC message."""
    content = memoryview(encapsulated)
    end = PREFIX_BYTES + int.from_bytes(content[4:PREFIX_BYTES], "little")
    return content[PREFIX_BYTES:end], content[end:]


def _varint(number: int) -> bytes:
    if number < 0x80:
        return bytes((number,))
    if number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
