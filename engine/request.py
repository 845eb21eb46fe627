"""One caller's rows from their arrival to their answer, whichever shell they came by.

Rules that hold here:
- A request that waited is dropped, not run, when its caller is gone by then.
- A batch that fails is run again request by request: one bad request fails alone.
- Whatever happens becomes the request's outcome; ``answer`` never raises.
- With the log on, rows are committed before any answer of their run leaves.
- No ring of references outlives a request, since its rows would stay until the next full garbage
  collection, gigabytes later: an error's traceback holds the request, so whoever settles takes the
  error out of it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from engine.batching.entry import BatchPolicy, Entry
from engine.errors import Fault, InternalError
from engine.refusal import refusal_of
from engine.values import InferResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.batching.cost import RunCost
    from engine.metrics import Metrics
    from engine.values import Array, Frame, PipelineIdentity, TensorSpec

__all__ = ["InferRequest", "Runner", "answer"]


class Runner(Protocol):
    """What a request needs of the pipeline that answers it."""

    @property
    def identity(self) -> PipelineIdentity:
        """Its name and version."""

    @property
    def partition(self) -> str:
        """Name of the edge or host."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What a request must hold."""

    @property
    def cost(self) -> RunCost:
        """What its runs take."""

    @property
    def policy(self) -> BatchPolicy | None:
        """How requests are run together; None = one by one."""

    def feeds(self, frame: Frame) -> tuple[Sequence[Array], object]:
        """A request's tensors, and what must be equal for requests to share a run."""

    def infer(self, frame: Frame, started_ns: int) -> InferResult:
        """Run a request's rows on the calling thread."""

    def infer_together(self, requests: Sequence[InferRequest]) -> None:
        """Run requests of one key in one run, and set their outcomes."""


class InferRequest(Entry):
    """One caller's rows from their arrival to their answer; a shell says how each is done.

    Attributes:
        pipeline: what answers it, captured once.
        frame: its rows; None while they are not decoded.
        feeds: its tensors, where it may be run with others; else made when it is run.
        started_ns: monotonic time of its arrival.
        parse_ns: how long decoding took.
        queue_ns: how long it waited for a slot.
        run_ns: how long the runs of its answer took; known with the answer.
        outcome: the answer, or why there is none; ``settle`` takes it out.
    """

    frame: Frame | None = None
    feeds: Sequence[Array] | None = None
    parse_ns = 0
    queue_ns = 0
    run_ns = 0
    outcome: InferResult | Exception | None = None

    def __init__(self, pipeline: Runner) -> None:
        """Begin a request; its clock starts now."""
        self.pipeline = pipeline
        self.started_ns = time.monotonic_ns()

    def prepare(self, frame: Frame) -> None:
        """Take the decoded rows, and where they may be run with others, make them ready for it.

        Raises:
            SchemaMismatchError: the rows do not fit the model.
        """
        self.frame = frame
        self.rows = frame.rows
        policy = self.pipeline.policy
        if policy is not None and 0 < frame.rows <= policy.max_rows:
            self.feeds, self.key = self.pipeline.feeds(frame)
            self.policy = policy
        self.parse_ns = time.monotonic_ns() - self.started_ns

    def decoded(self) -> Frame:
        """The rows; a shell that decodes late does it here.

        Raises:
            EngineError: they cannot be decoded.
        """
        if self.frame is None:
            raise InternalError("a request without rows")
        return self.frame

    def wait(self) -> None:
        """It stands in the line; called on the thread that put it there."""
        raise NotImplementedError

    def settle(self) -> None:
        """Answer the caller with the outcome, or let go of everything where it was abandoned.

        Called on the thread that ran it, or took it out of the line; never raises.
        """
        raise NotImplementedError

    def take_outcome(self) -> InferResult | Exception:
        """The answer, or why there is none; nothing holds that, or the rows, any more."""
        outcome, self.outcome = self.outcome, None
        self.frame = self.feeds = None
        if isinstance(outcome, InferResult):
            self.rows = outcome.frame.rows  # where it was decoded late, they were an estimate
            self.run_ns = sum(outcome.elapsed_ns[1:])
        return InternalError("no outcome") if outcome is None else outcome

    def count(self, metrics: Metrics) -> None:
        """Count it as answered, which it is now; by who sends the answer."""
        latency_ns = time.monotonic_ns() - self.started_ns
        metrics.record(self.rows, latency_ns, self.queue_ns, self.run_ns)


class Log(Protocol):
    """What keeps answers before their callers get them."""

    def append(self, results: Sequence[InferResult]) -> int:
        """Commit the rows of these answers; never raises for what the disk does."""

    def append_failure(self, pipeline: PipelineIdentity, partition: str, error: str) -> None:
        """Remember a request that failed, by what its caller is told."""


def answer(requests: Sequence[InferRequest], metrics: Metrics, log: Log | None) -> None:
    """Run requests of one key on the calling thread, which holds a slot, and answer them.

    Args:
        requests: one, or several whose policy lets them be run together.
        metrics: counts the runs that were shared.
        log: keeps the answers, all of a run in one commit, before any of them leaves.
    """
    if len(requests) == 1 and not requests[0].queued_ns:
        _run_alone(requests[0])
        if log is not None:
            _keep(requests, log)
        requests[0].settle()
        return
    live = [request for request in requests if _is_live(request)]
    if len(live) == 1:
        _run_alone(live[0])
    elif live:
        metrics.record_batch(len(live), sum(request.rows for request in live))
        _run_together(live)
    if log is not None:
        _keep(live, log)
    for request in requests:
        request.settle()


def _is_live(request: InferRequest) -> bool:
    """Whether a request, if it has waited, is still waited for."""
    if request.queued_ns:
        request.queue_ns = time.monotonic_ns() - request.queued_ns
    return not request.is_abandoned


def _keep(requests: Sequence[InferRequest], log: Log) -> None:
    """The log promise: an answer leaves only after its rows are committed."""
    results = []
    for request in requests:
        outcome = request.outcome
        if isinstance(outcome, Exception):
            if not request.is_abandoned:  # else its body may be gone, and it is nobody's failure
                _keep_failure(request, outcome, log)
        elif outcome is not None:
            results.append(outcome)
    if results:
        log.append(results)


def _keep_failure(request: InferRequest, error: Exception, log: Log) -> None:
    """What the caller is told, which holds nothing of the request; a bad request is no failure."""
    refusal = refusal_of(error)
    if refusal.fault is Fault.SERVER:
        pipeline = request.pipeline
        log.append_failure(pipeline.identity, pipeline.partition, refusal.text)


def _run_alone(request: InferRequest) -> None:
    try:
        if request.feeds is not None:
            request.pipeline.infer_together([request])
            return
        frame = request.decoded()
        request.outcome = request.pipeline.infer(frame, request.started_ns + request.queue_ns)
    except Exception as error:  # noqa: BLE001 - every failure is answered, bugs included
        request.outcome = error


def _run_together(requests: Sequence[InferRequest]) -> None:
    try:
        requests[0].pipeline.infer_together(requests)
    except Exception:  # noqa: BLE001 - whose fault it was shows when each is run alone
        for request in requests:
            _run_alone(request)
