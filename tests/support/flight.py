"""Arrow Flight calls for tests, through pyarrow and, where bytes matter, through gRPC itself."""

import orjson
import pyarrow as pa
import pyarrow.flight as fl
import pytest

from engine._proto.sagitta.flight.v1 import flight_pb2

DO_EXCHANGE = "/arrow.flight.protocol.FlightService/DoExchange"
INFER = fl.FlightDescriptor.for_path("infer")
RECORDS_COMMAND = b'{"reply":"REPLY_RECORDS"}'
RECORDS = fl.FlightDescriptor.for_command(RECORDS_COMMAND)


def connect(engine, **options):
    return fl.connect(f"grpc://127.0.0.1:{engine.flight_port}", **options)


def exchange(client, batches, descriptor=INFER, options=None):
    """Send batches over one stream, each once the one before it is answered; the replies."""
    writer, reader = client.do_exchange(descriptor, options)
    replies = []
    try:
        writer.begin(batches[0].schema)
        for batch in batches:
            writer.write_batch(batch)
            replies.append(read_reply(reader))
        writer.done_writing()
    finally:
        writer.close()
    return replies


def read_reply(reader):
    """All parts of one answer as a table, and what its metadata tells."""
    parts = []
    while True:
        chunk = reader.read_chunk()
        told = flight_pb2.BatchReply.FromString(chunk.app_metadata.to_pybytes())
        assert told.part == len(parts)
        parts.append(chunk.data)
        if told.part + 1 >= told.parts:
            table = pa.Table.from_batches(parts)
            assert table.num_rows == told.rows
            return table, told


def refusal(call):
    """The error body of a call that must fail with a Flight error, and the error."""
    with pytest.raises(fl.FlightError) as raised:
        call()
    for private in ("Traceback", ".py", "site-packages"):
        assert private not in str(raised.value)
    document = orjson.loads(raised.value.extra_info)
    assert list(document) == ["code", "status", "error", "source"]
    assert (document["status"], document["source"]) == ("Error", "engine")
    return document, raised.value


def wire_messages(batches, descriptor=b"infer"):
    """Batches as the ``FlightData`` messages of an exchange, serialized by hand."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    path = _field(1, b"\x08\x01" + _field(3, descriptor))  # type PATH, one path element
    messages = []
    for message in pa.ipc.MessageReader.open_stream(sink.getvalue()):
        body = message.body.to_pybytes() if message.body is not None else b""
        head = path if not messages else b""
        data = _field(2, message.metadata.to_pybytes()) + _field(1000, body)
        messages.append(head + data)
    return messages


def _field(number, content):
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value):
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(encoded) + bytes([value])
