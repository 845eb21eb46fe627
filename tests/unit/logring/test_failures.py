"""Pages of the log of failures: their rows, why they end, and where the next one begins."""

import pytest
from support.answers import numbered

from engine.codecs.record_batch import record_batch
from engine.logring import Failure, LogRing, PageQuery
from engine.logring.failures import FAILURE_SCHEMA
from engine.logring.rows import ROW_KEY

COUNT = 2_500  # more than a transaction reads


@pytest.fixture(scope="module")
def ring(tmp_path_factory):
    """A ring with failures 0 to 2,499, ``time`` and ``error`` their number; tests read it only."""
    ring = LogRing(tmp_path_factory.mktemp("log"), 64 << 20, record_batch)
    for number in range(COUNT):
        ring.failures.add(Failure(number, f"{number}", "v1", "edge-1"))
        if number % 1_000 == 999:
            ring.maintain()
    yield ring
    ring.close()


def read(ring, *arguments, **query):
    page = ring.failures_page(PageQuery(*arguments, **query))
    assert page.batch.schema.equals(FAILURE_SCHEMA)
    return page.batch["time"].to_pylist(), page.status, page.next_row


def test_all_of_them_the_oldest_first(ring):
    """The last five hundred of them were waiting for the ring's thread."""
    times, status, next_row = read(ring, page_rows=10_000)

    assert (times, status, next_row) == (list(range(COUNT)), "All", COUNT)
    assert ring.stats().failures_kept == COUNT


@pytest.mark.parametrize("page_rows", [1, 700, 1_000, 2_500, 2_501])
@pytest.mark.parametrize("descending", [False, True])
def test_pages_follow_one_another(ring, page_rows, descending):
    found, row, status = [], None, "RecordLimited"
    while status != "All" and len(found) < 3 * page_rows:
        assert status == "RecordLimited"
        times, status, row = read(ring, row, page_rows=page_rows, descending=descending)
        found += times

    order = range(COUNT - 1, -1, -1) if descending else range(COUNT)
    assert found == list(order)[: len(found)]
    assert len(found) == min(3 * page_rows, COUNT)


def test_a_page_ends_with_its_bytes_but_has_a_row(ring):
    assert read(ring, page_bytes=1) == ([0], "ByteLimited", 1)
    times, status, next_row = read(ring, 7, page_bytes=1_000)
    assert (len(times) > 1, status, next_row) == (True, "ByteLimited", 7 + len(times))


def test_a_range_of_times(ring):
    assert read(ring, time_range_ms=(1_500, 1_502)) == ([1_500, 1_501, 1_502], "All", COUNT)
    assert read(ring, time_range_ms=(1_500, 1_502), page_rows=2) == (
        [1_500, 1_501],
        "RecordLimited",
        1_502,
    )
    assert read(ring, time_range_ms=(COUNT, 2 * COUNT)) == ([], "All", COUNT)


@pytest.mark.parametrize("descending", [False, True])
def test_a_start_behind_the_newest_is_the_end(ring, descending):
    times, status, next_row = read(ring, 1 << 61, descending=descending, page_rows=2)

    expected = ([2_499, 2_498], "RecordLimited", 2_498) if descending else ([], "All", COUNT)
    assert (times, status, next_row) == expected


def test_what_is_damaged_is_passed_over_and_told(tmp_path, caplog):
    ring = LogRing(tmp_path, 1 << 20, record_batch)
    for number in range(3):
        ring.failures.add(Failure(number, f"{number}", "v1", "edge-1"))
    ring.maintain()
    store = ring._writer.store
    with store.env.begin(write=True) as txn:
        txn.put(ROW_KEY.pack(1), b'{"time": 1, "err\xff', db=store.failures)

    assert read(ring) == ([0, 2], "All", 3)
    assert "the log of failures is damaged at number 1" in caplog.text
    ring.close()


@pytest.mark.parametrize("descending", [False, True])
def test_a_log_without_failures(tmp_path, descending):
    ring = LogRing(tmp_path, 1 << 20, record_batch)
    ring.append([numbered(0, 3)])

    assert read(ring, descending=descending) == ([], "All", 0)
    ring.close()


def test_what_has_left_is_passed_over_and_numbers_go_on_after_a_restart(tmp_path):
    for turn in range(3):
        ring = LogRing(tmp_path, 1 << 20, record_batch)
        for number in range(turn * 500, turn * 500 + 500):
            ring.failures.add(Failure(number, f"{number} " * 200, "v1", "edge-1"))
        times, status, next_row = read(ring, 3, page_rows=10_000)
        oldest = times[0]
        assert (times, status) == (list(range(oldest, turn * 500 + 500)), "All")
        assert (oldest > 3, next_row) == (True, turn * 500 + 500)
        assert read(ring, oldest, page_rows=1)[0] == [oldest]
        ring.close()
