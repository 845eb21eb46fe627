"""What goes out, read back by a reader of protobuf that knows nothing of how it was written."""

import pyarrow as pa
import pyarrow.flight as fl
import pytest

from engine.flight.messages import batch_pieces, data_pieces, field, schema_pieces

BATCHES = {
    "small": pa.record_batch({"a": pa.array([1, 2], pa.int32())}),
    "wide": pa.record_batch({f"column {n}": pa.array([float(n)]) for n in range(200)}),
    "large": pa.record_batch({"a": pa.array(range(100_000)), "s": pa.array(["x"] * 100_000)}),
    "sliced": pa.record_batch({"a": pa.array(range(100)), "s": pa.array(["é", None] * 50)})[7:19],
    "no rows": pa.record_batch({"a": pa.array([], pa.int32())}),
    "no columns": pa.record_batch([], schema=pa.schema([])),
}


def fields_of(pieces):
    """A message as a dictionary of its fields, each of which holds bytes."""
    content, fields, position = b"".join(pieces), {}, 0

    def varint():
        nonlocal position
        number = shift = 0
        while True:
            byte = content[position]
            position += 1
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return number

    while position < len(content):
        key, size = varint(), varint()
        assert key & 7 == 2
        assert len(content) >= position + size
        fields[key >> 3] = content[position : position + size]
        position += size
    return fields


def ipc_message(fields):
    header = fields[2]
    encapsulated = b"\xff\xff\xff\xff" + len(header).to_bytes(4, "little") + header
    return pa.py_buffer(encapsulated + fields.get(1000, b""))


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("told", [b"", b"m", b"metadata" * 40])
def test_a_batch_is_read_back(name, told):
    batch = BATCHES[name]

    schema = fields_of(schema_pieces(batch.schema))
    fields = fields_of(batch_pieces(batch, told))

    assert set(schema) == {2}
    assert pa.ipc.read_schema(ipc_message(schema)).equals(batch.schema, check_metadata=True)
    assert set(fields) == ({2, 3, 1000} if told else {2, 1000})
    assert fields.get(3, b"") == told
    read = pa.ipc.read_record_batch(pa.ipc.read_message(ipc_message(fields)), batch.schema)
    assert read.equals(batch)


def test_a_body_may_have_pieces():
    pieces = data_pieces(b"head", b"told", b"ab", memoryview(b"cde"))

    assert fields_of(pieces) == {2: b"head", 3: b"told", 1000: b"abcde"}
    assert fields_of(data_pieces(b"head", b"", b"")) == {2: b"head", 1000: b""}


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 1 << 21])
def test_a_field_is_what_arrow_reads(size):
    content = b"x" * size

    assert fl.Ticket.deserialize(field(1, content)).ticket == content
