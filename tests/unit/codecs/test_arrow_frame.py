"""Record batches as Frames: what is counted of a batch before anything looks at its values."""

import pyarrow as pa
import pytest
from support.arrow import stream_bytes

from engine.codecs.arrow_frame import FrameReader
from engine.codecs.ipc_guard import IpcLimits
from engine.errors import DecodeError, PayloadTooLargeError

LISTS = pa.array([[1, 2, 3], []], pa.list_(pa.int8()))
IMAGES = pa.array([[[1, 2]], [[3, 4]]], pa.list_(pa.list_(pa.int8(), 2), 1))
TENSOR = pa.ExtensionArray.from_storage(
    pa.fixed_shape_tensor(pa.int8(), (2,)), pa.array([[1, 2], [3, 4]], pa.list_(pa.int8(), 2))
)


@pytest.mark.parametrize(
    ("columns", "values"),
    [
        ({"a": pa.array([1, 2]), "b": pa.array(["x", None])}, 4),
        ({"a": LISTS}, 5),
        ({"a": IMAGES}, 8),
        ({"a": TENSOR}, 6),
        ({"a": pa.array([[["x"], []], None]), "b": pa.array([1, 2])}, 7),
    ],
    ids=["flat", "lists", "fixed lists", "tensors", "nulls"],
)
def test_values_are_counted_at_all_levels(columns, values):
    batch = pa.record_batch(columns)

    FrameReader(batch.schema, IpcLimits(values=values)).check_size(batch)
    with pytest.raises(PayloadTooLargeError, match=f"more than {values - 1} values"):
        FrameReader(batch.schema, IpcLimits(values=values - 1)).check_size(batch)


def test_rows_and_bytes_are_counted():
    batch = pa.record_batch({"a": pa.array([1, 2])})

    assert FrameReader(batch.schema, IpcLimits(rows=2, decoded_bytes=16)).check_size(batch) == 16
    with pytest.raises(PayloadTooLargeError, match="more than 1 rows"):
        FrameReader(batch.schema, IpcLimits(rows=1)).check_size(batch)
    with pytest.raises(PayloadTooLargeError, match="more than 15 bytes"):
        FrameReader(batch.schema, IpcLimits(decoded_bytes=15)).check_size(batch)


def test_columns_that_share_their_buffers_are_counted_one_by_one():
    """A message may name one buffer for all its columns: few bytes stand for many."""
    text = pa.array(["x" * 1000])
    batch = pa.record_batch([text, text, text], names=["a", "b", "c"])

    FrameReader(batch.schema, IpcLimits(decoded_bytes=3024)).check_size(batch)
    with pytest.raises(PayloadTooLargeError, match="more than 2000 bytes"):
        FrameReader(batch.schema, IpcLimits(decoded_bytes=2000)).check_size(batch)


def test_a_length_below_zero_is_found_before_it_is_asked_for():
    sent = stream_bytes({"a": pa.array([[1] * 77], pa.list_(pa.int16()))})
    length = (77).to_bytes(8, "little")
    assert length in sent
    forged = sent.replace(length, (-1).to_bytes(8, "little", signed=True), 1)
    batch = pa.ipc.open_stream(forged).read_next_batch()

    with pytest.raises(DecodeError, match="length is negative"):
        FrameReader(batch.schema).check_size(batch)
