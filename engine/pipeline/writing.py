"""A pipeline definition as JSON and as a drawing: the way back from the records.

Rule that holds here: what ``write_definition`` writes, ``parse_definition`` reads as the same
records; both know every step kind.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import assert_never

import orjson

from engine.pipeline.check_drawing import draw_check
from engine.pipeline.definition import ModelDraft, ModelVersion, PipelineDefinition
from engine.pipeline.steps import (
    AuditResults,
    Average,
    Check,
    ColumnsSelect,
    ColumnsToRows,
    MetaValueSplit,
    ModelInference,
    ModelKey,
    MultiOut,
    Nth,
    RandomSplit,
    RowsToModels,
    Step,
)

__all__ = ["draw_steps", "write_definition"]

Json = dict[str, object]


def write_definition(definition: PipelineDefinition) -> bytes:
    """Write a definition in the published form.

    Args:
        definition: Complete.

    Returns:
        JSON, UTF-8, indented: people read it in registries.
    """

    def reference(key: ModelKey) -> Json:
        model = definition.models[key]
        return {"name": model.name, "version": model.version, "sha": model.sha}

    document: Json = {"id": definition.id}
    if definition.version is not None:
        document["version"] = definition.version
    document["steps"] = [
        {type(step).__name__: _content(step, reference)} for step in definition.steps
    ]
    document["models"] = [_model(model) for model in definition.models]
    return orjson.dumps(document, option=orjson.OPT_INDENT_2)


def draw_steps(steps: Sequence[Step], models: Sequence[ModelDraft]) -> list[str]:
    """Draw the steps as a small tree.

    Args:
        steps: Of a definition.
        models: Of the same definition.

    Returns:
        Lines.
    """
    lines = []
    for place, step in enumerate(steps):
        is_last = place == len(steps) - 1
        lines.append(f"{'└─' if is_last else '├─'} {place + 1}. {_title(step)}")
        leaves = _leaves(step, lambda key: models[key].name)
        for count, leaf in enumerate(leaves, start=1):
            branch = "└─" if count == len(leaves) else "├─"
            lines.append(f"{'  ' if is_last else '│ '}    {branch} {leaf}")
    return lines


def _content(step: Step, reference: Callable[[ModelKey], Json]) -> Json:
    match step:
        case ModelInference():
            return {"models": [reference(key) for key in step.models]}
        case AuditResults():
            return {"from": step.first, "to": step.last}
        case Nth() | ColumnsSelect() | Check() | MultiOut() | Average() | ColumnsToRows():
            return dataclasses.asdict(step)  # their fields are named as the document's
        case RandomSplit() | MetaValueSplit() | RowsToModels():
            return _split(step, reference)
    assert_never(step)


def _split(
    step: RandomSplit | MetaValueSplit | RowsToModels, reference: Callable[[ModelKey], Json]
) -> Json:
    match step:
        case RandomSplit():
            arms = [{"model": reference(arm.model), "weight": arm.weight} for arm in step.weights]
            return {"hash_key": step.hash_key, "weights": arms}
        case MetaValueSplit():
            routes = {route.value: reference(route.model) for route in step.routes}
            control = reference(step.control)
            return {"split_key": step.split_key, "control": control, "routes": routes}
        case RowsToModels():
            rows = [
                {"row_index": row.row_index, "model": reference(row.model)} for row in step.rows
            ]
            return {"rows_to_models": rows}
    assert_never(step)


def _model(model: ModelVersion) -> Json:
    """A model without the keys that say nothing."""
    values: Json = {
        "name": model.name,
        "version": model.version,
        "sha": model.sha,
        "runtime": model.runtime,
        "tensor_fields": model.tensor_fields,
        "batch_config": model.batch_config,
        "model_version_id": model.model_version_id,
    }
    if model.dynamic_batching is not None:
        values["dynamic_batching_config"] = {
            "max_batch_delay_ms": model.dynamic_batching.max_batch_delay_ms,
            "batch_size_target": model.dynamic_batching.batch_size_target,
            "batch_size_limit": model.dynamic_batching.batch_size_limit,
        }
    return {key: value for key, value in values.items() if value is not None}


def _title(step: Step) -> str:
    match step:
        case AuditResults(first, last):
            return f"AuditResults: keep results {first} to {'the last' if last is None else last}"
        case Nth(index):
            return f"Nth: go on with result {index}"
        case RandomSplit(hash_key):
            return f"RandomSplit by {'chance' if hash_key is None else f'the column {hash_key}'}"
        case MetaValueSplit(split_key):
            return f"MetaValueSplit by the column {split_key}"
        case ColumnsSelect(columns):
            return f"ColumnsSelect {', '.join(map(str, columns))}"
        case _:
            return type(step).__name__


def _leaves(step: Step, name: Callable[[ModelKey], str]) -> list[str]:
    match step:
        case ModelInference((champion, *challengers)):
            shadows = [f"{name(key)} (shadow)" for key in challengers]
            return [name(champion), *shadows]
        case RandomSplit():
            total = sum(arm.weight for arm in step.weights)
            return [f"{name(arm.model)} ({arm.weight / total:.0%})" for arm in step.weights]
        case MetaValueSplit():
            routes = [f"{route.value} → {name(route.model)}" for route in step.routes]
            return [*routes, f"any other → {name(step.control)}"]
        case RowsToModels():
            return [f"row {row.row_index} → {name(row.model)}" for row in step.rows]
        case Check():
            return [draw_check(text) for text in step.tree]
        case _:
            return []
