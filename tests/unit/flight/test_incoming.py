"""The messages of a stream: read wherever their fields stand, and placed so that numbers align."""

import numpy as np
import pyarrow as pa
import pytest
from support.flight import wire_messages

from engine.codecs.ipc_guard import IpcLimits
from engine.errors import DecodeError, PayloadTooLargeError
from engine.flight.fields import read_fields
from engine.flight.incoming import ALIGNMENT, Incoming
from engine.flight.messages import data_pieces

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


def of_the_other_byte_order(schema_message):
    """A schema's message with its ``endianness``, which was left out, pointed at a number 1."""
    table = "0800 0800 {} 0400 0800 0000"
    little, big = (bytes.fromhex(table.format(at)) for at in ("0000", "0800"))
    assert schema_message.count(little) == 1
    return schema_message.replace(little, big)


def test_numbers_of_the_other_byte_order_are_turned_around():
    numbers = np.arange(8, dtype=np.float32)
    batch = batch_of(2)
    swapped = pa.FixedSizeListArray.from_arrays(pa.array(numbers.byteswap()), 4)
    schema, message = wire_messages([pa.record_batch({"x": swapped})])
    incoming = Incoming(IpcLimits())

    assert incoming.read_schema(of_the_other_byte_order(schema)).equals(batch.schema)
    assert incoming.read_batch(incoming.open_batch(message)).equals(batch)


def test_a_compressed_batch_tells_what_it_will_take():
    batch = pa.record_batch({"x": pa.array(np.zeros(100_000))})
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    _, message = pa.ipc.MessageReader.open_stream(sink.getvalue())
    content = message.body.to_pybytes()

    opened = begun(batch).open_batch(
        b"".join(data_pieces(message.metadata.to_pybytes(), b"", content))
    )

    assert len(content) < 1000
    assert opened.decoded_bytes == 800_000


def test_a_message_holds_one_batch():
    batch = batch_of(2)
    message = wire_messages([batch])[1]
    header, body = (message[slice(*part)] for part in header_and_body(message))
    second = b"\xff\xff\xff\xff" + len(header).to_bytes(4, "little") + header + body

    with pytest.raises(PayloadTooLargeError):
        begun(batch).open_batch(b"".join(data_pieces(header, b"", body, second)))


def header_and_body(message):
    return [(begin, end) for _, _, begin, end in read_fields(message)]
