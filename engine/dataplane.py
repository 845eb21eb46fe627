"""The one object that every shell calls: it infers, and it tells what it serves.

Rules that hold here:
- No bytes, no headers, no status codes; a shell decodes and encodes around it.
- Every request of every shell is run by ``DataPlane.answer``, alone or with others of its kind.
- Requests are run together only where that was tried at load time and changed no bit; a batch that
  fails is run again request by request, so that one bad request fails alone.
- A request captures the running pipeline once, so that a swap in between cannot mix two versions.
- Loading, running, failed and draining are states of this object; readiness is told from them.
"""

from __future__ import annotations

import dataclasses
import enum
import time
from functools import partial
from typing import TYPE_CHECKING

from engine.batching.batch import merge, split
from engine.batching.trial import try_together
from engine.codecs.tensors import to_tensor
from engine.errors import InternalError, NotFoundError, NotReadyError
from engine.request import answer
from engine.values import InferResult

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine.batching.cost import RunCost
    from engine.batching.line import BatchPolicy
    from engine.logring import LogRing
    from engine.metrics import Metrics
    from engine.pipeline.plan import Answer, Plan
    from engine.request import InferRequest
    from engine.values import Array, Frame, ModelIdentity, Output, PipelineIdentity

__all__ = ["DataPlane", "RunningPipeline", "ServedModel", "Status"]


class Status(enum.Enum):
    """The state of a pipeline or model, as the documented endpoints spell it."""

    LOADING = "Loading"
    RUNNING = "Running"
    ERROR = "Error"


@dataclasses.dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as ``GET /models`` lists it."""

    identity: ModelIdentity
    version_id: int | None = None


class RunningPipeline:
    """A loaded pipeline.

    Attributes:
        identity: its name and version.
        inputs: what a request must hold.
        outputs: what one row of an answer holds, ordered by name.
        models: as ``GET /models`` lists them.
        cost: how long its runs take; begins with what warming up told.
        policy: how requests are run together; None where they are not.
    """

    def __init__(
        self,
        identity: PipelineIdentity,
        plan: Plan,
        models: tuple[ServedModel, ...],
        partition: str,
        cost: RunCost,
    ) -> None:
        """Put a started plan to use; ``partition``, edge or host, is named in every record."""
        self.identity = identity
        self.inputs = plan.inputs
        self.outputs = plan.outputs
        self.models = models
        self.cost = cost
        self.policy: BatchPolicy | None = None
        self._plan = plan
        self.partition = partition
        self._is_one_kind = all(None not in spec.row_shape for spec in plan.inputs)

    def allow_batches(self, wanted: BatchPolicy) -> str:
        """Try whether requests may be run together, and from now on do so if they may.

        Returns the verdict in words, for the log.
        """
        model = self._plan.joint_model
        if model is None:
            return "request by request: more than one model has a part in the answer"
        if not model.takes_any_rows or wanted.max_rows < 2:
            return "request by request: the model, or MAX_BATCH_ROWS, allows no joint runs"
        verdict = try_together(model.run, model.inputs, wanted.max_rows)
        if verdict.max_rows:
            self.policy = dataclasses.replace(wanted, max_rows=verdict.max_rows)
            return f"requests are run together up to {verdict.max_rows} rows: {verdict.reason}"
        return f"request by request: {verdict.reason}"

    def feeds(self, frame: Frame) -> tuple[Sequence[Array], object]:
        """A request's tensors, and what must be equal for requests to share a run.

        Raises:
            SchemaMismatchError: the rows do not fit the model.
        """
        feeds = []
        for spec in self.inputs:  # a comprehension would be one call more
            feeds.append(to_tensor(frame, spec))
        return feeds, self if self._is_one_kind else (self, *(feed.shape[1:] for feed in feeds))

    def infer_together(self, requests: Sequence[InferRequest]) -> None:
        """Run requests of one key, with their feeds, in one run, and set their outcomes.

        Raises:
            EngineError: the run failed, or a request cannot be checked; no outcome counts.
        """
        model = self._plan.joint_model
        if model is None:
            raise InternalError("this pipeline runs no requests together")
        first = requests[0]
        total, feeds = first.rows, first.feeds
        if len(requests) > 1 or feeds is None:
            rows = [request.rows for request in requests]
            total = sum(rows)
            feeds = merge([request.feeds for request in requests if request.feeds is not None])
        started_ns = time.monotonic_ns()
        outputs = model.run(feeds, total)
        run_ns = time.monotonic_ns() - started_ns
        self.cost.learn(total, run_ns)
        if len(requests) == 1:
            self._conclude(first, outputs, run_ns)
            return
        if any(len(output.values) != total for output in outputs):
            raise InternalError(f"model {model.identity.name!r} gave other rows than it was fed")
        for request, own in zip(requests, split(outputs, rows), strict=True):
            self._conclude(request, own, run_ns)

    def _conclude(self, request: InferRequest, outputs: tuple[Output, ...], run_ns: int) -> None:
        frame = request.frame or request.decoded()
        plan = self._plan
        request.outcome = InferResult(
            frame,
            outputs,
            time.time_ns() // 1_000_000,
            (request.parse_ns, run_ns),
            plan.last_model,
            self.identity,
            self.partition,
            plan.check(frame.columns, frame.rows, outputs) if plan.has_checks else None,
        )

    def infer(self, frame: Frame, started_ns: int) -> InferResult:
        """Run a request's rows on the calling thread.

        Args:
            frame: the decoded request.
            started_ns: monotonic time when its decoding began.

        Returns:
            The answer; its arrays live as long as it does.

        Raises:
            EngineError: the rows do not fit the pipeline, or a model raised.
        """
        answer = self._plan.run(frame.columns, frame.rows, partial(to_tensor, frame))
        if frame.rows:
            self.cost.learn(frame.rows, time.monotonic_ns() - answer.decoded_ns)
        return self._result(frame, answer, answer.decoded_ns - started_ns)

    def close(self, timeout_s: float) -> bool:
        """End the threads of its challengers; whether they ended in time."""
        return self._plan.close(timeout_s)

    def _result(self, frame: Frame, answer: Answer, parse_ns: int) -> InferResult:
        return InferResult(
            frame=frame,
            outputs=answer.outputs,
            time_ms=time.time_ns() // 1_000_000,
            elapsed_ns=(parse_ns, *answer.steps_ns),
            model=answer.model,
            pipeline=self.identity,
            partition=self.partition,
            checks=answer.checks,
            shadows=answer.shadows,
            row_models=answer.row_models,
        )


class DataPlane:
    """What the shells serve: the running pipeline and the truth about its state.

    The state changes by replacing one reference; readers need no lock.

    Attributes:
        log: keeps the answers; None where it is off.
        is_draining: the engine was asked to stop: requests are still answered, none are welcome.
        answer: runs requests of one key on the calling thread, which holds a slot; answers them.
    """

    def __init__(self, metrics: Metrics, log: LogRing | None = None) -> None:
        """Serve nothing yet; ``metrics`` counts the runs, ``log`` keeps the answers."""
        self.log = log
        self._running: RunningPipeline | None = None
        self._identity: PipelineIdentity | None = None
        self._models: tuple[ServedModel, ...] = ()
        self._failure: str | None = None
        self.is_draining = False
        self.answer: Callable[[Sequence[InferRequest]], None] = partial(
            answer, metrics=metrics, log=log
        )

    @property
    def is_ready(self) -> bool:
        """Whether requests are answered and more are welcome."""
        return self._running is not None and not self.is_draining

    @property
    def state(self) -> str:
        """One word for the health endpoint."""
        return "Draining" if self.is_draining else self._status().value

    @property
    def batch_max_rows(self) -> int:
        """Most rows that requests are run together with; 0 = request by request."""
        running = self._running
        return running.policy.max_rows if running is not None and running.policy else 0

    @property
    def has_pipeline(self) -> bool:
        """Whether there is a running pipeline, draining or not."""
        return self._running is not None

    @property
    def running(self) -> RunningPipeline:
        """The pipeline that answers requests.

        Raises:
            NotReadyError: there is none yet, or it failed to load.
        """
        if self._running is None:
            if self._failure is not None:
                raise NotReadyError("the pipeline failed to load; the engine's log has the reason")
            raise NotReadyError("the pipeline is still loading: try again shortly")
        return self._running

    @property
    def kept_log(self) -> LogRing:
        """The inference log, for those who read it.

        Raises:
            NotFoundError: it is off.
        """
        if self.log is None:
            raise NotFoundError(
                "the inference log is off: start the engine with LOCAL_INFERENCE_STORAGE and "
                "PLATEAU_PAGE_SIZE to keep one"
            )
        return self.log

    def named(self, name: str) -> RunningPipeline:
        """The running pipeline under its own name.

        Raises:
            NotFoundError: the engine serves another one.
            NotReadyError: as ``running``.
        """
        running = self.running
        if name != running.identity.id:
            raise NotFoundError(
                f"no pipeline {name[:200]!r} here: this engine serves {running.identity.id!r} "
                "(and POST /infer always reaches the pipeline that is served)"
            )
        return running

    def announce(self, identity: PipelineIdentity, models: tuple[ServedModel, ...]) -> None:
        """Tell what is being loaded."""
        self._identity, self._models = identity, models

    def serve(self, pipeline: RunningPipeline) -> None:
        """Answer requests with this pipeline from now on."""
        self.announce(pipeline.identity, pipeline.models)
        self._failure = None
        self._running = pipeline

    def fail(self, reason: str) -> None:
        """Tell that what was being loaded cannot be served."""
        self._failure = reason

    def close(self, timeout_s: float) -> bool:
        """End the threads of the running pipeline; whether they ended in time."""
        return self._running is None or self._running.close(timeout_s)

    def drain(self) -> None:
        """Answer what comes, but be no longer ready."""
        self.is_draining = True

    def pipelines(self) -> list[dict[str, object]]:
        """The pipelines as ``GET /pipelines`` lists them (reference page, List Pipelines)."""
        if self._identity is None:
            return []
        status = self._status().value
        return [{"id": self._identity.id, "version": self._identity.version, "status": status}]

    def models(self) -> list[dict[str, object]]:
        """The models as ``GET /models`` lists them (reference page, List Models)."""
        listed: list[dict[str, object]] = []
        for model in self._models:
            entry: dict[str, object] = {
                "name": model.identity.name,
                "sha": model.identity.sha,
                "status": self._status().value,
                "version": model.identity.version,
            }
            if model.version_id is not None:
                entry["model_version_id"] = model.version_id
            listed.append(entry)
        return listed

    def _status(self) -> Status:
        if self._failure is not None:
            return Status.ERROR
        return Status.LOADING if self._running is None else Status.RUNNING
