"""Arrow IPC file and stream bytes to a Frame, and record batches to bytes.

Rules that hold here:
- ``ipc_guard`` has walked the bytes before pyarrow reads them, the schema is checked against the
  supported types before the first batch is read, and ``validate(full=True)`` has run before any
  value is looked at: unvalidated Arrow bytes can crash the process.
- A Frame's columns are views into the request body, for uncompressed data of one batch; several
  batches are joined once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
import pyarrow as pa

from engine.codecs.arrow_columns import is_list, list_values, uniform_rows
from engine.codecs.ipc_guard import IpcLimits, check_stream, stream_part
from engine.errors import DecodeError, PayloadTooLargeError, SchemaMismatchError
from engine.values import Frame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "check_schema",
    "frame_from_batches",
    "read_arrow",
    "row_shapes",
    "write_arrow_file",
    "write_arrow_stream",
]

DEFAULT_LIMITS = IpcLimits()
MAX_DEPTH = 32  # lists in lists, and declared axes: more than any tensor has


def read_arrow(body: bytes | bytearray | memoryview, limits: IpcLimits = DEFAULT_LIMITS) -> Frame:
    """Read an Arrow IPC file or stream, plain or with LZ4 or ZSTD compressed buffers.

    Args:
        body: the whole request body; the Frame's columns are views into it.
        limits: what it may declare.

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
        with pa.ipc.open_stream(pa.py_buffer(stream)) as reader:
            check_schema(reader.schema, limits)
            batches = list(reader)
            for batch in batches:
                batch.validate(full=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DecodeError(f"the Arrow data cannot be read: {_first_line(error)}") from error
    frame = frame_from_batches(reader.schema, batches)
    for name, column in frame.columns.items():
        _check_lists(column, name, limits)
    return frame


def _check_lists(column: pa.Array, name: str, limits: IpcLimits) -> None:
    """Refuse lists in lists that are not of one shape where they are too many: each costs 100 B."""
    values = column.storage if isinstance(column, pa.ExtensionArray) else column
    if not is_list(values.type) or not is_list(values.type.value_type):
        return
    if uniform_rows(values) is not None:
        return
    lists = 0
    while is_list((values := list_values(values)).type):
        lists += len(values)
    if lists > limits.lists:
        raise PayloadTooLargeError(
            f"column {name!r} has more than {limits.lists} lists inside lists: send several "
            "requests, or lists of equal lengths"
        )


def frame_from_batches(schema: pa.Schema, batches: list[pa.RecordBatch]) -> Frame:
    """Validated record batches as one Frame; no copy for a single batch."""
    if len(batches) == 1:
        rows, arrays = batches[0].num_rows, batches[0].columns
    else:
        table = pa.Table.from_batches(batches, schema=schema)
        rows = table.num_rows
        arrays = [_one_array(column) for column in table.columns]
    columns = dict(zip(schema.names, arrays, strict=True))
    return Frame(rows, columns, row_shapes=row_shapes(schema))


def check_schema(schema: pa.Schema, limits: IpcLimits = DEFAULT_LIMITS) -> None:
    """Refuse a schema that requests cannot have, by column and type.

    Raises:
        DecodeError: a name is not UTF-8.
        SchemaMismatchError: a duplicate column name, or an unsupported type.
        PayloadTooLargeError: more columns than the limit.
    """
    try:
        _check_fields(schema, limits)
    except UnicodeDecodeError:
        raise DecodeError("a column's name in the Arrow schema is not UTF-8") from None


def _check_fields(schema: pa.Schema, limits: IpcLimits) -> None:
    if len(schema) > limits.columns:
        raise PayloadTooLargeError(f"{len(schema)} columns: at most {limits.columns} are accepted")
    if len(set(schema.names)) != len(schema):
        raise SchemaMismatchError(f"a column name occurs twice in {schema.names}")
    for field in schema:
        if not _is_supported(field.type):
            raise SchemaMismatchError(
                f"column {field.name!r} has the type {field.type}: supported are booleans, "
                "integers, floats and text, lists, fixed-size lists and fixed-shape tensors of "
                f"them up to {MAX_DEPTH} deep, none of size 0 inside a list (dictionary-encoded "
                "text: send plain text; dates: send text)"
            )


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
            f"the reply cannot be written as Arrow ({_first_line(error)}): ask for JSON"
        ) from error
    return sink.getvalue()


def _is_supported(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.FixedShapeTensorType):
        kind = kind.storage_type
    depth = 0
    while is_list(kind) and depth < MAX_DEPTH:
        kind = kind.value_type
        depth += 1
        if getattr(kind, "list_size", 1) == 0:  # billions of them take no byte
            return False
    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
    )


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    if isinstance(combined, pa.ChunkedArray):  # no chunk at all
        return pa.array([], column.type)
    return combined


def row_shapes(schema: pa.Schema) -> dict[str, tuple[int, ...]]:
    """The row shapes that fields declare in their ``tensor_type`` metadata, where readable."""
    shapes: dict[str, tuple[int, ...]] = {}
    for field in schema:
        metadata = field.metadata
        if metadata and b"tensor_type" in metadata:
            shape = _declared_shape(metadata[b"tensor_type"])
            if shape is not None:
                shapes[field.name] = shape
    return shapes


def _declared_shape(text: bytes) -> tuple[int, ...] | None:
    try:
        shape = orjson.loads(text)["shape"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
    if (
        not isinstance(shape, list) or len(shape) > MAX_DEPTH
    ):  # a product of thousands takes minutes
        return None
    return tuple(shape) if all(type(axis) is int and axis >= 0 for axis in shape) else None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]
