"""Answers as the batches that go out over Flight, each with its ``app_metadata``.

Rules that hold here:
- All batches of a call have one schema, which its first answer settles.
- A reply larger than the client wants is divided by rows; the parts are views of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from engine._proto.sagitta.flight.v1 import flight_pb2
from engine.codecs.output_batch import OutputWriter
from engine.codecs.record_batch import leaf_columns, record_batch
from engine.errors import NotReadyError
from engine.flight.messages import data_pieces

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Final

    from engine.codecs.dataset import Path
    from engine.flight.descriptors import Wanted
    from engine.values import Array, InferResult, Output, TensorSpec

    Part = tuple[pa.RecordBatch, bytes]

__all__ = ["Reply", "ReplyWriter"]

SMALL_BYTES: Final = 1 << 12  # copied, rather than referred to
MOST_FRAMES: Final = 64


@dataclasses.dataclass(slots=True)
class Reply:
    """An answer.

    Attributes:
        batch: all of it.
        told: what the ``app_metadata`` of its parts tells.
        kept_bytes: of the request's message, which stays as long as a record does that views it.
    """

    batch: pa.RecordBatch
    told: flight_pb2.BatchReply
    kept_bytes: int = 0

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
        self._frames: dict[int, tuple[bytes, int, bytes, bytes]] = {}  # by rows, see ``_frame``
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
        self._frames = {}
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

    def pieces(
        self,
        outputs: Sequence[Output],
        rows: int,
        elapsed_ns: tuple[int, int],
        *,
        is_lent: bool,
    ) -> tuple[bytes | memoryview, ...] | None:
        """An answer as the pieces of the message that goes out, without Arrow.

        Args:
            outputs: ordered by name.
            rows: how many the request has.
            elapsed_ns: of the steps, below 34 seconds each.
            is_lent: the outputs stand in memory that the next run overwrites.

        Returns:
            The pieces; None where the usual way is to be taken.
        """
        writer = self._outputs
        if writer is None or self.schema is not writer.schema:
            return None
        message = writer.message(outputs, rows)
        if message is None:
            return None
        header, arrays = message
        known = self._frames.get(rows)
        if known is None or known[0] is not header:
            if len(self._frames) >= MOST_FRAMES:
                self._frames.clear()
            known = self._frames[rows] = _frame(header, arrays)
        _, size_bytes, before, after = known
        if self._max_bytes and rows > 1 and size_bytes > self._max_bytes:
            return None
        told = _told(self._sequence, rows, elapsed_ns)
        self._sequence += 1
        if is_lent or size_bytes <= SMALL_BYTES:
            body: list[bytes | memoryview] = [values.tobytes() for values in arrays]
        else:
            body = [values.reshape(-1).view(np.uint8).data for values in arrays]
        if size_bytes != sum(map(len, body)):
            body = _padded(body)
        return before, told, after, *body

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


def _frame(header: bytes, arrays: Sequence[Array]) -> tuple[bytes, int, bytes, bytes]:
    """What is equal in all messages of so many rows.

    Returns:
        The header; bytes of the body; what stands before the told, and between it and the body.
    """
    told = _told(0, 0, (0, 0))
    size_bytes = sum(values.nbytes + -values.nbytes % 8 for values in arrays)
    (whole, _) = data_pieces(header, told, bytes(size_bytes))
    before, _, after = bytes(whole).rpartition(told)
    return header, size_bytes, before, after


def _padded(pieces: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """Each piece with zeros after it, up to a multiple of eight bytes."""
    return [part for piece in pieces for part in (piece, bytes(-len(piece) % 8)) if len(part)]


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
