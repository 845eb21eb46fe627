"""The shortest way of a batch: what is learnt, what is kept, and what is not tried for ever."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from support.fakes import FakeModel, spec
from support.flight import wire_messages

from engine.batching.cost import RunCost
from engine.codecs.arrow_frame import FrameReader
from engine.codecs.ipc_guard import IpcLimits
from engine.codecs.record_batch import record_batch
from engine.flight.incoming import Incoming
from engine.flight.short_way import (
    MOST_LAYOUTS,
    MOST_TRIALS,
    TINY_RUN_NS,
    ShortWay,
)
from engine.logring import LogRing, PageQuery
from engine.metrics import Metrics
from engine.pipeline.compiler import compile_plan
from engine.pipeline.definition import parse_definition
from engine.pipeline.plan import PlanOptions
from engine.running import RunningPipeline
from engine.turn import Turn
from engine.values import PipelineIdentity

PIECES = (b"answer",)


def batch_of(rows):
    values = pa.array(np.arange(2 * rows, dtype=np.float32))
    return pa.record_batch({"x": pa.FixedSizeListArray.from_arrays(values, 2)})


def pipeline_of(model, run_ns):
    """A pipeline of one model, of which it is known how long its runs take."""
    document = {
        "id": "pipe",
        "steps": [{"ModelInference": {"models": [{"name": "m"}]}}],
        "models": [{"name": "m"}],
    }
    definition = parse_definition(json.dumps(document).encode())
    plan = compile_plan(definition, {0: model}, PlanOptions())
    cost = RunCost()
    for rows in range(64):
        cost.learn(rows, run_ns)
    return RunningPipeline(PipelineIdentity("pipe", "1"), plan, (), "edge-1", cost)


class Stream:
    """A stream whose answers can, or cannot, be told the short way."""

    def __init__(self, *, pieces=PIECES, run_ns=1000, model=None, schema=None, log=None):
        self.model, self.rests, self.slots = model or FakeModel("m"), 0, 0
        schema = schema or batch_of(1).schema
        self.pipeline = pipeline_of(self.model, run_ns)
        reply = SimpleNamespace(pieces=lambda *_, **__: pieces)
        turn = Turn(lambda _: None, SimpleNamespace(try_acquire=lambda: True, release=self.end))
        self.metrics = Metrics()
        service = SimpleNamespace(turn=turn, metrics=self.metrics, plane=SimpleNamespace(log=log))
        self.way = None
        if ShortWay.is_open_to(schema, self.pipeline):
            self.way = ShortWay(schema, self.pipeline, reply, service, rest=self.rest)
        self.incoming = Incoming(IpcLimits())
        self.incoming.read_schema(wire_messages([pa.RecordBatch.from_pylist([], schema)])[0])

    @property
    def answered_rows(self):
        self.metrics.sort_samples()
        return self.metrics.request_rows.total

    def end(self):
        self.slots += 1

    def rest(self):
        self.rests += 1

    def learn(self, message):
        """What the usual way does once it has read a message."""
        opened = self.incoming.open_batch(message)
        self.way.learn(len(message), opened, self.incoming.read_batch(opened))

    def take(self, message):
        """Answer a message the short way, which is what is sent, else learn from it."""
        sent = []
        if self.way.answer(message, lambda *pieces: sent.append(pieces)):
            return sent.pop()
        assert not sent
        self.learn(message)
        return None


def test_what_was_learnt_is_answered():
    stream, message = Stream(), wire_messages([batch_of(3)])[1]

    assert [stream.take(message) for _ in range(3)] == [None, PIECES, PIECES]
    (tensor,), rows = stream.model.fed[-1]
    assert tensor.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert rows == 3
    assert stream.rests == 0


def test_an_answer_is_counted_once_it_has_left():
    stream, message = Stream(), wire_messages([batch_of(3)])[1]
    stream.take(message)
    counted = []

    assert stream.way.answer(message, lambda *_: counted.append(stream.answered_rows))

    assert (counted, stream.answered_rows) == ([0], 3)


@pytest.mark.parametrize("shift", range(4))
def test_a_model_is_fed_where_numbers_may_lie(shift):
    """A message need not begin where its numbers would be aligned."""
    stream, message = Stream(), wire_messages([batch_of(3)])[1]
    stream.take(message)
    moved = memoryview(bytes(shift) + message)[shift:]

    assert stream.take(moved) == PIECES

    (tensor,), _ = stream.model.fed[-1]
    assert tensor.flags.aligned
    assert tensor.tolist() == [[0, 1], [2, 3], [4, 5]]


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


# -- with the log on


def lists(values, row_shape=None):
    """Rows of numbers as the one column of a batch; ``row_shape`` is declared where it is given."""
    rows = values.reshape(len(values), -1)
    column = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
    metadata = None
    if row_shape is not None:
        metadata = {"tensor_type": json.dumps({"shape": row_shape})}
    schema = pa.schema([pa.field("x", column.type, nullable=False, metadata=metadata)])
    return pa.RecordBatch.from_arrays([column], schema=schema)


def case(values, element="double", *, row=None, declared=None, outputs=None):
    """A batch, and a model for it whose rows have the shape ``row``."""
    shape = (None, *(row or values.shape[1:]))
    model = FakeModel("m", inputs=[spec("x", element, shape)], outputs=[spec("y", element, shape)])
    if outputs is not None:
        model.outputs = tuple(spec(name, kind) for name, (kind, _) in outputs.items())
        model.function = lambda x: tuple(function(x) for _, function in outputs.values())
    return lists(values, declared), model


NUMBERS = np.arange(24).reshape(4, 6)
LARGE = np.zeros((2, 1 << 18))  # 2 MiB a row
LOGGED = {
    "floats": case(NUMBERS.astype(np.float32), "float"),
    "one row": case(NUMBERS[:1].astype(np.float32), "float"),
    "half floats": case(NUMBERS.astype(np.float16), "float16"),
    "doubles": case(NUMBERS / 7),
    "integers": case(NUMBERS, "int64"),
    "small integers": case(NUMBERS.astype(np.uint8), "uint8"),
    "a declared shape": case(NUMBERS / 7, row=(2, 3), declared=[2, 3]),
    "a shape that is the model's alone": case(NUMBERS / 7, row=(2, 3)),
    "another shape than the model's": case(NUMBERS / 7, row=(2, 3), declared=[3, 2]),
    "no finite numbers": case(np.full((2, 6), [np.nan, np.inf] * 3)),
    "as much as is stored apart": case(np.arange(60_000.0).reshape(-1, 6)),
    "rows that are too large": case(LARGE),
    "several outputs": case(
        NUMBERS.astype(np.float32),
        "float",
        outputs={
            "a": ("float", lambda x: x[:, 0].copy()),
            "b": ("int64", lambda x: x.astype(np.int64)),
            "c": ("bool", lambda x: x > 3),
        },
    ),
}


def untimed(batch):
    """Rows of the log without what the clock tells."""
    rows = batch.to_pylist()
    for row in rows:
        assert row.pop("time") > 0
        assert len(row["metadata"].pop("elapsed")) == 2
    return str(rows)


@pytest.mark.parametrize("name", LOGGED)
@pytest.mark.parametrize("is_first", [True, False], ids=["to a new log", "after its like"])
def test_the_log_keeps_what_it_keeps_of_the_usual_way(tmp_path, name, is_first):
    """Also where nothing like it was kept before, so that the log must look at the columns."""
    batch, model = LOGGED[name]
    log = LogRing(tmp_path / "log", 64 << 20, record_batch)
    stream = Stream(model=model, schema=batch.schema, log=log)
    message = wire_messages([batch])[1]
    frame = FrameReader(batch.schema).read(batch)
    feeds, _ = stream.pipeline.feeds(frame)
    outputs, run_ns = stream.pipeline.run(feeds, frame.rows)
    usual = stream.pipeline.conclude(frame, outputs, 1000, run_ns)
    stream.pipeline.cost.learn(frame.rows, run_ns)
    before = 0 if is_first else log.append([usual])
    stream.learn(message)

    answers = [stream.take(message) for _ in range(2)]

    assert answers == [PIECES] * 2
    wanted = log.append([usual])
    assert wanted == batch.num_rows
    pages = [
        log.page(PageQuery(start_row=before + number * wanted, page_rows=wanted)).batch
        for number in range(3)
    ]
    for page in pages:
        assert page.schema.equals(pages[-1].schema, check_metadata=True)
        is_equal = untimed(page) == untimed(pages[-1])
        assert is_equal, "too long to be compared in words"
    dropped = [row["dropped"] for row in pages[0].column("metadata").to_pylist()]
    is_large = name == "rows that are too large"
    assert dropped == [["in.x", "out.y"] if is_large else []] * batch.num_rows
    log.close()


def test_an_answer_is_kept_before_it_leaves(tmp_path):
    log = LogRing(tmp_path / "log", 4 << 20, record_batch)
    stream, message = Stream(log=log), wire_messages([batch_of(3)])[1]
    before_ms = time.time_ns() // 1_000_000
    stream.take(message)

    assert stream.take(message) == PIECES

    page = log.page(PageQuery()).batch
    assert page.num_rows == 3
    assert all(time_ms >= before_ms for time_ms in page.column("time").to_pylist())
    log.close()


def test_what_is_left_to_the_usual_way_is_kept_by_it_alone(tmp_path):
    log = LogRing(tmp_path / "log", 4 << 20, record_batch)
    stream, message = Stream(pieces=None, log=log), wire_messages([batch_of(3)])[1]
    stream.take(message)

    assert stream.take(message) is None

    assert len(stream.model.fed) == 1
    assert log.stats().rows_kept == 0
    log.close()


def test_a_log_that_is_closed_keeps_no_answer_from_leaving(tmp_path):
    log = LogRing(tmp_path / "log", 4 << 20, record_batch)
    stream, message = Stream(log=log), wire_messages([batch_of(3)])[1]
    stream.take(message)
    log.close()

    assert stream.take(message) == PIECES
    assert log.stats().rows_not_kept == {"closed": 3}
