"""The quick way of reading numbers gives what the general way gives, or leaves it to that."""

import math
import random
from array import array

import numpy as np
import orjson
import pytest

from engine.codecs.json_body import SMALL_BYTES, read_json
from engine.codecs.number_records import read_number_records, read_number_row
from engine.codecs.tensors import to_tensor
from engine.errors import EngineError
from engine.values import ELEMENT_TYPES, TensorSpec


def floats(element="float", width=None):
    return TensorSpec("x", ELEMENT_TYPES[element], (None, width))


def test_reads_rows_of_numbers():
    name, column = read_number_records(b'[ {"x" : [1, -2.5e3]}, {"x": [0, 18446744073709551615]} ]')

    assert name == "x"
    assert column.to_pylist() == [[1.0, -2500.0], [0.0, float(2**64)]]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[1]",
        '["x"]',
        "[[1]]",
        '{"x":[[1]]}',
        '[{"x":1}]',
        '[{"x":[]}]',
        '[{"x":[[1,2],[3,4]]}]',
        '[{"x":[[1,2],[]]}]',
        '[{"x":[1,[2]]}]',
        '[{"x":[1]},{"x":[1,2]}]',
        '[{"x":[1,2]},{"x":[1]},{"x":[1,2,3]}]',
        '[{"x":[1]},{"y":[1]}]',
        '[{"x":[1],"y":[1]}]',
        '[{"x":[1]},{"x":[1],"y":2}]',
        '[{"x":[1],"x":[2]}]',
        '[{"x":[1]},{"x":[1],"x":2}]',
        '[{"x":[1]},{"x":{}}]',
        '[{"x":[1]},3]',
        '[{"x":[true]}]',
        '[{"x":[null]}]',
        '[{"x":["1"]}]',
        '[{"x":[NaN]}]',
        '[{"x":[Infinity]}]',
        '[{"x":[1e400]}]',
        '[{"x":[18446744073709551616]}]',
        '[{"x":[-326493212198920282086]}]',
        '[{"x":[01]}]',
        '[{"x":[1.]}]',
        '[{"x":[1,]}]',
        '[{"x":[1]},]',
        '[{"x":[1]}] 2',
        '[{"x":[1]}',
        "\ufeff" + '[{"x":[1]}]',
        '[{"\\ud800":[1]}]',
    ],
)
def test_leaves_everything_else_to_the_general_way(text):
    assert read_number_records(text.encode()) is None
    assert read_number_records(b'[{"x":[1]}]')[1].to_pylist() == [[1.0]]  # and goes on


def test_leaves_text_that_is_not_utf8_to_the_general_way():
    assert read_number_records(b'[{"\xff":[1]}]') is None


@pytest.mark.parametrize("element", ["float", "double", "float16"])
def test_gives_the_model_the_same_bits(element):
    numbers = random.Random(0)
    rows = [[numbers.gauss(0, 10) ** 3 for _ in range(29)] for _ in range(60)]
    rows[0][:6] = [0, -0.0, 5e-324, 1e-40, 2**53 + 1, 0.1]
    if element == "float16":
        rows = [[math.fmod(value, 60_000) for value in row] for row in rows]
    body = orjson.dumps([{"x": row} for row in rows])
    spec = floats(element, 29)
    assert len(body) > SMALL_BYTES

    quick = read_json(body, [spec], is_echoed=False)
    general = read_json(body, [spec])

    assert not isinstance(quick.columns["x"], list)
    assert isinstance(general.columns["x"], list)
    assert to_tensor(quick, spec).tobytes() == to_tensor(general, spec).tobytes()


@pytest.mark.parametrize("width", [3, 4, None])
def test_refuses_what_the_general_way_refuses(width):
    """Whatever one byte of a good body is changed to, both ways answer alike."""
    spec = floats(width=width)
    good = orjson.dumps([{"x": [1.5, 22, -3e2]} for _ in range(400)])
    numbers = random.Random(1)
    for _ in range(500):
        body = bytearray(good)
        body[numbers.randrange(len(body))] = numbers.choice(b'0123456789.,-+eE"[]{}: tfn\\\x00\xff')
        assert _outcome(body, spec, is_echoed=False) == _outcome(body, spec, is_echoed=True)


def test_numbers_out_of_range_are_refused_with_their_place():
    body = orjson.dumps([{"x": [1.0, 2.0]}] * 500 + [{"x": [1.0, 1e39]}])

    with pytest.raises(EngineError, match=r"\$\[500\]\.x\[1\] is 1e\+39: it does not fit float"):
        to_tensor(read_json(body, [floats()], is_echoed=False), floats())


def test_integers_of_a_model_that_takes_integers_stay_integers():
    spec = TensorSpec("x", ELEMENT_TYPES["int64"], (None, 1))
    body = orjson.dumps([{"x": [2**53 + 1]}] * 500)

    assert to_tensor(read_json(body, [spec], is_echoed=False), spec)[0, 0] == np.int64(2**53 + 1)


def _outcome(body, spec, *, is_echoed):
    try:
        tensor = to_tensor(read_json(bytes(body), [spec], is_echoed=is_echoed), spec)
    except EngineError as error:
        return type(error)
    return tensor.shape, tensor.tobytes()


ROW_TEXTS = [
    '[{"x":[1,2]}]',
    ' [ {"x" : [-0.0, 1e30]} ] ',
    '[{"x":[3.4028235e38,1e-46]}]',
    '[{"x":[16777217,0.1]}]',
    '[{"x":[-128,255]}]',
    '[{"x":[9223372036854775807,-1]}]',
    '[{"x":[18446744073709551615,0]}]',
    '[{"x":[1,1],"x":[2,2]}]',
]
OTHER_ROW_TEXTS = [
    "",
    "[]",
    "{}",
    "[1]",
    '"x"',
    '["x"]',
    "[[1,2]]",
    '{"x":[1,2]}',
    '{"x":[[1,2]]}',
    '[{"x":1}]',
    '[{"x":"12"}]',
    '[{"x":{"1":1,"2":2}}]',
    '[{"x":[]}]',
    '[{"x":[1]}]',
    '[{"x":[1,2,3]}]',
    '[{"x":[[1,2]]}]',
    '[{"y":[1,2]}]',
    '[{"x":[1,2],"y":3}]',
    '[{"x":[1,2]},{"x":[1,2]}]',
    '[{"x":[true,2]}]',
    '[{"x":[1,false]}]',
    '[{"x":[1,null]}]',
    '[{"x":["1",2]}]',
    '[{"x":[NaN,1]}]',
    '[{"x":[1e400,1]}]',
    '[{"x":[1,2]}',
]


# float16 and bool have no array of their own kind: rows of them go the general way
ROW_ELEMENTS = [name for name in ELEMENT_TYPES if name not in {"string", "bool", "float16"}]


def read_row(text, element, width=2, name="x"):
    """The columns that are found, and the row that they are read into."""
    row = array(ELEMENT_TYPES[element].array_code, [7] * width)
    return read_number_row(text.encode(), name, row), row


@pytest.mark.parametrize("element", ROW_ELEMENTS)
@pytest.mark.parametrize("text", [*ROW_TEXTS, *OTHER_ROW_TEXTS])
def test_one_row_is_read_as_the_general_way_reads_it_or_left_to_it(text, element):
    columns, row = read_row(text, element)
    if columns is None:
        assert list(row) == [7, 7]
        return
    spec = floats(element, width=2)
    frame = read_json(text.encode(), [spec])
    wanted = to_tensor(frame, spec)

    assert columns == frame.columns
    assert np.dtype(row.typecode) == wanted.dtype
    assert row.tobytes() == wanted.tobytes()
    assert wanted.shape == (1, 2)


@pytest.mark.parametrize("text", ROW_TEXTS)
def test_one_row_of_numbers_is_read(text):
    columns, _ = read_row(text, "double")
    assert columns is not None


@pytest.mark.parametrize("text", OTHER_ROW_TEXTS)
def test_any_other_row_is_left_to_the_general_way(text):
    for element in ("float", "int64"):
        assert read_row(text, element)[0] is None


@pytest.mark.parametrize("width", [1, 3])
def test_a_row_of_another_width_is_left_to_the_general_way(width):
    assert read_row('[{"x":[1,2]}]', "float", width)[0] is None


@pytest.mark.parametrize("text", ['[{"x":[1e39,1]}]', '[{"x":[1,-1e39]}]'])
def test_a_number_that_does_not_fit_is_left_to_the_general_way(text):
    assert read_row(text, "float")[0] is None
    with pytest.raises(EngineError, match="does not fit"):
        to_tensor(read_json(text.encode(), [floats("float", width=2)]), floats("float", width=2))


def test_letters_in_the_name_of_a_column_change_nothing():
    columns, row = read_row('[{"values":[1,2]}]', "float", name="values")
    assert columns == {"values": [[1, 2]]}
    assert list(row) == [1, 2]
    assert read_row('[{"values":[1,true]}]', "float", name="values")[0] is None
