"""The fixed part of a record in the ring, followed by its steps' times and its values.

Rules that hold here:
- Its layout is the file format: a change needs a new format mark in ``store.py``.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

__all__ = ["ARROW", "HEADER", "RAW", "SEPARATE_BYTES", "RecordHeader", "read_header"]

HEADER = struct.Struct("<HHIIq")  # form, steps, context number, rows, time in ms
SEPARATE_BYTES = 1 << 16  # a raw column with as many is a value of its own
RAW, ARROW = 1, 2  # forms: the columns' values one after the other, or an Arrow IPC message


class RecordHeader(NamedTuple):
    """What a record says of itself."""

    form: int
    steps: int
    context_number: int
    rows: int
    time_ms: int


def read_header(value: memoryview) -> RecordHeader:
    """Read a record's header.

    Raises:
        ValueError: the record is damaged.
    """
    if len(value) < HEADER.size:
        raise ValueError(f"a record of {len(value)} bytes is shorter than its header")
    header = RecordHeader._make(HEADER.unpack_from(value))
    if header.form not in {RAW, ARROW} or not header.rows:
        raise ValueError(f"a record starts with {header}")
    return header
