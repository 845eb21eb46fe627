"""What the stages of a plan do to one request: run models, route rows, rearrange, check.

Rules that hold here:
- An action is immutable and shared by all requests; everything of one request is in its ``Flow``.
- Outputs go on as the arrays that the model gave: between two models nothing is copied or cast.
- ``elapsed`` has one entry per model step; checks and rearranging count into none.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from engine.errors import EngineError, SchemaMismatchError
from engine.pipeline.outputs import average, fit, join
from engine.values import SPLIT_COLUMN, CheckResult, Output, RowModels

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from engine.pipeline.checks import Checks
    from engine.pipeline.routing import KeySplit, WeightSplit
    from engine.pipeline.shadow import Challenger, Work
    from engine.values import Array, BoundRows, Column, ModelIdentity, TensorSpec

__all__ = [
    "Action",
    "Check",
    "ColumnsAsRows",
    "Ensemble",
    "Flow",
    "Model",
    "RowRouting",
    "RunModel",
    "SelectColumns",
    "Split",
    "merge_checks",
]


class Model(Protocol):
    """A loaded model, as a plan runs it; callable from any thread."""

    @property
    def identity(self) -> ModelIdentity:
        """Who it is."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What it takes, in its order, under the columns' names."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What it gives, ordered by name."""

    @property
    def takes_any_rows(self) -> bool:
        """Whether one run takes any number of rows."""

    def run(self, feeds: Sequence[Array], rows: int) -> tuple[Output, ...]:
        """Run the rows; one tensor per input, in the order of ``inputs``."""

    def bind_rows(self, rows: int) -> BoundRows | None:
        """Memory for runs of so many rows; None where it has no such rows."""


@dataclass(slots=True)
class Flow:
    """One request on its way through the actions.

    Attributes:
        columns: the request's columns, as they were sent.
        rows: how many rows the current tensors have; first those of the request.
        read: makes the tensor that a model takes from the request's columns.
        outputs: the last model's outputs, ordered by name; None while no model ran.
        model: the last model.
        row_models: the last model of each row, where they differ.
        decoded_ns: monotonic time when the first model's tensors were ready.
        steps_ns: the time of each model step.
        checks: what was found so far.
        works: the challengers and what they are working on; None where that is nothing.
    """

    columns: Mapping[str, Column]
    rows: int
    read: Callable[[TensorSpec], Array]
    outputs: tuple[Output, ...] | None = None
    model: ModelIdentity | None = None
    row_models: RowModels | None = None
    decoded_ns: int = 0
    steps_ns: list[int] = field(default_factory=list)
    checks: CheckResult | None = None
    works: list[tuple[Challenger, Work | None]] = field(default_factory=list)

    def feeds(self, specs: Sequence[TensorSpec]) -> list[Array]:
        """The tensors that a model takes, from the request or from the model before it."""
        outputs = self.outputs
        if outputs is None:
            return [self.read(spec) for spec in specs]
        if len(outputs) == len(specs) == 1 and outputs[0].name == specs[0].name:  # nearly always
            return [fit(outputs[0], specs[0])]
        given = {output.name: output for output in outputs}
        return [fit(given[spec.name], spec) for spec in specs]

    def start_step(self) -> int:
        """The time now; the first call ends the decoding of the request."""
        now_ns = time.monotonic_ns()
        self.decoded_ns = self.decoded_ns or now_ns
        return now_ns


class Action(Protocol):
    """A stage of a plan."""

    def apply(self, flow: Flow) -> None:
        """Take a request one stage further."""


@dataclass(frozen=True, slots=True)
class RunModel:
    """One model on all rows."""

    model: Model

    def apply(self, flow: Flow) -> None:
        """Run it; its outputs become the flow's."""
        model = self.model
        feeds = flow.feeds(model.inputs)
        started_ns = flow.start_step()
        flow.outputs = model.run(feeds, flow.rows)
        flow.steps_ns.append(time.monotonic_ns() - started_ns)
        flow.model, flow.row_models = model.identity, None


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Several models on the same rows: one answers or all are averaged, challengers run beside."""

    answer: tuple[Model, ...]
    challengers: tuple[Challenger, ...]

    def apply(self, flow: Flow) -> None:
        """Run what answers, then start the challengers."""
        tensors: dict[TensorSpec, Array] = {}

        def feeds(model: Model) -> list[Array]:
            for spec in model.inputs:
                if spec not in tensors:
                    tensors[spec] = flow.feeds([spec])[0]
            return [tensors[spec] for spec in model.inputs]

        fed = [feeds(model) for model in self.answer]
        rows = flow.rows
        started_ns = flow.start_step()
        results = [model.run(own, rows) for model, own in zip(self.answer, fed, strict=True)]
        outputs = results[0] if len(results) == 1 else average(results)
        flow.steps_ns.append(time.monotonic_ns() - started_ns)
        for challenger in self.challengers:
            try:
                work = challenger.submit(feeds(challenger.model), rows)
            except EngineError as error:
                challenger.report("failed", str(error))
                work = None
            flow.works.append((challenger, work))
        flow.outputs = outputs
        flow.model, flow.row_models = self.answer[-1].identity, None


@dataclass(frozen=True, slots=True)
class Split:
    """One of several models for each row; ``texts`` tell which, in ``SPLIT_COLUMN``."""

    router: WeightSplit | KeySplit
    arms: tuple[Model, ...]
    texts: tuple[str, ...]

    def apply(self, flow: Flow) -> None:
        """Choose, run, and put the rows back into their order."""
        route = self.router.choose(flow.columns)
        if isinstance(route, int):
            RunModel(self.arms[route]).apply(flow)
            told = np.full((flow.rows, 1), self.texts[route], dtype=object)
        else:
            _run_rows(flow, self.arms, route)
            told = np.array(self.texts, dtype=object)[route][:, np.newaxis]
        outputs = (*(flow.outputs or ()), Output(SPLIT_COLUMN, told, per_row=True))
        flow.outputs = tuple(sorted(outputs, key=lambda output: output.name))


@dataclass(frozen=True, slots=True)
class RowRouting:
    """Each row on the model that the definition names for its position."""

    arms: tuple[Model, ...]
    route: tuple[int, ...]

    def apply(self, flow: Flow) -> None:
        """Run the rows, each on its model.

        Raises:
            SchemaMismatchError: there are not as many rows as models were named.
        """
        if flow.rows != len(self.route):
            raise SchemaMismatchError(
                f"this pipeline sends each of {len(self.route)} rows to a model of its own: "
                f"send exactly so many, not {flow.rows}"
            )
        _run_rows(flow, self.arms, np.array(self.route))


@dataclass(frozen=True, slots=True)
class SelectColumns:
    """Some columns of the one tensor, in a given order."""

    spec: TensorSpec
    columns: tuple[int, ...]

    def apply(self, flow: Flow) -> None:
        """Select them.

        Raises:
            SchemaMismatchError: the request's rows are shorter than that.
        """
        (values,) = flow.feeds([self.spec])
        if values.shape[1] <= max(self.columns):
            raise SchemaMismatchError(
                f"column {self.spec.name!r} has rows of {values.shape[1]} values: this pipeline "
                f"selects number {max(self.columns)} (counted from 0)"
            )
        selected = np.ascontiguousarray(values[:, list(self.columns)])
        flow.outputs = (Output(self.spec.name, selected, per_row=True),)


@dataclass(frozen=True, slots=True)
class ColumnsAsRows:
    """Every value of the one tensor as a row of its own."""

    spec: TensorSpec

    def apply(self, flow: Flow) -> None:
        """Turn ``[rows, k]`` into ``[rows * k, 1]``."""
        (values,) = flow.feeds([self.spec])
        flow.rows = values.size
        flow.outputs = (Output(self.spec.name, values.reshape(-1, 1), per_row=True),)


@dataclass(frozen=True, slots=True)
class Check:
    """Validations of the request and of what the last model gave."""

    checks: Checks

    def apply(self, flow: Flow) -> None:
        """Check the rows, and add what was found to what was found before."""
        columns: dict[str, Column | Array] = {}
        given = {output.name: output.values for output in flow.outputs or ()}
        for name in self.checks.columns:
            side, _, column = name.partition(".")
            if side == "out":
                columns[name] = given[column]
            elif column in flow.columns:  # the column that a split looks at may be left out
                columns[name] = flow.columns[column]
        flow.checks = merge_checks(flow.checks, self.checks.evaluate(columns, flow.rows))


def merge_checks(before: CheckResult | None, found: CheckResult) -> CheckResult:
    """What several check stages found together; of one name the last is shown."""
    if before is None:
        return found
    return CheckResult(
        before.count + found.count,
        {**before.flags, **found.flags},
        before.verdicts + found.verdicts,
    )


def _run_rows(flow: Flow, arms: Sequence[Model], route: Array) -> None:
    """Run each arm on its rows, one run each, and put the outputs together in the rows' order."""
    rows_of_arm = {arm: np.flatnonzero(route == arm) for arm in np.unique(route).tolist()}
    feeds = {arm: flow.feeds(arms[arm].inputs) for arm in rows_of_arm}
    started_ns = flow.start_step()
    results = {
        arm: arms[arm].run([feed[rows] for feed in feeds[arm]], len(rows))
        for arm, rows in rows_of_arm.items()
    }
    flow.outputs = join(results, rows_of_arm, [arm.identity.name for arm in arms], len(route))
    flow.steps_ns.append(time.monotonic_ns() - started_ns)
    flow.model = arms[int(route[-1])].identity
    flow.row_models = RowModels(tuple(arm.identity for arm in arms), route)
