"""Pages: the order, the limits, the cursor, and how a request names them."""

import shutil

import pytest
from support.answers import answer, numbered, numbers

from engine.codecs.record_batch import record_batch
from engine.errors import DecodeError
from engine.logring import (
    LogPage,
    LogRing,
    PageQuery,
    open_to_read,
    parse_query,
    read_page,
    status_text,
)


@pytest.fixture
def ring(tmp_path):
    ring = LogRing(tmp_path / "log", 4 << 20, record_batch)
    yield ring
    ring.close()


def test_an_empty_log_is_one_empty_page(ring):
    assert ring.page(PageQuery()) == LogPage(None, "All", 0)
    assert ring.page(PageQuery(descending=True)) == LogPage(None, "All", 0)


def test_the_oldest_thousand_rows_come_first(ring):
    ring.append([numbered(0, 1)])
    ring.append([numbered(1, 1019)])

    page = ring.page(PageQuery())

    assert numbers(page.batch) == list(range(1000))
    assert (page.status, page.next_row) == ("RecordLimited", 1000)
    page = ring.page(PageQuery(start_row=page.next_row))
    assert numbers(page.batch) == list(range(1000, 1020))
    assert (page.status, page.next_row) == ("All", 1020)
    page = ring.page(PageQuery(start_row=page.next_row))
    assert (page.batch, page.status, page.next_row) == (None, "All", 1020)


@pytest.mark.parametrize("page_rows", [1, 2, 3, 7, 10, 11])
@pytest.mark.parametrize("descending", [False, True])
def test_pages_join_without_gap_or_overlap(ring, page_rows, descending):
    for first, rows in ((0, 3), (3, 1), (4, 5), (9, 1)):
        ring.append([numbered(first, rows)])

    seen, query = [], PageQuery(page_rows=page_rows, descending=descending)
    while True:
        page = ring.page(query)
        assert page.batch is None or page.batch.num_rows <= page_rows
        seen += [] if page.batch is None else numbers(page.batch)
        if page.status == "All":
            break
        query = PageQuery(page.next_row, page_rows, descending=descending)

    assert seen == sorted(range(10), reverse=descending)


def test_a_page_never_mixes_schemas(ring):
    ring.append([answer({"a": [1.0]}, 1), answer({"a": [2.0]}, 1), answer({"b": [3.0]}, 1)])

    page = ring.page(PageQuery())

    assert (page.batch.num_rows, page.status, page.next_row) == (2, "SchemaChange", 2)
    page = ring.page(PageQuery(start_row=2))
    assert (page.batch.num_rows, page.status, page.next_row) == (1, "All", 3)


def test_bytes_limit_a_page_but_never_to_nothing(ring):
    ring.append([numbered(0, 10, width=100)])

    page = ring.page(PageQuery(page_bytes=2500))
    assert (page.batch.num_rows, page.status) == (3, "ByteLimited")
    page = ring.page(PageQuery(page_bytes=1))
    assert (page.batch.num_rows, page.status) == (1, "ByteLimited")


def test_a_cursor_behind_the_oldest_row_starts_at_the_oldest(tmp_path):
    ring = LogRing(tmp_path / "log", 1 << 20, record_batch)
    for first in range(0, 4000, 10):
        ring.append([numbered(first, 10, width=50)])
    oldest = ring.stats().first_row

    page = ring.page(PageQuery(start_row=3, page_rows=1))
    ring.close()

    assert oldest > 3
    assert numbers(page.batch) == [oldest]


@pytest.mark.parametrize("query", [PageQuery(10**15), PageQuery(10**15, descending=True)])
def test_a_cursor_beyond_the_newest_row(ring, query):
    ring.append([numbered(0, 2)])

    page = ring.page(query)

    seen = [] if page.batch is None else numbers(page.batch)
    assert seen == ([1, 0] if query.descending else [])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 9, []), (10, 10, [0]), (10, 30, [0, 1, 2]), (25, 35, [2]), (999, 2000, []), (20, 20, [1])],
)
def test_rows_are_found_by_time(ring, low, high, expected):
    for number in range(10):
        ring.append([numbered(number, 1, time_ms=(number + 1) * 10)])

    page = ring.page(PageQuery(time_range_ms=(low, high)))

    assert ([] if page.batch is None else numbers(page.batch)) == expected
    assert page.status == "All"


def test_rows_are_found_by_time_after_the_clock_stepped_back(ring):
    times = [*range(1_000_000, 1_100_000, 1_000), *range(500_000, 600_000, 1_000), 2_000_000]
    for number, time_ms in enumerate(times):
        ring.append([numbered(number, 1, time_ms=time_ms)])

    for low, high in ((1_050_000, 1_060_000), (550_000, 1_000_000), (0, 10**9)):
        page = ring.page(PageQuery(time_range_ms=(low, high)))
        assert numbers(page.batch) == [n for n, at in enumerate(times) if low <= at <= high]


@pytest.mark.parametrize("rows", [1, 3], ids=["packed", "records"])
@pytest.mark.parametrize("is_killed", [False, True])
def test_rows_are_found_by_time_where_the_clock_was_behind_at_the_start(tmp_path, rows, is_killed):
    """A machine without a clock of its own starts in the past, until it is told the time."""
    times, number = [], 0
    for turn, start_ms in enumerate((5_000_000, 1_000_000, 3_000_000)):
        ring = LogRing(tmp_path / f"log-{turn}", 4 << 20, record_batch)
        for time_ms in range(start_ms, start_ms + 10_000, 1_000):
            assert ring.append([numbered(number, rows, time_ms=time_ms)]) == rows
            times += [time_ms] * rows
            number += rows
        for low, high in ((1_000_000, 1_005_000), (3_001_000, 4_000_000), (5_008_000, 6_000_000)):
            page = ring.page(PageQuery(time_range_ms=(low, high)))
            wanted = [n for n, at in enumerate(times) if low <= at <= high]
            assert (numbers(page.batch) if page.batch else []) == wanted
        if not is_killed:
            ring.close()
        shutil.copytree(tmp_path / f"log-{turn}", tmp_path / f"log-{turn + 1}")
        ring.close()


def test_a_stopped_engines_rows_are_found_by_time_after_the_clock_stepped_back(tmp_path):
    ring = LogRing(tmp_path / "log", 4 << 20, record_batch)
    times = [*range(1_000_000, 1_100_000, 1_000), *range(500_000, 520_000, 1_000)]
    for number, time_ms in enumerate(times):
        ring.append([numbered(3 * number, 3, time_ms=time_ms)])
    ring.close()

    store = open_to_read(tmp_path / "log")
    page = read_page(store, PageQuery(time_range_ms=(510_000, 512_000)))
    store.release()

    assert numbers(page.batch) == list(range(330, 339))


def test_all_rows_come_as_batches(ring):
    for first in range(0, 3000, 100):
        ring.append([numbered(first, 100)])

    batches = list(ring.batches(PageQuery(start_row=50)))

    assert [n for batch, _ in batches for n in numbers(batch)] == list(range(50, 3000))
    assert batches[-1][1] == 3000


# what Plateau understands -> the query
QUERIES = [
    ([], b"{}", PageQuery()),
    ([], b"", PageQuery()),
    ([], b'{"edge-1": 1000}', PageQuery(1000)),
    ([], b'{"edge-2": 1000}', PageQuery()),
    ([], b'{"edge-1": -1}', PageQuery()),
    ([], b'{"edge-1": true}', PageQuery()),
    ([], b'{"edge-1": 1e99}', PageQuery()),
    ([], b"[1]", PageQuery()),
    ([], b"\xff\x00 not json", PageQuery()),
    ([], b"[" * 100_000, PageQuery()),
    ([("page_size", "5")], b"", PageQuery(page_rows=5)),
    ([("page_size", "1000000")], b"", PageQuery(page_rows=10_000)),
    ([("page_size", "9" * 100_000)], b"", PageQuery(page_rows=10_000)),
    ([("order", "DESC")], b"", PageQuery(descending=True)),
    ([("order", "asc")], b"", PageQuery()),
    ([("dataset.max_bytes", "100"), ("dataset[]", "in")], b"", PageQuery(page_bytes=100)),
    (
        [("time.start", "2025-07-16T18:00:00Z"), ("time.end", "2025-07-16T20:00:01.5+02:00")],
        b"",
        PageQuery(time_range_ms=(1_752_688_800_000, 1_752_688_801_500)),
    ),
    (
        [("time.start", "2025-07-16t18:00:00z"), ("time.end", "2025-07-16T18:00:00.0009z")],
        b"",
        PageQuery(time_range_ms=(1_752_688_800_000, 1_752_688_800_000)),
    ),
]


@pytest.mark.parametrize(("parameters", "body", "expected"), QUERIES)
def test_a_query_is_read_as_plateau_reads_it(parameters, body, expected):
    assert parse_query(parameters, body, "edge-1") == expected


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ([("page_size", "0")], "page_size"),
        ([("page_size", "ten")], "page_size"),
        ([("order", "up")], "order"),
        ([("time.start", "2025-07-16T18:00:00Z")], "time.end"),
        ([("time.end", "2025-07-16T18:00:00Z")], "time.start"),
        (  # what a URL makes of a + that is not written %2B
            [("time.start", "2025-07-16T18:00:00 02:00"), ("time.end", "2025-07-16T18:00:00Z")],
            "%2B",
        ),
        ([("time.start", "yesterday"), ("time.end", "2025-07-16T18:00:00Z")], "time.start"),
        (
            [("time.start", "2025-07-16T18:00:00"), ("time.end", "2025-07-16T18:00:00Z")],
            "time zone",
        ),
        (
            [("time.start", "2025-07-16T18:00:00Z"), ("time.end", "x"), ("order", "desc")],
            "order=asc",
        ),
    ],
)
def test_a_parameter_that_does_not_parse_is_named(parameters, words):
    with pytest.raises(DecodeError, match=words):
        parse_query(parameters, b"", "edge-1")


def test_the_status_header():
    page = LogPage(None, "RecordLimited", 1000)

    assert status_text(page, "edge-1") == '{"status":"RecordLimited","next":{"edge-1":1000}}'
