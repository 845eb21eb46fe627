"""Whether requests may be run together without changing a bit of any answer: tried, not assumed.

Some models sum in an order that depends on how many rows are in a run (tree ensembles on several
threads, some matrix kernels). So generated rows are run one by one and in runs of many sizes, and
the bits are compared. The largest size up to which every tried size agreed is the model's limit;
a model that already differs at two rows is run request by request.

Rules that hold here:
- Rows are made from a fixed seed: the same model on the same machine gets the same verdict.
- The sizes are close together where kernels change their ways (small runs, powers of two).
- The time and memory of the trial are bounded; what was not reached is not claimed.
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import TYPE_CHECKING

import numpy as np

from engine.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Final

    from engine.values import Array, Output, TensorSpec

    Run = Callable[[Sequence[Array], int], Sequence[Output]]

__all__ = ["Verdict", "try_together"]

BUDGET_NS: Final = 1_000_000_000
MAX_BYTES: Final = 64 << 20  # of generated rows
OPEN_AXIS: Final = 5  # the length given to an inner axis that the model leaves open
SEED: Final = 20_000


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What the trial found.

    Attributes:
        max_rows: most rows that several requests may be run with together; 0 = request by request.
        reason: in words, for the log.
    """

    max_rows: int
    reason: str


def try_together(run: Run, inputs: Sequence[TensorSpec], max_rows: int) -> Verdict:
    """Run generated rows alone and together and compare the bits of their outputs.

    Args:
        run: runs the model on one tensor ``[rows, …]`` per input.
        inputs: what the model takes.
        max_rows: the most that is wanted.

    Returns:
        The verdict; never raises for what the model does.
    """
    row_bytes = sum(_row_bytes(spec) for spec in inputs)
    max_rows = min(max_rows, max(MAX_BYTES // max(row_bytes, 1), 2))
    generator = np.random.default_rng(SEED)
    rows = [_generated(spec, max_rows, generator) for spec in inputs]
    try:
        return _compare(run, rows, max_rows)
    except EngineError as error:
        return Verdict(0, f"it cannot be run on generated rows ({error})")


def _compare(run: Run, rows: Sequence[Array], max_rows: int) -> Verdict:
    stop_ns = time.monotonic_ns() + BUDGET_NS
    alone: list[Sequence[Output]] = []
    agreed = 1
    for size in _sizes(max_rows):
        if time.monotonic_ns() > stop_ns:
            return _agreed(agreed, "more was not tried, for time")
        for row in range(len(alone), size):
            alone.append(run([tensor[row : row + 1] for tensor in rows], 1))
        together = run([tensor[:size] for tensor in rows], size)
        for position, output in enumerate(together):
            if not output.per_row or output.ragged or len(output.values) != size:
                return Verdict(0, f"output {output.name!r} has not one value per row")
            single = np.concatenate([outputs[position].values for outputs in alone[:size]])
            if not _same_bits(single, output.values):
                return _agreed(agreed, f"a run of {size} rows gives other bits than each row alone")
        agreed = size
    return _agreed(agreed, "bits equal at every size tried")


def _agreed(max_rows: int, reason: str) -> Verdict:
    return Verdict(max_rows if max_rows > 1 else 0, reason)


def _sizes(max_rows: int) -> Iterator[int]:
    """Ascending: every small size, then around powers of two and between them."""
    wanted = {max_rows, *range(2, 18)}
    power = 16
    while power <= max_rows:
        for part in (4, 5, 6, 7):
            wanted.add(power * part // 4)
        wanted.update((power - 1, power + 1))
        power *= 2
    return iter(sorted(size for size in wanted if 2 <= size <= max_rows))


def _row_bytes(spec: TensorSpec) -> int:
    itemsize = np.dtype(spec.element.numpy).itemsize
    return itemsize * math.prod(OPEN_AXIS if axis is None else axis for axis in spec.row_shape)


def _generated(spec: TensorSpec, rows: int, generator: np.random.Generator) -> Array:
    """Rows of widely different sizes, so that sums round differently when their order changes."""
    shape = (rows, *(OPEN_AXIS if axis is None else axis for axis in spec.row_shape))
    dtype = np.dtype(spec.element.numpy)
    if dtype.kind == "f":
        scale = 10.0 ** generator.uniform(-2, 4, (rows, *(1 for _ in shape[1:])))
        return (generator.normal(size=shape) * scale).astype(dtype)
    if dtype.kind == "O":
        return generator.choice(np.array(["", "a", "Sagitta", "0", "é"], dtype=object), shape)
    most = 256 if dtype == np.uint8 else 2  # a wider integer may be an index into a small table
    return generator.integers(0, most, shape).astype(dtype)


def _same_bits(one: Array, other: Array) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if one.dtype.kind == "O":
        return bool((one == other).all())
    return one.tobytes() == np.ascontiguousarray(other).tobytes()
