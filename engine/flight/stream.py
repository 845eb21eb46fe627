"""How the batches of one stream are read, and their answers written.

Rules that hold here:
- A batch is checked before anything looks at a value, as ``FrameReader`` says.
- A stream lives longer than a pipeline: each batch is answered by the one that is served by then,
  as long as the reply keeps its schema.
- ``read`` and ``write`` are called by the thread that runs a batch, one batch at a time; everything
  else on the event loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.flight as fl

from engine.codecs.arrow_frame import FrameReader
from engine.errors import DecodeError, InternalError
from engine.flight.descriptors import parse, read_infer_descriptor
from engine.flight.incoming import Incoming
from engine.flight.reply import ReplyWriter
from engine.flight.short_way import ShortWay

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.flight.descriptors import Wanted
    from engine.flight.incoming import OpenBatch
    from engine.flight.reply import Reply
    from engine.flight.request import BatchRequest
    from engine.flight.service import FlightService
    from engine.running import RunningPipeline
    from engine.values import Frame, InferResult

__all__ = ["Stream"]


class Stream:
    """The batches of one call.

    Attributes:
        incoming: reads its messages.
    """

    def __init__(self, service: FlightService, rest: Callable[[], None], *, is_kept: bool) -> None:
        """Expect the descriptor and the schema.

        Args:
            service: what all calls share.
            rest: called where a batch has taken long on the event loop.
            is_kept: whether answers are wanted as batches, not as messages.
        """
        self.incoming = Incoming(service.limits)
        self._service = service
        self._rest = rest
        self._is_kept = is_kept
        self._wanted: Wanted | None = None
        self._reply: ReplyWriter | None = None  # once there is a descriptor
        self._frames: FrameReader | None = None  # once there is a schema
        self._schema: pa.Schema | None = None
        self._pipeline: RunningPipeline | None = None
        self._short_way: ShortWay | None = None

    @property
    def has_schema(self) -> bool:
        """Whether batches may come."""
        return self._frames is not None

    def end(self) -> None:
        """The call is over: nothing here keeps it any more."""
        self._rest, self._short_way = _nothing, None

    def begin(self, message: bytes | memoryview) -> None:
        """Read a message before the first batch.

        Raises:
            EngineError: there is no such pipeline, or the schema cannot be served.
        """
        schema = self.incoming.read_schema(message)
        if self._wanted is None:
            self._wanted = read_infer_descriptor(_descriptor(self.incoming.descriptor))
            self._reply = ReplyWriter(self._wanted)
            self.pipeline()
        if schema is not None:
            self._frames = FrameReader(schema, self._service.limits)
            self._schema = schema
            self._find_short_way()

    def pipeline(self) -> RunningPipeline:
        """The pipeline that is served by now.

        Raises:
            NotReadyError: there is none, or its replies do not fit those that were sent.
            NotFoundError: it has another name than is asked for.
        """
        plane, wanted, reply = self._service.plane, self._wanted, self._reply
        if wanted is None or reply is None:
            raise InternalError("a batch before the descriptor")
        pipeline = plane.running
        if pipeline is not self._pipeline:
            if wanted.pipeline is not None:
                pipeline = plane.named(wanted.pipeline)
            reply.use(pipeline.inputs, pipeline.outputs)
            self._pipeline = pipeline
            self._find_short_way()
        return pipeline

    def answer_at_once(self, message: bytes | memoryview, send: Callable[..., None]) -> bool:
        """Answer a message the shortest way, by ``send``; False where it is to go the usual one."""
        way = self._short_way
        if way is None or self._service.plane.current is not self._pipeline:
            return False
        return way.answer(message, send)

    def prepare(self, request: BatchRequest, opened: OpenBatch) -> None:
        """Read a request's batch now.

        Raises:
            EngineError: it is not one that is accepted.
        """
        frame, batch = self._read(opened)
        request.prepare(frame)
        if self._short_way is not None:
            self._short_way.learn(request.size_bytes, opened, batch)

    def read(self, opened: OpenBatch) -> Frame:
        """Read a batch; any thread.

        Raises:
            EngineError: it is not one that is accepted.
        """
        return self._read(opened)[0]

    def write(self, outcome: InferResult | Exception, size_bytes: int) -> Reply | Exception:
        """Write the outcome of a request; any thread.

        Args:
            outcome: the answer, or why there is none.
            size_bytes: of the message that it came in.

        Returns:
            What goes out, or why nothing does.
        """
        if isinstance(outcome, Exception):
            return outcome
        try:
            if self._reply is None:
                raise InternalError("an answer before the descriptor")
            reply = self._reply.write(outcome)
        except Exception as error:  # noqa: BLE001 - whatever it is ends the call
            return error
        finally:
            del outcome  # an error would hold this frame, and this frame the rows
        if self._wanted is not None and self._wanted.as_records:
            reply.kept_bytes = size_bytes
        return reply

    def _read(self, opened: OpenBatch) -> tuple[Frame, pa.RecordBatch]:
        batch, frames = self.incoming.read_batch(opened), self._frames
        if frames is None:
            raise InternalError("a batch before the schema")
        frames.check_size(batch)
        frames.validate(batch)
        return frames.read(batch), batch

    def _find_short_way(self) -> None:
        """Whether the batches of this stream can go the short way through the pipeline."""
        pipeline, schema, service = self._pipeline, self._schema, self._service
        self._short_way = None
        if pipeline is None or schema is None or self._reply is None or self._is_kept:
            return
        as_records = self._wanted is not None and self._wanted.as_records
        if not as_records and ShortWay.is_open_to(schema, pipeline):
            self._short_way = ShortWay(schema, pipeline, self._reply, service, rest=self._rest)


def _nothing() -> None:
    """What a call that is over does to let others have their turn."""


def _descriptor(serialized: bytes | None) -> fl.FlightDescriptor:
    if serialized is None:
        raise DecodeError("the call has no descriptor: it says which pipeline is to answer")
    return parse(fl.FlightDescriptor, serialized)
