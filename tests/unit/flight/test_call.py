"""A stream of batches: what it holds, when it lets go, and whose turn it is."""

import asyncio
import contextlib
import time
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from support.fakes import FakeModel, spec
from support.flight import wire_messages

from engine.batching.cost import RunCost
from engine.batching.entry import BatchPolicy
from engine.batching.line import Line
from engine.budget import ByteBudget
from engine.codecs.ipc_guard import IpcLimits
from engine.errors import OverloadedError
from engine.flight.call import LATE_BYTES, LONG_NS, ExchangeCall
from engine.flight.messages import data_pieces
from engine.flight.service import FlightService
from engine.metrics import Metrics
from engine.turn import Turn
from engine.values import InferResult, ModelIdentity, Output, PipelineIdentity

MIB = 1 << 20
OTHERS_BYTES = MIB
DEADLINE_S = 30
HOUR_NS = 3_600 * 10**9


def batch_of(rows):
    values = pa.array(np.zeros(2 * rows, np.float32))
    return pa.record_batch({"x": pa.FixedSizeListArray.from_arrays(values, 2)})


SCHEMA, SMALL = wire_messages([batch_of(1)])
LARGE = wire_messages([batch_of(50_000)])[1]


class Pipeline:
    """Some model, of which it is not known how long its runs take."""

    inputs = (spec("x"),)
    outputs = (spec("y"),)
    lone_model = FakeModel("m")
    policy = BatchPolicy(10)

    def __init__(self):
        self.cost = RunCost()

    def feeds(self, frame):
        return [frame.columns["x"]], "key"

    def bound_rows(self, _rows):
        return None


class Client:
    """A call of a client that reads everything, in an engine that is busy with something else."""

    def __init__(self, *, max_held_bytes=4 * MIB, answer=lambda _: None):
        self.loop = asyncio.get_running_loop()
        self.unsent_bytes, self.is_over, self.is_held, self.failures = 0, False, False, []
        self.metrics = Metrics()
        self.metrics.flight_calls = 2
        self.line = Line(1, answer, max_rows=1000, max_bytes=100 * MIB)
        pipeline = Pipeline()
        plane = SimpleNamespace(running=pipeline, current=pipeline, log=None)
        turn = Turn(answer, self.line)
        budget = ByteBudget(max_held_bytes)
        budget.take(OTHERS_BYTES)
        shared = plane, turn, self.metrics, IpcLimits(), budget, DEADLINE_S
        self.service = FlightService(*shared)
        self.ends = 0
        self.handler = ExchangeCall(
            self.service, self, SimpleNamespace(is_token_asked=False), self.end
        )

    def send(self, *_pieces):
        """Read at once."""

    def finish(self, *_told):
        self.is_over = True

    def hold(self):
        self.is_held = True

    def go_on(self):
        self.is_held = False

    def end(self, _handler):
        self.ends += 1

    def write(self, message):
        """Send a large message; whether there was a place for it."""
        place = self.handler.place(len(message), memoryview(message)[:1000])
        if place is not None:
            place[:] = message
            if not self.handler.take_at_once(place):
                self.handler.take(place)
        return place is not None

    @property
    def request(self):
        return self.handler._request


@contextlib.asynccontextmanager
async def stream(**options):
    """A stream whose schema is known, while the only slot is taken."""
    client = Client(**options)
    client.line.start()
    assert client.line.try_acquire()
    client.handler.take(SCHEMA)
    try:
        yield client
    finally:
        client.line.release()
        assert client.line.close(DEADLINE_S)


def run(function):
    def test():
        asyncio.run(function())

    test.__name__ = function.__name__
    return test


@run
async def test_what_a_call_holds_itself_does_not_count_against_it():
    async with stream(max_held_bytes=OTHERS_BYTES + len(LARGE)) as client:
        assert client.write(LARGE)
        assert client.request is not None
        assert client.handler.place(len(LARGE), memoryview(LARGE)) is not None
        assert not client.is_over


@run
async def test_what_is_answered_at_once_is_not_held():
    """Neither a message in memory that is used again nor one that was placed."""
    async with stream(answer=answer_after(0), max_held_bytes=OTHERS_BYTES + len(LARGE)) as client:
        client.metrics.flight_calls = 1  # nobody is waited for
        for rows in (1, 50_000):
            client.service.plane.running.cost.learn(rows, 1000)
        client.line.release()
        assert not client.handler.take_at_once(memoryview(LARGE))
        for _ in range(3):  # what is like it is known, and then its reply
            assert client.write(LARGE)

        assert client.handler.take_at_once(memoryview(bytearray(LARGE)))
        assert client.service.budget.held_bytes == OTHERS_BYTES
        place = client.handler.place(len(LARGE), memoryview(LARGE)[:1000])
        place[:] = LARGE
        assert client.handler.take_at_once(place)
        assert client.service.budget.held_bytes == OTHERS_BYTES
        assert client.line.try_acquire()


@run
async def test_a_message_that_is_not_welcome_is_refused_wherever_it_lies():
    async with stream() as client:
        client.handler.refuse_new()

        assert client.handler.take_at_once(memoryview(LARGE))
        assert client.is_over
        assert client.metrics.errors == {"shutting_down": 1}


@run
async def test_an_end_while_a_batch_is_being_answered_gives_everything_back_once():
    async with stream(max_held_bytes=OTHERS_BYTES + len(LARGE)) as client:
        assert client.write(LARGE)
        request = client.request

        assert not client.write(bytes(len(LARGE) + 1))  # too large for what others leave

        assert (client.is_over, client.ends, request.is_abandoned) == (True, 1, True)
        assert client.service.budget.held_bytes == OTHERS_BYTES
        assert client.line.waiting == (0, 0, 0)
        request._finish(OverloadedError("too late"))
        assert client.service.budget.held_bytes == OTHERS_BYTES
        assert client.metrics.errors == {"overloaded": 1}


@run
async def test_a_batch_that_is_given_up_before_it_comes_to_the_line_leaves_nothing_there():
    async with stream() as client:
        client.handler.take(SMALL)
        request = client.request
        client.handler.leave()
        await asyncio.sleep(0)  # the turn ends

        assert request.queued_ns  # it came to the line
        assert client.line.waiting == (0, 0, 0)
        assert request._timer is None
        assert client.metrics.cancelled == 1


@run
async def test_a_batch_that_is_given_up_in_the_line_is_counted_once():
    async with stream() as client:
        assert client.write(LARGE)
        request = client.request
        client.handler.leave()

        assert (client.metrics.cancelled, client.ends) == (1, 1)
        assert request.is_abandoned


@run
async def test_a_batch_that_is_given_up_while_it_is_run_is_counted_once():
    async with stream() as client:
        assert client.write(LARGE)
        (request,) = client.line._take()
        client.handler.leave()

        request.settle()

        assert (client.metrics.cancelled, client.ends) == (1, 1)
        assert request.frame is None


@pytest.mark.parametrize(
    ("end", "errors", "cancelled"),
    [
        (lambda client: client.request._expire(), {"deadline_exceeded": 1}, 0),
        (lambda client: client.handler.leave(), {}, 1),
        (lambda _: None, {}, 0),
    ],
    ids=["late", "gone", "answered"],
)
def test_a_batch_is_counted_as_what_its_caller_got(end, errors, cancelled):
    """Its answer is written already, and on its way to the event loop."""

    async def run():
        async with stream() as client:
            assert client.write(LARGE)
            await asyncio.sleep(0)  # the turn ends: it is in the line
            answer_after(0)(client.line._take())
            end(client)
            await asyncio.sleep(0)

            client.metrics.sort_samples()
            answered = sum(client.metrics.request_rows.counts)
            assert (client.metrics.errors, client.metrics.cancelled) == (errors, cancelled)
            assert answered + cancelled + sum(errors.values()) == 1
            assert client.request is None

    asyncio.run(run())


@run
async def test_a_small_message_with_much_in_it_is_read_by_the_thread_that_runs_it():
    batch = batch_of(LATE_BYTES // 8 + 1)
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    _, first = pa.ipc.MessageReader.open_stream(sink.getvalue())
    message = b"".join(data_pieces(first.metadata.to_pybytes(), b"", first.body.to_pybytes()))
    async with stream() as client:
        client.handler.take(message)

        assert len(message) < 64 << 10
        assert client.request.frame is None
        assert client.request.opened.rows == batch.num_rows


def answer_after(run_ns):
    """Answer as if it had taken so long."""

    def answer(requests):
        for request in requests:
            request.started_ns = time.monotonic_ns() - run_ns
            outputs = (Output("y", np.zeros((1, 2), np.float32), per_row=True),)
            identity = ModelIdentity("m", "1", "0" * 64), PipelineIdentity("p", "1"), "here"
            request.outcome = InferResult(request.frame, outputs, 0, (0, 0), *identity)
            request.settle()

    return answer


@pytest.mark.parametrize(("run_ns", "is_long"), [(-HOUR_NS, False), (LONG_NS, True)])
def test_after_a_long_batch_others_have_their_turn(run_ns, is_long):
    async def run():
        async with stream(answer=answer_after(run_ns)) as client:
            client.metrics.flight_calls = 1  # nobody is waited for
            client.service.plane.running.cost.learn(1, 1000)
            client.line.release()
            client.handler.take(SMALL)

            assert client.request is None
            assert client.is_held == is_long
            await asyncio.sleep(0)
            assert not client.is_held
            assert client.line.try_acquire()

    asyncio.run(run())
