"""Hostile Arrow bodies over HTTP; the numbers are those of docs/http.md."""

import random
import struct

import numpy as np
import pyarrow as pa
import pytest
from support.arrow import file_bytes, read_file, stream_bytes, vectors
from support.engine import ARROW_FILE, inference_head
from support.models import DTYPES

pytestmark = pytest.mark.fault

VALUES = np.linspace(-1, 1, 4 * 500, dtype=np.float32).reshape(500, 4)
MIB = 1 << 20


@pytest.fixture
def engine(serving):
    return serving("linear")


def post(engine, body, **headers):
    return engine.post("/infer", body, ARROW_FILE, **headers)


def refusal(engine, body, status=400):
    reply = post(engine, body)
    assert reply.status == status, (reply.status, reply.body)
    return reply.error


def test_hostile_01_file_stream_and_compression_give_the_same_bits(engine):
    table = pa.table({"x": vectors(VALUES.tolist(), 4)})
    lists = pa.table({"x": pa.array(VALUES.tolist(), pa.list_(pa.float32()))})
    batches = pa.concat_tables([table.slice(0, 100), table.slice(100, 1), table.slice(101)])
    bodies = [
        write(rows, compression)
        for write in (file_bytes, stream_bytes)
        for compression in (None, "lz4", "zstd")
        for rows in (table, lists, batches)
    ]

    replies = [read_file(post(engine, body, accept=ARROW_FILE).body) for body in bodies]

    (wanted,) = {column(reply, "out", "y").to_numpy().tobytes() for reply in replies}
    assert len(wanted) == 500 * 2 * 4
    assert all(
        column(reply, "in", "x").to_numpy().tobytes() == VALUES.tobytes() for reply in replies
    )


def column(table, group, name):
    return table.column(group).combine_chunks().field(name).flatten()


@pytest.mark.slow
def test_hostile_02_ten_thousand_mutations(serving):
    """1 to 8 bytes changed at random places, by a fixed seed: only documented answers, one PID."""
    engine = serving("linear")
    chance = random.Random(20260)
    rows = {"x": vectors(VALUES[:40].tolist(), 4), "id": pa.array([f"r{i}" for i in range(40)])}
    lists = {
        "x": pa.array(VALUES[:40].tolist(), pa.list_(pa.float32())),
        "b": pa.array([True] * 40),
    }
    bases = [
        write(table, compression)
        for write in (file_bytes, stream_bytes)
        for compression in (None, "lz4", "zstd")
        for table in (rows, lists)
    ]
    statuses = {}
    wire = engine.connect()
    for _ in range(10_000):
        body = bytearray(chance.choice(bases))
        for _ in range(chance.randint(1, 8)):
            body[chance.randrange(len(body))] = chance.randrange(256)
        wire.send(inference_head(len(body)) + body)
        reply = wire.receive()
        assert reply is not None, "the connection was closed"
        statuses[reply.status] = statuses.get(reply.status, 0) + 1
        if reply.status != 200:
            assert reply.error
    wire.close()

    assert set(statuses) <= {200, 400, 413}, statuses
    assert statuses[200] > 500
    assert statuses[400] > 500
    assert engine.is_alive()
    assert post(engine, bases[0]).status == 200


@pytest.mark.slow
@pytest.mark.parametrize(("compression", "columns"), [("zstd", 1), ("lz4", 1), ("zstd", 4)])
def test_hostile_04_compressed_bomb(engine, compression, columns):
    """256 MiB and 1 GiB of zeros: refused by what the buffers declare, nothing is unpacked."""
    zeros = pa.array(np.zeros(64 * MIB, np.float32))
    rows = zeros.slice(0, 64 * MIB)
    body = stream_bytes({f"c{index}": rows for index in range(columns)}, compression)
    del zeros, rows
    assert len(body) < 2 * MIB * columns
    post(engine, b"warm")
    engine.reset_peak_rss()
    before = engine.peak_rss_bytes()

    error = refusal(engine, body, 413)

    assert "rows" in error or "bytes" in error
    assert engine.peak_rss_bytes() - before < 16 * MIB


def test_hostile_04_bomb_within_the_row_limit(engine):
    """Few rows that unpack to more than the limit: told from the buffers' own declaration."""
    width = 160 * MIB // 4
    wide = pa.array(np.zeros(width, np.float32))
    row = pa.FixedSizeListArray.from_arrays(wide, width)
    body = stream_bytes({f"c{index}": row for index in range(4)}, "zstd")
    post(engine, b"warm")
    engine.reset_peak_rss()
    before = engine.peak_rss_bytes()

    assert "would decode to more than" in refusal(engine, body, 413)
    assert engine.peak_rss_bytes() - before < 16 * MIB


@pytest.mark.parametrize("declared", [64 << 30, 1 << 40, 4 << 60, -5, 1, 0, (1 << 63) - 1])
@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_hostile_05_forged_buffer_length(engine, compression, declared):
    body = bytearray(stream_bytes({"x": vectors(np.zeros((500, 4)).tolist(), 4)}, compression))
    honest = struct.pack("<q", 500 * 4 * 4)
    assert body.count(honest) == 1
    at = body.index(honest)
    body[at : at + 8] = struct.pack("<q", declared)
    post(engine, b"warm")
    engine.reset_peak_rss()
    before = engine.peak_rss_bytes()

    reply = post(engine, bytes(body))

    assert reply.status in {400, 413}, reply.body
    assert reply.error
    assert engine.peak_rss_bytes() - before < 16 * MIB


UNSUPPORTED = {
    "null": pa.nulls(2),
    "dictionary": pa.array(["a", "b"]).dictionary_encode(),
    "run_end_encoded": pa.RunEndEncodedArray.from_arrays([2], pa.array([1.0])),
    "list_view": pa.array([[1.0], [2.0]], pa.list_view(pa.float32())),
    "large_list_view": pa.array([[1.0], [2.0]], pa.large_list_view(pa.float32())),
    "dense_union": pa.UnionArray.from_dense(
        pa.array([0, 0], pa.int8()), pa.array([0, 1], pa.int32()), [pa.array([1.0, 2.0])]
    ),
    "map": pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int32())),
    "struct": pa.array([{"a": 1}, {"a": 2}]),
    "timestamp": pa.array([1, 2], pa.timestamp("ms")),
    "decimal": pa.array([1, 2], pa.decimal128(10, 2)),
    "binary": pa.array([b"a", b"b"]),
    "string_view": pa.array(["a", "b"], pa.string_view()),
    "uuid": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes(16)] * 2, pa.binary(16))),
    "list<null>": pa.array([[None], [None]], pa.list_(pa.null())),
    "list<dictionary>": pa.array([["a"], ["b"]], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
}


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_hostile_06_unsupported_column_type(engine, kind):
    """Refused by name and type, also where no model reads the column."""
    array = UNSUPPORTED[kind]
    error = refusal(engine, file_bytes({"x": vectors([[0, 1, 2, 3]] * 2), "odd": array}))

    assert "'odd'" in error
    assert str(array.type).split("<")[0].split("(")[0].removeprefix("extension") in error


def test_hostile_07_two_billion_rows_of_nothing(engine):
    """A null column of 2^31-1 rows takes no bytes at all."""
    batch = pa.record_batch({"n": pa.nulls((1 << 31) - 1)})
    for body in (file_bytes(pa.table(batch)), stream_bytes(pa.table(batch))):
        assert len(body) < 1000
        assert "rows" in refusal(engine, body, 413)


def test_hostile_08_deep_type(engine):
    for depth in (65, 200):
        kind = pa.float32()
        for _ in range(depth):
            kind = pa.list_(kind)
        assert refusal(engine, file_bytes({"x": pa.array([], kind)}))


@pytest.mark.slow
def test_hostile_08_two_hundred_thousand_columns(engine):
    schema = pa.schema([(f"c{index}", pa.float32()) for index in range(200_000)])
    sink = pa.BufferOutputStream()
    pa.ipc.new_stream(sink, schema).close()

    reply = post(engine, sink.getvalue().to_pybytes())

    assert reply.status in {400, 413}
    assert reply.error


def test_hostile_08_columns_just_over_the_limit(engine):
    table = {f"c{index}": pa.array([1.0]) for index in range(1025)}

    assert "1025 columns: at most 1024" in refusal(engine, file_bytes(table), 413)


@pytest.mark.slow
def test_hostile_08_hundred_thousand_batches(engine):
    schema = pa.schema({"x": pa.list_(pa.float32(), 4)})
    batch = pa.record_batch({"x": vectors([], 4)}, schema=schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        for _ in range(100_000):
            writer.write_batch(batch)

    assert "more than 10000 Arrow messages" in refusal(engine, sink.getvalue().to_pybytes(), 413)


ROW = [0.0, 1.0, 2.0, 3.0]
ONE_ROW = {"x": vectors([ROW])}
WIDE = pa.list_(pa.float32(), 4)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (pa.array([ROW, None, ROW], WIDE), "$[1].x"),
        (pa.array([ROW, [1, 2, None, 4]], WIDE), "$[1].x[2] is null"),
        (pa.array([ROW, None], pa.list_(pa.float32())), "$[1].x"),
        (pa.array([ROW, [1, None, 3, 4]], pa.list_(pa.float32())), "$[1].x[1] is null"),
        (pa.array([ROW, None], pa.large_list(pa.float32())), "$[1].x"),
        (pa.array([ROW, [1, 2, 3], ROW], pa.list_(pa.float32())), "ragged: list 1 has 3 values"),
        (pa.array([[1, 2, 3], ROW, [1, 2, 3, 4, 5]], pa.list_(pa.float32())), "ragged: list 1"),
    ],
    ids=str,
)
def test_hostile_09_nulls_and_ragged_lists(engine, array, said):
    """Never answered with rows that have moved up."""
    for write in (file_bytes, stream_bytes):
        error = refusal(engine, write({"x": array}))
        assert said in error
        if "null" in said or "ragged" not in said:
            assert "may not be null" in error


@pytest.mark.parametrize(
    "kind", [WIDE, pa.list_(pa.float32()), pa.large_list(pa.float32())], ids=str
)
def test_hostile_09_slices_keep_their_rows(engine, kind):
    whole = pa.table({"x": pa.array([[i, 0, 0, 0] for i in range(20)], kind)})
    for table in (
        whole.slice(7, 5),
        whole.slice(19),
        pa.concat_tables([whole.slice(3, 2), whole.slice(9, 1)]),
    ):
        reply = read_file(post(engine, file_bytes(table), accept=ARROW_FILE).body)

        assert column(reply, "in", "x").to_pylist()[::4] == [
            row[0] for row in table["x"].to_pylist()
        ]
        assert column(reply, "out", "y").to_pylist()[1::2] == [
            row[0] for row in table["x"].to_pylist()
        ]


def test_hostile_10_truncated_at_every_64_bytes(engine):
    table = pa.table({"x": vectors(VALUES[:30].tolist(), 4), "id": pa.array(["é"] * 30)})
    for body in (file_bytes(table), file_bytes(table, "lz4")):
        with engine.connect() as wire:
            for length in range(0, len(body), 64):
                wire.send(inference_head(length) + body[:length])
                reply = wire.receive()
                assert reply.status == 400, (length, reply.body)
                assert reply.error
    stream = stream_bytes(table)
    end_of_batch = len(stream) - 8  # a stream without its end marker is whole, says the format
    with engine.connect() as wire:
        for length in range(0, len(stream), 64):
            wire.send(inference_head(length) + stream[:length])
            assert wire.receive().status == (200 if length >= end_of_batch else 400), length


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda body: b"", "0 bytes"),
        (lambda body: body[:-6], "footer"),
        (lambda body: body[:-6] + b"ARROW2", "footer"),
        (lambda body: body[:-10] + struct.pack("<i", 1 << 30) + b"ARROW1", "footer"),
        (lambda body: body[:-10] + struct.pack("<i", -1) + b"ARROW1", "footer"),
        (lambda body: b"ARROW2" + body[6:], "malformed"),
        (lambda body: b"PAR1" + body[4:], "malformed"),
        (lambda body: body.replace(b"\n", b""), ""),
        (lambda body: b'[{"x": [0, 1, 2, 3]}]', "malformed"),
        (lambda body: bytes(len(body)), "no message"),
    ],
)
def test_hostile_10_not_an_arrow_file(engine, damage, said):
    body = file_bytes({"x": vectors(VALUES[:30].tolist(), 4)})

    assert said in refusal(engine, damage(body))


CAST_CASES = [  # column of the request, element of the model, place that does not fit or None
    (pa.array([0.1, -1e300], pa.float64()), "f64", None),
    (pa.array([0.1, 3.0], pa.float64()), "f32", None),
    (pa.array([0.1, 1e300], pa.float64()), "f32", "$[1].in_f32[0] is 1e+300"),
    (pa.array([0.5, 65504.0], pa.float32()), "f16", None),
    (pa.array([0.5, 1e5], pa.float32()), "f16", "$[1].in_f16[0] is 100000"),
    (pa.array([1, -(2**53)], pa.int64()), "f64", None),
    (pa.array([1, 2**53 + 1], pa.int64()), "f64", None),  # an integer is rounded to a float
    (pa.array([3, 2**24 + 1], pa.int32()), "f32", None),
    (pa.array([1.0, -128.0], pa.float32()), "i8", None),
    (pa.array([1.0, 1.5], pa.float32()), "i8", "$[1].in_i8[0] is 1.5"),
    (pa.array([1.0, 128.0], pa.float32()), "i8", "$[1].in_i8[0] is 128.0"),
    (pa.array([1.0, float("nan")], pa.float64()), "i32", "$[1].in_i32[0] is nan"),
    (pa.array([1.0, float("inf")], pa.float64()), "i64", "$[1].in_i64[0] is inf"),
    (pa.array([1.0, 2.0**63], pa.float64()), "i64", "$[1].in_i64[0]"),
    (pa.array([1.0, -(2.0**63)], pa.float64()), "i64", None),
    (pa.array([1, 300], pa.int64()), "u8", "$[1].in_u8[0] is 300"),
    (pa.array([1, -1], pa.int8()), "u64", "$[1].in_u64[0] is -1"),
    (pa.array([1, 2**63], pa.uint64()), "i64", "$[1].in_i64[0] is 9223372036854775808"),
    (pa.array([1, 2**62], pa.uint64()), "i64", None),
]


@pytest.mark.parametrize(("array", "element", "said"), CAST_CASES, ids=str)
def test_hostile_11_casts(serving, array, element, said):
    """Done where the value is kept, rounding to the model's float included; refused elsewhere."""
    spelling = DTYPES[element][1]
    name = f"in_{element}"
    engine = serving("every_type")
    columns = {f"in_{key}": [[False, False]] * 2 for key in DTYPES} | {"in_s": [["", ""]] * 2}
    columns |= {f"in_{key}": [[0, 0]] * 2 for key in DTYPES if key not in "bs"}
    columns[name] = pa.FixedSizeListArray.from_arrays(array.take([0, 0, 1, 1]), 2)

    reply = post(engine, file_bytes(columns), accept=ARROW_FILE)

    if said is None:
        assert reply.status == 200, reply.body
        answered = column(read_file(reply.body), "out", f"out_{element}").to_numpy()[::2]
        wanted = {"float": "float32", "double": "float64"}.get(spelling, spelling)
        assert answered.dtype == wanted
        assert answered.tobytes() == array.to_numpy().astype(wanted).tobytes()
    else:
        assert reply.status == 400
        assert said in reply.error
        assert spelling in reply.error


def test_hostile_11_text_and_booleans_are_not_numbers(engine):
    assert "holds text" in refusal(engine, file_bytes({"x": pa.array([["a"] * 4])}))
    assert "holds bool" in refusal(engine, file_bytes({"x": pa.array([[True] * 4])}))


def test_float_nan_and_infinity_of_an_arrow_request_reach_the_model(engine):
    """They are values of the model's own type, unlike in JSON, which has none of them."""
    table = {"x": vectors([[0.0, float("nan"), 2.0, 3.0], [0.0, 1.0, float("inf"), 3.0]])}

    answered = column(
        read_file(post(engine, file_bytes(table), accept=ARROW_FILE).body), "out", "y"
    )

    assert np.isnan(answered.to_numpy()[:2]).all()
    assert np.isinf(answered.to_numpy()[2:]).all()


@pytest.mark.parametrize("write", [file_bytes, stream_bytes])
def test_hostile_12_zero_rows(engine, write):
    """An empty list, and an Arrow reply without rows but with its schema."""
    body = write({"x": vectors([], 4)})

    assert post(engine, body).body == b"[]"
    assert engine.post("/infer?dataset[]=*", body, ARROW_FILE).body == b"[]"
    reply = read_file(post(engine, body, accept=ARROW_FILE).body)
    assert reply.num_rows == 0
    assert reply.schema == read_file(post(engine, write(ONE_ROW), accept=ARROW_FILE).body).schema


def test_hostile_12_zero_rows_without_columns(engine):
    assert post(engine, file_bytes(pa.table({}))).body == b"[]"
    assert read_file(post(engine, stream_bytes({}), accept=ARROW_FILE).body).num_rows == 0


def test_hostile_13_columns_that_do_not_fit(engine):
    x = vectors([ROW, ROW])
    extra = post(engine, file_bytes({"x": x, "id": pa.array(["a", "b"])}), accept=ARROW_FILE)
    missing = refusal(engine, file_bytes({"tensor": x}))
    narrow = refusal(engine, file_bytes({"x": vectors([[1, 2, 3]] * 2)}))
    scalar = refusal(engine, file_bytes({"x": pa.array([1.0, 2.0], pa.float32())}))
    nested = refusal(engine, file_bytes({"x": pa.array([[[1.0, 2.0]] * 3] * 2)}))
    twice = refusal(engine, file_bytes(pa.table([x, x], names=["x", "x"])))

    assert read_file(extra.body).column("in").combine_chunks().field("id").to_pylist() == ["a", "b"]
    assert "column 'x' is missing: the model takes x: float [rows, 4]" in missing
    assert "the request has 'tensor'" in missing
    assert "rows of shape [3] (3 values): the model takes x: float [rows, 4]" in narrow
    assert "rows of shape [] (1 values): the model takes x: float [rows, 4]" in scalar
    assert "rows of shape [3, 2] (6 values)" in nested
    assert "occurs twice" in twice


def test_refused_bodies_keep_no_memory(engine):
    """Forty of 8 MiB that do not fit the model."""
    values = pa.array(np.zeros(8 * MIB // 4 // 3 * 3, np.float32))
    body = file_bytes(pa.table({"x": pa.FixedSizeListArray.from_arrays(values, 3)}))
    refusal(engine, body)
    before = engine.rss_bytes()

    for _ in range(40):
        assert "[3]" in refusal(engine, body)

    assert engine.rss_bytes() - before < 100 * MIB
