"""Answers that wait for DoGet: what they take is counted, from DoPut until they are sent."""

import gc

import pyarrow as pa
import pytest

from engine._proto.sagitta.flight.v1 import flight_pb2
from engine.errors import NotFoundError, OverloadedError
from engine.flight.reply import Reply
from engine.flight.results import Results

KIB = 1 << 10


def reply(rows, parts=1):
    batch = pa.record_batch({"y": pa.array([row % 100 for row in range(rows)], pa.int8())})
    return Reply(batch, flight_pb2.BatchReply(rows=rows, parts=parts))


def test_answers_without_rows_take_room_too():
    """A DoPut of empty batches that nobody fetches would hold ever more of them."""
    results, key = Results(100 * KIB, 30), None
    for _ in range(50):
        key = results.add(key, reply(0))

    with pytest.raises(OverloadedError, match="QUEUE_MAX_BYTES=102400"):
        results.add(key, reply(0))


def test_a_record_counts_with_the_message_that_it_keeps():
    """It views columns of it, which may be the least of what it holds."""
    results, small = Results(100 * KIB, 30), reply(1)
    small.kept_bytes = 60 * KIB
    results.add(None, small)

    with pytest.raises(OverloadedError):
        results.add(None, small)


@pytest.mark.parametrize("end", ["read", "closed", "dropped"])
def test_answers_hold_their_room_until_they_are_sent(end):
    results = Results(100 * KIB, 30)
    schema, parts = results.fetch(results.add(None, reply(60 * KIB)))

    assert schema.names == ["y"]
    assert results.fetching == 1
    with pytest.raises(OverloadedError):
        results.add(None, reply(60 * KIB))
    if end == "read":
        assert [batch.num_rows for batch, _ in parts] == [60 * KIB]
    elif end == "closed":
        parts.close()
    del parts
    gc.collect()
    assert results.fetching == 0
    assert results.add(None, reply(60 * KIB))


def test_a_key_fetches_once():
    results = Results(100 * KIB, 30)
    key = results.add(None, reply(3))
    assert results.add(key, reply(4)) == key

    told = [
        (batch.num_rows, flight_pb2.BatchReply.FromString(text).rows)
        for batch, text in results.fetch(key)[1]
    ]

    assert told == [(3, 3), (4, 4)]
    with pytest.raises(NotFoundError, match="fetches once"):
        results.fetch(key)
    assert results.add(key, reply(1)) != key  # the rest of its DoPut waits under another


def test_what_is_not_fetched_in_time_is_dropped():
    results = Results(100 * KIB, -1)
    key = results.add(None, reply(60 * KIB))

    assert results.add(None, reply(60 * KIB)) != key
    with pytest.raises(NotFoundError):
        results.fetch(key)


def test_parts_are_made_as_they_are_asked_for():
    parts = reply(10, parts=3).parts()

    batch, text = next(parts)
    assert (batch["y"].to_pylist(), flight_pb2.BatchReply.FromString(text).part) == ([0, 1, 2], 0)
    assert [batch.num_rows for batch, _ in parts] == [3, 4]


def test_what_was_added_to_last_is_kept_longest(monkeypatch):
    now_s = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    results = Results(100 * KIB, 30)
    first, second = results.add(None, reply(1)), results.add(None, reply(2))
    now_s = 20.0
    assert results.add(first, reply(3)) == first

    now_s = 40.0
    with pytest.raises(NotFoundError):
        results.fetch(second)

    assert [batch.num_rows for batch, _ in results.fetch(first)[1]] == [1, 3]
    assert results.add(None, reply(95 * KIB))
