"""The shortest way of a batch: what is learnt, and what is not tried for ever."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from support.fakes import FakeModel, spec
from support.flight import wire_messages

from engine.batching.cost import RunCost
from engine.codecs.ipc_guard import IpcLimits
from engine.flight.incoming import Incoming
from engine.flight.short_way import (
    MOST_LAYOUTS,
    MOST_TRIALS,
    TINY_RUN_NS,
    ShortWay,
)
from engine.metrics import Metrics
from engine.turn import Turn

PIECES = (b"answer",)


def batch_of(rows):
    values = pa.array(np.arange(2 * rows, dtype=np.float32))
    return pa.record_batch({"x": pa.FixedSizeListArray.from_arrays(values, 2)})


class Stream:
    """A stream whose answers can, or cannot, be told the short way."""

    def __init__(self, *, pieces=PIECES, run_ns=1000):
        self.model, self.rests, self.slots = FakeModel("m"), 0, 0
        cost = RunCost()
        for rows in range(64):
            cost.learn(rows, run_ns)
        pipeline = SimpleNamespace(
            inputs=(spec("x"),),
            policy=None,
            lone_model=self.model,
            cost=cost,
            bound_rows=lambda _: None,
        )
        reply = SimpleNamespace(pieces=lambda *_, **__: pieces)
        turn = Turn(lambda _: None, SimpleNamespace(try_acquire=lambda: True, release=self.end))
        self.way = ShortWay(pipeline, reply, turn, Metrics(), rest=self.rest)
        self.incoming = Incoming(IpcLimits())
        self.incoming.read_schema(wire_messages([batch_of(1)])[0])

    def end(self):
        self.slots += 1

    def rest(self):
        self.rests += 1

    def learn(self, message):
        """What the usual way does once it has read a message."""
        opened = self.incoming.open_batch(message)
        self.way.learn(len(message), opened, self.incoming.read_batch(opened))

    def take(self, message):
        """Answer a message the short way, else learn from it."""
        answer = self.way.answer(message)
        if answer is None:
            self.learn(message)
        return answer


def test_what_was_learnt_is_answered():
    stream, message = Stream(), wire_messages([batch_of(3)])[1]

    assert [stream.take(message) for _ in range(3)] == [None, PIECES, PIECES]
    (tensor,), rows = stream.model.fed[-1]
    assert tensor.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert rows == 3
    assert stream.rests == 0


def test_a_model_does_not_run_twice_for_ever():
    """An answer that cannot be told the short way is worked out anew, by another run."""
    stream, message = Stream(pieces=None), wire_messages([batch_of(3)])[1]

    for _ in range(20):
        assert stream.take(message) is None

    assert len(stream.model.fed) == MOST_TRIALS


def test_what_failed_is_not_remembered_without_end():
    stream = Stream(pieces=None)

    for rows in range(1, 3 * MOST_LAYOUTS):
        for _ in range(2):
            stream.take(wire_messages([batch_of(rows)])[1])

    assert len(stream.way._failures) <= MOST_LAYOUTS


@pytest.mark.parametrize(("run_ns", "rests"), [(TINY_RUN_NS, 0), (TINY_RUN_NS + 1, 1)])
def test_after_a_run_that_needs_a_slot_others_have_their_turn(run_ns, rests):
    stream, message = Stream(run_ns=run_ns), wire_messages([batch_of(3)])[1]

    for _ in range(2):
        stream.take(message)

    assert (stream.rests, stream.slots) == (rests, rests)


def test_much_before_the_numbers_is_not_remembered():
    stream, message = Stream(), wire_messages([batch_of(3)])[1]
    long = b"\x1a\xff\xff\x01" + bytes(0x7FFF) + message  # app_metadata

    assert [stream.take(long) for _ in range(3)] == [None] * 3
    assert not stream.way._layouts
