"""Answers as the batches that go out over Flight, each with its ``app_metadata``.

Rules that hold here:
- All batches of a call have one schema, which its first answer settles.
- A reply larger than the client wants is divided by rows; the parts are views of it.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pyarrow as pa

from engine._proto.sagitta.flight.v1 import flight_pb2
from engine.codecs.output_batch import OutputWriter
from engine.codecs.record_batch import leaf_columns, record_batch
from engine.errors import NotReadyError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.codecs.dataset import Path
    from engine.flight.descriptors import Wanted
    from engine.values import InferResult, TensorSpec

    Part = tuple[pa.RecordBatch, bytes]

__all__ = ["ReplyWriter"]


class ReplyWriter:
    """Writes the answers of one call; used by one thread.

    Attributes:
        schema: of the batches; None before the first.
    """

    def __init__(self, wanted: Wanted) -> None:
        """Write what a call's descriptor asks for; nothing before ``use``."""
        self._as_records = wanted.as_records
        self._max_bytes = wanted.max_reply_bytes
        self._outputs: OutputWriter | None = None
        self._inputs: frozenset[str] = frozenset()
        self._columns: list[Path] = []  # of a record
        self._sequence = 0
        self.schema: pa.Schema | None = None

    def use(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        """Write results of a pipeline with these inputs and outputs from now on.

        Raises:
            NotReadyError: the call's replies so far have others.
        """
        writer = OutputWriter(outputs)
        if self._outputs is not None and not self._outputs.schema.equals(writer.schema):
            raise NotReadyError(
                "the pipeline was replaced by one whose outputs differ: open a new stream"
            )
        self._outputs = writer
        self._inputs = frozenset(spec.name for spec in inputs)

    def write(self, result: InferResult) -> list[Part]:
        """An answer as batches; sets ``schema``.

        Raises:
            EngineError: the answer does not fit the reply.
        """
        writer = self._outputs
        if writer is None or self._as_records:
            batch = self._record(result)
        else:
            batch, self.schema = writer.write(result), writer.schema
        rows, parts = result.frame.rows, 1
        # what lies in memory is known at once, and never less than what is sent
        if self._max_bytes and rows > 1 and batch.get_total_buffer_size() > self._max_bytes:
            parts = min(-(-batch.nbytes // self._max_bytes), rows)
        metadata = flight_pb2.BatchReply(
            sequence=self._sequence, rows=rows, parts=parts, elapsed_ns=result.elapsed_ns
        )
        self._sequence += 1
        if parts <= 1:
            return [(batch, metadata.SerializeToString())]
        divided: list[Part] = []
        for part in range(parts):
            start, end = rows * part // parts, rows * (part + 1) // parts
            metadata.part = part
            divided.append((batch.slice(start, end - start), metadata.SerializeToString()))
        return divided

    def _record(self, result: InferResult) -> pa.RecordBatch:
        batch = record_batch(result)
        if self.schema is None:
            self.schema = _open_to_nulls(batch.schema, self._inputs)
            self._columns = list(leaf_columns(batch))
        if self.schema == batch.schema:
            return batch
        with contextlib.suppress(pa.ArrowException):
            if self._columns == list(leaf_columns(batch)):  # a cast would add and drop columns
                return batch.cast(self.schema)
        raise NotReadyError(
            "the pipeline was replaced by one whose records differ: open a new stream"
        )


def _open_to_nulls(schema: pa.Schema, inputs: frozenset[str]) -> pa.Schema:
    """The schema of a record's stream: what no model reads may have nulls in a later batch."""
    index = schema.get_field_index("in")
    if index < 0:
        return schema
    leaves = [
        leaf if leaf.name in inputs else leaf.with_nullable(True)
        for leaf in schema.field(index).type
    ]
    return schema.set(index, schema.field(index).with_type(pa.struct(leaves)))
