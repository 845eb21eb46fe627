"""A result as an Arrow record batch: the documented record, which is also a row of the log.

``time``, ``in``, ``out``, ``anomaly`` and ``metadata`` with the nullability, child names and
``tensor_type`` field metadata of the documented engine's own log segments.
Source: recorded Arrow replies and log segments of the documented engine.

Rules that hold here:
- Columns of ``in`` and ``out`` are ordered by name, whatever the request's order.
- Request columns stay views into the request body where their type allows; NaN stays NaN.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import orjson
import pyarrow as pa

from engine.codecs.arrow_columns import arrow_array
from engine.codecs.dataset import EVERYTHING, Dataset
from engine.codecs.record_columns import json_column, list_column, open_shape, output_column
from engine.codecs.record_values import metadata_values, row_model_texts, rows_of
from engine.errors import SchemaMismatchError
from engine.values import SPLIT_COLUMN

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Final

    from engine.codecs.dataset import Path, Selection
    from engine.values import CheckResult, Column, InferResult, Output, Shadow

__all__ = ["focus", "leaf_columns", "log_batch", "record_batch"]

MAX_DEPTH: Final = 60  # structs and lists inside each other; Arrow's format ends at 64


def record_batch(result: InferResult, dataset: Dataset = EVERYTHING) -> pa.RecordBatch:
    """The result as an Arrow record batch in the documented log schema.

    Args:
        result: the answer.
        dataset: which columns, nested or flat.

    Returns:
        One row per request row; struct columns not null, each field with its ``tensor_type``.
        Columns of the request stay views into its body where their type allows.

    Raises:
        SchemaMismatchError: as for ``write_records``.
    """
    return _select(_leaf_arrays(result), result.frame.rows, dataset)


def log_batch(result: InferResult) -> pa.RecordBatch:
    """The result as rows of the log: an answer is kept, whatever else its request holds.

    A column of a JSON request that Arrow has no type for, or that is nested too deep to be stored,
    is left out and named in ``metadata.dropped``.

    Raises:
        SchemaMismatchError: an output has not one value per row.
    """
    try:
        batch = record_batch(result)
    except SchemaMismatchError:
        batch = None
    if batch is not None and all(map(_is_shallow, batch.schema.types)):
        return batch
    columns = result.frame.columns
    strange = [name for name, values in columns.items() if not _is_storable(values, name)]
    kept = {name: columns[name] for name in columns if name not in strange}
    frame = dataclasses.replace(result.frame, columns=kept)
    dropped = sorted(f"in.{name}" for name in strange)
    leaves = _leaf_arrays(dataclasses.replace(result, frame=frame), dropped)
    return _select(leaves, frame.rows, EVERYTHING)


def _is_storable(values: Column, name: str) -> bool:
    try:
        return not isinstance(values, list) or _is_shallow(json_column(values, name).type)
    except SchemaMismatchError:
        return False


def _is_shallow(kind: pa.DataType) -> bool:
    level, depth = [kind], 0
    while level and depth <= MAX_DEPTH:
        level = [kind.field(index).type for kind in level for index in range(kind.num_fields)]
        depth += 1
    return depth <= MAX_DEPTH


def focus(batch: pa.RecordBatch, dataset: Dataset) -> pa.RecordBatch:
    """Rows of the log with the columns that a dataset chooses, nested or flat; no values copied.

    Args:
        batch: rows in the documented log schema.
        dataset: which columns, nested or flat.

    Raises:
        SchemaMismatchError: the dataset names an unknown column.
    """
    return _select(leaf_columns(batch), batch.num_rows, dataset)


def leaf_columns(batch: pa.RecordBatch) -> dict[Path, tuple[pa.Field, pa.Array]]:
    """The columns of rows of the log by their full paths, in their order."""
    leaves: dict[Path, tuple[pa.Field, pa.Array]] = {}
    for field, column in zip(batch.schema, batch.columns, strict=True):
        if pa.types.is_struct(field.type):
            for index, leaf in enumerate(field.type):
                leaves[field.name, leaf.name] = (leaf, column.field(index))
        else:
            leaves[field.name,] = (field, column)
    return leaves


def _select(
    leaves: dict[Path, tuple[pa.Field, pa.Array]], rows: int, dataset: Dataset
) -> pa.RecordBatch:
    selection = dataset.select(list(leaves))
    fields, arrays = _nest(selection, leaves)
    if not fields:
        return pa.RecordBatch.from_struct_array(pa.array([{}] * rows, pa.struct([])))
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def _leaf_arrays(
    result: InferResult, dropped: Sequence[str] = ()
) -> dict[Path, tuple[pa.Field, pa.Array]]:
    rows = result.frame.rows
    leaves: dict[Path, tuple[pa.Field, pa.Array]] = {
        ("time",): _leaf("time", pa.int64(), _repeat(result.time_ms, pa.int64(), rows))
    }
    for name in sorted(result.frame.columns):
        column = result.frame.columns[name]
        array = list_column(json_column(column, name) if isinstance(column, list) else column)
        shape = result.frame.row_shapes.get(name) or open_shape(column)
        leaves["in", name] = _leaf(name, array.type, array, shape)
    for output in result.outputs:
        leaves["out", output.name] = _output_leaf(output, rows)
    for shadow in result.shadows:
        for output in shadow.outputs:
            leaves[f"out_{shadow.model_name}", output.name] = _shadow_leaf(shadow, output, rows)
    leaves |= _check_leaves(result.checks, rows)
    for name, value in metadata_values(result, dropped).items():
        kind = _METADATA_TYPES[name]
        leaves["metadata", name] = _leaf(name, kind, _repeat(value, kind, rows))
    if result.row_models is not None:
        texts = pa.array(row_model_texts(result.row_models), pa.string())
        leaves["metadata", "last_model"] = _leaf("last_model", pa.string(), texts)
    return leaves


def _output_leaf(output: Output, rows: int) -> tuple[pa.Field, pa.Array]:
    array = output_column(rows_of(output, rows))
    shape = output.values.shape[1:] if output.per_row else ()
    if output.name == SPLIT_COLUMN:
        return _leaf(output.name, array.type, array)  # recorded without a tensor type
    return _leaf(output.name, array.type, array, shape)


def _shadow_leaf(shadow: Shadow, output: Output, rows: int) -> tuple[pa.Field, pa.Array]:
    """A challenger's column: it may have no value, so that the schema does not depend on that."""
    if not shadow.is_missing:
        field, array = _output_leaf(output, rows)
        return field.with_nullable(True), array
    field, array = _output_leaf(output, 0)
    return field.with_nullable(True), pa.nulls(rows, array.type)


def _check_leaves(checks: CheckResult | None, rows: int) -> dict[Path, tuple[pa.Field, pa.Array]]:
    """``anomaly``: the count, and a bool for each check, by name."""
    if checks is None:
        count = _repeat(0, pa.uint32(), rows)
        return {("anomaly", "count"): _leaf("count", pa.uint32(), count, ())}
    count = arrow_array(checks.count)
    leaves: dict[Path, tuple[pa.Field, pa.Array]] = {
        ("anomaly", "count"): _leaf("count", pa.uint32(), count, ())
    }
    for name, flag in sorted(checks.flags.items()):
        leaves["anomaly", name] = _leaf(name, pa.bool_(), pa.array(flag, pa.bool_()), ())
    return leaves


_METADATA_TYPES = {
    "last_model": pa.string(),
    "pipeline_version": pa.string(),
    "elapsed": pa.list_(pa.field("steps", pa.uint64(), nullable=False)),
    "dropped": pa.list_(pa.field("item", pa.string())),
    "partition": pa.string(),
}


def _leaf(
    name: str,
    kind: pa.DataType,
    array: pa.Array,
    shape: Iterable[int | None] | None = None,
) -> tuple[pa.Field, pa.Array]:
    metadata = None if shape is None else {"tensor_type": orjson.dumps({"shape": list(shape)})}
    return pa.field(name, kind, nullable=array.null_count > 0, metadata=metadata), array


def _repeat(value: object, kind: pa.DataType, rows: int) -> pa.Array:
    # repeating a list no times at all is an error of the library
    return pa.repeat(pa.scalar(value, kind), rows) if rows else pa.array([], kind)


def _nest(
    selection: Selection, leaves: dict[Path, tuple[pa.Field, pa.Array]]
) -> tuple[list[pa.Field], list[pa.Array]]:
    """Group the chosen leaves into struct columns, or leave them flat."""
    groups: dict[str, list[tuple[pa.Field, pa.Array]]] = {}
    flat: dict[str, bool] = {}
    for path in selection.paths:
        key = selection.key(path)
        field, array = leaves[path]
        groups.setdefault(key[0], []).append((field.with_name(key[-1]), array))
        flat[key[0]] = len(key) == 1
    fields: list[pa.Field] = []
    arrays: list[pa.Array] = []
    for name, members in groups.items():
        if flat[name]:
            fields.append(members[0][0])
            arrays.append(members[0][1])
            continue
        array = pa.StructArray.from_arrays(
            [array for _, array in members], fields=[field for field, _ in members]
        )
        fields.append(pa.field(name, array.type, nullable=False))
        arrays.append(array)
    return fields, arrays
