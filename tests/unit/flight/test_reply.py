"""Answers as they go out: what their metadata tells."""

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, message_factory

from engine._proto.sagitta.flight.v1 import flight_pb2
from engine.codecs.ipc_guard import IpcLimits
from engine.flight.descriptors import Wanted
from engine.flight.incoming import Incoming
from engine.flight.messages import schema_pieces
from engine.flight.reply import MOST_FRAMES, ReplyWriter
from engine.values import (
    ELEMENT_TYPES,
    Frame,
    InferResult,
    ModelIdentity,
    Output,
    PipelineIdentity,
    TensorSpec,
)

SPEC = TensorSpec("y", ELEMENT_TYPES["float"], (None, 3))


def writer_of(wanted):
    writer = ReplyWriter(wanted)
    writer.use([SPEC], [SPEC])
    return writer


def outputs(rows):
    return [Output("y", np.ones((rows, 3), np.float32), per_row=True)]


def result(rows):
    frame, model = Frame(rows, {}), ModelIdentity("m", "1", "0" * 64)
    pipeline = PipelineIdentity("p", "1")
    return InferResult(frame, tuple(outputs(rows)), 0, (0, 0), model, pipeline, "here")


def told(wanted, rows, elapsed_ns=(0, 0), *, is_lent=False):
    """A writer that has answered so many rows twice, and its third answer's pieces."""
    writer = writer_of(wanted)
    for _ in range(2):
        writer.write(result(rows))
        assert writer.pieces(outputs(rows), rows, elapsed_ns, is_lent=is_lent) is None
    return writer, writer.pieces(outputs(rows), rows, elapsed_ns, is_lent=is_lent)


@pytest.mark.parametrize("is_lent", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 600, 10_001])
@pytest.mark.parametrize("elapsed_ns", [(0, 0), (1, 127), (128, 99_999_999), (10**10, 2**35 - 1)])
def test_the_pieces_of_an_answer_are_the_message_that_arrow_would_send(rows, elapsed_ns, is_lent):
    writer, pieces = told(Wanted(), rows, elapsed_ns, is_lent=is_lent)
    expected = flight_pb2.BatchReply(sequence=2, rows=rows, parts=1, elapsed_ns=elapsed_ns)

    fields = Incoming(IpcLimits())
    fields.read_schema(b"".join(schema_pieces(writer.schema)))
    opened = fields.open_batch(b"".join(pieces))
    batch = fields.read_batch(opened)
    batch.validate(full=True)

    assert batch.to_pylist() == [{"out.y": [1, 1, 1]}] * rows
    assert flight_pb2.BatchReply.FromString(metadata_of(b"".join(pieces))) == expected


def metadata_of(message):
    """``app_metadata`` of a message, by the library."""
    descriptor = descriptor_pb2.FileDescriptorProto(name="flight", syntax="proto3")
    data = descriptor.message_type.add(name="FlightData")
    data.field.add(name="app_metadata", number=3, type=12, label=1)
    (made,) = message_factory.GetMessages([descriptor]).values()
    return made.FromString(message).app_metadata


def test_what_needs_several_parts_or_is_a_record_goes_the_usual_way():
    assert told(Wanted(max_reply_bytes=4096), 1_000)[1] is None
    assert told(Wanted(max_reply_bytes=12_000), 1_000)[1] is not None
    writer = writer_of(Wanted(as_records=True))
    assert writer.pieces(outputs(1), 1, (0, 0), is_lent=False) is None


def test_lent_outputs_are_copied():
    writer, _ = told(Wanted(), 10_000)
    lent = outputs(10_000)
    pieces = writer.pieces(lent, 10_000, (0, 0), is_lent=True)
    before = b"".join(pieces)

    lent[0].values[:] = 2

    assert b"".join(pieces) == before


def test_answers_of_many_sizes_are_not_all_remembered():
    writer = writer_of(Wanted())
    for rows in range(1, 200):
        for _ in range(3):
            writer.write(result(rows))
            writer.pieces(outputs(rows), rows, (0, 0), is_lent=False)

    assert 0 < len(writer._frames) <= MOST_FRAMES
