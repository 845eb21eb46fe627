"""Values in pieces: a map whose free pages lie apart from each other takes large ones as well."""

import numpy as np
import pytest
from support.answers import TIME_MS, answer, numbered, numbers

from engine.codecs.record_batch import record_batch
from engine.logring import LogRing, PageQuery
from engine.logring.rows import row_key

FOR_EVER = 1 << 60


def json_row(number, **fields):
    tensor = [[float(number), 0.0, 0.0]]
    return answer({"tensor": tensor}, 1, has_literals=False, **fields)


def texts(first, rows):
    """Rows that are kept as one Arrow message."""
    return answer(
        {
            "tensor": [[number] for number in range(first, first + rows)],
            "text": ["é" * 9000] * rows,
        },
        rows,
    )


def everything(ring):
    return [n for batch, _ in ring.batches(PageQuery()) for n in numbers(batch)]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "log"


@pytest.fixture
def opened(folder):
    rings = []

    def get(limit_bytes=8 << 20, *, in_pieces=True):
        for ring in rings:
            ring.close()
        rings.append(LogRing(folder, limit_bytes, record_batch))
        if in_pieces:
            rings[-1]._writer._values.go_to_pieces(FOR_EVER)
        return rings[-1]

    yield get
    rings[-1].close()


def keys_behind(ring, row):
    """How many keys there are for a record besides its own."""
    with ring._writer.store.env.begin() as txn:
        cursor = txn.cursor()
        assert cursor.set_key(row_key(row))
        keys = [key for key in cursor.iternext(keys=True, values=False) if key[:8] == row_key(row)]
    return len(keys) - 1


@pytest.mark.parametrize("limit_mib", [1, 4, 16])
def test_small_records_keep_no_large_ones_out(opened, limit_mib):
    """Each kind fills the ring while what it finds there was written by the one before."""
    ring = opened(limit_mib << 20, in_pieces=False)
    first = 0
    for rows in (10, 500, 10, 1, 500, 100, 1, 300, 10, 500):
        written_bytes = 0
        while written_bytes < limit_mib << 19:
            one = json_row(first) if rows == 1 else numbered(first, rows, width=29)
            assert ring.append([one]) == rows
            first += rows
            written_bytes += rows * 29 * 8 + 100

    stats = ring.stats()
    assert stats.rows_not_kept == {}
    assert everything(ring) == list(range(stats.first_row, first))
    assert stats.live_bytes <= stats.budget_bytes
    ring = opened(limit_mib << 20, in_pieces=False)
    assert everything(ring) == list(range(stats.first_row, first))


@pytest.mark.parametrize(
    ("make", "rows", "pieces"),
    [
        (lambda first: numbered(first, 250, width=20), 250, 10),
        (lambda first: numbered(first, 2_000, width=20), 2_000, 80),  # columns of their own
        (lambda first: numbered(first, 1, width=30_000), 1, 59),
        (lambda first: texts(first, 7), 7, 30),
    ],
)
def test_what_is_in_pieces_reads_as_it_would_whole(opened, make, rows, pieces, tmp_path):
    ring, whole = opened(64 << 20), LogRing(tmp_path / "whole", 64 << 20, record_batch)
    for turn in range(3):
        for each in (ring, whole):
            assert each.append([make(turn * rows)]) == rows

    assert keys_behind(ring, rows) >= pieces > keys_behind(whole, rows)
    for query in (
        PageQuery(page_rows=10_000),
        PageQuery(page_rows=5, start_row=rows),
        PageQuery(page_rows=10_000, descending=True),
        PageQuery(page_rows=1, start_row=2 * rows, descending=True),
        PageQuery(page_rows=10_000, time_range_ms=(TIME_MS, TIME_MS)),
        PageQuery(time_range_ms=(TIME_MS + 1, TIME_MS + 2)),
    ):
        assert ring.page(query) == whole.page(query)
    assert everything(ring) == everything(whole) == list(range(3 * rows))
    whole.close()


def test_rows_that_came_one_by_one(opened):
    """Their pack is written as it grows; whole ones and those in pieces follow each other."""
    ring, first = opened(), 0
    for turn in range(8):
        for _ in range(700):
            assert ring.append([json_row(first)]) == 1
            first += 1
        ring.maintain()
        ring._writer._values.go_to_pieces(FOR_EVER * (turn % 3 != 1))

    assert everything(ring) == list(range(first))
    assert everything(opened()) == list(range(first))
    times = PageQuery(time_range_ms=(TIME_MS, TIME_MS), page_rows=10_000)
    assert numbers(opened().page(times).batch) == list(range(first))


def test_a_piece_that_is_lost_hides_its_own_record_alone(opened):
    ring = opened()
    for turn in range(3):
        ring.append([numbered(turn * 250, 250, width=20)])
    with ring._writer.store.env.begin(write=True) as txn:
        cursor = txn.cursor()
        assert cursor.set_key(row_key(250))
        assert cursor.next()
        assert cursor.delete()

    assert everything(ring) == [*range(250), *range(500, 750)]


def test_a_pack_that_has_lost_a_piece_hides_no_row_of_a_time_range(opened):
    ring = opened()
    for first, time_ms in ((0, TIME_MS), (700, TIME_MS + 5_000)):
        for row in range(first, first + 700):
            ring.append([json_row(row, time_ms=time_ms)])
        ring.append([numbered(first + 700, 100, width=3, time_ms=time_ms)])
    assert len(everything(ring)) == 1_600
    with ring._writer.store.env.begin(write=True) as txn:
        cursor = txn.cursor()
        assert cursor.set_key(row_key(800))
        assert cursor.next()
        assert cursor.delete()

    first = PageQuery(time_range_ms=(TIME_MS, TIME_MS), page_rows=10_000)
    second = PageQuery(time_range_ms=(TIME_MS + 5_000,) * 2, page_rows=10_000)
    assert numbers(ring.page(first).batch) == list(range(700))
    assert numbers(ring.page(second).batch) == list(range(1400, 1500))


def test_a_schema_of_many_columns_is_in_pieces_and_leaves_whole(opened):
    ring = opened(2 << 20)

    def wide(number):
        values = np.arange(2.0)
        columns = {f"column-{number}-{index}": [float(number)] for index in range(400)}
        return answer({"tensor": [values.tolist()], **columns}, 1, has_literals=False)

    for number in range(120):
        assert ring.append([wide(number)]) == 1
    store, kept = ring._writer.store, ring.stats()
    with store.env.begin() as txn:
        entries = txn.stat(store.contexts)["entries"]
    ring = opened(2 << 20)

    page = ring.page(PageQuery(start_row=119))
    assert page.batch.schema.field("in").type.num_fields == 401
    assert kept.rows_evicted > 10
    assert entries > 3 * (kept.next_row - kept.first_row)
    assert entries < 30 * (kept.next_row - kept.first_row)
