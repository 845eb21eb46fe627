"""Arrow IPC file and stream bytes to a Frame, and record batches to bytes.

Rules that hold here:
- ``ipc_guard`` has walked the bytes before pyarrow reads them.
- A Frame's columns are views into the request body, for uncompressed data of one batch.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pyarrow as pa

from engine.codecs.arrow_frame import DEFAULT_LIMITS, FrameReader, first_line
from engine.codecs.ipc_guard import check_stream, stream_part
from engine.errors import DecodeError, SchemaMismatchError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Final

    from engine.codecs.ipc_guard import IpcLimits
    from engine.values import Frame

__all__ = ["Readers", "read_arrow", "write_arrow_file", "write_arrow_stream"]

FIRST_LENGTHS: Final = struct.Struct("<ii")
CONTINUATION: Final = -1  # before the length of a message, since Arrow 0.15
MAX_READERS: Final = 64
MAX_SCHEMA_BYTES: Final = 16 << 10  # compared for each body and kept for each schema


class Readers:
    """What was found out about the schemas of bodies, by their bytes; any thread."""

    def __init__(self) -> None:
        """Know none yet."""
        self._known: dict[bytes, FrameReader] = {}

    def reader(self, stream: memoryview, source: pa.RecordBatchReader) -> FrameReader:
        """A reader of the batches of a stream; see ``FrameReader`` for what it refuses.

        Args:
            stream: the whole stream, in which the schema is the first message.
            source: reads it.
        """
        length, begin = FIRST_LENGTHS.unpack_from(stream), 4
        if length[0] == CONTINUATION:
            length, begin = length[1:], 8
        if length[0] > MAX_SCHEMA_BYTES:
            return FrameReader(source.schema)
        schema = bytes(stream[: begin + length[0]])
        reader = self._known.get(schema)
        if reader is None:
            reader = FrameReader(source.schema)
            if len(self._known) >= MAX_READERS:
                self._known.clear()  # rather than tracking use on every request
            self._known[schema] = reader
        return reader


def read_arrow(
    body: bytes | bytearray | memoryview,
    limits: IpcLimits = DEFAULT_LIMITS,
    readers: Readers | None = None,
) -> Frame:
    """Read an Arrow IPC file or stream, plain or with LZ4 or ZSTD compressed buffers.

    Args:
        body: the whole request body; the Frame's columns are views into it.
        limits: what it may declare.
        readers: knows the schemas of bodies before it, read with the default limits.

    Returns:
        The rows, every value validated.

    Raises:
        DecodeError: it is not valid Arrow IPC data.
        SchemaMismatchError: a column has a type that requests cannot have.
        PayloadTooLargeError: it is, or would decode to, more than the limits.
    """
    stream = stream_part(memoryview(body))
    check_stream(stream, limits)
    try:
        with pa.ipc.open_stream(pa.py_buffer(stream)) as source:
            if readers is None:
                reader = FrameReader(source.schema, limits)
            else:
                reader = readers.reader(stream, source)
            batches = list(source)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DecodeError(f"the Arrow data cannot be read: {first_line(error)}") from error
    for batch in batches:
        reader.validate(batch)
    return reader.join(batches)


def write_arrow_file(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> pa.Buffer:
    """Write an uncompressed Arrow IPC file; the buffer belongs to the caller."""
    return _write(pa.ipc.new_file, schema, batches)


def write_arrow_stream(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> pa.Buffer:
    """Write an uncompressed Arrow IPC stream; the buffer belongs to the caller."""
    return _write(pa.ipc.new_stream, schema, batches)


def _write(
    open_writer: Callable[[pa.BufferOutputStream, pa.Schema], pa.ipc.RecordBatchStreamWriter],
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    try:
        with open_writer(sink, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
    except pa.ArrowInvalid as error:  # values of a JSON request, nested deeper than the format goes
        raise SchemaMismatchError(
            f"the reply cannot be written as Arrow ({first_line(error)}): ask for JSON"
        ) from error
    return sink.getvalue()
