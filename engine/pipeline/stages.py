"""The steps of a definition put together to stages: what belongs together, in an order that runs.

A shadow deployment is published as three steps (ModelInference of several models, AuditResults,
MultiOut) and is one stage; validations that stand side by side are one stage.
Source: the product's SDK, ``pipeline_config`` and the pipeline's ``add_…`` methods.

Rules that hold here:
- Nothing is known of the models but their names: a definition is refused here before anything of
  it is fetched. What models take and give is compared in ``plan``.
- Every complaint names the step by its JSON path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import StartupError
from engine.pipeline.steps import (
    AuditResults,
    Average,
    Check,
    ColumnsSelect,
    ColumnsToRows,
    MetaValueSplit,
    ModelInference,
    MultiOut,
    Nth,
    RandomSplit,
    RowsToModels,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.pipeline.definition import DefinitionDraft, PipelineDefinition
    from engine.pipeline.steps import ModelKey, Step

__all__ = ["CheckStage", "EnsembleStage", "Member", "Stage", "StepStage", "find_stages", "refuse"]


@dataclass(frozen=True, slots=True)
class StepStage:
    """One step on its own: a model, a split, rows to models, or a rearrangement of columns."""

    path: str
    step: (
        ModelInference | RandomSplit | MetaValueSplit | RowsToModels | ColumnsSelect | ColumnsToRows
    )


@dataclass(frozen=True, slots=True)
class Member:
    """A model of an ensemble and its position among the step's models."""

    position: int
    model: ModelKey


@dataclass(frozen=True, slots=True)
class EnsembleStage:
    """Several models on the same input.

    Attributes:
        path: of its ModelInference.
        answer: the models whose result goes on: one, or those that are averaged.
        challengers: the models whose results stand beside the answer, and never hold it up.
    """

    path: str
    answer: tuple[Member, ...]
    challengers: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class CheckStage:
    """Validations that see the same columns: their trees and the JSON path of each."""

    trees: tuple[str, ...]
    places: tuple[str, ...]


Stage = StepStage | EnsembleStage | CheckStage

_ON_SEVERAL = (AuditResults, MultiOut, Nth, Average)


def refuse(path: str, text: str) -> StartupError:
    """The error for a definition that cannot be run."""
    return StartupError(f"pipeline definition, {path}: {text}")


def find_stages(definition: DefinitionDraft | PipelineDefinition) -> tuple[Stage, ...]:
    """Put the steps of a definition together.

    Args:
        definition: as published.

    Returns:
        The stages, in the order in which they run; at least one runs a model.

    Raises:
        StartupError: the steps do not make a pipeline; the text names the step's JSON path.
    """
    names = [model.name for model in definition.models]
    stages: list[Stage] = []
    at = 0
    while at < len(definition.steps):
        stage, steps = _stage(definition.steps, at, names)
        stages.append(stage)
        at += steps
    if all(isinstance(stage, CheckStage) or _rearranges(stage) for stage in stages):
        raise refuse("$.steps", "no step runs a model")
    if _rearranges(stages[-1]):
        raise refuse(
            _path(definition.steps, at - 1), "there is no step after it to take the columns"
        )
    return tuple(stages)


def _stage(steps: Sequence[Step], at: int, names: Sequence[str]) -> tuple[Stage, int]:
    """The stage that begins at a step, and how many steps it takes."""
    step, path = steps[at], _path(steps, at)
    if isinstance(step, Check):
        count = 0
        trees: list[str] = []
        places: list[str] = []
        while at + count < len(steps) and isinstance(check := steps[at + count], Check):
            trees.extend(check.tree)
            where = _path(steps, at + count)
            places.extend(f"{where}.tree[{index}]" for index in range(len(check.tree)))
            count += 1
        return CheckStage(tuple(trees), tuple(places)), count
    if isinstance(step, _ON_SEVERAL):
        before = type(steps[at - 1]).__name__ if at else "the request"
        raise refuse(
            path,
            "it works on the results of several models, so it must follow a ModelInference of "
            f"several; before it is {before}",
        )
    if isinstance(step, ModelInference) and len(step.models) > 1:
        return _ensemble(steps, at, step.models, names)
    return StepStage(path, step), 1


def _ensemble(
    steps: Sequence[Step], at: int, models: Sequence[ModelKey], names: Sequence[str]
) -> tuple[Stage, int]:
    path = _path(steps, at)
    audited: set[int] = set()
    after = at + 1
    while after < len(steps) and isinstance(audit := steps[after], AuditResults):
        last = len(models) if audit.last is None else audit.last
        if not audit.first < len(models) >= last:
            raise refuse(
                _path(steps, after),
                f"results {audit.first} to {last} of {len(models)} models (counted from 0)",
            )
        audited.update(range(audit.first, last))
        after += 1
    chosen = steps[after] if after < len(steps) else None
    if isinstance(chosen, Average):
        answer = list(range(len(models)))
    elif isinstance(chosen, MultiOut):
        answer = [0]
        audited.update(range(1, len(models)))
    elif isinstance(chosen, Nth):
        if chosen.index >= len(models):
            raise refuse(
                _path(steps, after),
                f"result {chosen.index} of {len(models)} models (counted from 0)",
            )
        answer = [chosen.index]
    else:
        raise refuse(
            path,
            f"{len(models)} models give {len(models)} results; follow it with MultiOut (the first "
            "answers, the others beside it), Nth or Average",
        )
    members = [Member(position, model) for position, model in enumerate(models)]
    challengers = [members[position] for position in sorted(audited.difference(answer))]
    _refuse_same_names(path, [names[member.model] for member in challengers])
    answering = tuple(members[position] for position in answer)
    return EnsembleStage(path, answering, tuple(challengers)), after + 1 - at


def _refuse_same_names(path: str, names: Sequence[str]) -> None:
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise refuse(
            path,
            f"several challengers are named {', '.join(sorted(twice))}: the reply names them "
            "out_NAME, so each needs a name of its own",
        )


def _rearranges(stage: Stage) -> bool:
    return isinstance(stage, StepStage) and isinstance(stage.step, ColumnsSelect | ColumnsToRows)


def _path(steps: Sequence[Step], at: int) -> str:
    return f"$.steps[{at}].{type(steps[at]).__name__}"
