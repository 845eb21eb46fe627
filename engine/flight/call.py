"""The inferences of one Flight call: its batches in, their answers out, one after the other.

Which thread runs what: the handler's own thread, which gRPC made for the call, reads, checks,
prepares, encodes and writes. It also runs the model when a slot is free and nobody waits; otherwise
its request stands in the line, where it is run with others of its kind, by this thread or another.
A run of a few microseconds takes no slot at all: to hand one over costs more than the run, and the
interpreter's lock, which such calls hold nearly all of their time, bounds them well enough.

Rules that hold here:
- A batch is checked before anything looks at a value, as ``FrameReader`` says.
- The end of the stream means nothing: a killed client looks like one that is done. What counts is
  the answer to each batch.
- Whether the client still waits is asked before a run, unless the run is tiny: gRPC looks at the
  connection to find out, which takes 50 us and more. No slot is held while reading or writing.
- A call lives longer than a pipeline: each batch is answered by the one that is served by then, as
  long as the reply keeps its schema.
- After a wait for bytes code runs several times slower than in a loop, since the caches hold
  something else by then: what a small batch costs is how many functions and objects it touches.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import TYPE_CHECKING

import pyarrow as pa

from engine.codecs.arrow_frame import FrameReader, first_line
from engine.errors import (
    DeadlineExceededError,
    DecodeError,
    EngineError,
    InternalError,
)
from engine.flight.errors import CancelledError
from engine.flight.reply import ReplyWriter
from engine.flight.short_way import TINY_RUN_NS, ShortWay
from engine.request import InferRequest
from engine.values import InferResult

if TYPE_CHECKING:
    from typing import Any, Final

    import pyarrow.flight as fl

    from engine.batching.line import Line
    from engine.codecs.ipc_guard import IpcLimits
    from engine.dataplane import DataPlane
    from engine.flight.admission import Admitted
    from engine.flight.descriptors import Wanted
    from engine.flight.reply import Part, Reply
    from engine.metrics import Metrics
    from engine.running import RunningPipeline

__all__ = ["FlightService", "InferCall"]

POLL_S: Final = 0.05  # how often a thread that waits in the line looks whether its client does


@dataclasses.dataclass(frozen=True, slots=True)
class FlightService:
    """What every call shares.

    Attributes:
        plane: answers the requests.
        line: bounds the runs.
        metrics: counts them.
        limits: what one batch may hold.
        request_timeout_s: after this long a batch that still waits is answered with an error.
    """

    plane: DataPlane
    line: Line[InferRequest]
    metrics: Metrics
    limits: IpcLimits
    request_timeout_s: float


class _BatchRequest(InferRequest):
    """One batch of a call."""

    context: fl.ServerCallContext

    def is_gone(self) -> bool:
        """Whether the client has cancelled, died or passed its deadline."""
        return self.is_abandoned or bool(self.context.is_cancelled())

    def settle(self) -> None:
        """Wake the handler's thread, unless it is this one."""
        if self.queued_ns and self.batch is None and self.turn is not None:
            self.turn.release()


class InferCall:
    """One call; used by its handler's thread alone, but for ``is_busy``.

    Attributes:
        is_busy: whether a batch is being answered; read by the thread that stops the server.
    """

    def __init__(
        self,
        service: FlightService,
        context: fl.ServerCallContext,
        admitted: Admitted,
        wanted: Wanted,
        reader: fl.MetadataRecordBatchReader,
    ) -> None:
        """Begin a call; waits for the schema of the request.

        Args:
            service: what all calls share.
            context: of the call.
            admitted: says whether its token still holds.
            wanted: what its descriptor says.
            reader: of its batches.

        Raises:
            EngineError: there is no such pipeline, or the schema cannot be served.
            CancelledError: the client has gone.
        """
        self._service = service
        self._context = context
        self._admitted = admitted
        self._is_token_asked = admitted.is_token_asked
        self._wanted = wanted
        self._reader = reader
        self._pipeline: RunningPipeline | None = None
        self._reply = ReplyWriter(wanted)
        self._turn = threading.Lock()
        self._turn.acquire()
        self.is_busy = False
        self._schema: pa.Schema | None = None
        self._short_way: ShortWay | None = None
        self._find_pipeline()
        try:
            schema = reader.schema
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from None
        self._frames = FrameReader(schema, service.limits)
        self._schema = schema
        self._find_short_way()

    def next_batch(self) -> pa.RecordBatch | None:
        """Wait for a batch; None at the end of the stream.

        Raises:
            DecodeError: what came is no Arrow data.
            CancelledError: the client has gone.
        """
        self.is_busy = False
        batch = None
        while batch is None:  # a message may hold metadata alone
            try:
                batch = self._reader.read_chunk().data
            except StopIteration:
                return None
            except (pa.ArrowException, OSError) as error:
                raise self._unreadable(error) from None
        self.is_busy = True
        return batch

    @property
    def schema(self) -> pa.Schema | None:
        """The schema of the replies; None before the first."""
        return self._reply.schema

    def answer_at_once(self, batch: pa.RecordBatch) -> Part | None:
        """Answer a small batch the short way; None where it is to go the usual one.

        Raises:
            UnauthorizedError: the caller's token is accepted no more.
        """
        way = self._short_way
        if way is None or self._service.plane.current is not self._pipeline:
            return None
        if self._is_token_asked:
            self._admitted.check()
        return way.answer(batch)

    def answer(self, batch: pa.RecordBatch) -> Reply:
        """Check a batch, run it, and write its answer.

        Returns:
            What goes out.

        Raises:
            EngineError: it cannot be answered.
            CancelledError: nobody waits for its answer.
        """
        self._admitted.check()
        request = _BatchRequest(self._find_pipeline())
        request.context, request.turn = self._context, self._turn
        request.size_bytes = self._frames.check_size(batch)
        self._frames.validate(batch)
        request.prepare(self._frames.read(batch))
        result = self._run(request)
        reply = self._reply.write(result)
        run_ns = sum(result.elapsed_ns) - result.elapsed_ns[0]
        latency_ns = time.monotonic_ns() - request.started_ns
        self._service.metrics.record(request.rows, latency_ns, request.queue_ns, run_ns)
        return reply

    def _find_pipeline(self) -> RunningPipeline:
        """The pipeline that is served by now."""
        plane, name = self._service.plane, self._wanted.pipeline
        pipeline = plane.running
        if pipeline is not self._pipeline:
            if name is not None:
                pipeline = plane.named(name)
            self._reply.use(pipeline.inputs, pipeline.outputs)
            self._pipeline = pipeline
            self._find_short_way()
        return pipeline

    def _find_short_way(self) -> None:
        """Whether the batches of this stream can go the short way through the pipeline."""
        pipeline, schema, service = self._pipeline, self._schema, self._service
        self._short_way = None
        if pipeline is None or schema is None or service.plane.log is not None:
            return
        if not self._wanted.as_records and ShortWay.is_open_to(schema, pipeline):
            self._short_way = ShortWay(pipeline, self._reply, service.limits, service.metrics)

    def _run(self, request: _BatchRequest) -> InferResult:
        service = self._service
        least_ns = request.pipeline.cost.least_ns(request.rows)
        if least_ns is not None and least_ns <= TINY_RUN_NS and not request.is_held():
            service.plane.answer([request])
        elif self._context.is_cancelled():
            service.metrics.record_cancelled()
            raise CancelledError
        elif service.line.enter(request):
            try:
                service.plane.answer([request])
            finally:
                service.line.release()
        else:
            self._wait(request)
        return _result(request)

    def _wait(self, request: _BatchRequest) -> None:
        """Wait until the request is answered, or run the batch that this thread is given."""
        line = self._service.line
        deadline_s = time.monotonic() + self._service.request_timeout_s
        while not self._turn.acquire(timeout=POLL_S):
            is_late = time.monotonic() > deadline_s
            is_counted = request.is_abandoned  # by who came to run it
            if (is_late or self._context.is_cancelled()) and line.abandon(request):
                if not is_late:
                    if not is_counted:
                        self._service.metrics.record_cancelled()
                    raise CancelledError
                raise DeadlineExceededError(
                    f"no answer within {self._service.request_timeout_s:g} s "
                    "(REQUEST_TIMEOUT_S): the engine is busy, or the batch too large for that time"
                )
        if request.batch is not None:
            try:
                self._service.plane.answer(request.batch)  # type: ignore[arg-type]
            finally:
                request.batch = None  # it holds the request: a ring of references
                line.release()

    def _unreadable(self, error: Any) -> Exception:  # noqa: ANN401 - pyarrow's own, untyped
        if self._context.is_cancelled():
            return CancelledError()
        return DecodeError(f"the stream cannot be read as Arrow data: {first_line(error)}")


def _result(request: InferRequest) -> InferResult:
    """Take the outcome: an answer is returned, an error is raised."""
    outcome, request.outcome = request.outcome, None
    try:
        if isinstance(outcome, InferResult):
            return outcome
        if outcome is None:
            raise CancelledError
        if isinstance(outcome, EngineError):
            raise outcome
        raise InternalError(f"{type(outcome).__name__}: {outcome}") from outcome
    finally:
        del outcome  # from here on it would hold this frame, and this frame it
