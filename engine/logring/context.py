"""What many records of the log share: the schema and the metadata that does not change.

Rules that hold here:
- The schema is the records reply's own, so the log and a reply cannot differ.
- A context is immutable, and its stored form names it: equal blobs are equal contexts.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from collections.abc import Container, Sequence

import numpy as np
import pyarrow as pa

__all__ = ["OWN_COLUMNS", "LogContext", "list_depth", "numpy_type", "without"]

_NUMPY_KINDS = (  # not to_pandas_dtype: it imports pandas, where there is one, for 0.4 s
    (pa.types.is_signed_integer, "i"),
    (pa.types.is_unsigned_integer, "u"),
    (pa.types.is_floating, "f"),
)
OWN_COLUMNS = ("time", "metadata")  # what a record's header and its context hold


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class LogContext:
    """What many records share.

    Attributes:
        blob: the context as it is stored.
        schema: the log schema, dropped columns left out.
        payload: the schema of what a record itself holds: no time, no metadata.
        shapes: shape of one row of each payload column; None where records are Arrow messages.
        strides: bytes per row of each payload column where records are raw.
        constants: ``last_model``, ``pipeline_version``, ``dropped`` and ``partition``.
    """

    blob: bytes
    schema: pa.Schema
    payload: pa.Schema
    shapes: tuple[tuple[int, ...], ...] | None
    strides: tuple[int, ...]
    constants: dict[str, object]

    @classmethod
    def make(
        cls,
        schema: pa.Schema,
        shapes: Sequence[Sequence[int]] | None,
        constants: dict[str, object],
    ) -> LogContext:
        """Build a context and its stored form."""
        head = json.dumps({"shapes": shapes, "constants": constants}).encode()
        blob = struct.pack("<I", len(head)) + head + schema.serialize().to_pybytes()
        return cls.parse(blob)

    @classmethod
    def parse(cls, blob: bytes) -> LogContext:
        """Read a stored context.

        Raises:
            ValueError: it is damaged.
        """
        try:
            (length,) = struct.unpack_from("<I", blob)
            head = json.loads(blob[4 : 4 + length])
            schema = pa.ipc.read_schema(pa.py_buffer(blob[4 + length :]))
            payload = pa.schema([field for field in schema if field.name not in OWN_COLUMNS])
            shapes = head["shapes"] and tuple(map(tuple, head["shapes"]))
            strides = _strides(payload, shapes) if shapes is not None else ()
            return cls(blob, schema, payload, shapes, strides, head["constants"])
        except (struct.error, KeyError, TypeError, pa.ArrowException, OSError) as error:
            raise ValueError(f"a schema of the log is damaged: {error}") from error

    def packed_bytes(self, steps: int) -> int:
        """Bytes of a row that is packed with others, with the times of so many steps."""
        return 8 + 8 * steps + sum(self.strides)

    @property
    def dropped(self) -> list[str]:
        """Columns that were too large for the log, as ``group.column``."""
        dropped = self.constants["dropped"]
        return dropped if isinstance(dropped, list) else []


def _strides(payload: pa.Schema, shapes: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    strides = []
    for leaf, shape in zip((f for group in payload for f in group.type), shapes, strict=True):
        dtype = numpy_type(leaf)
        if dtype.kind == "O" or list_depth(leaf) != len(shape) or min(shape, default=0) < 0:
            raise ValueError(f"a schema of the log is damaged: {leaf} with rows of {shape}")
        strides.append(math.prod(shape) * dtype.itemsize)
    return tuple(strides)


def list_depth(leaf: pa.Field) -> int:
    """How many lists the values of a column are nested in."""
    depth, kind = 0, leaf.type
    while pa.types.is_list(kind):
        depth, kind = depth + 1, kind.value_type
    return depth


def numpy_type(leaf: pa.Field) -> np.dtype[np.generic]:
    """The numpy type of a column's values, below all lists; object for what is not a number."""
    kind = leaf.type
    while pa.types.is_list(kind):
        kind = kind.value_type
    if pa.types.is_boolean(kind):
        return np.dtype(np.bool_)
    for is_kind, code in _NUMPY_KINDS:
        if is_kind(kind):
            return np.dtype(f"{code}{kind.bit_width // 8}")
    return np.dtype(np.object_)


def without(schema: pa.Schema, names: Container[str]) -> pa.Schema:
    """The log schema without the columns named ``group.column``."""
    fields = []
    for field in schema:
        if field.name in OWN_COLUMNS:
            fields.append(field)
            continue
        leaves = [leaf for leaf in field.type if f"{field.name}.{leaf.name}" not in names]
        fields.append(field.with_type(pa.struct(leaves)))
    return pa.schema(fields)
