"""Answers as they go out: what their metadata tells."""

import numpy as np
import pytest

from engine._proto.sagitta.flight.v1 import flight_pb2
from engine.flight.descriptors import Wanted
from engine.flight.reply import ReplyWriter
from engine.values import ELEMENT_TYPES, Output, TensorSpec

SPEC = TensorSpec("y", ELEMENT_TYPES["float"], (None, 2))


def writer_of(wanted):
    writer = ReplyWriter(wanted)
    writer.use([SPEC], [SPEC])
    return writer


def outputs(rows):
    return [Output("y", np.ones((rows, 2), np.float32), per_row=True)]


@pytest.mark.parametrize("elapsed_ns", [(0, 0), (1, 127), (128, 99_999_999), (10**10, 2**35 - 1)])
def test_a_whole_answer_tells_what_any_answer_does(elapsed_ns):
    writer = writer_of(Wanted())

    for sequence in range(300):
        batch, text = writer.write_whole(outputs(3), 3, elapsed_ns, is_lent=False)
        told = flight_pb2.BatchReply.FromString(text)
        assert (told.sequence, told.rows, told.part, told.parts) == (sequence, 3, 0, 1)
        assert tuple(told.elapsed_ns) == elapsed_ns
        assert batch.schema.equals(writer.schema, check_metadata=True)
        assert batch.to_pylist() == [{"out.y": [1, 1]}] * 3


def test_what_needs_several_parts_or_a_record_is_no_whole_answer():
    rows = 1_000

    assert (
        writer_of(Wanted(max_reply_bytes=4096)).write_whole(
            outputs(rows), rows, (0, 0), is_lent=False
        )
        is None
    )
    assert writer_of(Wanted(max_reply_bytes=8000)).write_whole(
        outputs(rows), rows, (0, 0), is_lent=False
    )
    assert (
        writer_of(Wanted(as_records=True)).write_whole(outputs(1), 1, (0, 0), is_lent=False) is None
    )
