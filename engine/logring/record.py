"""One answer's rows to the bytes of records.

A record is a header and its steps' times, followed by either the raw values of its columns, one
column after the other, or one Arrow IPC record batch message; what records share is their context,
named by number. A large raw column is stored beside its record rather than in it. A row of 29
float32 takes 156 bytes that way; 1,030 as an Arrow message of its own.

Rules that hold here:
- Raw is for columns of numbers with equally many values in every row, which is what tensors are;
  anything else (text, ragged or nested request lists) is an Arrow message.
- A column of more than ``max_column_bytes`` a row is left out and named in ``dropped``.
- A context is learned from the first reply of its kind, never made up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from engine.errors import EngineError
from engine.logring.columns import Kind, raw_columns, row_bytes
from engine.logring.context import OWN_COLUMNS, LogContext, list_depth, numpy_type, without
from engine.logring.header import HEADER, Column, PackedRows, Record, packed_layout
from engine.logring.repeats import RowPattern, TablePattern

if TYPE_CHECKING:
    from typing import Any

    from engine.logring.counters import Counters
    from engine.values import InferResult

__all__ = ["MAX_COLUMN_BYTES", "LogEncoder"]

MAX_COLUMN_BYTES = 1 << 20

_KNOWN_CONTEXTS = 256
_RECORD_BYTES = 2 << 20  # larger answers are split; measured best from 1 row to 10,000 and mixed
_SLACK_BYTES = 64  # of LMDB's own in the pages of a value


class LogEncoder:
    """Turns answers into records; remembers the contexts it met. Any thread may call it.

    Attributes:
        row_pattern: what the last one-row answer may have in common with the next ones.
        table_pattern: the same of the last table.
    """

    def __init__(
        self,
        batch_of: Callable[[InferResult], pa.RecordBatch],
        *,
        max_column_bytes: int = MAX_COLUMN_BYTES,
    ) -> None:
        """Take the function that writes a records reply as Arrow: it defines the log's schema."""
        self._batch_of = batch_of
        self._max_column_bytes = max_column_bytes
        # a key has the ids of the identities: the entry keeps them alive, so that no other has them
        self._last: tuple[Any, ...] = (None, None)  # key, its context, and who has the ids
        self._known: dict[object, tuple[LogContext, object, object]] = {}
        self.row_pattern: RowPattern | None = None
        self.table_pattern: TablePattern | None = None

    def encode_all(
        self, results: Sequence[InferResult], largest_bytes: int, counters: Counters
    ) -> list[Record | PackedRows]:
        """Split answers into records; those that cannot be kept are counted and left out.

        Args:
            results: the answers; their arrays must not change until the records are stored.
            largest_bytes: a record with more is not kept.
            counters: counts rows that cannot be kept.

        Returns:
            Records in the order of the answers.
        """
        max_bytes = min(_RECORD_BYTES, largest_bytes) - _SLACK_BYTES
        rows_at_once = sum([result.frame.rows for result in results])
        records: list[Record | PackedRows] = []
        for result in results:
            try:
                of_one = self.encode(result, max_bytes, rows_at_once)
            except (EngineError, ValueError, TypeError, OverflowError) as error:
                # an answer that has no form as records, e.g. an output that is not one value a row
                counters.not_kept(result.frame.rows, "no_record_form", error)
                continue
            too_large = sum([record.rows for record in of_one if record.size > largest_bytes])
            if too_large:
                counters.not_kept(too_large, "too_large")
                of_one = [record for record in of_one if record.size <= largest_bytes]
            records += of_one
        return records

    def encode(
        self, result: InferResult, max_bytes: int, rows_at_once: int
    ) -> list[Record | PackedRows]:
        """Split one answer into records.

        Args:
            result: the answer; its arrays must not change until the records are stored.
            max_bytes: bound of a record's values; a single row may be larger.
            rows_at_once: how many rows came, with those of other answers.

        Returns:
            Records in row order; none where the answer has no row.
        """
        rows, pattern = result.frame.rows, self.row_pattern
        if rows == 1 and pattern is not None and (items := pattern.items((result,))) is not None:
            time_ms = result.time_ms
            return [PackedRows(pattern.context, pattern.steps, 1, time_ms, time_ms, items)]
        if not rows:
            return []
        table = self.table_pattern
        if table is not None and (columns := table.values(result)) is not None:
            return _split_raw(table.context, result, columns, max_bytes, rows_at_once)
        raw = raw_columns(result)
        if raw is not None:
            kinds, values = raw
            shapes = result.frame.row_shapes
            key = (id(result.model), id(result.pipeline), result.partition, *kinds)
            if shapes:  # the schema names them
                key += (*shapes.items(),)
            last_key, context, *_ = self._last
            if key != last_key:  # most requests are like the one before them
                known = self._known.get(key)
                context = self._learn(key, kinds, result) if known is None else known[0]
                self._last = key, context, result.model, result.pipeline
            if context.shapes is not None:
                if len(values) != len(context.shapes):
                    limit = self._max_column_bytes
                    kept = zip(kinds, values, strict=True)
                    values = [value for kind, value in kept if row_bytes(kind) <= limit]
                elif rows == 1 and result.frame.dense is None:
                    self.row_pattern = RowPattern.of(result, context) or pattern
                else:
                    self.table_pattern = TablePattern.of(result, context) or table
                return _split_raw(context, result, values, max_bytes, rows_at_once)
        return self._encode_arrow(result, max_bytes)

    def _remember(self, key: object, context: LogContext, result: InferResult) -> None:
        if len(self._known) >= _KNOWN_CONTEXTS:
            self._known.clear()  # rather than tracking use on every request
        self._known[key] = (context, result.model, result.pipeline)

    def _learn(self, key: object, kinds: Sequence[Kind], result: InferResult) -> LogContext:
        """The context of answers with these columns; not raw where the reply's types differ."""
        batch = self._batch_of(result)
        leaves = [
            (field.name, leaf.name, numpy_type(leaf).char, list_depth(leaf))
            for field in batch.schema
            if field.name not in OWN_COLUMNS
            for leaf in field.type
        ]
        same = leaves == [(group, name, code, len(shape)) for group, name, code, shape in kinds]
        large = [kind for kind in kinds if row_bytes(kind) > self._max_column_bytes]
        dropped = [f"{kind[0]}.{kind[1]}" for kind in large]
        shapes = [kind[3] for kind in kinds if kind not in large]
        context = LogContext.make(
            without(batch.schema, dropped), shapes if same else None, _constants(batch, dropped)
        )
        self._remember(key, context, result)
        return context

    def _encode_arrow(self, result: InferResult, max_bytes: int) -> list[Record | PackedRows]:
        batch = self._batch_of(result)
        too_large = [
            f"{field.name}.{leaf.name}"
            for field, column in zip(batch.schema, batch.columns, strict=True)
            if field.name not in OWN_COLUMNS
            for index, leaf in enumerate(field.type)
            if column.field(index).nbytes > self._max_column_bytes * batch.num_rows
        ]
        schema = without(batch.schema, too_large)
        records: list[Record | PackedRows] = []
        for part in _runs(batch):
            constants = _constants(part, too_large)
            key = (schema.serialize().to_pybytes(), json.dumps(constants))
            known = self._known.get(key)
            context = LogContext.make(schema, None, constants) if known is None else known[0]
            self._remember(key, context, result)
            payload = _payload(part, context.payload)
            step = max(1, max_bytes * part.num_rows // max(payload.nbytes, max_bytes))
            for start in range(0, part.num_rows, step):
                rows = payload.slice(start, step)
                records += _arrow_records(context, rows, result, max_bytes)
        return records


def _runs(batch: pa.RecordBatch) -> list[pa.RecordBatch]:
    """Neighbouring rows that the same model answered: it differs by row after a split."""
    models = batch.column("metadata").field("last_model").to_pylist()
    starts = [row for row, model in enumerate(models) if not row or model != models[row - 1]]
    return [
        batch.slice(start, stop - start)
        for start, stop in zip(starts, [*starts[1:], len(models)], strict=True)
    ]


def _record(context: LogContext, rows: int, result: InferResult, body: Sequence[Column]) -> Record:
    size = sum(map(len, body)) + HEADER.size + 8 * len(result.elapsed_ns)
    return Record(context, rows, result.time_ms, result.elapsed_ns, body, size)


def _arrow_records(
    context: LogContext, rows: pa.RecordBatch, result: InferResult, max_bytes: int
) -> list[Record | PackedRows]:
    """Rows as one Arrow message, or where it is too large, for rows are not all alike, as more."""
    record = _record(context, rows.num_rows, result, (memoryview(rows.serialize()),))
    if record.size <= max_bytes or rows.num_rows == 1:
        return [record]
    halves = rows.slice(0, rows.num_rows // 2), rows.slice(rows.num_rows // 2)
    return [r for half in halves for r in _arrow_records(context, half, result, max_bytes)]


def _split_raw(
    context: LogContext,
    result: InferResult,
    values: Sequence[Column],
    max_bytes: int,
    rows_at_once: int,
) -> list[Record | PackedRows]:
    rows = result.frame.rows
    steps, time_ms = len(result.elapsed_ns), result.time_ms
    layout = packed_layout(context, steps)
    # tables that are together too many for the pack are worth a transaction, which they share
    if (1 if rows == 1 else rows_at_once) <= layout.most_rows:
        items = layout.items(rows, time_ms, result.elapsed_ns, values)
        return [PackedRows(context, steps, rows, time_ms, time_ms, items)]
    whole = _record(context, rows, result, values)
    if whole.size <= max_bytes or rows == 1:
        return [whole]
    views = [memoryview(value) for value in values]
    row_bytes = sum(context.strides)
    most_rows = max(1, (max_bytes - whole.size + rows * row_bytes) // row_bytes)
    parts = -(-rows // most_rows)
    step = -(-rows // parts)
    records: list[Record | PackedRows] = []
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        body = [v[start * s : stop * s] for v, s in zip(views, context.strides, strict=True)]
        records.append(_record(context, stop - start, result, body))
    return records


def _constants(batch: pa.RecordBatch, dropped: Sequence[str]) -> dict[str, object]:
    metadata = batch.column("metadata").slice(0, 1).to_pylist()[0]
    names = sorted({*metadata["dropped"], *dropped})
    return {k: v for k, v in metadata.items() if k != "elapsed"} | {"dropped": names}


def _payload(batch: pa.RecordBatch, payload: pa.Schema) -> pa.RecordBatch:
    """The columns that a record holds, the dropped ones left out; no values are copied."""
    columns = []
    for field in payload:
        column = batch.column(field.name)
        children = [column.field(leaf.name) for leaf in field.type]
        columns.append(pa.Array.from_buffers(field.type, len(column), [None], children=children))
    return pa.RecordBatch.from_arrays(columns, schema=payload)
