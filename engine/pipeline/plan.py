"""A pipeline ready to run: what it does to a request, stage by stage, and what comes out.

Rules that hold here:
- A pipeline of one model is one call of that model and nothing else.
- A plan is immutable and shared; everything of one request is in its ``Flow``.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from engine.pipeline.actions import Ensemble, Flow, RunModel
from engine.values import Shadow

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
        shadows: the challengers' results that were there in time.
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
        warnings: what the operator should know of the checks.
    """

    def __init__(
        self,
        actions: Sequence[Action],
        inputs: tuple[TensorSpec, ...],
        no_rows: Answer,
        warnings: Sequence[str],
    ) -> None:
        self.inputs = inputs
        self.warnings = tuple(warnings)
        self._actions = tuple(actions)
        first = self._actions[0]
        is_single = len(self._actions) == 1 and isinstance(first, RunModel)
        self._single = first.model if is_single and isinstance(first, RunModel) else None
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
        """End the challengers' threads; whether each ended in time."""
        return all([challenger.close(timeout_s) for challenger in self._challengers])

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
        model = self._single
        if model is not None:
            feeds = [read(spec) for spec in model.inputs]
            decoded_ns = time.monotonic_ns()
            outputs = model.run(feeds, rows)
            return Answer(outputs, model.identity, decoded_ns, (time.monotonic_ns() - decoded_ns,))
        return self._run_actions(Flow(columns, rows, read))

    def _run_actions(self, flow: Flow) -> Answer:
        rows = flow.rows
        for action in self._actions:
            action.apply(flow)
        outputs = flow.outputs or ()
        if flow.rows != rows:
            outputs = tuple(replace(output, per_row=False) for output in outputs)
        return Answer(
            outputs,
            flow.model or self._no_rows.model,
            flow.decoded_ns,
            tuple(flow.steps_ns),
            flow.checks,
            _collect(flow) if flow.works else (),
            flow.row_models,
        )


def _collect(flow: Flow) -> tuple[Shadow, ...]:
    """The challengers' results that are there in time."""
    asked_ns, answer_ns = time.monotonic_ns(), sum(flow.steps_ns)
    shadows = []
    for work in flow.works:
        outputs = work.challenger.collect(work, asked_ns, answer_ns)
        if outputs is not None:
            shadows.append(Shadow(work.challenger.model.identity.name, outputs))
    return tuple(shadows)
