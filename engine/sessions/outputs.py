"""What a model gave, as columns: sequences opened, pieces of a request joined. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from engine.errors import SchemaMismatchError
from engine.values import ELEMENT_TYPES, Output, TensorSpec

if TYPE_CHECKING:
    from typing import Any

__all__ = ["columns_of_sequence", "join_pieces", "learned_spec"]


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


def learned_spec(output: Output) -> TensorSpec:
    """The spec of an output that the model does not declare, from what it gave."""
    values = output.values
    element = next(e for e in ELEMENT_TYPES.values() if e.numpy == values.dtype.name)
    if output.per_row:
        return TensorSpec(output.name, element, (None, *values.shape[1:]))
    return TensorSpec(output.name, element, (None,) * (values.ndim + 1))


def join_pieces(parts: list[Output], rows: int, step: int) -> Output:
    """One output of a request that was run ``step`` rows at a time.

    Args:
        parts: the output of each run, in order; the last may hold rows that only filled it up.
        rows: rows of the request.
        step: rows of each run.

    Returns:
        The output of the whole request; ragged where each row gave values of its own shape.

    Raises:
        SchemaMismatchError: the values of a run belong to several rows together.
    """
    first = parts[0]
    if first.per_row:
        return Output(first.name, np.concatenate([p.values for p in parts])[:rows], per_row=True)
    if step > 1:
        raise SchemaMismatchError(
            f"the model runs {step} rows at a time and gives {first.name!r} once for them all: "
            f"send requests of {step} rows"
        )
    values = np.empty(len(parts), dtype=object)
    for index, part in enumerate(parts):
        values[index] = part.values
    return Output(first.name, values, per_row=True, ragged=True)
