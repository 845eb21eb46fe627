"""The messages of a stream: read wherever their fields stand, and placed so that numbers align."""

import numpy as np
import pyarrow as pa
import pytest
from support.flight import wire_messages

from engine.codecs.ipc_guard import IpcLimits
from engine.errors import DecodeError, PayloadTooLargeError
from engine.flight.incoming import ALIGNMENT, Incoming

ROWS = 5_000


def batch_of(rows=ROWS):
    values = pa.array(np.arange(rows * 4, dtype=np.float32))
    return pa.record_batch({"x": pa.FixedSizeListArray.from_arrays(values, 4)})


def begun(batch, limits=None):
    incoming = Incoming(limits or IpcLimits())
    assert incoming.read_schema(wire_messages([batch])[0]).equals(batch.schema)
    assert incoming.descriptor is not None
    return incoming


def placed(incoming, message, first_bytes):
    view = incoming.place(len(message), memoryview(message)[:first_bytes])
    assert len(view) == len(message)
    view[:] = message
    return view


def address(column):
    return column.buffers()[-1].address


def test_a_small_message_is_read():
    batch = batch_of(2)
    incoming = begun(batch)

    opened = incoming.open_batch(wire_messages([batch])[1])

    assert opened.rows == 2
    assert incoming.read_batch(opened).equals(batch)


@pytest.mark.parametrize("first_bytes", [16_000, 400, 3, 0])
def test_a_large_message_is_read_where_it_stands(first_bytes):
    batch = batch_of()
    incoming = begun(batch)
    message = wire_messages([batch])[1]

    view = placed(incoming, message, first_bytes)
    opened = incoming.open_batch(view)
    read = incoming.read_batch(opened)
    memory = np.frombuffer(view, np.uint8).ctypes.data

    assert read.equals(batch)
    assert memory <= address(read["x"]) < memory + len(view)
    if first_bytes >= 400:  # where the body begins was seen in time
        assert address(read["x"]) % ALIGNMENT == 0


def test_messages_are_taken_in_the_order_in_which_they_were_placed():
    large, larger = batch_of(), batch_of(ROWS + 1)
    incoming = begun(large)
    views = [placed(incoming, wire_messages([one])[1], 400) for one in (large, larger, large)]

    assert incoming.read_batch(incoming.open_batch(views[0])).equals(large)
    incoming.skip(views[1])
    assert incoming.read_batch(incoming.open_batch(views[2])).equals(large)


def test_a_body_before_its_header_is_read_too():
    batch = batch_of()
    incoming = begun(batch)
    message = wire_messages([batch])[1]
    at = message.index(b"\xc2\x3e")
    turned = message[at:] + message[:at]

    for given in (turned, placed(incoming, turned, 400)):
        assert incoming.read_batch(incoming.open_batch(given)).equals(batch)


@pytest.mark.parametrize("message", [b"", b"\x1a\x02hi", b"\x08\x01", b"\x0d1234"])
def test_what_holds_no_batch_is_passed_over(message):
    assert begun(batch_of(1)).open_batch(message) is None


@pytest.mark.parametrize(
    "message",
    [
        b"\xff" * 12,  # no end of a number
        b"\x12\x05abc",  # a field longer than the message
        b"\x0b\x0c",  # a group
        b"\x02\x00",  # a field without a number
        b"\x12\x04abcd",  # no header of Arrow
        b"\x12\x00\xc2\x3e\x01a\x12\x01a",
    ],
    ids=str,
)
def test_nonsense_is_refused(message):
    incoming = begun(batch_of(1))

    with pytest.raises(DecodeError):
        incoming.open_batch(message)
    with pytest.raises(DecodeError):
        Incoming(IpcLimits()).read_schema(message)


def test_what_a_message_declares_is_bounded():
    batch = batch_of(100)

    with pytest.raises(PayloadTooLargeError):
        begun(batch, IpcLimits(rows=99)).open_batch(wire_messages([batch])[1])
