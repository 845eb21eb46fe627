"""Record batches as Frames, whichever shell they came by: what is accepted, and what is not.

Rules that hold here:
- The schema is checked against the supported types before the first batch is read, the sizes of a
  batch before its values, and ``validate(full=True)`` has run before any value is looked at:
  unvalidated Arrow data can crash the process.
- A Frame's columns are views of the batch; several batches are joined once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
import pyarrow as pa

from engine.codecs.arrow_columns import dense_lists, is_list, list_values, uniform_rows
from engine.codecs.ipc_guard import IpcLimits, check_sums
from engine.errors import DecodeError, PayloadTooLargeError, SchemaMismatchError
from engine.values import Frame

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from engine.values import Array, Column

__all__ = ["DEFAULT_LIMITS", "FrameReader", "check_schema", "first_line", "row_shapes"]

DEFAULT_LIMITS: Final = IpcLimits()
MAX_DEPTH: Final = 32  # lists in lists, and declared axes: more than any tensor has


class FrameReader:
    """Makes Frames of the batches of one request or stream; any thread."""

    def __init__(self, schema: pa.Schema, limits: IpcLimits = DEFAULT_LIMITS) -> None:
        """Check the schema, and learn from it what every batch would be asked otherwise.

        Args:
            schema: of the batches.
            limits: what they may hold.

        Raises:
            DecodeError: a name is not UTF-8.
            SchemaMismatchError: a duplicate column name, or an unsupported type.
            PayloadTooLargeError: more columns than the limit.
        """
        check_schema(schema, limits)
        self._schema = schema
        self._limits = limits
        self._names: list[str] = schema.names
        self._row_shapes = row_shapes(schema)
        kinds = [_storage(kind) for kind in schema.types]
        sizes = [_values_per_row(kind) for kind in kinds]
        self._row_values = sum(size for size in sizes if size is not None)
        self._open = [index for index, size in enumerate(sizes) if size is None]
        self._nested = [
            name
            for name, kind in zip(self._names, kinds, strict=True)
            if is_list(kind) and is_list(kind.value_type)
        ]

    def check_size(self, batch: pa.RecordBatch) -> int:
        """Refuse a batch that holds too much; looks at no value.

        Args:
            batch: one that nothing has measured yet; a body that ``ipc_guard`` has walked has been.

        Returns:
            Its size in memory, bytes.

        Raises:
            PayloadTooLargeError: it has more rows, values or bytes than the limits.
            DecodeError: it is not valid Arrow data.
        """
        limits, rows = self._limits, batch.num_rows
        size_bytes: int = batch.get_total_buffer_size()
        counted_bytes = size_bytes
        if size_bytes * len(self._names) > limits.decoded_bytes:  # columns may share their buffers
            counted_bytes = sum(map(_size_bytes, batch.columns))
        values = rows * self._row_values
        if self._open:
            self.validate(batch, full=False)  # a length may be anything until then
        for index in self._open:
            values += _count_values(batch.column(index))
        check_sums(rows, values, counted_bytes, limits)
        return size_bytes

    def validate(self, batch: pa.RecordBatch, *, full: bool = True) -> None:
        """Refuse a batch that is not sound; without ``full``, whose values cannot be where it says.

        Raises:
            DecodeError: it is not valid Arrow data.
        """
        try:
            batch.validate(full=full)
        except pa.ArrowException as error:
            raise DecodeError(f"the Arrow data cannot be read: {first_line(error)}") from None

    def read(self, batch: pa.RecordBatch) -> Frame:
        """A validated batch as a Frame; copies nothing.

        Raises:
            PayloadTooLargeError: more lists inside lists than the limit.
        """
        columns: dict[str, Column] = {}
        dense: dict[str, Array] = {}
        for index, name in enumerate(self._names):  # ``batch.columns`` takes 4 us longer
            column = columns[name] = batch.column(index)
            values = dense_lists(column)
            if values is not None:
                dense[name] = values
        for name in self._nested:
            _check_lists(columns[name], name, self._limits)
        return Frame(batch.num_rows, columns, row_shapes=self._row_shapes, dense=dense)

    def join(self, batches: Sequence[pa.RecordBatch]) -> Frame:
        """Validated batches as one Frame; no copy for a single one.

        Raises:
            PayloadTooLargeError: more lists inside lists than the limit.
        """
        if len(batches) == 1:
            return self.read(batches[0])
        table = pa.Table.from_batches(batches, schema=self._schema)
        arrays = [_one_array(column) for column in table.columns]
        if not arrays:
            return Frame(table.num_rows, {})
        return self.read(pa.RecordBatch.from_arrays(arrays, schema=self._schema))


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


def first_line(error: Exception) -> str:
    """What an error of the library says, without the detail that follows it."""
    return str(error).partition("\n")[0][:300]


def _storage(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _values_per_row(kind: pa.DataType) -> int | None:
    """How many values a row has, lists included; None where each row may have another number."""
    values = lists = 1
    while is_list(kind):
        if not pa.types.is_fixed_size_list(kind):
            return None
        lists *= kind.list_size
        values += lists
        kind = kind.value_type
    return values


def _size_bytes(column: pa.Array) -> int:
    return sum(buffer.size for buffer in column.buffers() if buffer is not None)


def _count_values(column: pa.Array) -> int:
    """Values at all levels of a column of lists; looks at no offset."""
    values = column.storage if isinstance(column, pa.ExtensionArray) else column
    count = len(values)
    while is_list(values.type):
        values = values.values
        count += len(values)
    return count


def _check_lists(column: Column, name: str, limits: IpcLimits) -> None:
    """Refuse lists in lists that are not of one shape where they are too many: each costs 100 B."""
    values = column.storage if isinstance(column, pa.ExtensionArray) else column
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


def _declared_shape(text: bytes) -> tuple[int, ...] | None:
    try:
        shape = orjson.loads(text)["shape"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
    # a product of thousands takes minutes
    if not isinstance(shape, list) or len(shape) > MAX_DEPTH:
        return None
    return tuple(shape) if all(type(axis) is int and axis >= 0 for axis in shape) else None
