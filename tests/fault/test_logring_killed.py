"""kill -9 at any moment: what was acknowledged is there, and nothing else but whole answers."""

import os
import random
import signal

import pytest
from support.answers import answer, numbered, numbers

from engine.codecs.record_batch import record_batch
from engine.logring import LogRing, PageQuery

pytestmark = [pytest.mark.fault, pytest.mark.slow]

KILLS = 100
LIMIT_BYTES = 4 << 20  # small, so that every life of the child evicts as well


MIXED = ((1,), (1, 1, 3), (500,), (1, 5000, 1))
ONE_BY_ONE = ((1,), (1,) * 16, (1,))  # these stay in the open pack
SMALL_TABLES = ((3,), (100,), (40, 20), (1, 2))  # so do these


def made(first, rows):
    """An answer whose rows are told apart by their number; a row alone as from JSON."""
    if rows > 1:
        return numbered(first, rows, width=20)
    return answer({"tensor": [[float(first), 0.5, 1.5, 2.5]]}, 1, has_literals=False)


def write_until_killed(folder, acknowledged, sizes):
    """Append at full rate; after every append say how far the log goes."""
    ring = LogRing(folder, LIMIT_BYTES, record_batch)
    rows, turn = ring.stats().next_row, 0
    while True:
        answers = []
        for size in sizes[turn % len(sizes)]:
            answers.append(made(rows, size))
            rows += size
        assert ring.append(answers) > 0
        acknowledged.send_bytes(rows.to_bytes(8, "big"))
        turn += 1
        if turn % 5 == 0:
            ring.maintain()


def last_acknowledged(receiver):
    rows = 0
    while True:
        try:
            rows = int.from_bytes(receiver.recv_bytes(), "big")
        except EOFError:
            return rows


def test_acknowledged_rows_survive_a_kill_at_any_moment(tmp_path, forks):
    moments, known = random.Random(47), 0
    for turn in range(KILLS):
        receiver, sender = forks.Pipe(duplex=False)
        sizes = (MIXED, ONE_BY_ONE, SMALL_TABLES)[turn % 3]
        child = forks.Process(target=write_until_killed, args=(tmp_path / "log", sender, sizes))
        child.start()
        sender.close()
        assert receiver.poll(timeout=30)
        child.join(timeout=moments.uniform(0.0, 0.02))
        os.kill(child.pid, signal.SIGKILL)
        known = max(known, last_acknowledged(receiver))
        child.join(timeout=30)
        assert child.exitcode == -signal.SIGKILL

        ring = LogRing(tmp_path / "log", LIMIT_BYTES, record_batch)
        stats = ring.stats()
        kept = [n for batch, _ in ring.batches(PageQuery()) for n in numbers(batch)]
        ring.close()
        assert stats.next_row >= known
        assert kept == list(range(stats.first_row, stats.next_row))
        assert not list((tmp_path / "log").glob("*.bad-*"))
        known = stats.next_row
