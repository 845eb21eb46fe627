"""The fields of messages: few, and found without copying what is large."""

import pytest

from engine.errors import DecodeError, PayloadTooLargeError
from engine.flight.fields import (
    MAX_BEFORE_BYTES,
    MAX_DESCRIPTOR_BYTES,
    MAX_FIELDS,
    MAX_HEADER_BYTES,
    body_start,
    read_flight_data,
)
from engine.flight.messages import data_pieces, field

ONE_MORE = b"\x08\x01"  # a field that nobody asks for


def test_the_parts_of_a_message_are_found():
    head, body = data_pieces(b"header", b"told", b"body")
    message = field(1, b"descriptor") + head + body

    data = read_flight_data(message)

    assert (data.descriptor, data.header) == (b"descriptor", b"header")
    assert message[slice(*data.body)] == b"body"
    assert data.before + b"body" == message


def test_of_several_fields_of_one_number_the_last_counts():
    data = read_flight_data(field(2, b"a") + b"\xc2\x3e\x01b" + field(2, b"c") + b"\xc2\x3e\x01d")

    assert (data.header, data.body) == (b"c", (13, 14))


def test_a_message_of_many_fields_is_not_read_to_its_end():
    read_flight_data(ONE_MORE * MAX_FIELDS)

    with pytest.raises(DecodeError, match="more fields"):
        read_flight_data(ONE_MORE * (MAX_FIELDS + 1) + b"\x0b")  # which could not be read
    assert body_start(memoryview(ONE_MORE * MAX_FIELDS * 2 + b"\xc2\x3e\x00")) == 0


@pytest.mark.parametrize(
    ("number", "most_bytes"), [(1, MAX_DESCRIPTOR_BYTES), (2, MAX_HEADER_BYTES)]
)
def test_what_describes_the_content_is_bounded(number, most_bytes):
    read_flight_data(field(number, bytes(most_bytes)))

    with pytest.raises(PayloadTooLargeError, match=f"{most_bytes + 1} bytes"):
        read_flight_data(field(number, bytes(most_bytes + 1)))


def test_many_bytes_before_the_body_are_not_kept():
    body = b"\xc2\x3e\x01b"

    assert read_flight_data(field(3, bytes(1000)) + body).before
    assert not read_flight_data(field(3, bytes(MAX_BEFORE_BYTES)) + body).before
