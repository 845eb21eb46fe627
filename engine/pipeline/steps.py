"""The step kinds of a pipeline definition, as records, and the reading of one step.

Rules that hold here:
- A step names models by ``ModelKey`` only; the caller turns a model's JSON into its key.
- A step is an object with exactly one key, its kind.
"""

from collections.abc import Callable
from dataclasses import dataclass

from engine.errors import StartupError
from engine.pipeline.document import Node

__all__ = [
    "AuditResults",
    "Average",
    "Check",
    "ColumnsSelect",
    "ColumnsToRows",
    "MetaValueSplit",
    "ModelInference",
    "ModelKey",
    "MultiOut",
    "Nth",
    "RandomSplit",
    "Route",
    "RowModel",
    "RowsToModels",
    "Step",
    "WeightedModel",
    "models_of",
    "read_step",
]

ModelKey = int
"""Position of a model in the definition's ``models``."""

KeyOf = Callable[[Node], ModelKey]


@dataclass(frozen=True, slots=True)
class ModelInference:
    """Run the models on the same input; the first is the champion, the others its shadows."""

    models: tuple[ModelKey, ...]


@dataclass(frozen=True, slots=True)
class AuditResults:
    """Keep the results ``first`` up to but not including ``last`` beside the answer.

    ``last`` None is up to the end. Shadow deployments have ``first`` 1.
    """

    first: int
    last: int | None


@dataclass(frozen=True, slots=True)
class MultiOut:
    """Answer with the champion's outputs, and each challenger's beside them."""


@dataclass(frozen=True, slots=True)
class Nth:
    """Go on with one of several results."""

    index: int


@dataclass(frozen=True, slots=True)
class Average:
    """Go on with the mean of several results."""


@dataclass(frozen=True, slots=True)
class ColumnsSelect:
    """Go on with these columns of the input tensor, in this order."""

    columns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ColumnsToRows:
    """Go on with every column as a row."""


@dataclass(frozen=True, slots=True)
class WeightedModel:
    """One arm of a random split; ``weight`` is relative to the sum of all."""

    model: ModelKey
    weight: float


@dataclass(frozen=True, slots=True)
class RandomSplit:
    """Run one of several models, drawn by weight.

    ``hash_key`` names the column whose value, 0 to 1, replaces the drawn number.
    """

    hash_key: str | None
    weights: tuple[WeightedModel, ...]


@dataclass(frozen=True, slots=True)
class Route:
    """The model that answers rows whose split key has this value."""

    value: str
    model: ModelKey


@dataclass(frozen=True, slots=True)
class MetaValueSplit:
    """Run the model that a column's value names; any other value runs ``control``."""

    split_key: str
    control: ModelKey
    routes: tuple[Route, ...]


@dataclass(frozen=True, slots=True)
class RowModel:
    """The model that answers one row of the request."""

    row_index: int
    model: ModelKey


@dataclass(frozen=True, slots=True)
class RowsToModels:
    """Run each row on a model of its own."""

    rows: tuple[RowModel, ...]


@dataclass(frozen=True, slots=True)
class Check:
    """Validate the outputs; each element is the JSON text of one polars 0.18 expression."""

    tree: tuple[str, ...]


Step = (
    ModelInference
    | AuditResults
    | MultiOut
    | Nth
    | Average
    | ColumnsSelect
    | ColumnsToRows
    | RandomSplit
    | MetaValueSplit
    | RowsToModels
    | Check
)


def models_of(step: Step) -> tuple[ModelKey, ...]:
    """The models that a step may run, in its order."""
    match step:
        case ModelInference():
            return step.models
        case RandomSplit():
            return tuple(arm.model for arm in step.weights)
        case MetaValueSplit():
            return (step.control, *(route.model for route in step.routes))
        case RowsToModels():
            return tuple(row.model for row in step.rows)
        case _:
            return ()


def read_step(node: Node, key_of: KeyOf) -> Step:
    """Read one element of ``$.steps``.

    Args:
        node: The element.
        key_of: Turns a model's JSON (name, version, sha) into its key.

    Returns:
        The step.

    Raises:
        StartupError: The kind is unknown or its content is not what belongs there.
    """
    kinds = node.keys()
    if len(kinds) != 1:
        raise node.error("an object with one key, the kind of step")
    reader = _READERS.get(kinds[0])
    if reader is None:
        raise StartupError(
            f"pipeline definition, {node.path}: step kind {kinds[0]!r} is not known; "
            f"this engine runs {', '.join(_READERS)}"
        )
    return reader(node.get(kinds[0]), key_of)


def _model_inference(node: Node, key_of: KeyOf) -> Step:
    models = tuple(key_of(item) for item in node.get("models").items())
    if not models:
        raise node.get("models").error("at least one model")
    return ModelInference(models)


def _audit_results(node: Node, _: KeyOf) -> Step:
    first, last = node.get("from").integer(), node.get("to")
    return AuditResults(first, None if last.is_null else last.integer(minimum=first))


def _columns_select(node: Node, _: KeyOf) -> Step:
    columns = tuple(item.integer() for item in node.get("columns").items())
    if not columns:
        raise node.get("columns").error("at least one column position")
    return ColumnsSelect(columns)


def _random_split(node: Node, key_of: KeyOf) -> Step:
    weights = tuple(
        WeightedModel(key_of(item.get("model")), item.get("weight").number())
        for item in node.get("weights").items()
    )
    if sum(arm.weight for arm in weights) <= 0:
        raise node.get("weights").error("weights whose sum is above 0")
    return RandomSplit(node.get("hash_key").optional_text(), weights)


def _meta_value_split(node: Node, key_of: KeyOf) -> Step:
    routes = node.get("routes")
    return MetaValueSplit(
        node.get("split_key").text(),
        key_of(node.get("control")),
        tuple(Route(value, key_of(routes.get(value))) for value in routes.keys()),  # noqa: SIM118
    )


def _rows_to_models(node: Node, key_of: KeyOf) -> Step:
    rows = tuple(
        RowModel(item.get("row_index").integer(), key_of(item.get("model")))
        for item in node.get("rows_to_models").items()
    )
    if not rows:
        raise node.get("rows_to_models").error("at least one row")
    return RowsToModels(rows)


def _check(node: Node, _: KeyOf) -> Step:
    return Check(tuple(item.string() for item in node.get("tree").items()))


_READERS: dict[str, Callable[[Node, KeyOf], Step]] = {
    "ModelInference": _model_inference,
    "AuditResults": _audit_results,
    "MultiOut": lambda _node, _key_of: MultiOut(),
    "Nth": lambda node, _key_of: Nth(node.get("index").integer()),
    "Average": lambda _node, _key_of: Average(),
    "ColumnsSelect": _columns_select,
    "ColumnsToRows": lambda _node, _key_of: ColumnsToRows(),
    "RandomSplit": _random_split,
    "MetaValueSplit": _meta_value_split,
    "RowsToModels": _rows_to_models,
    "Check": _check,
}
