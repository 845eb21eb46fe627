"""Rows that a model is warmed up with: zeros, and lengths for the axes that it leaves open.

Many models with open axes do not run on all lengths: a convolution wants more than one pixel.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from engine.values import Array, TensorSpec

__all__ = ["generated", "lengths_to_try"]

LENGTHS = (1, 16, 224)
MAX_ROW_VALUES = 1 << 20


def lengths_to_try(inputs: Sequence[TensorSpec]) -> Iterator[int]:
    """Lengths for open axes, one after the other until the model runs; at least one."""
    has_open_axes = any(None in spec.row_shape for spec in inputs)
    for length in LENGTHS if has_open_axes else LENGTHS[:1]:
        shapes = [_row_shape(spec, length) for spec in inputs]
        if length == LENGTHS[0] or all(math.prod(shape) <= MAX_ROW_VALUES for shape in shapes):
            yield length


def generated(spec: TensorSpec, rows: int, length: int) -> Array:
    """A tensor of zeros, or of empty texts, for an input of a model."""
    shape = (rows, *_row_shape(spec, length))[: len(spec.shape)]
    is_text = spec.element.numpy == "object"
    return np.full(shape, "" if is_text else 0, dtype=spec.element.numpy)


def _row_shape(spec: TensorSpec, length: int) -> tuple[int, ...]:
    return tuple(length if axis is None else axis for axis in spec.row_shape)
