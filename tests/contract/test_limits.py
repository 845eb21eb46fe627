"""What one request may hold at most, by both shells: small on the wire, large once it is opened."""

import numpy as np
import pyarrow as pa
import pytest

ROW = pa.array([[1, 2, 3, 4]], pa.list_(pa.float32(), 4))


def rows_of_nothing():
    """Lists of size 0: a million of them take no byte, and a reply has offsets for each."""
    rows = 1 << 20
    nothing = pa.array([], pa.float32())
    column = pa.Array.from_buffers(pa.list_(pa.float32(), 0), rows, [None], 0, 0, [nothing])
    return pa.table({f"c{number}": column for number in range(300)})


def booleans():
    """Eight values to a byte, which take a byte each once they are read."""
    count = (256 << 20) + 8
    bits = pa.Array.from_buffers(pa.bool_(), count, [None, pa.py_buffer(bytes(count // 8))])
    return pa.table({"x": ROW, "c": pa.LargeListArray.from_arrays([0, count], bits)})


def ragged_lists():
    """Each is a numpy array of its own where they are not of one shape."""
    count = 5 << 20
    ends = (np.arange(1, count + 1) // 2 * 2).astype(np.int32)
    values = pa.array(np.zeros(count, np.int8))
    lists = pa.ListArray.from_arrays(pa.array(np.concatenate([[0], ends]), pa.int32()), values)
    return pa.table({"x": ROW, "c": pa.ListArray.from_arrays([0, count], lists)})


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (rows_of_nothing, "more than 268435456 values"),
        (booleans, "more than 268435456 values"),
        (ragged_lists, "column 'c' has more than 4194304 lists inside lists"),
    ],
)
def test_what_grows_when_it_is_opened_is_refused(client, serving, made, told):
    code, text = client(serving("linear")).refused(made(), as_records=True)

    assert (code, told in text) == (413, True), text
