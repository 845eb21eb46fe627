"""Model outputs made to fit: the next model's input, an average, the rows of several models.

Rules that hold here: no value is changed but by the average; what needs no new array gets none.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from engine.errors import SchemaMismatchError
from engine.values import Output

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engine.values import Array, TensorSpec

__all__ = ["average", "fit", "join"]


def fit(output: Output, spec: TensorSpec) -> Array:
    """A model's output as the next model's input: the same values, in its row shape.

    Raises:
        SchemaMismatchError: the values of this request have another shape than the model takes.
    """
    values = output.values
    wanted = spec.row_shape
    if values.shape[1:] == wanted and wanted:  # nearly always; a ragged output has no such axes
        return values
    if output.ragged:
        raise SchemaMismatchError(
            f"the rows gave {output.name!r} values of unequal shapes, which the next model cannot "
            "take: send one row per request"
        )
    if len(values.shape) == len(spec.shape) and all(
        want is None or want == have for want, have in zip(wanted, values.shape[1:], strict=True)
    ):
        return values
    known = math.prod(axis for axis in wanted if axis is not None)
    width = math.prod(values.shape[1:])
    if not values.ndim or wanted.count(None) > 1 or not known or width % known:
        raise SchemaMismatchError(
            f"{output.name!r} came with the shape {list(values.shape)}: the next model takes {spec}"
        )
    return values.reshape(len(values), *(-1 if axis is None else axis for axis in wanted))


def average(results: Sequence[tuple[Output, ...]]) -> tuple[Output, ...]:
    """The mean of several models' outputs, summed as float64 and given in their own type.

    Raises:
        SchemaMismatchError: the shapes differ for the rows of this request.
    """
    averaged = []
    for outputs in zip(*results, strict=True):
        shapes = {output.values.shape for output in outputs}
        if len(shapes) > 1 or any(output.ragged for output in outputs):
            raise SchemaMismatchError(
                f"the models gave {outputs[0].name!r} in the shapes "
                f"{sorted(map(list, shapes))}, of which there is no average"
            )
        first = outputs[0].values
        mean = np.mean([output.values for output in outputs], axis=0, dtype=np.float64)
        averaged.append(Output(outputs[0].name, mean.astype(first.dtype), outputs[0].per_row))
    return tuple(averaged)


def join(
    results: Mapping[int, tuple[Output, ...]],
    rows_of_arm: Mapping[int, Array],
    names: Sequence[str],
    rows: int,
) -> tuple[Output, ...]:
    """The outputs of several models, each of which ran some of the rows, in the rows' order.

    Args:
        results: per arm, what it gave.
        rows_of_arm: per arm, the positions of its rows.
        names: of the models, by arm.
        rows: how many there are together.

    Raises:
        SchemaMismatchError: the models gave different columns.
    """
    kinds = {
        tuple(
            (one.name, one.values.dtype, one.values.shape[1:], one.per_row, one.ragged)
            for one in outputs
        )
        for outputs in results.values()
    }
    if len(kinds) > 1 or not all(per_row for *_, per_row, _ in next(iter(kinds))):
        raise SchemaMismatchError(
            "the rows of this request go to the models "
            f"{', '.join(names[arm] for arm in results)}, whose outputs cannot stand in one "
            "reply: send one row per request"
        )
    joined = []
    for index, first in enumerate(next(iter(results.values()))):
        values = np.empty((rows, *first.values.shape[1:]), first.values.dtype)
        for arm, outputs in results.items():
            values[rows_of_arm[arm]] = outputs[index].values
        joined.append(Output(first.name, values, per_row=True, ragged=first.ragged))
    return tuple(joined)
