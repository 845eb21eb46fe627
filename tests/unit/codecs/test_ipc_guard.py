"""The walk over what Arrow bytes declare, before anything is decoded."""

import struct

import numpy as np
import pyarrow as pa
import pytest
from support.arrow import file_bytes, stream_bytes, vectors

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
