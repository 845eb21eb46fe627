"""The slots and the line before them: bounds, batches, gone callers, the end."""

import threading

import pytest

from engine.batching.entry import BatchPolicy, Entry
from engine.batching.line import Line
from engine.errors import OverloadedError, ShuttingDownError

DEADLINE_S = 30


def entry(rows=1, size_bytes=10, key=None, max_rows=None):
    made = Entry()
    made.rows, made.size_bytes, made.key = rows, size_bytes, key
    made.policy = None if max_rows is None else BatchPolicy(max_rows)
    return made


class Gate:
    """A run that waits until it is let go, so that a test decides when a slot is free."""

    def __init__(self):
        self.batches = []
        self.entered = threading.Semaphore(0)
        self.opened = threading.Semaphore(0)

    def __call__(self, batch):
        self.batches.append(batch)
        self.entered.release()
        assert self.opened.acquire(timeout=DEADLINE_S)

    def wait(self):
        assert self.entered.acquire(timeout=DEADLINE_S)

    def open(self, times=1000):
        self.opened.release(times)


@pytest.fixture
def gate():
    return Gate()


@pytest.fixture
def line(gate):
    made = Line(1, gate, max_rows=100, max_bytes=1000)
    made.start()
    yield made
    gate.open()
    assert made.close(DEADLINE_S)


def busy(line, gate):
    """Occupy the only slot."""
    first = entry()
    line.submit(first)
    gate.wait()
    return first


def test_a_full_line_refuses_at_once(line, gate):
    busy(line, gate)
    line.submit(entry(rows=60))

    with pytest.raises(OverloadedError, match="QUEUE_MAX_ROWS=100"):
        line.submit(entry(rows=41))
    line.submit(entry(rows=40))
    with pytest.raises(OverloadedError, match="100 rows"):
        line.submit(entry())
    assert line.waiting == (2, 100, 20)


def test_bytes_are_bounded_too(line, gate):
    busy(line, gate)
    line.submit(entry(size_bytes=999))

    with pytest.raises(OverloadedError, match="QUEUE_MAX_BYTES=1000"):
        line.submit(entry(size_bytes=2))


def test_a_request_larger_than_the_bounds_is_taken_by_an_empty_line(line, gate):
    busy(line, gate)
    line.submit(entry(rows=10_000, size_bytes=10_000))

    with pytest.raises(OverloadedError):
        line.submit(entry())


def test_first_come_first_served(line, gate):
    first = busy(line, gate)
    others = [entry() for _ in range(5)]
    for other in others:
        line.submit(other)

    gate.open()
    for _ in others:
        gate.wait()

    assert gate.batches == [[one] for one in (first, *others)]
    assert line.waiting == (0, 0, 0)


def test_entries_of_one_key_leave_together(line, gate):
    busy(line, gate)
    alike = [entry(rows=2, key="a", max_rows=5) for _ in range(3)]
    other, alone = entry(key="b", max_rows=5), entry()
    for one in (alike[0], other, alike[1], alone, alike[2]):
        line.submit(one)

    gate.open()
    for _ in range(4):
        gate.wait()

    assert gate.batches[1:] == [alike[:2], [other], [alone], [alike[2]]]


def test_gone_entries_take_no_place(line, gate):
    busy(line, gate)
    gone = entry(rows=99, key="a", max_rows=500)
    stays = entry(rows=1, key="a", max_rows=500)
    first = entry(rows=0, key="a", max_rows=500)
    for one in (first, gone, stays):
        line.submit(one)
    line.abandon(gone)
    assert line.waiting == (2, 1, 20)  # others may have its room before a slot is free

    gate.open()
    gate.wait()

    assert gate.batches[1] == [first, stays]
    assert line.waiting == (0, 0, 0)
    line.abandon(first)  # it is being run: its caller waits no more
    assert first.is_abandoned


def test_who_stood_behind_a_gone_entry_that_was_held_is_run(line, gate):
    gone, next_one = held(1), entry()
    line.submit(gone)
    line.submit(next_one)

    line.abandon(gone)
    gate.wait()

    assert gate.batches == [[next_one]]


def test_a_slot_is_for_one_at_a_time(gate):
    line = Line(2, gate, max_rows=10, max_bytes=10)
    assert not line.try_acquire()  # not started
    line.start()

    assert line.try_acquire()
    assert line.try_acquire()
    assert not line.try_acquire()
    assert line.busy == 2
    line.release()
    assert line.try_acquire()
    line.release()
    line.release()

    assert line.close(DEADLINE_S)
    assert not line.try_acquire()


def test_nobody_overtakes_those_who_wait(line, gate):
    busy(line, gate)
    line.submit(entry())

    assert not line.try_acquire()


def test_close_lets_the_line_empty_and_takes_nothing_more(gate):
    line = Line(1, gate, max_rows=100, max_bytes=1000)
    line.start()
    busy(line, gate)
    waiting = [entry() for _ in range(3)]
    for one in waiting:
        line.submit(one)
    assert not line.close(0)  # the run goes on

    with pytest.raises(ShuttingDownError):
        line.submit(entry())
    gate.open()

    assert line.close(DEADLINE_S)
    assert [batch[0] for batch in gate.batches[1:]] == waiting


def test_it_prints_its_state(line, gate):
    busy(line, gate)
    line.submit(entry(rows=7))

    assert repr(line) == "<Line [1 of 1 slots busy, 1 waiting, 7 rows]>"


def held(rows, *, delay_s=DEADLINE_S, target_rows=4):
    made = entry(rows=rows, key="a")
    made.policy = BatchPolicy(10, target_rows=target_rows, delay_ns=int(delay_s * 1e9))
    return made


def test_an_entry_is_held_for_company_until_there_are_rows_enough(line, gate):
    company = [held(1), held(1), held(2)]
    for one in company:
        line.submit(one)

    gate.wait()

    assert gate.batches == [company]


def test_an_entry_is_held_no_longer_than_its_policy_says(line, gate):
    alone = held(1, delay_s=0.001)
    line.submit(alone)

    gate.wait()

    assert gate.batches == [[alone]]


def test_nothing_is_held_when_the_line_closes(gate):
    line = Line(1, gate, max_rows=100, max_bytes=1000)
    line.start()
    alone = held(1)
    line.submit(alone)
    gate.open()

    assert line.close(DEADLINE_S)
    assert gate.batches == [[alone]]
