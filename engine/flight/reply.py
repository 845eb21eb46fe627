"""Answers as the batches that go out over Flight, each with its ``app_metadata``.

Rules that hold here:
- All batches of a call have one schema, which its first answer settles.
- A reply larger than the client wants is divided by rows; the parts are views of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING

import pyarrow as pa

from engine._proto.sagitta.flight.v1 import flight_pb2
from engine.codecs.output_batch import OutputWriter
from engine.codecs.record_batch import leaf_columns, record_batch
from engine.errors import NotReadyError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from engine.codecs.dataset import Path
    from engine.flight.descriptors import Wanted
    from engine.values import InferResult, Output, TensorSpec

    Part = tuple[pa.RecordBatch, bytes]

__all__ = ["Reply", "ReplyWriter"]


@dataclasses.dataclass(slots=True)
class Reply:
    """An answer.

    Attributes:
        batch: all of it.
        told: what the ``app_metadata`` of its parts tells.
    """

    batch: pa.RecordBatch
    told: flight_pb2.BatchReply

    def parts(self) -> Iterator[Part]:
        """What goes out, in order; each part is made when it is asked for."""
        told, parts, rows = self.told, self.told.parts, self.told.rows
        if parts <= 1:
            yield self.batch, told.SerializeToString()
            return
        for part in range(parts):
            start, end = rows * part // parts, rows * (part + 1) // parts
            told.part = part
            yield self.batch.slice(start, end - start), told.SerializeToString()


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

    def write(self, result: InferResult) -> Reply:
        """An answer as it goes out; sets ``schema``.

        Raises:
            EngineError: the answer does not fit the reply.
        """
        writer = self._outputs
        if writer is None or self._as_records:
            batch = self._record(result)
        else:
            batch = writer.write(result.outputs, result.frame.rows, result.model)
            self.schema = writer.schema
        rows, parts = result.frame.rows, 1
        # what lies in memory is known at once, and never less than what is sent
        if self._max_bytes and rows > 1 and batch.get_total_buffer_size() > self._max_bytes:
            parts = min(-(-batch.nbytes // self._max_bytes), rows)
        told = flight_pb2.BatchReply(
            sequence=self._sequence, rows=rows, parts=parts, elapsed_ns=result.elapsed_ns
        )
        self._sequence += 1
        return Reply(batch, told)

    def is_small(self, rows: int) -> bool:
        """Whether ``write_whole`` copies the outputs of so many rows."""
        return self._outputs is not None and self._outputs.is_small(rows)

    def write_whole(
        self, outputs: Sequence[Output], rows: int, elapsed_ns: tuple[int, int], *, is_lent: bool
    ) -> Part | None:
        """The outputs of a model as ``write`` and ``parts`` would give them, if in one part.

        Args:
            outputs: ordered by name.
            rows: how many.
            elapsed_ns: time to decode, and to run.
            is_lent: the outputs are good for now only: they are copied, or None is returned.

        Raises:
            EngineError: the answer does not fit the reply.
        """
        writer = self._outputs
        if writer is None or self._as_records:
            return None
        batch = writer.write_small(outputs, rows)
        if batch is None:
            if is_lent:
                return None
            batch = writer.write(outputs, rows, None)
            if self._max_bytes and rows > 1 and batch.get_total_buffer_size() > self._max_bytes:
                return None
        self.schema = writer.schema
        self._sequence += 1
        return batch, _told(self._sequence - 1, rows, elapsed_ns)

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


def _told(sequence: int, rows: int, elapsed_ns: tuple[int, int]) -> bytes:
    """A ``BatchReply`` of one part, by hand: half of what the library takes, a third when cold."""
    count = b"\x08%b\x10%b\x20\x01\x2a\x0a%b%b"
    return count % (*map(_varint, (sequence, rows, *elapsed_ns)),)


def _varint(number: int) -> bytes:
    """A number below 2^35 in five bytes, as protobuf reads it."""
    return bytes(
        (
            number & 127 | 128,
            number >> 7 & 127 | 128,
            number >> 14 & 127 | 128,
            number >> 21 & 127 | 128,
            number >> 28 & 127,
        )
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
