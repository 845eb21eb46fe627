"""Records of one column of numbers, read in the fewest steps, from one row to the largest.

The most common JSON request is a list of ``{"tensor": [numbers]}``. A large one is read by simdjson
in less than half the time of the general way, without making a Python object for each number. A
single row is read in one function: what a small request costs is mostly the number of functions,
whose code is out of the processor's caches whenever the engine has slept a little.

Rules that hold here:
- Whatever is not exactly that, wrong or only different, is left to the general way: None, never an
  error, never another value than the general way gives the model.
- Of a large request integers come out as floats: only where its values are not repeated.
"""

from __future__ import annotations

import math
from array import array
from typing import TYPE_CHECKING

import numpy as np
import orjson
import pyarrow as pa
import simdjson

if TYPE_CHECKING:
    from typing import Any, Final

    from engine.values import Column

__all__ = ["read_number_records", "read_number_row"]

KEEP_BYTES: Final = 1 << 20  # a parser keeps some 14 bytes for each byte of its largest text
ITEM_BYTES: Final = 8
OPENING: Final = ord("[")
# simdjson says RuntimeError of an integer past 64 bits, which is a double elsewhere
NOT_NUMBERS: Final = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    RuntimeError,
)

_parsers: list[simdjson.Parser] = []  # those that are not in use; append and pop are atomic


def read_number_records(body: bytes | bytearray) -> tuple[str, pa.Array] | None:
    """Read a JSON text of records with one column, each a flat list of equally many numbers.

    Args:
        body: the text, UTF-8.

    Returns:
        The column's name and its values as float64 lists of fixed size, new memory; None where the
        text is anything else.
    """
    if not body.startswith(b"["):
        return None  # simdjson would skip a byte order mark
    brackets = int(np.count_nonzero(np.frombuffer(body, np.uint8) == OPENING))  # .count takes 9 x
    parser = _parsers.pop() if _parsers else simdjson.Parser()
    try:
        found = _read(parser.parse(body), lists=brackets - 1)
    except NOT_NUMBERS:
        return None  # with the parser, which its error may still refer to
    if len(body) <= KEEP_BYTES:
        _parsers.append(parser)
    return found


def read_number_row(
    body: bytes | bytearray, name: str, row: array[Any]
) -> dict[str, Column] | None:
    """Read a JSON text of one record with one column, a flat list of as many numbers as a row has.

    Args:
        body: the text, UTF-8; small.
        name: the column.
        row: gets the numbers, as the type that it has.

    Returns:
        The column as it was sent; None where the text is anything else, or its numbers do not fit.
    """
    try:
        ((column,),) = records = orjson.loads(body)
        values = records[0][name]
        numbers = array(row.typecode, values)
        if not math.isfinite(sum(numbers)):  # finite where all of them are
            return None
        # true and false pass for numbers; each of them holds one of these letters
        if (b"u" in body or b"l" in body) and bool in set(map(type, values)):
            return None
    except NOT_NUMBERS:
        return None
    if type(records) is not list or type(values) is not list or len(values) != len(row):
        return None
    row[:] = numbers
    return {column: [values]}


def _read(records: Any, lists: int) -> tuple[str, pa.Array] | None:  # noqa: ANN401 - simdjson's
    (name,) = records[0].keys()
    width = len(records[0][name])
    if not width or len(records) != lists:  # a list within a list would be flattened unseen
        return None
    values = bytearray()
    for end, record in enumerate(records, 1):
        values += record[name].as_buffer(of_type="d")
        if len(values) != end * width * ITEM_BYTES or len(record) != 1:
            return None
    numbers = pa.Array.from_buffers(pa.float64(), lists * width, [None, pa.py_buffer(values)])
    return name, pa.FixedSizeListArray.from_arrays(numbers, width)
