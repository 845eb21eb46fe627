"""A result as the record batch of its outputs alone: the default reply of Arrow Flight.

Column ``out.<name>`` holds output ``<name>``, one value per row: a scalar, or nested lists of the
row's shape. An axis that the model declares is a fixed-size list, which has no offsets to write and
send; an open axis is a list. Items are named ``inner`` and not null, as in the documented record.

Rules that hold here:
- A schema is made from what the model declares, before any row, and every batch keeps to it.
- Values are views of the model's output.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import orjson
import pyarrow as pa

from engine.codecs.arrow_columns import ARROW_TYPES, arrow_array, equal_lists, is_list
from engine.codecs.record_values import rows_of
from engine.errors import ConflictError, InferenceFailedError
from engine.values import Output

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Final, TypeAlias

    from engine.values import Array, ModelIdentity, TensorSpec

    _Shape: TypeAlias = tuple[int, ...]
    _Message: TypeAlias = tuple[bytes, list[tuple[str, np.dtype[Any], _Shape]]]

__all__ = ["OutputWriter", "input_schema", "output_schema"]

MOST_BYTES: Final = 3 << 20  # of a message that is sent in one part
MOST_MESSAGES: Final = 64


def input_schema(specs: Sequence[TensorSpec]) -> pa.Schema:
    """What request batches are best sent as; every other accepted layout is read as well.

    Args:
        specs: the pipeline's inputs.

    Returns:
        One column per input: a flat list per row, of the row's size where the model declares it,
        with the row's shape as ``tensor_type``.
    """
    fields = []
    for spec in specs:
        kind = _leaf_type(spec)
        shape = spec.row_shape
        if shape:
            size = -1 if None in shape else math.prod(axis for axis in shape if axis is not None)
            kind = pa.list_(pa.field("item", kind), size)
        metadata = {"tensor_type": orjson.dumps({"shape": list(shape)})}
        fields.append(pa.field(spec.name, kind, nullable=False, metadata=metadata))
    return pa.schema(fields)


def output_schema(specs: Sequence[TensorSpec]) -> pa.Schema:
    """The schema of ``OutputWriter`` for a pipeline with these outputs, ordered by name."""
    return pa.schema(
        [
            pa.field(
                f"out.{spec.name}",
                _nested(_leaf_type(spec), spec.row_shape),
                nullable=False,
                metadata={"tensor_type": orjson.dumps({"shape": list(spec.row_shape)})},
            )
            for spec in specs
        ]
    )


class OutputWriter:
    """Writes results of one pipeline as batches of one schema; holds what all of them share.

    Attributes:
        schema: of the batches, as ``output_schema`` makes it.
    """

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        """Prepare to write results with these outputs, ordered by name."""
        self.schema = output_schema(specs)
        self._columns = [
            _Column(spec, field.type) for spec, field in zip(specs, self.schema, strict=True)
        ]
        self._messages: dict[int, _Message | None] = {}
        self._last_rows = -1

    def write(
        self, outputs: Sequence[Output], rows: int, model: ModelIdentity | None
    ) -> pa.RecordBatch:
        """The outputs of a result.

        Args:
            outputs: ordered by name.
            rows: how many the request has.
            model: whose outputs they are; None for that of the pipeline itself.

        Returns:
            One row per request row; its numbers are views of the model's outputs.

        Raises:
            SchemaMismatchError: an output has not one value per row.
            ConflictError: another model answered, whose outputs are not those of the stream.
            InferenceFailedError: the model gave other shapes than it declares.
        """
        columns, arrays = self._columns, []
        if len(outputs) != len(columns):
            raise self._other_outputs(outputs, model)
        for output, column in zip(outputs, columns, strict=True):
            if output.name != column.name:
                raise self._other_outputs(outputs, model)
            arrays.append(column.write(output, rows))
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def message(self, outputs: Sequence[Output], rows: int) -> tuple[bytes, list[Array]] | None:
        """What Arrow would send for the same batch, in one step and without Arrow.

        A library call for every level of every column takes twice as long, and three times where
        the library is out of the caches. The bytes before the numbers depend on the rows alone;
        they are worked out where a number of rows comes for the second time.

        Returns:
            Metadata of the IPC message, one object for all batches of so many rows; and the arrays
            that follow it as its body, each padded to a multiple of eight bytes. None where the
            usual way is to be taken.
        """
        message = self._messages.get(rows)
        if message is None:
            if rows == self._last_rows and rows not in self._messages:
                self._messages[rows] = self._learn(rows)
            self._last_rows = rows
            return None
        header, columns = message
        if len(outputs) != len(columns):
            return None
        body = []
        for output, (name, dtype, shape) in zip(outputs, columns, strict=True):
            values = output.values
            if output.name != name or values.shape != shape or values.dtype != dtype:
                return None
            body.append(values)
        return header, body

    def _learn(self, rows: int) -> _Message | None:
        """Write made-up numbers both ways, and see that nothing differs."""
        if len(self._messages) >= MOST_MESSAGES:
            self._messages.clear()
        columns, outputs, body = [], [], b""
        for column in self._columns:
            if column.row_shape is None:
                return None
            shape = (rows, *(axis or 0 for axis in column.row_shape))
            values = np.ones(shape, column.dtype)
            columns.append((column.name, column.dtype, shape))
            outputs.append(Output(column.name, values, per_row=True))
            body += values.tobytes() + bytes(-values.nbytes % 8)
        if len(body) > MOST_BYTES:
            return None
        sent = self.write(outputs, rows, None).serialize().to_pybytes()
        header = sent[8 : len(sent) - len(body)]
        is_all = sent == b"\xff\xff\xff\xff" + len(header).to_bytes(4, "little") + header + body
        return (header, columns) if is_all else None

    def _other_outputs(
        self, outputs: Sequence[Output], model: ModelIdentity | None
    ) -> ConflictError:
        who = "a model" if model is None else f"model {model.name!r}"
        return ConflictError(
            f"{who} answered these rows with {[output.name for output in outputs]}, which cannot "
            f"stand in a stream of {[column.name for column in self._columns]}: ask for them in a "
            "stream of their own"
        )


class _Column:
    """One column of the reply.

    Numbers of a declared row shape, which is what nearly every model gives, are wrapped level by
    level as it was worked out here; everything else is looked at anew in every batch.
    """

    def __init__(self, spec: TensorSpec, kind: pa.DataType) -> None:
        self.name = spec.name
        self._kind = kind
        self.dtype = np.dtype(spec.element.numpy)
        self.row_shape = None if spec.row_size is None else spec.row_shape
        self._levels: list[tuple[pa.DataType, int]] = []  # from the innermost; lists in a row
        lists = 1
        for axis in spec.row_shape if self.row_shape else ():
            self._levels.insert(0, (kind, lists))
            kind, lists = kind.value_type, lists * (axis or 0)
        if self.dtype not in ARROW_TYPES:
            self.row_shape = None
        self._leaf = kind

    def write(self, output: Output, rows: int) -> pa.Array:
        values = output.values
        if not output.per_row or values.shape[1:] != self.row_shape or values.dtype != self.dtype:
            return _array(rows_of(output, rows), self._kind)
        from_buffers, count = pa.Array.from_buffers, len(values)
        array = from_buffers(self._leaf, values.size, [None, pa.py_buffer(values.ravel())], 0)
        for kind, lists in self._levels:
            array = from_buffers(kind, count * lists, [None], 0, 0, [array])
        return array


def _array(values: Array, kind: pa.DataType) -> pa.Array:
    """``[rows, …]`` as an array of a type that ``_nested`` made."""
    if values.dtype.kind == "O" and len(values) and isinstance(values[0], np.ndarray):
        return pa.array([value.tolist() for value in values], kind)
    levels = _levels(values, kind)
    array = arrow_array(values.ravel())
    for index in range(len(levels) - 1, -1, -1):
        level, axis = levels[index], values.shape[index + 1]
        count = math.prod(values.shape[: index + 1])
        if pa.types.is_fixed_size_list(level):
            array = pa.Array.from_buffers(level, count, [None], null_count=0, children=[array])
        else:
            array = equal_lists(array, count, axis, level.value_field)
    return array


def _levels(values: Array, kind: pa.DataType) -> list[pa.DataType]:
    """The list types of an array's axes, from the outermost."""
    levels = []
    for axis in values.shape[1:]:
        fits = is_list(kind) and getattr(kind, "list_size", axis) == axis
        if not fits:
            break
        levels.append(kind)
        kind = kind.value_type
    if len(levels) < values.ndim - 1 or is_list(kind):
        raise InferenceFailedError(
            f"the model gave an output of shape {list(values.shape)} where it declares {kind}"
        )
    return levels


def _leaf_type(spec: TensorSpec) -> pa.DataType:
    dtype = np.dtype(spec.element.numpy)
    if dtype.kind == "O":
        return pa.string()
    return pa.bool_() if dtype.kind == "b" else ARROW_TYPES[dtype]


def _nested(kind: pa.DataType, shape: Sequence[int | None]) -> pa.DataType:
    for axis in reversed(shape):
        kind = pa.list_(pa.field("inner", kind, nullable=False), -1 if axis is None else axis)
    return kind
