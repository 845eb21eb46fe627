"""JSON bodies to rows: the four layouts, and how an object is told from a dict of columns."""

import pytest

from engine.codecs.json_body import read_json
from engine.errors import DecodeError, PayloadTooLargeError, SchemaMismatchError
from engine.values import ELEMENT_TYPES, TensorSpec

FLOAT = ELEMENT_TYPES["float"]


def inputs(*row_shape, name="x"):
    return (TensorSpec(name, FLOAT, (None, *row_shape)),)


LAYOUTS = [  # body, shape of the model's row, columns
    (b'[{"x": [1, 2]}, {"x": [3, 4]}]', (2,), {"x": [[1, 2], [3, 4]]}),
    (b'{"x": [[1, 2], [3, 4]]}', (2,), {"x": [[1, 2], [3, 4]]}),
    (b'{"x": [1, 2]}', (2,), {"x": [[1, 2]]}),
    (b'{"x": [1, 2, 3]}', (2,), {"x": [[1, 2, 3]]}),  # one row, of a wrong width
    (b'{"x": [1, 2]}', (), {"x": [1, 2]}),
    (b'{"x": 1}', (), {"x": [1]}),
    (b'{"x": [[1, 2], [3, 4]]}', (2, 2), {"x": [[[1, 2], [3, 4]]]}),
    (b'{"x": [[[1, 2], [3, 4]]]}', (2, 2), {"x": [[[1, 2], [3, 4]]]}),
    (b'{"x": [1, 2, 3, 4]}', (2, 2), {"x": [[1, 2, 3, 4]]}),  # one flat row
    (b'{"x": [1, 2], "id": "a"}', (2,), {"x": [[1, 2]], "id": ["a"]}),
    (b'{"x": [[1, 2]], "id": ["a"]}', (2,), {"x": [[1, 2]], "id": ["a"]}),
    (b'{"x": []}', (2,), {"x": []}),
    (b"[]", (2,), {}),
]


@pytest.mark.parametrize(("body", "row_shape", "columns"), LAYOUTS)
def test_layouts(body, row_shape, columns):
    frame = read_json(body, inputs(*row_shape))

    read = {
        name: column if isinstance(column, list) else column.to_pylist()
        for name, column in frame.columns.items()
    }
    assert read == columns
    assert frame.rows == len(next(iter(columns.values()), []))


def test_only_an_object_is_repeated_as_original():
    assert read_json(b'{"x": [[1, 2]]}', inputs(2)).original == {"x": [[1, 2]]}
    assert read_json(b'{"x": [1, 2]}', inputs(2)).original == {"x": [1, 2]}
    assert read_json(b'[{"x": [1, 2]}]', inputs(2)).original is None
    padded = b'{"x": [1, 2]}' + b" " * (1 << 20)
    assert read_json(padded, inputs(2)).original is None


def test_rows_and_columns_are_bounded():
    with pytest.raises(PayloadTooLargeError, match="at most 1048576"):
        read_json(b"[" + b"{}," * (1 << 20) + b"{}]", ())
    many = b",".join(b'"c%d":[]' % index for index in range(1025))
    for body in (b"{" + many + b"}", b"[{" + many + b"}]"):
        with pytest.raises(SchemaMismatchError, match="1025 columns"):
            read_json(body, ())


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "the body is empty"),
        (b"ARROW1\0\0", "it is an Arrow file"),
        (b'[{"x": [1, NaN]}]', r"\$\[0\]\.x\[1\] is NaN"),
        (b'{"x": [[1], [-Infinity]]}', r"\$\.x\[1\]\[0\] is infinite"),
        (b'[{"x": 1e400}]', r"\$\[0\]\.x is infinite"),
        (b"[1, 2", "line 1 column"),
        (b"NaN", r"\$ is NaN"),
    ],
)
def test_what_is_no_json_says_why(body, said):
    with pytest.raises(DecodeError, match=said):
        read_json(body, ())
