"""A pipeline ready to run: what it does to a request, stage by stage, and what comes out.

Rules that hold here:
- A pipeline of one model is one call of that model and nothing else, but for its checks; several
  requests may share that call.
- A plan is immutable and shared; everything of one request is in its ``Flow``.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from engine.pipeline.actions import Check, Ensemble, Flow, RunModel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from engine.pipeline.actions import Action
    from engine.values import (
        Array,
        CheckResult,
        Column,
        ModelIdentity,
        Output,
        RowModels,
        Shadow,
        TensorSpec,
    )

__all__ = ["Answer", "Plan", "PlanOptions"]


@dataclass(slots=True)
class Answer:
    """What a plan made of the rows of one request.

    Attributes:
        outputs: the last model's, ordered by name.
        model: the last model; where the rows were split, that of the last row.
        decoded_ns: monotonic time when the first model's tensors were ready.
        steps_ns: the time of each model step.
        checks: what the validation checks found; None where there are none.
        shadows: the challengers' results, missing ones too.
        row_models: the last model of each row; None where ``model`` answered all.
    """

    outputs: tuple[Output, ...]
    model: ModelIdentity
    decoded_ns: int
    steps_ns: tuple[int, ...]
    checks: CheckResult | None = None
    shadows: tuple[Shadow, ...] = ()
    row_models: RowModels | None = None


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """How a plan runs.

    Attributes:
        threads: how many requests a challenger works on at a time.
        observe_shadow: gets a challenger's name, why its result is missing, and a sentence.
        draw: gives the numbers from 0 to 1 of random splits.
    """

    threads: int = 1
    observe_shadow: Callable[[str, str, str], None] = lambda _name, _reason, _text: None
    draw: Callable[[], float] = random.random


class Plan:
    """A compiled pipeline; ``run`` may be called by any number of threads at once.

    Attributes:
        inputs: what a request must hold for the first model; for a split, for any of its arms.
        outputs: what one row of an answer holds.
        warnings: what the operator should know of the checks.
        joint_model: the only model, where checks of its results are all that follows: its runs
            may be shared by several requests. None where there is more to the pipeline.
        has_checks: whether checks follow the ``joint_model``.
        last_model: the model that answers, where no split decides.
    """

    def __init__(
        self,
        actions: Sequence[Action],
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        no_rows: Answer,
        warnings: Sequence[str],
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.warnings = tuple(warnings)
        self._actions = tuple(actions)
        first, rest = self._actions[0], self._actions[1:]
        is_joint = isinstance(first, RunModel) and all(isinstance(one, Check) for one in rest)
        self.joint_model = first.model if is_joint and isinstance(first, RunModel) else None
        self.has_checks = self.joint_model is not None and bool(rest)
        self.last_model = no_rows.model
        self._no_rows = no_rows
        self._challengers = [
            challenger
            for action in actions
            if isinstance(action, Ensemble)
            for challenger in action.challengers
        ]

    def start(self) -> None:
        """Start the threads of the challengers, if there are any."""
        for challenger in self._challengers:
            challenger.start()

    def close(self, timeout_s: float) -> bool:
        """End the challengers' threads; whether all of them ended in time."""
        deadline = time.monotonic() + timeout_s
        ended = [one.close(max(deadline - time.monotonic(), 0.0)) for one in self._challengers]
        return all(ended)

    def run(
        self, columns: Mapping[str, Column], rows: int, read: Callable[[TensorSpec], Array]
    ) -> Answer:
        """Run a request's rows on the calling thread.

        Args:
            columns: the request's columns, for checks and splits.
            rows: how many.
            read: makes the tensor that a model takes from the columns.

        Returns:
            The answer; its arrays belong to the caller.

        Raises:
            SchemaMismatchError: the rows do not fit.
            InferenceFailedError: a model raised that the answer needs.
        """
        if not rows:
            return replace(self._no_rows, decoded_ns=time.monotonic_ns())
        model = self.joint_model
        if model is None:
            return self._run_actions(Flow(columns, rows, read))
        feeds = [read(spec) for spec in model.inputs]
        decoded_ns = time.monotonic_ns()
        outputs = model.run(feeds, rows)
        steps_ns = (time.monotonic_ns() - decoded_ns,)
        checks = self.check(columns, rows, outputs) if self.has_checks else None
        return Answer(outputs, self.last_model, decoded_ns, steps_ns, checks)

    def check(
        self, columns: Mapping[str, Column], rows: int, outputs: tuple[Output, ...]
    ) -> CheckResult | None:
        """Do the checks of one request once ``joint_model`` has run.

        Args:
            columns: the request's columns.
            rows: how many.
            outputs: the model's, for these rows.

        Returns:
            What the checks found.

        Raises:
            SchemaMismatchError: a column has a type that a check does not take.
        """
        flow = Flow(columns, rows, _read_nothing, outputs)
        for check in self._actions[1:]:
            check.apply(flow)
        return flow.checks

    def _run_actions(self, flow: Flow) -> Answer:
        rows = flow.rows
        for action in self._actions:
            action.apply(flow)
        outputs = flow.outputs or ()
        if flow.rows != rows:
            outputs = tuple(replace(output, per_row=False) for output in outputs)
        return Answer(
            outputs,
            flow.model or self.last_model,
            flow.decoded_ns,
            tuple(flow.steps_ns),
            flow.checks,
            _collect(flow) if flow.works else (),
            flow.row_models,
        )


def _read_nothing(spec: TensorSpec) -> Array:
    raise AssertionError(f"a check read the tensor {spec}")


def _collect(flow: Flow) -> tuple[Shadow, ...]:
    """The challengers' results, as far as they are there in time."""
    asked_ns, answer_ns = time.monotonic_ns(), sum(flow.steps_ns)
    return tuple(challenger.collect(work, asked_ns, answer_ns) for challenger, work in flow.works)
