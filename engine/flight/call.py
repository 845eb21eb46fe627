"""The inferences of one Flight call: its batches in, their answers out, one after the other.

Which thread runs what: everything is the event loop's, but for what stands in the line. A batch is
checked and read where it arrived, unless it is large; the model runs there too when that is
expected to be quick and a run slot is free (``turn``). Whatever goes into the line is run, and its
answer written, by a slot thread, and sent by the event loop.

Rules that hold here:
- A batch is checked before anything looks at a value, as ``FrameReader`` says.
- One batch of a call is answered at a time; until it is, no further message of it is taken.
- The end of the stream means nothing: a killed client looks like one that is done. What counts is
  the answer to each batch.
- A call lives longer than a pipeline: each batch is answered by the one that is served by then, as
  long as the reply keeps its schema.
- Whatever happens becomes the end of the call; nothing is ever raised to its caller.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.flight as fl

from engine._proto.sagitta.flight.v1 import flight_pb2
from engine.codecs.arrow_frame import FrameReader
from engine.errors import (
    DeadlineExceededError,
    DecodeError,
    InternalError,
    OverloadedError,
    ShuttingDownError,
)
from engine.flight.descriptors import read_infer_descriptor, write_ticket
from engine.flight.errors import CancelledError, finish_with
from engine.flight.incoming import Incoming
from engine.flight.messages import batch_pieces, field, schema_pieces
from engine.flight.reply import ReplyWriter
from engine.flight.request import BatchRequest
from engine.flight.short_way import BoundRuns, ShortWay
from engine.http2 import HIGH_BYTES
from engine.values import InferResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Final

    from engine.batching.line import Line
    from engine.codecs.ipc_guard import IpcLimits
    from engine.dataplane import DataPlane
    from engine.flight.admission import Admitted
    from engine.flight.incoming import OpenBatch
    from engine.flight.reply import Part, Reply
    from engine.flight.results import Results
    from engine.http2 import Call
    from engine.metrics import Metrics
    from engine.request import InferRequest
    from engine.running import RunningPipeline
    from engine.turn import Turn
    from engine.values import Frame

__all__ = ["ExchangeCall", "FlightService", "PutCall"]

LATE_BYTES: Final = 4 << 20  # read by the thread that runs it: some ms, where it is text


@dataclasses.dataclass(slots=True)
class FlightService:
    """What every call shares.

    Attributes:
        plane: answers the requests.
        turn: runs them.
        line: where they wait.
        metrics: counts them.
        limits: what one batch may hold.
        max_held_bytes: of large messages that are arriving or being answered, of all calls.
        request_timeout_s: after this long a batch that still waits is answered with an error.
        held_bytes: of such messages, now.
        bound: memory for the runs of a pipeline, and which that is.
    """

    plane: DataPlane
    turn: Turn
    line: Line[InferRequest]
    metrics: Metrics
    limits: IpcLimits
    max_held_bytes: int
    request_timeout_s: float
    held_bytes: int = 0
    bound: tuple[RunningPipeline, BoundRuns] | None = None

    def bound_runs(self, pipeline: RunningPipeline) -> BoundRuns:
        """Memory for the runs of a pipeline with one model and one input."""
        if self.bound is None or self.bound[0] is not pipeline:
            (spec,) = pipeline.inputs
            self.bound = pipeline, BoundRuns(pipeline.lone_model, spec)
        return self.bound[1]


class ExchangeCall:
    """One DoExchange; the handler of its messages."""

    def __init__(
        self,
        service: FlightService,
        call: Call,
        admitted: Admitted,
        on_end: Callable[[ExchangeCall], None],
    ) -> None:
        """Expect the schema.

        Args:
            service: what all calls share.
            call: whose messages come, and where the answers go.
            admitted: says whether its token still holds.
            on_end: called once, when the call is over.
        """
        self._service = service
        self._call = call
        self._admitted = admitted
        self._on_end = on_end
        self._incoming = Incoming(service.limits)
        self._frames: FrameReader | None = None  # once there is a schema
        self._schema: pa.Schema | None = None
        self._pipeline: RunningPipeline | None = None
        self._name: str | None = None
        self._as_records = False
        self._reply: ReplyWriter | None = None
        self._short_way: ShortWay | None = None
        self._request: BatchRequest | None = None  # the batch that is being answered
        self._parts: Iterator[Part] | None = None  # of its answer, still to be sent
        self._is_held = False
        self._is_begun = False  # the schema of the answers was sent
        self._is_refusing = False
        self._is_closed = False
        self._held_bytes = 0

    @property
    def is_busy(self) -> bool:
        """Whether a batch is being answered, or its answer sent."""
        return self._request is not None or self._parts is not None

    def refuse_new(self) -> None:
        """The engine stops: what is being answered is, and nothing after it."""
        self._is_refusing = True

    # -- http2's handler -------------------------------------------------------------------------

    def place(self, size_bytes: int, first: memoryview) -> memoryview | None:
        """Where a large message is to stand; None where too many of them are held already."""
        service = self._service
        held_bytes, most = service.held_bytes, service.max_held_bytes
        if held_bytes and held_bytes + size_bytes > most:
            text = (
                f"the batches that are being received hold {held_bytes} bytes (limit: "
                f"QUEUE_MAX_BYTES={most}): try again shortly"
            )
            self._fail(OverloadedError(text))
            return None
        service.held_bytes += size_bytes
        self._held_bytes += size_bytes
        return self._incoming.place(size_bytes, first)

    def take(self, message: bytes | memoryview) -> None:
        """The schema, or a batch."""
        way, service = self._short_way, self._service
        try:
            if way is not None and self._is_begun and service.plane.current is self._pipeline:
                if self._is_refusing:
                    raise _stopping()
                if self._admitted.is_token_asked:
                    self._admitted.check()
                pieces = way.answer(message)
                if pieces is not None:
                    self._call.send(*pieces)
                    self._incoming.skip(message)
                    self._let_go(message)
                    self._hold_while_unsent()
                    return
            if self._frames is None:
                self._begin(message)
            else:
                self._answer(message)
        except Exception as error:  # noqa: BLE001 - whatever it is ends the call
            self._fail(error)

    def end(self) -> None:
        """The client has sent all it wants answers to."""
        if self._frames is None:
            self._fail(DecodeError("the stream has ended before it had a schema"))
            return
        self._call.finish()
        self._close()

    def drained(self) -> None:
        """The client has read: send on, or take the next batch."""
        if self._parts is not None:
            self._send_parts()
        elif self._request is None:
            self._go_on()

    def leave(self) -> None:
        """Nobody waits for an answer any more."""
        request, self._request = self._request, None
        if request is not None:
            request.give_up()
            if request.is_in_line:
                self._service.metrics.record_cancelled()
        self._close()

    # -- one batch -------------------------------------------------------------------------------

    def _begin(self, message: bytes | memoryview) -> None:
        """Read the descriptor and the schema."""
        schema = self._incoming.read_schema(message)
        self._let_go(message)
        if self._reply is None:
            wanted = read_infer_descriptor(_descriptor(self._incoming.descriptor))
            self._name, self._as_records = wanted.pipeline, wanted.as_records
            self._reply = ReplyWriter(wanted)
            self._find_pipeline(self._reply)
        if schema is None:
            return
        self._frames = FrameReader(schema, self._service.limits)
        self._schema = schema
        self._find_short_way()

    def _answer(self, message: bytes | memoryview) -> None:
        """Answer a batch, now or later."""
        opened = self._incoming.open_batch(message)
        if opened is None:  # metadata alone
            self._let_go(message)
            return
        self._admitted.check()
        if self._is_refusing or self._reply is None:
            raise _stopping()
        service, call = self._service, self._call
        pipeline = self._find_pipeline(self._reply)
        request = BatchRequest(pipeline, self, service, call, message)
        if len(message) <= LATE_BYTES:
            frame, batch = self.read(opened)
            request.prepare(frame)
            if self._short_way is not None:
                self._short_way.learn(len(message), opened, batch)
        else:
            request.rows, request.opened = opened.rows, opened
        self._request = request
        service.turn.add(request, call.loop, is_alone=service.metrics.flight_calls <= 1)
        if self._request is not None:
            self._hold()

    def read(self, opened: OpenBatch) -> tuple[Frame, pa.RecordBatch]:
        """Read and check a batch; any thread.

        Raises:
            EngineError: it is not one that is accepted.
        """
        batch, frames = self._incoming.read_batch(opened), self._frames
        if frames is None:
            raise InternalError("a batch without a schema")
        frames.check_size(batch)
        frames.validate(batch)
        return frames.read(batch), batch

    def write(self, request: BatchRequest) -> Reply | Exception:
        """The outcome of a request as its reply; on the thread that ran it.

        Returns:
            What goes out, or why nothing does.
        """
        outcome, request.outcome = request.outcome, None
        request.frame = request.feeds = request.opened = None
        if not isinstance(outcome, InferResult):
            return outcome or CancelledError()
        try:
            if self._reply is None:
                raise InternalError("an answer without a schema")
            reply = self._reply.write(outcome)
        except Exception as error:  # noqa: BLE001 - whatever it is ends the call
            return error
        finally:
            del outcome  # an error would hold this frame, and this frame the rows
        request.record(reply.told.elapsed_ns)
        return reply

    def settled(self, settled: tuple[BatchRequest, Reply | Exception]) -> None:
        """Send a reply; on the event loop."""
        request, reply = settled
        if request is not self._request:
            return  # it was given up
        self._request = None
        self._let_go(request.message)
        if isinstance(reply, Exception):
            self._fail(reply)
            return
        try:
            self._respond(reply)
        except Exception as error:  # noqa: BLE001 - whatever it is ends the call
            self._fail(error)

    def expired(self, request: BatchRequest) -> None:
        """A request has waited too long."""
        if request is self._request:
            self._request = None
            text = (
                f"no answer within {self._service.request_timeout_s:g} s (REQUEST_TIMEOUT_S): the "
                "engine is busy, or the batch too large for that time"
            )
            self._fail(DeadlineExceededError(text))

    def _respond(self, reply: Reply) -> None:
        if not self._is_begun:
            self._is_begun = True
            self._call.send(*schema_pieces(reply.batch.schema))
        self._parts = reply.parts()
        self._send_parts()

    def _send_parts(self) -> None:
        """Send as much of an answer as the client reads."""
        call, parts = self._call, self._parts
        while parts is not None and not call.is_over:
            if call.unsent_bytes > HIGH_BYTES:
                self._hold()
                return
            part = next(parts, None)
            if part is None:
                break
            call.send(*batch_pieces(*part))
        self._parts = None
        if self._hold_while_unsent():
            return
        self._go_on()

    # -- its own ---------------------------------------------------------------------------------

    def _hold(self) -> None:
        self._is_held = True
        self._call.hold()

    def _hold_while_unsent(self) -> bool:
        if self._call.unsent_bytes > HIGH_BYTES:
            self._hold()
            return True
        return False

    def _go_on(self) -> None:
        if self._is_held and not self._is_closed:
            self._is_held = False
            self._call.go_on()

    def _find_pipeline(self, reply: ReplyWriter) -> RunningPipeline:
        """The pipeline that is served by now."""
        plane = self._service.plane
        pipeline = plane.running
        if pipeline is not self._pipeline:
            if self._name is not None:
                pipeline = plane.named(self._name)
            reply.use(pipeline.inputs, pipeline.outputs)
            self._pipeline = pipeline
            self._find_short_way()
        return pipeline

    def _find_short_way(self) -> None:
        """Whether the batches of this stream can go the short way through the pipeline."""
        pipeline, schema, service = self._pipeline, self._schema, self._service
        self._short_way = None
        if pipeline is None or schema is None or self._reply is None or self._as_records:
            return
        if service.plane.log is None and ShortWay.is_open_to(schema, pipeline):
            bound = service.bound_runs(pipeline)
            self._short_way = ShortWay(pipeline, bound, self._reply, service.turn, service.metrics)

    def _fail(self, error: BaseException) -> None:
        finish_with(self._call, error, self._service.metrics)
        self._close()

    def _let_go(self, message: bytes | memoryview) -> None:
        """A message is not held any more."""
        if isinstance(message, memoryview):
            self._service.held_bytes -= len(message)
            self._held_bytes -= len(message)

    def _close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._service.held_bytes -= self._held_bytes
        self._held_bytes = 0
        self._parts = None
        self._on_end(self)


class PutCall(ExchangeCall):
    """One DoPut: its answers are kept for DoGet, and each is told of with its ticket."""

    def __init__(
        self,
        service: FlightService,
        call: Call,
        admitted: Admitted,
        on_end: Callable[[ExchangeCall], None],
        results: Results,
    ) -> None:
        """Expect the schema; ``results`` keep the answers."""
        super().__init__(service, call, admitted, on_end)
        self._results = results
        self._key: bytes | None = None

    def _respond(self, reply: Reply) -> None:
        self._key = self._results.add(self._key, reply)
        told = flight_pb2.PutReply(
            sequence=reply.told.sequence,
            rows=reply.told.rows,
            elapsed_ns=reply.told.elapsed_ns,
            ticket=write_ticket(self._key),
        )
        self._call.send(field(1, told.SerializeToString()))
        if not self._hold_while_unsent():
            self._go_on()

    def _find_short_way(self) -> None:
        """Its answers are kept as batches."""


def _descriptor(serialized: bytes | None) -> fl.FlightDescriptor:
    if serialized is None:
        raise DecodeError("the call has no descriptor: it says which pipeline is to answer")
    try:
        return fl.FlightDescriptor.deserialize(serialized)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DecodeError("the call's descriptor cannot be read") from error


def _stopping() -> ShuttingDownError:
    return ShuttingDownError("the engine is stopping and takes no new batches")
