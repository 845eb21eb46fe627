"""Outputs that a model does not declare as tensors, as the columns they become."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from engine.values import ELEMENT_TYPES, Output, TensorSpec

if TYPE_CHECKING:
    from typing import Any

__all__ = ["columns_of_sequence", "found_spec"]


def columns_of_sequence(name: str, value: object) -> list[Output]:
    """A sequence output as documented columns.

    ZipMap's list of one mapping per row becomes one column per class, ``{output}_{class}`` of
    shape ``[rows, 1]``; a sequence of tensors becomes one output per element, ``{output}_{i}``.
    """
    items: list[Any] = value if isinstance(value, list) else [value]
    if items and isinstance(items[0], dict):
        return [
            Output(
                f"{name}_{label}",
                np.array([[item[label]] for item in items], dtype=np.float32),
                per_row=True,
            )
            for label in sorted(items[0], key=str)
        ]
    return [
        Output(f"{name}_{index}", np.asarray(item), per_row=False)
        for index, item in enumerate(items)
    ]


def found_spec(output: Output) -> TensorSpec:
    """What a run showed of an output that the model does not declare as a tensor."""
    dtype = output.values.dtype
    named = {element.numpy: element for element in ELEMENT_TYPES.values()}
    element = named.get(str(dtype), ELEMENT_TYPES["string"])  # texts of a sequence have a width
    if output.per_row:
        return TensorSpec(output.name, element, (None, *output.values.shape[1:]))
    return TensorSpec(output.name, element, (None,) * (output.values.ndim + 1))
