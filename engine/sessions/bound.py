"""Rows of a model in memory that ONNX Runtime knows for good: the quickest run there is.

Where every run gets new arrays, ONNX Runtime looks each of them up, wraps it, and makes new ones
for what comes out; for a small model whose caller has just slept that is more than the run itself.

Rules that hold here:
- Only for a model that takes rows of numbers and gives tensors of numbers whose shapes do not
  depend on them; tried on generated rows, whose bits must be those of the usual run.
- One thread at a time: the memory is there once.
"""

from __future__ import annotations

import dataclasses
from array import array
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort

from engine.values import BoundRows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final

    from engine.values import Array, Output, TensorSpec

    Run = Callable[[Sequence[Array], int], tuple[Output, ...]]

__all__ = ["bind_rows"]

MOST_VALUES: Final = 1 << 15  # for more, the run itself is what takes long
TRIALS: Final = 4
SEED: Final = 20_000
SILENT: Final = 4  # a run that fails is run again the usual way, which tells


def bind_rows(
    session: ort.InferenceSession, spec: TensorSpec, run: Run, rows: int
) -> BoundRows | None:
    """Bind the tensors of some rows.

    Args:
        session: the model, on the CPU.
        spec: its only input.
        run: runs it the usual way.
        rows: how many.

    Returns:
        The rows; None where the model has none that could be bound.
    """
    code, width = spec.element.array_code, spec.row_size
    if code is None or spec.element.numpy == "float16" or len(spec.shape) != 2 or not width:
        return None
    if rows * width > MOST_VALUES:
        return None
    values = array(code, [0]) * (rows * width)
    fed = np.frombuffer(values, code).reshape(rows, width)
    try:
        usual = run([fed], rows)
        if any(output.ragged or output.values.dtype.kind not in "fiub" for output in usual):
            return None
        outputs = [
            dataclasses.replace(output, values=np.empty_like(output.values)) for output in usual
        ]
        bound = BoundRows(spec.name, values, fed, tuple(outputs), _binding(session, fed, outputs))
        generator = np.random.default_rng(SEED)
        is_same = all(_gives_the_same(bound, fed, run, generator) for _ in range(TRIALS))
    except Exception:  # noqa: BLE001 - ONNX Runtime's are of no common kind; the usual run is there
        return None
    return bound if is_same else None


def _binding(
    session: ort.InferenceSession, fed: Array, outputs: Sequence[Output]
) -> Callable[[], None]:
    binding = session.io_binding()
    (given,) = session.get_inputs()
    binding.bind_cpu_input(given.name, fed)
    for output in outputs:
        values = output.values
        binding.bind_output(
            output.name, "cpu", 0, values.dtype.type, values.shape, values.ctypes.data
        )
    options = ort.RunOptions()
    options.log_severity_level = SILENT
    # past ONNX Runtime's wrapper, which would look for GPU graphs first
    native = getattr(session, "_sess", session)
    return partial(native.run_with_iobinding, getattr(binding, "_iobinding", binding), options)


def _gives_the_same(bound: BoundRows, fed: Array, run: Run, generator: np.random.Generator) -> bool:
    """Whether other numbers give the bits that the usual run gives, and leave the memory whole."""
    if fed.dtype.kind == "f":
        fed[...] = generator.normal(size=fed.shape) * 10.0 ** generator.uniform(-2, 4)
    else:
        # it may be an index into a small table
        fed[...] = generator.integers(0, 2, fed.shape)
    bound.run()
    return all(
        mine.values.shape == usual.values.shape and mine.values.tobytes() == usual.values.tobytes()
        for mine, usual in zip(bound.outputs, run([fed], len(fed)), strict=True)
    )
