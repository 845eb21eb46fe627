"""Requests into one run and its outputs back to them, by row offsets: pure, no clock, no thread.

Rules that hold here:
- Merging copies each tensor once into one new array; a single request is handed on as it is.
- Splitting copies nothing: a request's outputs are views of the run's, and keep them alive.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from engine.values import Output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.values import Array, TensorSpec

__all__ = ["merge", "no_rows", "split"]


def merge(requests: Sequence[Sequence[Array]]) -> Sequence[Array]:
    """The tensors of several requests as those of one.

    Args:
        requests: per request one tensor ``[rows, …]`` per model input; all requests alike in
            element types and in every axis but the first.

    Returns:
        One tensor per model input, the requests' rows in order; the only request's own tensors.
    """
    if len(requests) == 1:
        return requests[0]
    return [np.concatenate(tensors) for tensors in zip(*requests, strict=True)]


def split(outputs: tuple[Output, ...], rows: Sequence[int]) -> list[tuple[Output, ...]]:
    """The outputs of one run as those of the requests in it.

    Args:
        outputs: each with one value per row of the run.
        rows: rows of each request, in the order of the run.

    Returns:
        Per request its outputs, in the same order; views.
    """
    if len(rows) == 1:
        return [outputs]
    ends = list(accumulate(rows))
    return [
        tuple(
            Output(output.name, output.values[end - count : end], output.per_row, output.ragged)
            for output in outputs
        )
        for end, count in zip(ends, rows, strict=True)
    ]


def no_rows(declared: TensorSpec) -> Output:
    """What a request without rows gets for an output, without a run."""
    shape = [0, *(axis or 0 for axis in declared.row_shape)]
    return Output(declared.name, np.empty(shape, declared.element.numpy), per_row=True)
