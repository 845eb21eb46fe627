"""Records of one column of numbers, read without making a Python object for each number.

The most common large JSON request is a list of ``{"tensor": [numbers]}``. simdjson reads it in less
than half the time of the general way, and knows nothing of the errors that the general way tells.

Rules that hold here:
- Whatever is not exactly that, wrong or only different, is left to the general way: None, never an
  error, never another value than the general way gives the model.
- Integers come out as floats, so that this is only for requests whose values are not repeated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import simdjson

if TYPE_CHECKING:
    from typing import Any, Final

__all__ = ["read_number_records"]

KEEP_BYTES: Final = 1 << 20  # a parser keeps some 14 bytes for each byte of its largest text
ITEM_BYTES: Final = 8
OPENING: Final = ord("[")
NOT_NUMBERS: Final = (ValueError, TypeError, KeyError, IndexError, AttributeError)

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
