"""A result as pandas records in JSON: one object per row with the documented columns.

Rules that hold here:
- Columns of ``in`` and ``out`` are ordered by name, whatever the request's order.
- A request's JSON values are repeated as they were sent, Arrow float32 as its shortest decimal;
  NaN and infinities are null in JSON.
- What is the same in every row is turned into text once; only the columns that change are written
  row by row, each by as few calls as its type allows.
Source: recorded replies of the documented engine; reference page, Log Retrieval.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import orjson
import pyarrow as pa

from engine.codecs.arrow_columns import (
    is_flat,
    is_list,
    leaf_array,
    list_bounds,
    list_values,
    uniform_rows,
)
from engine.codecs.dataset import EVERYTHING, Dataset
from engine.codecs.json_body import repeat_json
from engine.codecs.record_batch import leaf_columns
from engine.codecs.record_values import metadata_values, row_model_texts, rows_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    from engine.codecs.dataset import Path
    from engine.values import Array, Column, InferResult, Output

    Text: TypeAlias = bytes | Callable[[], list[bytes]]

__all__ = ["write_batch_lines", "write_batch_records", "write_records"]

NUMPY = orjson.OPT_SERIALIZE_NUMPY


def write_records(result: InferResult, dataset: Dataset = EVERYTHING) -> bytes:
    """Write the pandas-records reply: one JSON object per row.

    Args:
        result: the answer.
        dataset: which columns, nested or flat.

    Returns:
        The JSON text, UTF-8; ``[]`` for a request without rows.

    Raises:
        SchemaMismatchError: the dataset names an unknown column, or an output has not one value
            per row.
    """
    if not result.frame.rows:
        return b"[]"
    return _write_rows(_leaf_texts(result), result.frame.rows, dataset)


def write_batch_records(batch: pa.RecordBatch, dataset: Dataset = EVERYTHING) -> bytes:
    """Write rows of the log as pandas records, as ``write_records`` wrote them when they were new.

    Args:
        batch: rows in the documented log schema.
        dataset: which columns, nested or flat.

    Returns:
        The JSON text, UTF-8; ``[]`` for no rows.

    Raises:
        SchemaMismatchError: the dataset names an unknown column.
    """
    return _write_rows(_batch_texts(batch), batch.num_rows, dataset) if batch.num_rows else b"[]"


def write_batch_lines(batch: pa.RecordBatch) -> bytes:
    """The same rows, one JSON object a line; nothing for no rows."""
    if not batch.num_rows:
        return b""
    return _write_rows(_batch_texts(batch), batch.num_rows, EVERYTHING, between=b"\n")[1:-1] + b"\n"


def _batch_texts(batch: pa.RecordBatch) -> dict[Path, Text]:
    columns = leaf_columns(batch).items()
    return {path: _bind(_column_texts, array) for path, (_, array) in columns}


def _write_rows(
    texts: dict[Path, Text], rows: int, dataset: Dataset, between: bytes = b","
) -> bytes:
    selection = dataset.select(list(texts))
    template = _Template()
    _write_object(template, [(selection.key(path), texts[path]) for path in selection.paths])
    return template.fill(rows, between)


def _leaf_texts(result: InferResult) -> dict[Path, Text]:
    """Each leaf as one text for all rows, or as a way to get one text per row when it is asked."""
    frame = result.frame
    texts: dict[Path, Text] = {("time",): b"%d" % result.time_ms}
    for name in sorted(frame.columns):
        texts["in", name] = _bind(_column_texts, frame.columns[name])
    for output in result.outputs:
        texts["out", output.name] = _bind(_output_texts, output, frame.rows)
    for shadow in result.shadows:
        for output in shadow.outputs:
            path = (f"out_{shadow.model_name}", output.name)
            texts[path] = b"null" if shadow.is_missing else _bind(_output_texts, output, frame.rows)
    if result.checks is None:
        texts["anomaly", "count"] = b"0"
    else:
        texts["anomaly", "count"] = _bind(_array_texts, result.checks.count)
        for name, flag in sorted(result.checks.flags.items()):
            texts["anomaly", name] = _bind(_array_texts, flag)
    for name, value in metadata_values(result).items():
        texts["metadata", name] = orjson.dumps(value)
    if result.row_models is not None:
        texts["metadata", "last_model"] = _bind(_value_texts, row_model_texts(result.row_models))
    return texts


def _bind(function: Callable[..., list[bytes]], *arguments: object) -> Callable[[], list[bytes]]:
    return lambda: function(*arguments)


class _Template:
    """A row's text: constant pieces between the texts that change from row to row."""

    def __init__(self) -> None:
        self.constants = [bytearray()]
        self.varying: list[list[bytes]] = []

    def write(self, text: Text) -> None:
        if callable(text):
            self.varying.append(text())
            self.constants.append(bytearray())
        else:
            self.constants[-1] += text

    def fill(self, rows: int, between: bytes) -> bytes:
        constants = list(map(bytes, self.constants))
        if not self.varying:
            return b"[%b]" % between.join([constants[0]] * rows)
        lines = self.varying[0]
        for piece, texts in zip(constants[1:-1], self.varying[1:], strict=True):
            lines = [line + piece + text for line, text in zip(lines, texts, strict=True)]
        seam = b"%b%b%b" % (constants[-1], between, constants[0])
        return b"[%b%b%b]" % (constants[0], seam.join(lines), constants[-1])


def _write_object(template: _Template, items: Sequence[tuple[Path, Text]]) -> None:
    """Write ``{…}`` with one member per first name, nesting where paths go deeper."""
    groups: dict[str, list[tuple[Path, Text]]] = {}
    for path, text in items:
        groups.setdefault(path[0], []).append((path[1:], text))
    opening = b"{"
    for name, members in groups.items():
        template.write(opening + orjson.dumps(name) + b":")
        opening = b","
        if members[0][0]:
            _write_object(template, members)
        else:
            template.write(members[0][1])
    template.write(b"{}" if opening == b"{" else b"}")


def _column_texts(column: Column) -> list[bytes]:
    """A request column as one JSON text per row."""
    if isinstance(column, list):
        return _value_texts(column)
    values = column.storage if isinstance(column, pa.ExtensionArray) else column
    numbers = uniform_rows(values)
    if numbers is not None:
        return _array_texts(numbers)
    if is_flat(_leaf_type(values.type)):
        return _arrow_texts(values)
    return _value_texts(values.to_pylist())


def _leaf_type(kind: pa.DataType) -> pa.DataType:
    while is_list(kind):
        kind = kind.value_type
    return kind


def _arrow_texts(values: pa.Array) -> list[bytes]:
    """Numbers or booleans, or lists of them of any lengths, nulls among them: a text for each."""
    if not is_list(values.type):
        texts = _array_texts(leaf_array(values))
    else:
        inner, bounds = list_values(values), list_bounds(values).tolist()
        places = pairwise(bounds)
        if inner.null_count or is_list(inner.type):
            items = _arrow_texts(inner)
            texts = [b"[%b]" % b",".join(items[start:end]) for start, end in places]
        else:
            numbers = leaf_array(inner)
            texts = [orjson.dumps(numbers[start:end], option=NUMPY) for start, end in places]
    if values.null_count:
        for position in np.flatnonzero(leaf_array(values.is_null())).tolist():
            texts[position] = b"null"
    return texts


def _value_texts(values: list[object]) -> list[bytes]:
    if set(map(type, values)) == {list}:
        # One call for the whole column; a cut at every "],[" is right where it gives one piece per
        # row, since each boundary between rows is such a place.
        pieces = repeat_json(values)[2:-2].split(b"],[")
        if len(pieces) == len(values):
            return [b"[%b]" % piece for piece in pieces]
    return [repeat_json(value) for value in values]


def _output_texts(output: Output, rows: int) -> list[bytes]:
    values = rows_of(output, rows)
    if values.dtype.kind == "O":
        return [
            orjson.dumps(value.tolist() if isinstance(value, np.ndarray) else value, option=NUMPY)
            if not isinstance(value, np.ndarray) or value.dtype.kind == "O"
            else orjson.dumps(np.ascontiguousarray(value), option=NUMPY)
            for value in values
        ]
    return _array_texts(values)


def _array_texts(values: Array) -> list[bytes]:
    """Numbers ``[rows]`` or ``[rows, …]`` as one JSON text per row."""
    if values.ndim == 1:
        return orjson.dumps(np.ascontiguousarray(values), option=NUMPY)[1:-1].split(b",")
    if values.ndim == 2 and values.shape[1]:
        text = orjson.dumps(np.ascontiguousarray(values), option=NUMPY)
        return [b"[%b]" % piece for piece in text[2:-2].split(b"],[")]
    return [orjson.dumps(np.ascontiguousarray(row), option=NUMPY) for row in values]
