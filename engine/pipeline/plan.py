"""What a definition's steps come down to when they are run.

This engine runs pipelines of one ``ModelInference`` step with one model; every other step kind is
read, and refused here by name, so that nothing is ever served that would answer differently.
"""

from engine.errors import StartupError
from engine.pipeline.definition import DefinitionDraft
from engine.pipeline.steps import ModelInference, ModelKey

__all__ = ["single_model"]


def single_model(definition: DefinitionDraft) -> ModelKey:
    """The one model of the pipeline.

    Args:
        definition: As published.

    Returns:
        The model's key in ``definition.models``.

    Raises:
        StartupError: The pipeline has more to it; the text names the step.
    """
    supported = "supported is one ModelInference step with one model"
    if not definition.steps:
        raise StartupError(f"$.steps is empty: {supported}")
    for index, step in enumerate(definition.steps):
        kind = type(step).__name__
        if index or not isinstance(step, ModelInference):
            raise StartupError(f"$.steps[{index}] is {kind}, which cannot be run yet: {supported}")
        if len(step.models) != 1:
            names = [definition.models[key].name for key in step.models]
            raise StartupError(
                f"$.steps[{index}].ModelInference has the models {names}: {supported}"
            )
    first = definition.steps[0]
    if not isinstance(first, ModelInference):  # pragma: no cover - the loop above has refused it
        raise TypeError(first)
    return first.models[0]
