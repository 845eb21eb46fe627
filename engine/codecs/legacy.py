"""The legacy reply: one element per request, outputs as flat data with their dimensions.

Source: reference page, Edge Inference Endpoints, and its recorded bodies: keys in alphabetical
order, outputs ordered by name, float32 printed as the double it widens to, NaN and infinities as
null (JSON has no others), ``original_data`` null but for the legacy request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from engine.errors import SchemaMismatchError

if TYPE_CHECKING:
    from engine.values import Array, InferResult, Output

__all__ = ["write_legacy"]

LEGACY_NAMES = {
    "float16": "Half",
    "float32": "Float",
    "float64": "Double",
    "bool": "Bool",
    "object": "String",
    **{
        f"{sign}int{bits}": f"{sign}int{bits}".capitalize()
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
}
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
    return b"".join(
        (
            b'[{"check_failures":[],"elapsed":',
            orjson.dumps(result.elapsed_ns),
            b',"model_name":',
            orjson.dumps(result.model.name),
            b',"model_version":',
            orjson.dumps(result.model.version),
            b',"original_data":',
            b"null" if original is None else orjson.dumps(original),
            b',"outputs":[',
            b",".join(map(_write_output, result.outputs)),
            b'],"pipeline_name":',
            orjson.dumps(result.pipeline.id),
            b',"shadow_data":{},"time":%d}]' % result.time_ms,
        )
    )


def _write_output(output: Output) -> bytes:
    values = output.values
    if output.ragged:
        raise SchemaMismatchError(
            f"the rows gave {output.name!r} outputs of unequal shapes, which the legacy reply "
            "cannot hold: send one row per request, or ask for records (?dataset[]=*)"
        )
    return b'{"%b":{"data":%b,"dim":%b,"v":1}}' % (
        LEGACY_NAMES[str(values.dtype)].encode(),
        _write_data(values),
        orjson.dumps(values.shape),
    )


def _write_data(values: Array) -> bytes:
    flat = values.ravel()
    if flat.dtype.kind == "O" or flat.dtype.itemsize == 2 or flat.size < SMALL:
        return orjson.dumps(flat.tolist())
    if flat.dtype == "float32":
        flat = flat.astype("float64")
    return orjson.dumps(flat, option=orjson.OPT_SERIALIZE_NUMPY)
