"""A result in the three reply formats: they say the same, and what they write is read back."""

import dataclasses
import tracemalloc

import numpy as np
import orjson
import pyarrow as pa
import pytest
from support.arrow import read_file, vectors

from engine.codecs.arrow_columns import equal_lists
from engine.codecs.arrow_ipc import write_arrow_file, write_arrow_stream
from engine.codecs.dataset import Dataset
from engine.codecs.legacy import write_legacy
from engine.codecs.pandas_records import write_records
from engine.codecs.record_batch import log_batch, record_batch
from engine.errors import SchemaMismatchError
from engine.values import Frame, InferResult, ModelIdentity, Output, PipelineIdentity


def result(outputs, columns=None, rows=2):
    return InferResult(
        frame=Frame(rows, columns or {"x": [[1.5], [2]]}),
        outputs=tuple(outputs),
        time_ms=1_700_000_000_000,
        elapsed_ns=(10, 20),
        model=ModelIdentity("m", "v1", "abc"),
        pipeline=PipelineIdentity("p", "v2"),
        partition="edge",
    )


def output(values, *, per_row=True):
    return Output("y", np.asarray(values), per_row)


VALUES = [  # the values of an output, one per row; the legacy name and dim; the JSON of each row
    (np.float32([[0.1], [2]]), "Float", [2, 1], [[0.1], [2.0]]),
    (np.float64([[0.1], [1e300]]), "Double", [2, 1], [[0.1], [1e300]]),
    (np.float16([0.1, 2]), "Half", [2], [0.1, 2.0]),
    (np.int8([[-1, 2], [3, 4]]), "Int8", [2, 2], [[-1, 2], [3, 4]]),
    (np.int64([2**63 - 1, -5]), "Int64", [2], [2**63 - 1, -5]),
    (np.uint64([2**64 - 1, 5]), "Uint64", [2], [2**64 - 1, 5]),
    (np.array([True, False]), "Bool", [2], [True, False]),
    (np.array(["é", '"\n'], object), "String", [2], ["é", '"\n']),
    (np.array([["a"], ["],["]], object), "String", [2, 1], [["a"], ["],["]]),
    (np.float32([[[1, 2], [3, 4]]] * 2), "Float", [2, 2, 2], [[[1, 2], [3, 4]]] * 2),
    (np.float32([np.nan, np.inf]), "Float", [2], [None, None]),
    (np.zeros((2, 0), np.float32), "Float", [2, 0], [[], []]),
    (np.zeros((2, 3), np.float32)[:, ::2], "Float", [2, 2], [[0, 0], [0, 0]]),
]


def told(value, dtype):
    """JSON as the values of an element type that it stands for; null stays null."""
    if isinstance(value, list):
        return [told(item, dtype) for item in value]
    return value if value is None or dtype.kind == "O" else dtype.type(value)


@pytest.mark.parametrize(
    ("values", "kind", "dim", "rows"), VALUES, ids=lambda value: str(value)[:20]
)
def test_every_format_writes_the_same_values(values, kind, dim, rows):
    answer = result([output(values)])

    (legacy,) = orjson.loads(write_legacy(answer))
    records = orjson.loads(write_records(answer))
    batch = record_batch(answer)

    wanted = told(rows, values.dtype)
    ((name, tensor),) = legacy["outputs"][0].items()
    assert (name, tensor["dim"], tensor["v"]) == (kind, dim, 1)
    assert told(tensor["data"], values.dtype) == np.array(wanted, object).ravel().tolist()
    assert [told(record["out"]["y"], values.dtype) for record in records] == wanted
    batch.validate(full=True)
    arrow = np.array(batch.column("out").field("y").to_pylist(), values.dtype)
    assert arrow.tolist() == values.tolist() or arrow.tobytes() == values.tobytes()
    for write, read_back in ((write_arrow_file, read_file), (write_arrow_stream, _read_stream)):
        again = read_back(write(batch.schema, [batch]))
        assert str(again.to_pylist()) == str(batch.to_pylist())
        assert again.schema.equals(batch.schema, check_metadata=True)


def _read_stream(body):
    return pa.ipc.open_stream(body).read_all()


IN_COLUMNS = [  # a column of the request, and how records repeat it
    ([1, 2.5], [1, 2.5]),
    ([[1, 2], [3]], [[1, 2], [3]]),
    (["],[", "a"], ["],[", "a"]),
    ([["],[", "],["], ["],["]], [["],[", "],["], ["],["]]),
    ([None, {"a": [1]}], [None, {"a": [1]}]),
    ([[], []], [[], []]),
    ([True, False], [True, False]),
    (pa.array([0.1, 0.2], pa.float32()), [0.1, 0.2]),
    (pa.array([0.1, 0.2], pa.float64()), [0.1, 0.2]),
    (vectors([[0.1, -1.0603298], [0.3, 0.4]]), [[0.1, -1.0603298], [0.3, 0.4]]),
    (pa.array([[0.1], [0.2, 0.3]], pa.list_(pa.float32())), [[0.1], [0.2, 0.3]]),
    (pa.array([[[0.1]], [[0.2], []]], pa.list_(pa.list_(pa.float32()))), [[[0.1]], [[0.2], []]]),
    (pa.array([0.1, None], pa.float32()), [0.1, None]),
    (pa.array([[0.1], None], pa.list_(pa.float32())), [[0.1], None]),
    (pa.array(["a", None]), ["a", None]),
    (pa.array([2**63, 1], pa.uint64()), [2**63, 1]),
    (pa.array([[9.0], [0.1], [0.2]], pa.list_(pa.float32(), 1)).slice(1), [[0.1], [0.2]]),
    (pa.array([[9.0], [0.1], [0.2]], pa.list_(pa.float32())).slice(1), [[0.1], [0.2]]),
    (
        pa.FixedShapeTensorArray.from_numpy_ndarray(np.float32([[[1, 2]], [[3, 4]]])),
        [[1, 2], [3, 4]],
    ),
]


@pytest.mark.parametrize(("column", "rows"), IN_COLUMNS, ids=lambda value: str(value)[:30])
def test_records_repeat_the_request(column, rows):
    records = orjson.loads(
        write_records(result([output([[1.0], [2.0]])], {"c": column, "a": [0, 1]}))
    )

    assert [record["in"]["c"] for record in records] == rows
    assert [list(record["in"]) for record in records] == [["a", "c"]] * 2


def test_an_output_that_is_not_per_row():
    """Legacy takes it; records take it for one row."""
    odd = output(np.float32([1, 2, 3]), per_row=False)

    assert orjson.loads(write_legacy(result([odd])))[0]["outputs"][0]["Float"]["dim"] == [3]
    for write in (write_records, record_batch):
        with pytest.raises(SchemaMismatchError, match="one value per row"):
            write(result([odd]))
    one = result([odd], {"x": [1]}, rows=1)
    assert orjson.loads(write_records(one))[0]["out"] == {"y": [1.0, 2.0, 3.0]}
    assert record_batch(one).column("out").to_pylist() == [{"y": [1.0, 2.0, 3.0]}]


def test_ragged_rows():
    values = np.empty(2, object)
    values[:] = [np.float32([0.1, 2]), np.float32([])]
    ragged = dataclasses.replace(output(values), ragged=True)

    assert [r["out"]["y"] for r in orjson.loads(write_records(result([ragged])))] == [
        [0.1, 2.0],
        [],
    ]
    assert record_batch(result([ragged])).column("out").field("y").type.value_type == pa.float32()
    with pytest.raises(SchemaMismatchError, match="unequal shapes"):
        write_legacy(result([ragged]))


def test_dataset_of_a_result():
    answer = result([output(np.float32([[1], [2]]))])
    flat = Dataset(("*",), ("metadata",), separator=".")

    keys = ["time", "in.x", "out.y", "anomaly.count"]
    assert list(orjson.loads(write_records(answer, flat))[0]) == keys
    assert record_batch(answer, flat).schema.names == keys


ECHOED = [  # Arrow columns of a request, and their rows in a records reply
    pa.array([[1.5], None, [None, 0.1, 2], []], pa.list_(pa.float32())),
    pa.array([[[0.1], []], [None], None, [[2, None]]], pa.list_(pa.list_(pa.float32()))),
    pa.array([[[0.1, 2], [3, 4]], [[5, 6], [7, 8]]], pa.list_(pa.list_(pa.float32(), 2))),
    pa.array([[[True], [False]], [[None], [True]]], pa.list_(pa.list_(pa.bool_(), 1), 2)),
    pa.array([[[1]] * 2, None, [[2]] * 2], pa.list_(pa.list_(pa.int64(), 1), 2)),
    pa.array([True, False, None] * 9, pa.bool_())[5:19],
    pa.array([[i % 3 == 0] * 3 for i in range(20)], pa.list_(pa.bool_(), 3))[3:17],
    pa.array([None, None], pa.float32()),
    pa.array([[], []], pa.large_list(pa.list_(pa.int8()))),
    pa.array([["a", None], ["],["]], pa.list_(pa.string())),
]


@pytest.mark.parametrize("column", ECHOED, ids=lambda column: str(column.type))
def test_records_repeat_every_arrow_column(column):
    answer = result([output(np.zeros(len(column)))], {"x": column}, rows=len(column))

    rows = [record["in"]["x"] for record in orjson.loads(write_records(answer))]

    shortest = orjson.loads(
        orjson.dumps(column.to_pylist()).replace(b"0.10000000149011612", b"0.1")
    )
    assert rows == shortest


def test_ragged_lists_take_no_object_for_each_value():
    """A scalar of Arrow's for each took 2 KB and 16 us: 4 GB for a column of 8 MB."""
    values = np.arange(200_000, dtype=np.float32)
    column = pa.array([values, values[1:]], pa.list_(pa.float32()))

    tracemalloc.start()
    text = write_records(result([output([0, 0])], {"x": column}))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert [len(record["in"]["x"]) for record in orjson.loads(text)] == [200_000, 199_999]
    assert peak_bytes < 10 * len(text)


def test_a_column_past_32_bit_offsets_is_refused_and_never_wraps():
    item = pa.field("item", pa.null())

    assert len(equal_lists(pa.nulls(6), 2, 3, item)) == 2
    with pytest.raises(SchemaMismatchError, match="65536 lists of 32768 values is more than"):
        equal_lists(pa.nulls(0), 1 << 16, 1 << 15, item)


def test_the_log_leaves_out_what_arrow_has_no_type_for_and_names_it():
    deep = 1
    for _ in range(100):
        deep = [deep]
    columns = {"x": [[1.5], [2]], "id": [1, "a"], "big": [2**64 - 1, 1], "deep": [deep, deep]}
    answer = result([output([1, 2])], columns)

    batch = log_batch(answer)

    batch.validate(full=True)
    assert write_arrow_file(batch.schema, [batch])
    first, second = batch.to_pylist()
    assert (first["in"], second["in"]) == ({"x": [1.5]}, {"x": [2.0]})
    assert first["metadata"]["dropped"] == ["in.big", "in.deep", "in.id"]
    usual = result([output([1, 2])], {"x": [[1.5], [2]], "s": ["a", None]})
    assert log_batch(usual).equals(record_batch(usual), check_metadata=True)
    assert log_batch(result([output([])], {"x": []}, rows=0)).num_rows == 0
    assert "in" not in log_batch(result([output([1, 2])], {"id": [1, "a"]})).schema.names
