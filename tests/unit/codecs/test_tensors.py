"""Columns to tensors: one table of casts for Arrow and JSON, shapes, and that nothing is copied."""

import numpy as np
import pyarrow as pa
import pytest
from support.arrow import file_bytes, stream_bytes

from engine.codecs.arrow_ipc import read_arrow
from engine.codecs.json_body import read_json
from engine.codecs.tensors import to_tensor
from engine.errors import SchemaMismatchError
from engine.values import ELEMENT_TYPES, Frame, TensorSpec


def spec(element="float", *row_shape, name="x"):
    return TensorSpec(name, ELEMENT_TYPES[element], (None, *row_shape))


def address_range(buffer):
    view = np.frombuffer(buffer, np.uint8)
    start = view.__array_interface__["data"][0]
    return start, start + view.nbytes


VALUES = np.arange(24, dtype=np.float32).reshape(6, 4)
ZERO_COPY = {
    "fixed_size_list": pa.array(VALUES.tolist(), pa.list_(pa.float32(), 4)),
    "list": pa.array(VALUES.tolist(), pa.list_(pa.float32())),
    "large_list": pa.array(VALUES.tolist(), pa.large_list(pa.float32())),
    "nested": pa.array(VALUES.reshape(6, 2, 2).tolist(), pa.list_(pa.list_(pa.float32(), 2), 2)),
    "tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(VALUES.reshape(6, 2, 2)),
    "scalar": pa.array(VALUES.ravel()),
}


@pytest.mark.parametrize("write", [file_bytes, stream_bytes])
@pytest.mark.parametrize("kind", ZERO_COPY)
def test_float32_tensor_lies_inside_the_request_body(kind, write):
    """No copy from the bytes of the body to what ONNX Runtime reads."""
    body = write({"x": ZERO_COPY[kind]})
    frame = read_arrow(body)

    tensor = to_tensor(frame, spec("float") if kind == "scalar" else spec("float", 4))

    first, last = address_range(body)
    address = tensor.__array_interface__["data"][0]
    assert first <= address
    assert address + tensor.nbytes <= last
    assert tensor.ravel().tolist() == VALUES.ravel().tolist()
    assert tensor.flags.c_contiguous


def test_a_bytearray_is_not_copied_either():
    """What a body of several pieces is gathered in."""
    body = bytearray(file_bytes({"x": ZERO_COPY["fixed_size_list"]}))

    tensor = to_tensor(read_arrow(body), spec("float", 4))
    first, last = address_range(body)
    assert first <= tensor.__array_interface__["data"][0] < last


CASTS = [  # values, element of the model, what it becomes; None = refused
    ([0.5, -2.0], "float", [0.5, -2.0]),
    ([0.1], "float", [np.float32(0.1)]),
    ([1e39], "float", None),
    ([1e-60], "float", [0.0]),
    ([65504.0], "float16", [65504.0]),
    ([65520.0], "float16", None),
    ([0.1, 1e300], "double", [0.1, 1e300]),
    ([1.0, -128.0], "int8", [1, -128]),
    ([1.5], "int8", None),
    ([128.0], "int8", None),
    ([-129.0], "int8", None),
    ([255.0], "uint8", [255]),
    ([-1.0], "uint8", None),
    ([2.0**31], "int32", None),
    ([2.0**62], "int64", [2**62]),
    ([2.0**63], "int64", None),
    ([2.0**63], "uint64", [2**63]),
    ([2.0**64], "uint64", None),
    ([1, 2], "float", [1.0, 2.0]),
    ([2**24 + 1], "float", [float(2**24)]),
    ([2**53 + 1], "double", [float(2**53)]),
    ([300], "uint8", None),
    ([-1], "uint64", None),
    ([2**62], "uint64", [2**62]),
    ([40_000], "int16", None),
    ([True], "bool", [True]),
    ([True], "float", None),
    ([1], "bool", None),
    (["é", ""], "string", ["é", ""]),
    (["1"], "float", None),
    ([1], "string", None),
]


@pytest.mark.parametrize(("values", "element", "wanted"), CASTS, ids=str)
@pytest.mark.parametrize("route", ["json", "arrow", "arrow list", "json list"])
def test_casts(values, element, wanted, route):
    """The same in both formats and for bare and listed values."""
    column = [[value] for value in values] if "list" in route else values
    column = pa.array(column) if "arrow" in route else column
    frame = Frame(len(values), {"x": column})
    shape = (1,) if "list" in route else ()

    if wanted is None:
        with pytest.raises(SchemaMismatchError, match=ELEMENT_TYPES[element].onnx):
            to_tensor(frame, spec(element, *shape))
        return
    tensor = to_tensor(frame, spec(element, *shape))
    assert tensor.dtype == np.dtype(ELEMENT_TYPES[element].numpy)
    assert tensor.shape == (len(values), *shape)
    assert tensor.ravel().tolist() == wanted


SHAPES = [  # the shape of a sent row, of the model's row, of the tensor's row; None = refused
    ((4,), (4,), (4,)),
    ((2, 3), (2, 3), (2, 3)),
    ((6,), (2, 3), (2, 3)),
    ((3, 2), (2, 3), (2, 3)),
    ((2, 3), (6,), (6,)),
    ((4,), (None,), (4,)),
    ((6,), (None, 3), (2, 3)),
    ((7,), (None, 3), None),
    ((6,), (None, None), None),
    ((2, 3), (None, None), (2, 3)),
    ((3,), (4,), None),
    ((5,), (2, 3), None),
    ((1,), (), ()),
    ((2,), (), None),
    ((), (1,), (1,)),
    ((), (2,), None),
    ((0,), (0,), (0,)),
    ((0,), (None,), (0,)),
]


@pytest.mark.parametrize(("sent", "model", "wanted"), SHAPES)
@pytest.mark.parametrize("route", ["json", "arrow"])
def test_row_shapes(sent, model, wanted, route):
    values = np.arange(np.prod([2, *sent]), dtype=np.float32).reshape(2, *sent)
    column = values.tolist()
    if route == "arrow":
        kind = pa.float32()
        for width in reversed(sent):
            kind = pa.list_(kind, width)
        column = pa.array(column, kind)
    frame = Frame(2, {"x": column})

    if wanted is None:
        with pytest.raises(SchemaMismatchError, match="the model takes x: float"):
            to_tensor(frame, spec("float", *model))
        return
    tensor = to_tensor(frame, spec("float", *model))
    assert tensor.shape == (2, *wanted)
    assert tensor.ravel().tolist() == values.ravel().tolist()


def test_a_declared_shape_settles_two_open_axes():
    """As images are sent: a flat list, the shape in the field's ``tensor_type``."""
    field = pa.field("x", pa.list_(pa.float32()), metadata={"tensor_type": '{"shape":[2,3]}'})
    table = pa.table([pa.array([[0, 1, 2, 3, 4, 5]], field.type)], pa.schema([field]))

    tensor = to_tensor(read_arrow(file_bytes(table)), spec("float", None, None))

    assert tensor.shape == (1, 2, 3)


@pytest.mark.parametrize(
    "declared",
    [
        '{"shape":[7]}',
        '{"shape":"x"}',
        "nonsense",
        '{"shape":[-1]}',
        '{"shape":[1e9]}',
        '{"shape":[99999999999999999999]}',
        "[]",
    ],
)
def test_a_declared_shape_that_is_not_true_is_nothing(declared):
    field = pa.field("x", pa.list_(pa.float32()), metadata={"tensor_type": declared})
    table = pa.table([pa.array([[0, 1, 2, 3]], field.type)], pa.schema([field]))

    assert to_tensor(read_arrow(file_bytes(table)), spec("float", 4)).tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("offset", [1, 3])
@pytest.mark.parametrize("kind", [name for name in ZERO_COPY if name != "scalar"])
def test_a_slice_keeps_its_own_rows(kind, offset):
    frame = Frame(2, {"x": ZERO_COPY[kind].slice(offset, 2)})

    assert to_tensor(frame, spec("float", 4)).tolist() == VALUES[offset : offset + 2].tolist()


def test_permuted_tensors_are_refused():
    kind = pa.fixed_shape_tensor(pa.float32(), (2, 2), permutation=[1, 0])
    column = pa.ExtensionArray.from_storage(
        kind, pa.array([[0, 1, 2, 3]], pa.list_(pa.float32(), 4))
    )

    with pytest.raises(SchemaMismatchError, match="permuted"):
        to_tensor(Frame(1, {"x": column}), spec("float", 4))


def test_a_bare_scalar_input():
    bare = TensorSpec("x", ELEMENT_TYPES["float"], ())

    assert to_tensor(read_json(b'[{"x": 3}]', (bare,)), bare).shape == ()
    with pytest.raises(SchemaMismatchError, match="one bare value"):
        to_tensor(read_json(b'[{"x": 3}, {"x": 4}]', (bare,)), bare)


@pytest.mark.parametrize("element", sorted(ELEMENT_TYPES))
@pytest.mark.parametrize(
    "column",
    [
        pa.array([[True, False, True]] * 400, pa.list_(pa.bool_(), 3)),
        pa.array([["a", "b", "c"]] * 400, pa.list_(pa.string(), 3)),
        pa.array([[[1], [2], [3]]] * 400, pa.list_(pa.list_(pa.int64(), 1), 3)),
        pa.array([[1, 2, 3]] * 400, pa.list_(pa.int64(), 3)),
    ],
    ids=lambda column: str(column.type),
)
def test_fixed_size_lists_are_read_as_what_they_hold(element, column):
    """Not as the bytes that lie there: numpy takes None for float64 where the two are compared."""
    spec = TensorSpec("x", ELEMENT_TYPES[element], (None, 3))
    try:
        tensor = to_tensor(Frame(400, {"x": column}), spec)
    except SchemaMismatchError:
        return
    sent = np.array(column.to_pylist()).reshape(400, 3)
    assert tensor.tolist() == sent.astype(spec.element.numpy).tolist()
