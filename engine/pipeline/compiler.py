"""Definitions compiled to plans: each stage against the models and the columns before it.

Rules that hold here:
- What cannot run is refused at load: a column that no model before it gives, element types or row
  shapes that do not meet, a check on something that is not there. The text names the step's JSON
  path and both sides.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import orjson

from engine.pipeline.actions import (
    Check,
    ColumnsAsRows,
    Ensemble,
    RowRouting,
    RunModel,
    SelectColumns,
    Split,
    merge_checks,
)
from engine.pipeline.checks import compile_checks
from engine.pipeline.plan import Answer, Plan, PlanOptions
from engine.pipeline.routing import KeySplit, WeightSplit
from engine.pipeline.shadow import Challenger
from engine.pipeline.signature import Placed, Signature
from engine.pipeline.stages import CheckStage, EnsembleStage, find_stages, refuse
from engine.pipeline.steps import (
    ColumnsSelect,
    ColumnsToRows,
    MetaValueSplit,
    ModelInference,
    RandomSplit,
    RowsToModels,
)
from engine.values import Output, Shadow

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engine.pipeline.actions import Action, Model
    from engine.pipeline.checks import Checks
    from engine.pipeline.definition import DefinitionDraft, PipelineDefinition
    from engine.pipeline.stages import Member, Stage
    from engine.pipeline.steps import ModelKey
    from engine.values import CheckResult, TensorSpec

__all__ = ["compile_plan"]


def compile_plan(
    definition: DefinitionDraft | PipelineDefinition,
    models: Mapping[ModelKey, Model],
    options: PlanOptions | None = None,
) -> Plan:
    """Compile a definition against its models.

    Args:
        definition: as published.
        models: every model that a step names, loaded.
        options: how to run it.

    Returns:
        The plan; its challengers wait for ``start``.

    Raises:
        StartupError: a step does not fit the one before it; the text names the JSON path and
            both types.
    """
    return _Compiler(definition, models, options or PlanOptions()).compile()


class _Compiler:
    """Goes through the stages with what is known of the columns between them."""

    def __init__(
        self,
        definition: DefinitionDraft | PipelineDefinition,
        models: Mapping[ModelKey, Model],
        options: PlanOptions,
    ) -> None:
        self._stages = find_stages(definition)
        self._models = models
        self._options = options
        self._signature = Signature()
        self._client_columns = _client_columns(self._stages)
        self._warnings: list[str] = []
        self._checks: list[tuple[Checks, Signature]] = []
        self._last: list[Model] = []
        self._challengers: list[Challenger] = []
        self._model_steps = 0

    def compile(self) -> Plan:
        actions = [self._action(index, stage) for index, stage in enumerate(self._stages)]
        self._validate()
        checks: CheckResult | None = None
        for check, _ in self._checks:
            checks = merge_checks(checks, check.without_rows())
        no_rows = Answer(
            _no_rows(self._signature.first_columns),
            self._last[-1].identity,
            0,
            (0,) * self._model_steps,
            checks,
            tuple(Shadow(one.model.identity.name, one.no_rows) for one in self._challengers),
        )
        inputs, outputs = self._signature.request_inputs, self._signature.first_columns
        return Plan(actions, inputs, tuple(outputs), no_rows, self._warnings)

    def _action(self, index: int, stage: Stage) -> Action:
        if isinstance(stage, CheckStage):
            return self._check(stage)
        if isinstance(stage, EnsembleStage):
            return self._ensemble(stage)
        step = stage.step
        if isinstance(step, ColumnsSelect | ColumnsToRows):
            return self._rearrange(index, stage.path, step)
        if isinstance(step, ModelInference):
            (model,) = self._place(f"{stage.path}.models", step.models)
            self._signature = self._signature.after([model])
            return RunModel(model.model)
        if isinstance(step, RowsToModels):
            return self._rows_to_models(stage.path, step)
        return self._split(stage.path, step)

    def _place(self, path: str, models: Sequence[ModelKey]) -> list[Placed]:
        """The models of a model step, with the path of each."""
        self._model_steps += 1
        self._last = [self._models[key] for key in models]
        return [Placed(f"{path}[{n}]", model) for n, model in enumerate(self._last)]

    def _ensemble(self, stage: EnsembleStage) -> Action:
        def place(members: Sequence[Member]) -> list[Placed]:
            return [
                Placed(f"{stage.path}.models[{member.position}]", self._models[member.model])
                for member in members
            ]

        self._model_steps += 1
        answer, beside = place(stage.answer), place(stage.challengers)
        self._last = [one.model for one in answer]
        self._signature.fed(beside)
        if len(answer) > 1:
            self._signature = self._signature.alike(answer, "outputs of one kind have an average")
            text = next((s for s in answer[0].model.outputs if s.element.numpy == "object"), None)
            if text is not None:
                raise refuse(stage.path, f"there is no average of text ({text})")
        else:
            self._signature = self._signature.after(answer)
        options = self._options
        challengers = [
            Challenger(
                one.model,
                _no_rows(one.model.outputs),
                threads=options.threads,
                observe=options.observe_shadow,
            )
            for one in beside
        ]
        self._challengers += challengers
        return Ensemble(tuple(one.model for one in answer), tuple(challengers))

    def _split(self, path: str, step: RandomSplit | MetaValueSplit) -> Action:
        router: WeightSplit | KeySplit
        if not self._signature.keeps_rows:
            raise refuse(
                path, "after ColumnsToRows the rows are not the request's: split before it"
            )
        if isinstance(step, RandomSplit):
            router = WeightSplit(step, self._options.draw)
            placed = self._place(f"{path}.weights", [arm.model for arm in step.weights])
        else:
            router = KeySplit(step)
            keys = [step.control, *(route.model for route in step.routes)]
            names = ["control", *(f"routes[{route.value!r}]" for route in step.routes)]
            placed = [
                replace(one, path=f"{path}.{name}")
                for one, name in zip(self._place(path, keys), names, strict=True)
            ]
        self._signature = self._signature.after(placed, told=True)
        models = tuple(one.model for one in placed)
        return Split(router, models, tuple(_split_text(model) for model in models))

    def _rows_to_models(self, path: str, step: RowsToModels) -> Action:
        indexes = [row.row_index for row in step.rows]
        if sorted(indexes) != list(range(len(indexes))):
            raise refuse(
                f"{path}.rows_to_models",
                f"the rows are {indexes}: each row from 0 on needs a model, once",
            )
        placed = self._place(f"{path}.rows_to_models", [row.model for row in step.rows])
        self._signature = self._signature.alike(placed, "the rows stand in one reply")
        arms = tuple(dict.fromkeys(row.model for row in step.rows))
        route = {row.row_index: arms.index(row.model) for row in step.rows}
        models = tuple(self._models[key] for key in arms)
        return RowRouting(models, tuple(route[index] for index in range(len(route))))

    def _rearrange(self, index: int, path: str, step: ColumnsSelect | ColumnsToRows) -> Action:
        spec = self._signature.only_column(path, self._next_model(index))
        if isinstance(step, ColumnsToRows):
            rearranged = self._signature.rearranged(path, spec, 1, keeps_rows=False)
            self._signature = rearranged
            return ColumnsAsRows(spec)
        width = spec.row_shape[0]
        if width is not None and width <= max(step.columns):
            raise refuse(
                f"{path}.columns", f"number {max(step.columns)} (counted from 0) of {spec}"
            )
        count = len(step.columns)
        self._signature = self._signature.rearranged(path, spec, count, keeps_rows=True)
        return SelectColumns(spec, step.columns)

    def _next_model(self, index: int) -> Model | None:
        """The first model of the next stage that runs any."""
        for stage in self._stages[index + 1 :]:
            key = _first_model(stage)
            if key is not None:
                return self._models[key]
        return None

    def _check(self, stage: CheckStage) -> Action:
        signature = self._signature
        if not signature.keeps_rows:
            raise refuse(
                stage.places[0] if stage.places else "$.steps",
                "after ColumnsToRows the rows are not the request's: check before it",
            )
        checks = compile_checks(stage.trees, places=stage.places, positions=signature.positions)
        self._checks.append((checks, signature))
        return Check(checks)

    def _validate(self) -> None:
        """Hold every check to the columns there are, once it is known what requests hold."""
        columns: dict[str, TensorSpec | None] = dict.fromkeys(self._client_columns)
        columns |= {spec.name: spec for spec in self._signature.request_inputs}
        request = {f"in.{name}": spec for name, spec in columns.items()}
        for checks, signature in self._checks:
            found = [checks.validate(request | given) for given in signature.results]
            self._warnings.extend(checks.warnings)
            self._warnings.extend(dict.fromkeys(line for lines in found for line in lines))


def _no_rows(specs: Sequence[TensorSpec]) -> tuple[Output, ...]:
    """The outputs of a request without rows."""
    shapes = [(0, *(axis or 0 for axis in spec.row_shape)) for spec in specs]
    return tuple(
        Output(spec.name, np.empty(shape, spec.element.numpy), per_row=True)
        for spec, shape in zip(specs, shapes, strict=True)
    )


def _split_text(model: Model) -> str:
    """A split's model as the recorded A/B logs spell it."""
    one = model.identity
    return orjson.dumps({"name": one.name, "version": one.version, "sha": one.sha}).decode()


def _first_model(stage: Stage) -> ModelKey | None:
    if isinstance(stage, EnsembleStage):
        return stage.answer[0].model
    step = None if isinstance(stage, CheckStage) else stage.step
    if isinstance(step, ModelInference):
        return step.models[0]
    if isinstance(step, RandomSplit):
        return step.weights[0].model
    if isinstance(step, MetaValueSplit):
        return step.control
    return step.rows[0].model if isinstance(step, RowsToModels) else None


def _client_columns(stages: Sequence[Stage]) -> tuple[str, ...]:
    """The columns that splits look at; what type they have is the client's choice."""
    steps = [None if isinstance(s, CheckStage | EnsembleStage) else s.step for s in stages]
    keys = [step.hash_key for step in steps if isinstance(step, RandomSplit)]
    keys += [step.split_key for step in steps if isinstance(step, MetaValueSplit)]
    return tuple(key for key in keys if key is not None)
