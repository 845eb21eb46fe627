"""A body like one before it is read as ``read_arrow`` reads it, and no other body is."""

import struct

import numpy as np
import pyarrow as pa
import pytest

from engine.codecs import known_tables
from engine.codecs.arrow_ipc import read_arrow, write_arrow_file, write_arrow_stream
from engine.codecs.known_tables import MAX_KNOWN, KnownTables
from engine.codecs.tensors import to_tensor
from engine.errors import EngineError
from engine.values import ELEMENT_TYPES, Frame, TensorSpec

FLOATS = pa.float32()


def written(columns, *, write=write_arrow_file, metadata=None):
    batch = pa.RecordBatch.from_pydict(columns)
    if metadata is not None:
        fields = [field.with_metadata(metadata) for field in batch.schema]
        batch = batch.cast(pa.schema(fields))
    return write(batch.schema, [batch]).to_pybytes()


def numbers(start, count):
    return pa.array(np.arange(start, start + count, dtype=np.float32))


def fixed(start, rows=3, width=4):
    return {"x": pa.FixedSizeListArray.from_arrays(numbers(start, rows * width), width)}


def nested(start):
    rows = pa.FixedSizeListArray.from_arrays(numbers(start, 12), 2)
    return {"x": pa.FixedSizeListArray.from_arrays(rows, 3)}


def lists(start, kind=pa.list_):
    values = np.arange(start, start + 6, dtype=np.float32).reshape(3, 2).tolist()
    return {"x": pa.array(values, kind(FLOATS))}


def several(start):
    integers = pa.array([start, start + 1, start + 2], pa.int64())
    return {"a": integers, "b": numbers(start, 3), **fixed(start)}


LAYOUTS = {
    "fixed": fixed,
    "nested": nested,
    "lists": lists,
    "large lists": lambda start: lists(start, pa.large_list),
    "several": several,
    "one number": lambda start: {"x": numbers(start, 1)},
}


def taught(body):
    tables = KnownTables()
    assert tables.read_known(body) is None
    for _ in range(2):
        tables.read(body)
    return tables


def same(one, other):
    return (
        one.rows == other.rows
        and one.row_shapes == other.row_shapes
        and list(one.columns) == list(other.columns)
        and all(one.columns[name].equals(other.columns[name]) for name in one.columns)
        and all(one.columns[name].type == other.columns[name].type for name in one.columns)
    )


@pytest.mark.parametrize("write", [write_arrow_file, write_arrow_stream])
@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_numbers_are_read_as_they_are(layout, kind, write):
    first = kind(written(LAYOUTS[layout](0), write=write))
    other = kind(written(LAYOUTS[layout](100), write=write))
    tables = taught(first)

    frame = tables.read_known(other)
    assert same(frame, read_arrow(other))
    for column in frame.columns.values():
        column.validate(full=True)


@pytest.mark.parametrize("element", ["float", "double", "int64", "float16"])
@pytest.mark.parametrize("row", [(4,), (2, 2), (None, 2), (None,), (3,), ()])
def test_tensors_of_a_known_table_are_those_of_any_other(row, element):
    spec = TensorSpec("x", ELEMENT_TYPES[element], (None, *row))
    first, other = written(fixed(0)), written(fixed(100))
    frames = taught(first).read_known(other), read_arrow(other)
    tensors = []
    for frame in frames:
        try:
            tensor = to_tensor(frame, spec)
        except EngineError as error:
            tensors.append(str(error))
        else:
            tensors.append((tensor.dtype, tensor.shape, tensor.tobytes()))

    assert tensors[0] == tensors[1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_body_may_lie_among_other_bytes(layout):
    first, other = written(LAYOUTS[layout](0)), written(LAYOUTS[layout](100))
    around = bytearray(64) + other + b"ARROW1"

    frame = taught(first).read_known(around, 64, 64 + len(other))
    assert same(frame, read_arrow(other))
    for name, tensor in (frame.dense or {}).items():
        assert tensor.tobytes() == number_bytes(frame.columns[name])


@pytest.mark.parametrize("write", [write_arrow_file, write_arrow_stream])
def test_a_schema_is_known_for_bodies_of_every_size(write):
    """Declared shapes and what is refused belong to the schema."""
    tables = KnownTables()
    for rows in range(1, 9):
        metadata = {"tensor_type": '{"shape":[2,2]}'} if rows % 2 else None
        body = written(fixed(rows, rows=rows), write=write, metadata=metadata)
        frame = tables.read(body)
        assert same(frame, read_arrow(body))
        assert frame.row_shapes == ({"x": (2, 2)} if rows % 2 else {})
        refused = written({"x": pa.array([None] * rows, pa.date32())}, write=write)
        with pytest.raises(EngineError, match="date32"):
            tables.read(refused)


def test_declared_row_shapes_are_known_too():
    metadata = {"tensor_type": '{"shape":[2,2]}'}
    first, other = (written(fixed(start), metadata=metadata) for start in (0, 5))

    assert taught(first).read_known(other).row_shapes == {"x": (2, 2)}


def number_bytes(column):
    while pa.types.is_nested(column.type):
        column = column.flatten()
    return column.to_numpy().tobytes()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_byte_but_those_of_numbers_makes_another_body(layout):
    body = written(LAYOUTS[layout](0))
    tables = taught(body)
    known = 0
    for position in range(len(body)):
        changed = bytearray(body)
        changed[position] ^= 0x41
        frame = tables.read_known(changed)
        if frame is None:
            continue
        known += 1
        whole = read_arrow(changed)
        for name, column in frame.columns.items():
            assert column.type == whole.columns[name].type
            assert number_bytes(column) == number_bytes(whole.columns[name])

    assert known == sum(map(len, map(number_bytes, LAYOUTS[layout](0).values())))


@pytest.mark.parametrize(
    "columns",
    [
        {"x": pa.array([1.0, None, 2.0])},
        {"x": pa.array([[1.0], None, [2.0]])},
        {"x": pa.array([[1.0], [None], [2.0]])},
        {"x": pa.array(["a", "b"])},
        {"x": pa.array([True, False])},
        {"x": pa.array([[True], [False]])},
        {"x": pa.array([], FLOATS)},
        {"x": numbers(0, 3), "y": pa.array(["a", "b", "c"])},
    ],
)
def test_what_is_not_all_numbers_is_never_known(columns):
    body = written(columns)
    assert taught(body).read_known(body) is None


def test_compressed_bodies_are_never_known():
    batch = pa.RecordBatch.from_pydict(fixed(0, rows=100))
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_file(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    body = sink.getvalue().to_pybytes()

    assert taught(body).read_known(body) is None


def test_bodies_of_several_batches_are_never_known():
    batch = pa.RecordBatch.from_pydict(fixed(0))
    body = write_arrow_file(batch.schema, [batch, batch]).to_pybytes()

    assert taught(body).read_known(body) is None


def test_columns_that_share_bytes_are_never_known():
    """Two columns whose buffers are declared to be the same bytes, as no writer does."""
    body = bytearray(written({"a": numbers(0, 16), "b": numbers(16, 16)}))
    second = struct.pack("<qq", 64, 64)  # where the numbers of b lie, from the batch's body on
    at = body.rindex(second)
    body[at : at + 16] = struct.pack("<qq", 0, 64)
    body = bytes(body)
    frame = read_arrow(body)
    assert frame.columns["a"].equals(frame.columns["b"])

    assert taught(body).read_known(body) is None


def test_offsets_that_lie_among_the_numbers_are_never_known():
    """The numbers are declared to lie where the offsets are."""
    column = pa.ListArray.from_arrays(
        pa.array([0, 4], pa.int32()), pa.array([7, 8, 9, 10], pa.int32())
    )
    body = bytearray(written({"x": column}))
    at = body.index(struct.pack("<qq", 8, 16))
    body[at : at + 16] = struct.pack("<qq", 0, 16)
    body = bytes(body)
    assert read_arrow(body).columns["x"].to_pylist()[0][:2] == [0, 4]

    assert taught(body).read_known(body) is None


def outcome(read, body, spec):
    try:
        tensor = to_tensor(read(body), spec)
    except EngineError as error:
        return str(error)
    return tensor.shape, tensor.tobytes()


def test_values_behind_the_last_list_belong_to_no_row():
    """One list is said to be there, and numbers for two."""
    body = bytearray(written(fixed(0, rows=2)))
    two = struct.pack("<q", 2)
    for at in range(0, len(body) - 8, 4):
        if body[at : at + 8] == two:
            body[at : at + 8] = struct.pack("<q", 1)
    body = bytes(body)
    assert len(read_arrow(body).columns["x"]) == 1
    assert len(read_arrow(body).columns["x"].values) == 8
    tables = KnownTables()

    for width in (4, 8):
        spec = TensorSpec("x", ELEMENT_TYPES["float"], (None, width))
        wanted = outcome(read_arrow, body, spec)
        assert [outcome(tables.read, body, spec) for _ in range(4)] == [wanted] * 4
    assert tables.read_known(body) is not None


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_compressed_bodies_that_keep_their_numbers_as_they_are_are_never_known(layout, codec):
    """Noise does not compress: a writer leaves such a buffer, and says so before it."""
    noise = np.random.default_rng(1).integers(0, 1 << 32, 3000, np.uint32).view(np.float32)
    column = pa.ListArray.from_arrays(pa.array(range(0, 3001, 3), pa.int32()), pa.array(noise))
    batch = pa.RecordBatch.from_pydict({"x": column} if layout == "lists" else LAYOUTS[layout](0))
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=pa.Codec(codec), emit_dictionary_deltas=False)
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    body = sink.getvalue().to_pybytes()
    tables = taught(body)

    assert tables.read_known(body) is None


def test_numbers_behind_a_length_are_never_known():
    """As a compressed batch has them; here it is the end of the column before."""
    first = pa.array([1, -1], pa.int64())
    body = written({"a": first, "b": pa.array([3, 4], pa.int64())})

    assert taught(body).read_known(body) is None


def test_offsets_that_the_reader_made_are_never_known():
    """A body whose offsets are compressed and whose numbers are not, as some writers leave them."""
    column = pa.ListArray.from_arrays(pa.array([0, 2, 4], pa.int32()), numbers(0, 4))
    plain = bytearray(written({"x": column}, write=write_arrow_stream))
    frame = read_arrow(bytes(plain))
    offsets = pa.array([0, 2, 4], pa.int32())  # anywhere but in the body
    moved = pa.ListArray.from_buffers(
        column.type,
        2,
        [None, offsets.buffers()[1]],
        children=[frame.columns["x"].values],
    )
    assert known_tables._learn(bytes(plain), Frame(2, {"x": moved})) is None


def test_a_size_is_learned_when_it_is_met_again():
    first, other = written(fixed(0)), written({"y": fixed(0)["x"]})
    tables = KnownTables()
    tables.read(first)
    assert tables.read_known(first) is None
    tables.read(other)
    assert len(first) == len(other)
    assert tables.read_known(first) is None
    assert list(tables.read_known(other).columns) == ["y"]


def test_only_so_many_layouts_are_kept():
    tables = KnownTables()
    bodies = [written(fixed(0, rows=rows)) for rows in range(1, 33 * MAX_KNOWN // 16, 2)]
    for body in bodies:
        tables.read(body)
        tables.read(body)
    known = sum(tables.read_known(body) is not None for body in bodies)

    assert 0 < known <= MAX_KNOWN


def test_wide_tables_are_not_kept():
    columns = {f"a column with a long name {index:04}": numbers(index, 2) for index in range(500)}
    body = written(columns)

    assert taught(body).read_known(body) is None
