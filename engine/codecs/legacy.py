"""The legacy reply: one element per request, outputs as flat data with their dimensions.

Source: reference page, Edge Inference Endpoints, and its recorded bodies: keys in alphabetical
order, outputs ordered by name, float32 printed as the double it widens to, NaN and infinities as
null (JSON has no others), ``original_data`` null but for the legacy request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import orjson

from engine.codecs.json_body import repeat_json
from engine.errors import SchemaMismatchError
from engine.values import ELEMENT_TYPES, SPLIT_COLUMN

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from engine.values import CheckResult, InferResult, Output, Shadow

__all__ = ["write_legacy"]

LEGACY_NAMES = {np.dtype(element.numpy): element.legacy for element in ELEMENT_TYPES.values()}
SMALL = 64  # below this many values a Python list is quicker than numpy's own route through orjson


def write_legacy(result: InferResult) -> bytes:
    """Write the documented reply of the inference endpoints.

    Args:
        result: the answer; outputs of any shape.

    Returns:
        The JSON text, UTF-8; ``[]`` for a request without rows.

    Raises:
        SchemaMismatchError: rows were run one by one and gave outputs of unequal shapes.
    """
    if not result.frame.rows:
        return b"[]"
    original = result.frame.original
    element = {
        "check_failures": [] if result.checks is None else _failures(result.checks),
        "elapsed": result.elapsed_ns,
        "model_name": result.model.name,
        "model_version": result.model.version,
        "original_data": None if original is None else orjson.Fragment(repeat_json(original)),
        "outputs": _outputs(result.outputs),
        "pipeline_name": result.pipeline.id,
        "shadow_data": _shadows(result.shadows) if result.shadows else {},
        "time": result.time_ms,
    }
    return orjson.dumps([element], option=orjson.OPT_SERIALIZE_NUMPY)


def _failures(checks: CheckResult) -> list[Mapping[str, object]]:
    """One entry for each row and check that is true, rows first: as many as the counts say."""
    if not checks.count.any():
        return []
    printed = [failure for failure, _ in checks.verdicts]
    _, found = np.nonzero(np.stack([flag for _, flag in checks.verdicts], axis=1))
    return [printed[check] for check in found]


def _shadows(shadows: Iterable[Shadow]) -> dict[str, object]:
    return {one.model_name: _outputs(one.outputs) for one in shadows if not one.is_missing}


def _outputs(outputs: Iterable[Output]) -> list[dict[str, dict[str, object]]]:
    """The outputs alone: they are told apart by position, so no other column may stand there."""
    printed = []
    for output in outputs:
        if output.name == SPLIT_COLUMN:
            continue
        if output.ragged:
            raise SchemaMismatchError(
                f"the rows gave {output.name!r} outputs of unequal shapes, which the legacy reply "
                "cannot hold: send one row per request, or ask for records (?dataset[]=*)"
            )
        values = output.values
        dtype = values.dtype
        flat = values.ravel()  # and as what orjson writes quickest
        data: object = flat
        if values.size < SMALL or dtype.kind == "O" or dtype.itemsize == 2:
            data = flat.tolist()
        elif dtype == "float32":
            data = flat.astype("float64")  # the double it widens to
        entry = {"data": data, "dim": values.shape, "v": 1}
        printed.append({LEGACY_NAMES[dtype]: entry})
    return printed
