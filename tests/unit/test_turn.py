"""Where a request is run: at once, with what arrives in one turn of the loop, or by the line."""

import asyncio
import threading

import pytest

from engine.batching.cost import RunCost
from engine.batching.entry import BatchPolicy
from engine.batching.line import Line
from engine.errors import OverloadedError
from engine.request import InferRequest
from engine.turn import TINY_RUN_NS, Turn, holds_no_slot

DEADLINE_S = 30
QUICK_NS, LONG_NS = 1_000, 2_000_000


class Pipeline:
    """What a request needs to be run somewhere; all sizes up to 64 rows take the same time."""

    def __init__(self, run_ns):
        self.cost = RunCost()
        for rows in range(64):
            self.cost.learn(rows, run_ns)


class Caller(InferRequest):
    """A request of one key that knows what became of it."""

    key = "key"
    is_settled = is_waiting = False

    def __init__(self, run_ns=QUICK_NS, rows=1, policy=BatchPolicy(10)):  # noqa: B008 - frozen
        super().__init__(Pipeline(run_ns))
        self.rows, self.policy, self.frame = rows, policy, object()

    def wait(self):
        self.is_waiting = True

    def settle(self):
        self.is_settled = True


class Engine:
    """A turn before a line whose slots are counted; what it runs, and on which threads."""

    def __init__(self, slots=1, max_rows=100):
        self.runs, self.threads = [], set()
        self.is_idle = threading.Semaphore(0)
        self.line = Line(slots, self.run, max_rows=max_rows, max_bytes=1000)
        self.turn = Turn(self.run, self.line)

    def run(self, batch):
        self.runs.append(list(batch))
        self.threads.add(threading.current_thread().name)
        self.is_idle.release()

    def add(self, *callers, is_alone=False):
        """Let requests arrive in one turn of an event loop."""

        async def arrive():
            loop = asyncio.get_running_loop()
            for caller in callers:
                self.turn.add(caller, loop, is_alone=is_alone)
            await asyncio.sleep(0)

        asyncio.run(arrive())


@pytest.fixture
def engine():
    made = Engine()
    made.line.start()
    yield made
    assert made.line.close(DEADLINE_S)


def test_what_arrives_together_is_run_together(engine):
    callers = [Caller() for _ in range(3)]

    engine.add(*callers)

    assert engine.runs == [callers]
    assert engine.threads == {threading.current_thread().name}
    assert engine.line.busy == 0


def test_a_lone_caller_waits_for_nobody(engine):
    first, second = Caller(), Caller()

    engine.add(first, second, is_alone=True)

    assert engine.runs == [[first], [second]]


def test_only_what_may_be_run_together_is(engine):
    large, small, other, single = Caller(rows=9), Caller(rows=2), Caller(), Caller(policy=None)
    other.key = "other"

    engine.add(large, small, other, single)

    assert engine.runs == [[single], [large], [small], [other]]


@pytest.mark.parametrize(
    "caller",
    [
        Caller(LONG_NS),
        Caller(policy=BatchPolicy(10, target_rows=5, delay_ns=1)),
        Caller(rows=1_000_000),
    ],
    ids=["long", "held for company", "nobody knows"],
)
def test_whatever_else_is_run_by_the_line(engine, caller):
    engine.add(caller)

    assert engine.is_idle.acquire(timeout=DEADLINE_S)
    assert engine.runs == [[caller]]
    assert engine.threads == {"slot-0"}
    assert caller.is_waiting


def test_what_is_not_decoded_is_run_by_the_line(engine):
    caller = Caller()
    caller.frame = None

    engine.add(caller)

    assert engine.is_idle.acquire(timeout=DEADLINE_S)
    assert engine.threads == {"slot-0"}


def test_a_full_line_is_told_at_once():
    engine = Engine(max_rows=1)
    engine.line.start()
    assert engine.line.try_acquire()
    waiting, refused = Caller(LONG_NS, policy=None), Caller(LONG_NS, policy=None)

    engine.add(waiting, refused)

    assert waiting.is_waiting
    assert not waiting.is_settled
    assert refused.is_settled
    assert not refused.is_waiting
    assert isinstance(refused.outcome, OverloadedError)
    engine.line.release()
    assert engine.line.close(DEADLINE_S)


def test_replies_come_back_to_the_loop_in_order(engine):
    got = []

    async def wait():
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def send():
            for number in range(3):
                engine.turn.send(loop, got.append, (number, threading.current_thread().name))
            loop.call_soon_threadsafe(done.set)

        thread = threading.Thread(target=send, name="sender")
        thread.start()
        await done.wait()
        thread.join()
        return loop

    loop = asyncio.run(wait())

    assert got == [(number, "sender") for number in range(3)]
    engine.turn.send(loop, got.append, "nobody is there any more")
    assert len(got) == 3


def test_a_tiny_run_needs_no_slot_and_a_quick_one_does():
    engine = Engine(slots=1)
    engine.line.start()
    quick, tiny = RunCost(), RunCost()
    quick.learn(1, TINY_RUN_NS + 1)
    tiny.learn(1, TINY_RUN_NS)

    assert engine.turn.begin(2, None, tiny) is None  # never run
    assert engine.turn.begin(1, BatchPolicy(10, target_rows=2, delay_ns=1), tiny) is None
    give_back = engine.turn.begin(1, None, quick)
    assert engine.line.busy == 1
    assert engine.turn.begin(1, None, quick) is None
    assert engine.turn.begin(1, None, tiny) is holds_no_slot
    give_back()
    assert engine.line.busy == 0
    engine.line.close(DEADLINE_S)
