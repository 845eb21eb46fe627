"""The log as a stream: where it ends, and what its batches say of it."""

import threading

import orjson
import pyarrow as pa
import pytest
from support.answers import answer, numbered, numbers

from engine._proto.sagitta.flight.v1.flight_pb2 import LogQuery
from engine.codecs.record_batch import record_batch
from engine.flight.log_stream import BATCH_ROWS, LogStream
from engine.logring import LogRing


@pytest.fixture
def ring(tmp_path):
    ring = LogRing(tmp_path / "log", 4 << 20, record_batch)
    yield ring
    ring.close()


def stream(ring, **query):
    return LogStream(ring, LogQuery(**query), "edge-1", threading.Lock())


def read(stream):
    """The batches of a stream, and status and next row of each."""
    batches, told = [], []
    for batch, metadata in stream.batches():
        assert batch.schema.equals(stream.schema)
        status = orjson.loads(metadata)
        batches.append(batch)
        told.append((status["status"], status["next"]["edge-1"]))
    return batches, told


def rows(batches):
    return [number for batch in batches for number in numbers(batch)]


def test_it_ends_at_the_row_that_was_the_newest_when_it_began(ring):
    ring.append([numbered(0, BATCH_ROWS)])
    begun = stream(ring)
    ring.append([numbered(BATCH_ROWS, 10)])

    batches, told = read(begun)

    assert rows(batches) == list(range(BATCH_ROWS))
    assert told == [("All", BATCH_ROWS)]


def test_batches_join_without_gap_or_overlap(ring):
    count = 2 * BATCH_ROWS + 5
    ring.append([numbered(0, count)])

    batches, told = read(stream(ring))
    again, _ = read(stream(ring, cursor={"edge-1": told[0][1]}))
    newest, _ = read(stream(ring, order="desc"))

    assert rows(batches) == list(range(count))
    assert [status for status, _ in told] == ["ByteLimited", "ByteLimited", "All"]
    assert rows(again) == list(range(BATCH_ROWS, count))
    assert rows(newest) == list(range(count))[::-1]


@pytest.mark.parametrize("page_size", [1, BATCH_ROWS - 1, BATCH_ROWS, BATCH_ROWS + 1])
def test_it_has_as_many_rows_as_were_asked_for(ring, page_size):
    ring.append([numbered(0, 2 * BATCH_ROWS)])

    batches, told = read(stream(ring, page_size=page_size))

    assert rows(batches) == list(range(page_size))
    assert told[-1] == ("RecordLimited", page_size)


def test_it_ends_where_the_columns_change(ring):
    ring.append([numbered(0, 3), answer({"other": [1.0]}, 1)])

    batches, told = read(stream(ring))
    rest, after = read(stream(ring, cursor={"edge-1": 3}))

    assert (rows(batches), told) == ([0, 1, 2], [("SchemaChange", 3)])
    assert [batch.schema.field("in").type.names for batch in rest] == [["other"]]
    assert after == [("All", 4)]


def test_rows_that_leave_before_they_are_read_leave_a_stream_of_one_schema(ring):
    """The next rows have other columns than those that were promised, and come in another one."""
    ring.append([numbered(0, 2 * BATCH_ROWS)])
    batches = stream(ring).batches()
    first, _ = next(batches)

    other = answer({"other": pa.array([[0.5] * 64] * 5_000)}, 5_000)
    while ring.stats().first_row < 2 * BATCH_ROWS:
        ring.append([other])
    rest = [(batch.num_rows, orjson.loads(metadata)) for batch, metadata in batches]

    assert numbers(first) == list(range(BATCH_ROWS))
    assert rest == [(0, {"status": "SchemaChange", "next": {"edge-1": BATCH_ROWS}})]


def test_an_empty_log_is_one_empty_batch(ring):
    batches, told = read(stream(ring))

    assert [(batch.num_rows, batch.num_columns) for batch in batches] == [(0, 0)]
    assert told == [("All", 0)]


def test_a_batch_is_read_in_turn_and_sent_out_of_turn(ring):
    ring.append([numbered(0, 2 * BATCH_ROWS)])
    turn, read_page, held = threading.Lock(), ring.page, []

    def page(query):
        held.append(turn.locked())
        return read_page(query)

    ring.page = page
    for _ in LogStream(ring, LogQuery(), "edge-1", turn).batches():
        assert not turn.locked()

    assert held == [True, True]
