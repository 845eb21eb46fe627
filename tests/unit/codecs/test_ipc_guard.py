"""The walk over what Arrow bytes declare, before anything is decoded."""

import struct

import flatbuffers
import numpy as np
import pyarrow as pa
import pytest
from support.arrow import file_bytes, stream_bytes, vectors

from engine.codecs.arrow_frame import check_schema
from engine.codecs.arrow_ipc import read_arrow
from engine.codecs.ipc_guard import IpcLimits, check_stream, stream_part
from engine.errors import DecodeError, PayloadTooLargeError, SchemaMismatchError

TABLE = {"x": vectors(np.zeros((100, 4)).tolist()), "s": pa.array(["é"] * 100)}


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize("write", [file_bytes, stream_bytes])
def test_declared_bytes_are_those_that_are_decoded(write, compression):
    """A limit of exactly the decoded size passes, one byte less does not."""
    body = write(TABLE, compression)
    decoded = sum(
        buffer.size
        for column in read_arrow(write(TABLE)).columns.values()
        for buffer in column.buffers()
        if buffer is not None
    )
    padded = range(decoded, decoded + 8 * 8)  # each buffer is padded, at most to 64 bytes

    stream = stream_part(memoryview(body))
    accepted = [size for size in padded if _passes(stream, IpcLimits(decoded_bytes=size))]

    assert accepted
    assert not _passes(stream, IpcLimits(decoded_bytes=100 * 16))


def _passes(stream, limits):
    try:
        check_stream(stream, limits)
    except PayloadTooLargeError:
        return False
    return True


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (IpcLimits(rows=99), "more than 99 rows"),
        (IpcLimits(values=599), "more than 599 values"),  # 100 lists, their 400 values, 100 texts
        (IpcLimits(messages=1), "more than 1 Arrow messages"),
        (IpcLimits(metadata_bytes=10), "bytes of metadata"),
    ],
)
def test_limits(limits, said):
    with pytest.raises(PayloadTooLargeError, match=said):
        read_arrow(file_bytes(TABLE), limits)


def test_rows_of_all_batches_count():
    table = pa.concat_tables([pa.table(TABLE)] * 3)

    assert read_arrow(stream_bytes(table), IpcLimits(rows=300)).rows == 300
    with pytest.raises(PayloadTooLargeError):
        read_arrow(stream_bytes(table), IpcLimits(rows=299))


@pytest.mark.parametrize("word", [-1, 1 << 30, -(1 << 31), 0])
def test_a_word_of_nonsense_anywhere_is_an_error_of_ours_or_nothing(word):
    honest = file_bytes({"x": TABLE["x"]})
    refused = 0
    for position in range(8, 600, 4):
        body = bytearray(honest)
        body[position : position + 4] = struct.pack("<i", word)
        try:
            read_arrow(bytes(body))
        except (DecodeError, PayloadTooLargeError, SchemaMismatchError):
            refused += 1

    assert refused > 10


def test_a_footer_that_points_elsewhere_is_not_followed():
    """The stream between the magics is what is read: what the guard has walked."""
    honest, other = file_bytes({"x": vectors([[1.0]])}), file_bytes({"x": vectors([[2.0]])})
    footer = struct.unpack_from("<i", other, len(other) - 10)[0] + 10
    forged = honest[: len(honest) - footer] + other[-footer:]

    assert read_arrow(forged).columns["x"].to_pylist() == [[1.0]]


def test_compression_that_is_said_in_the_custom_metadata_alone_is_refused():
    """As Arrow 0.17 said it, and the library still reads it: 2 KB would become 64 MiB."""
    body = _old_compressed(64 << 20)

    assert len(body) < 4096
    with pytest.raises(DecodeError, match=r"write it with Arrow 1\.0"):
        read_arrow(body)


def _old_compressed(size_bytes):
    """A float column of one buffer of nothing, compressed as metadata of version 4 says it."""
    content = struct.pack("<q", size_bytes) + pa.compress(bytes(size_bytes), "zstd", asbytes=True)
    builder = flatbuffers.Builder()
    key = builder.CreateString("ARROW:experimental_compression")
    value = builder.CreateString("ZSTD")
    pair = _table(builder, (builder.PrependUOffsetTRelativeSlot, key, value))
    builder.StartVector(4, 1, 4)
    builder.PrependUOffsetTRelative(pair)
    pairs = builder.EndVector()
    nodes = _pairs(builder, (size_bytes // 4, 0))
    buffers = _pairs(builder, (0, 0), (0, len(content)))
    builder.StartObject(4)
    builder.PrependInt64Slot(0, size_bytes // 4, 0)
    builder.PrependUOffsetTRelativeSlot(1, nodes, 0)
    builder.PrependUOffsetTRelativeSlot(2, buffers, 0)
    batch = builder.EndObject()
    builder.StartObject(5)
    builder.PrependInt16Slot(0, 3, 0)  # V4
    builder.PrependUint8Slot(1, 3, 0)  # a record batch
    builder.PrependUOffsetTRelativeSlot(2, batch, 0)
    builder.PrependInt64Slot(3, len(content), 0)
    builder.PrependUOffsetTRelativeSlot(4, pairs, 0)
    builder.Finish(builder.EndObject())
    message = bytes(builder.Output())
    message += bytes(-len(message) % 8)
    head = stream_bytes({"x": pa.array([], pa.float32())}).partition(struct.pack("<ii", -1, 0))[0]
    return head + struct.pack("<ii", -1, len(message)) + message + content


def _table(builder, fields):
    prepend, *values = fields
    builder.StartObject(len(values))
    for slot, value in enumerate(values):
        prepend(slot, value, 0)
    return builder.EndObject()


def _pairs(builder, *pairs):
    builder.StartVector(16, len(pairs), 8)
    for first, second in reversed(pairs):
        builder.PrependInt64(second)
        builder.PrependInt64(first)
    return builder.EndVector()


@pytest.mark.parametrize("outer", [pa.list_, pa.large_list, lambda kind: pa.list_(kind, 1 << 30)])
def test_lists_of_size_0_inside_a_list_are_refused(outer):
    """A billion of them take no byte, and 456 bytes of body."""
    empty = pa.list_(pa.float32(), 0)
    schema = pa.schema([("x", outer(empty))])

    with pytest.raises(SchemaMismatchError, match="none of size 0 inside a list"):
        check_schema(schema)
    check_schema(pa.schema([("x", empty), ("y", pa.list_(pa.list_(pa.float32(), 2), 0))]))


def test_a_declared_shape_of_thousands_of_axes_is_not_looked_at():
    """The product of 100,000 lengths took half a minute."""
    shape = "[" + ",".join(["9223372036854775807"] * 100_000) + "]"
    kind = pa.list_(pa.float32(), 3)
    field = pa.field("x", kind, metadata={"tensor_type": f'{{"shape":{shape}}}'})
    table = pa.table([pa.array([[1, 2, 3]], kind)], schema=pa.schema([field]))

    assert read_arrow(file_bytes(table)).row_shapes == {}


def test_lists_inside_lists_are_few_unless_they_are_of_one_shape():
    uniform = pa.array([[[1], [2], [3]]] * 2, pa.list_(pa.list_(pa.float32())))
    ragged = pa.array([[[1], [2], [3]], [[], []]], pa.list_(pa.list_(pa.float32())))
    limits = IpcLimits(lists=4)

    assert read_arrow(file_bytes({"x": uniform}), limits).rows == 2
    assert read_arrow(file_bytes({"x": ragged}), IpcLimits(lists=5)).rows == 2
    with pytest.raises(PayloadTooLargeError, match="column 'x' has more than 4 lists inside lists"):
        read_arrow(file_bytes({"x": ragged}), limits)
