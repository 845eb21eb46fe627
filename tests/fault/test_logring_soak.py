"""The ring at its limit for as long as is asked for: ``SAGITTA_SOAK_S=3600``; 1 s by default."""

import contextlib
import os
import random
import time

import pytest
from support.answers import answer, numbered, numbers

from engine.codecs.record_batch import record_batch
from engine.logring import LogRing, PageQuery

pytestmark = [pytest.mark.fault, pytest.mark.slow]

SOAK_S = float(os.environ.get("SAGITTA_SOAK_S", "1"))


def folder_bytes(folder):
    total = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # state.json.new comes and goes
            total += path.stat().st_size
    return total


@pytest.mark.parametrize("limit_bytes", [1 << 20, 5_000_000, 100_000_000])
def test_any_mix_of_answers_stays_within_the_limit(tmp_path, limit_bytes):
    folder = tmp_path / "log"
    ring = LogRing(folder, limit_bytes, record_batch)
    ring.start()
    luck, first, sent = random.Random(47), 0, 0
    deadline = time.monotonic() + SOAK_S
    while time.monotonic() < deadline:
        answers = []
        for _ in range(luck.choice([1, 1, 1, 5, 40])):
            rows = luck.choice([1, 1, 1, 7, 300, 9000])
            if luck.random() < 0.05:  # text is kept in another form
                answers.append(answer({"note": ["x" * luck.randrange(500)] * 3}, 3))
                sent += 3
            answers.append(numbered(first, rows, width=luck.choice([4, 4, 4, 60])))
            first += rows
            sent += rows
        assert ring.append(answers) > 0
        assert folder_bytes(folder) <= limit_bytes

    stats = ring.stats()
    assert (stats.rows_kept, stats.next_row) == (sent, sent)
    assert stats.rows_not_kept == {}
    assert stats.rows_evicted == stats.first_row
    kept = sum(batch.num_rows for batch, _ in ring.batches(PageQuery()))
    assert kept == stats.next_row - stats.first_row
    newest = ring.page(PageQuery(page_rows=1, descending=True)).batch
    assert "tensor" not in newest.schema.field("in").type.names or numbers(newest) == [first - 1]
    ring.close()
