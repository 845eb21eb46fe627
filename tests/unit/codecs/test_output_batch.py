"""Outputs as a record batch: what is sent for it is the same, whichever way it was made."""

import numpy as np
import pytest

from engine.codecs.output_batch import MOST_BYTES, MOST_MESSAGES, OutputWriter
from engine.values import ELEMENT_TYPES, Output, TensorSpec

SPECS = {
    "one number": [("float", ())],
    "one value": [("float", (1,))],
    "an image": [("uint8", (2, 3, 1))],
    "several": [("float16", (3,)), ("int8", ()), ("double", (2, 2)), ("uint32", (1,))],
}


def writer_of(columns):
    specs = [
        TensorSpec(f"y{index}", ELEMENT_TYPES[element], (None, *row_shape))
        for index, (element, row_shape) in enumerate(columns)
    ]
    return OutputWriter(specs)


def outputs_of(columns, rows, seed=0):
    """Any bits, those of NaN included."""
    rng = np.random.default_rng(seed)
    made = []
    for index, (element, row_shape) in enumerate(columns):
        dtype, shape = np.dtype(ELEMENT_TYPES[element].numpy), (rows, *row_shape)
        bits = rng.bytes(int(np.prod(shape)) * dtype.itemsize)
        values = np.frombuffer(bits, dtype).reshape(shape)
        made.append(Output(f"y{index}", values, per_row=True))
    return made


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("columns", SPECS.values(), ids=SPECS)
def test_both_ways_give_the_same_bytes(columns, rows):
    writer = writer_of(columns)

    made = [writer.message(outputs_of(columns, rows, seed), rows) for seed in range(4)]

    assert made[:2] == [None, None]  # learnt where a number of rows comes for the second time
    for seed in (2, 3):
        header, arrays = made[seed]
        usual = writer.write(outputs_of(columns, rows, seed), rows, None).serialize().to_pybytes()
        body = b"".join(values.tobytes() + bytes(-values.nbytes % 8) for values in arrays)
        assert usual == b"\xff" * 4 + len(header).to_bytes(4, "little") + header + body


@pytest.mark.parametrize(
    ("columns", "rows"),
    [
        ([("string", (1,))], 1),
        ([("bool", (1,))], 1),
        ([("float", (None,))], 1),
        ([("float", (MOST_BYTES // 4 + 1,))], 1),
    ],
)
def test_what_is_large_or_of_no_fixed_size_is_left_to_the_usual_way(columns, rows):
    writer = writer_of(columns)

    assert [writer.message([], rows) for _ in range(4)] == [None] * 4


def test_other_outputs_than_declared_are_left_to_the_usual_way():
    columns = SPECS["one value"]
    writer = writer_of(columns)
    (good,) = outputs_of(columns, 3)
    for _ in range(2):
        writer.message([good], 3)
    assert writer.message([good], 3) is not None

    for bad in (
        [],
        [good, good],
        [Output("z", good.values, per_row=True)],
        [Output("y0", good.values[:2], per_row=True)],
        [Output("y0", good.values.astype(np.float64), per_row=True)],
        [Output("y0", good.values.ravel(), per_row=True)],
    ):
        assert writer.message(bad, 3) is None


def test_so_many_numbers_of_rows_are_known_and_no_more():
    columns = SPECS["one value"]
    writer = writer_of(columns)
    for rows in range(1, MOST_MESSAGES + 2):
        for _ in range(2):
            writer.message(outputs_of(columns, rows), rows)

    assert writer.message(outputs_of(columns, MOST_MESSAGES + 1), MOST_MESSAGES + 1) is not None
    assert writer.message(outputs_of(columns, 1), 1) is None
