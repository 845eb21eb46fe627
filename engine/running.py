"""A loaded pipeline: what it takes and gives, and how requests are run on it.

Rules that hold here:
- Every request of every shell comes here through ``DataPlane.answer``, alone or with others.
- Requests are run together only where that was tried at load time and changed no bit; a batch that
  fails is run again request by request, so that one bad request fails alone.
"""

from __future__ import annotations

import dataclasses
import time
from functools import partial
from typing import TYPE_CHECKING

from engine.batching.batch import merge, split
from engine.batching.trial import try_together
from engine.codecs.tensors import to_tensor
from engine.errors import InternalError
from engine.values import BoundRows, InferResult

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from engine.batching.cost import RunCost
    from engine.batching.entry import BatchPolicy
    from engine.pipeline.plan import Answer, Plan
    from engine.request import InferRequest
    from engine.values import Array, Frame, ModelIdentity, Output, PipelineIdentity

__all__ = ["RunningPipeline", "ServedModel"]

MOST_BOUND: Final = 8  # numbers of rows: each is tried with some ten runs
BOUND_RUN_NS: Final = 100_000  # what a longer run gains is nothing beside it


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
        has_one_model: whether one model makes the answer: then ``run`` may be called.
        row: one row in memory of its own, where that model can have it; for one thread, the event
            loop.
        lone_model: the model, where it makes the answer of one input and nothing is checked; None
            where there is more to it.
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
        self.has_one_model = plan.joint_model is not None
        self.row = None if plan.joint_model is None else plan.joint_model.bind_rows(1)
        is_lone = len(plan.inputs) == 1 and not plan.has_checks
        self.lone_model = plan.joint_model if is_lone else None
        self._bound: dict[int, BoundRows | None] = {1: self.row}
        self._last_rows = 1
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

        def run(feeds: Sequence[Array], rows: int) -> tuple[Output, ...]:
            outputs, run_ns = self.run(feeds, rows)
            # the first runs that follow close upon one another: they tell what a run takes
            self.cost.learn(rows, run_ns)
            return outputs

        verdict = try_together(run, model.inputs, wanted.max_rows)
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
        first = requests[0]
        if len(requests) == 1 and first.feeds is not None:
            frame = first.frame or first.decoded()
            outputs, run_ns = self.run(first.feeds, frame.rows)
            self.cost.learn(frame.rows, run_ns)
            first.outcome = self.conclude(frame, outputs, first.parse_ns, run_ns)
            return
        rows = [request.rows for request in requests]
        total = sum(rows)
        feeds = merge([request.feeds for request in requests if request.feeds is not None])
        outputs, run_ns = self.run(feeds, total)
        self.cost.learn(total, run_ns)
        if any(len(output.values) != total for output in outputs):
            name = self._plan.last_model.name
            raise InternalError(f"model {name!r} gave other rows than it was fed")
        for request, own in zip(requests, split(outputs, rows), strict=True):
            frame = request.frame or request.decoded()
            request.outcome = self.conclude(frame, own, request.parse_ns, run_ns)

    def bound_rows(self, rows: int) -> BoundRows | None:
        """Memory for so many rows, where as many came before; for the event loop.

        Args:
            rows: how many are to be run.

        Returns:
            The memory, for ``run``; None where runs are quick enough without.
        """
        if rows not in self._bound:
            is_new, self._last_rows = rows != self._last_rows, rows
            if is_new or len(self._bound) == MOST_BOUND:
                return None
            model, run_ns = self._plan.joint_model, self.cost.least_ns(rows)
            if model is None or run_ns is None or run_ns > BOUND_RUN_NS:
                return None
            self._bound[rows] = model.bind_rows(rows)
        return self._bound[rows]

    def run(self, feeds: Sequence[Array] | BoundRows, rows: int) -> tuple[tuple[Output, ...], int]:
        """Run the one model; for a caller that tells ``cost`` afterwards what it took.

        Args:
            feeds: a request's tensors, by ``feeds``; or memory that they were written into, ``row``
                or what ``bound_rows`` gave, on the only thread that may.
            rows: how many there are.

        Returns:
            The outputs, and what the run took, ns; those of bound memory are good until other rows
            are written there.

        Raises:
            Exception: the run failed; that of bound memory is better told by one of tensors.
        """
        model = self._plan.joint_model
        if model is None:
            raise InternalError("this pipeline runs no requests together")
        started_ns = time.monotonic_ns()
        if isinstance(feeds, BoundRows):
            feeds.run()
            outputs = feeds.outputs
        else:
            outputs = model.run(feeds, rows)
        return outputs, time.monotonic_ns() - started_ns

    def conclude(
        self, frame: Frame, outputs: tuple[Output, ...], parse_ns: int, run_ns: int
    ) -> InferResult:
        """The answer that one model's run makes.

        Args:
            frame: the request's rows.
            outputs: what the model gave for them, ordered by name.
            parse_ns: how long decoding took.
            run_ns: how long the run took.

        Returns:
            The answer; its time is now.

        Raises:
            EngineError: the request cannot be checked.
        """
        plan = self._plan
        return InferResult(
            frame,
            outputs,
            time.time_ns() // 1_000_000,
            (parse_ns, run_ns),
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
