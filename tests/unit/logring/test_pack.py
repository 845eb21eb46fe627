"""The open pack: rows that came one by one are there after a kill, once, and never a wrong one."""

import os
import shutil

import numpy as np
import pytest
from support.answers import TIME_MS, answer, numbered, numbers

from engine.codecs.record_batch import record_batch
from engine.logring import LogRing, PageQuery, open_to_read, read_batches, read_page
from engine.values import Output

LIMIT_BYTES = 1 << 20
PACK = "newest.rows"


def everything(ring):
    return [n for batch, _ in ring.batches(PageQuery()) for n in numbers(batch)]


def keep(ring, rows):
    for row in rows:
        assert ring.append([numbered(row, 1)]) == 1


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "log"


@pytest.fixture
def ring(folder):
    ring = LogRing(folder, LIMIT_BYTES, record_batch)
    yield ring
    ring.close()


def killed(folder, name="killed"):
    """What kill -9 leaves now: what is in the files, mapped or not."""
    copy = folder.with_name(name)
    shutil.copytree(folder, copy, copy_function=shutil.copy)
    return copy


def reopened(folder, limit_bytes=LIMIT_BYTES):
    """The rows that a start finds, which have to go on without a gap."""
    ring = LogRing(folder, limit_bytes, record_batch)
    kept = everything(ring)
    stats = ring.stats()
    assert stats.rows_not_kept == {}
    if kept:
        assert kept == list(range(stats.first_row, stats.first_row + len(kept)))
    keep(ring, [stats.next_row])
    assert everything(ring) == [*kept, stats.next_row]
    ring.close()
    assert sum(path.stat().st_size for path in folder.iterdir()) <= limit_bytes
    return kept


def test_a_row_alone_is_in_the_file_and_not_in_the_tree(ring, folder):
    keep(ring, range(3))

    assert ring._writer.store.env.stat()["entries"] == 3  # the three named databases
    assert reopened(killed(folder)) == [0, 1, 2]


@pytest.mark.parametrize("synced_after", [(), (1,), (5,), (9,), (2, 5, 9), range(10)])
def test_a_kill_loses_no_row_and_doubles_none(ring, folder, synced_after):
    for row in range(10):
        keep(ring, [row])
        if row in synced_after:
            ring.maintain()
        assert everything(ring) == list(range(row + 1))
    assert reopened(killed(folder)) == list(range(10))


def stored(ring):
    """Values that the tree has, of rows and of their columns."""
    return ring._writer.store.env.stat()["entries"] - 3  # the named databases


def test_small_tables_are_packed_with_rows_and_with_each_other(ring, folder):
    first = 0
    for turn, rows in enumerate((1, 3, 100, 1, 1, 40, 2)):
        table = numbered(first, rows, width=20, time_ms=TIME_MS + turn)
        assert ring.append([table]) == rows
        first += rows

    assert stored(ring) == 0
    assert everything(ring) == list(range(first))
    some = ring.page(PageQuery(time_range_ms=(TIME_MS + 2, TIME_MS + 3))).batch
    assert numbers(some) == list(range(4, 105))
    newest = ring.page(PageQuery(page_rows=60, descending=True)).batch
    assert numbers(newest) == list(range(first - 1, first - 61, -1))
    assert reopened(killed(folder)) == list(range(first))


@pytest.mark.parametrize(
    ("rows", "width", "is_packed"),
    [(170, 20, True), (171, 20, False), (2, 5, True), (2, 4, False), (1, 1, True)],
    ids=["most bytes", "more bytes", "as wide as its times twice", "narrower", "a row"],
)
def test_tables_that_would_take_much_more_room_packed_are_not(ring, rows, width, is_packed):
    table = numbered(0, rows, width=width)
    assert ring.append([table]) == rows

    assert stored(ring) == (not is_packed)
    assert ring.page(PageQuery()).batch.to_pylist() == record_batch(table).to_pylist()


@pytest.mark.parametrize(("tables", "records"), [(1, 0), (3, 0), (4, 4), (16, 16)])
def test_tables_that_came_together_and_are_too_many_for_the_pack_share_a_transaction(
    folder, tables, records
):
    ring = LogRing(folder, 16 << 20, record_batch)
    for first in (0, 50 * tables):  # the second time by what they have in common
        several = [numbered(first + 50 * n, 50, width=20) for n in range(tables)]
        assert ring.append(several) == 50 * tables

    assert stored(ring) == 2 * records
    assert everything(ring) == list(range(2 * 50 * tables))
    ring.close()


def test_an_empty_column_takes_no_room_in_a_pack(ring):
    empty = Output("empty", np.empty((7, 0), np.float32), per_row=True)
    table = numbered(0, 7, width=9, outputs=(empty,))
    assert ring.append([table]) == 7

    assert stored(ring) == 0
    assert ring.page(PageQuery()).batch.to_pylist() == record_batch(table).to_pylist()


def test_rows_that_are_committed_are_not_written_to(ring, folder):
    """Not even for a moment, as for a header that is put together in its place."""
    keep(ring, range(3))
    committed = (folder / PACK).read_bytes()

    value = ring._writer.store.pack.value()

    assert len(value) == ring._writer.store.pack.size
    assert (folder / PACK).read_bytes() == committed


def test_a_kill_when_a_pack_was_just_begun(folder):
    ring = LogRing(folder, 2 << 20, record_batch)
    row = 0
    for turn in range(4):
        while ring._writer.store.env.stat()["entries"] == 3 + turn:
            keep(ring, [row])
            row += 1
        copy = killed(folder, f"killed-{turn}")
        assert reopened(copy, 2 << 20) == list(range(row))
    assert row > 5_000
    ring.close()


def test_a_record_of_another_kind_comes_behind_the_rows_before_it(ring, folder):
    first = 0
    for rows in (1, 1, 3, 1, 900, 1, 1):
        assert ring.append([numbered(first, rows)]) == rows
        first += rows
        assert everything(ring) == list(range(first))

    assert reopened(killed(folder)) == list(range(first))


def test_a_stopped_engines_rows_are_read_from_its_folder(ring, folder):
    assert ring.append([numbered(0, 500)]) == 500
    keep(ring, range(500, 510))
    ring.maintain()
    keep(ring, range(510, 520))
    copy = killed(folder)
    before = {path.name: path.read_bytes() for path in copy.iterdir()}

    store = open_to_read(copy)
    batches = read_batches(lambda query: read_page(store, query), PageQuery(), 1 << 40)
    rows = [n for batch, _ in batches for n in numbers(batch)]
    newest = numbers(read_page(store, PageQuery(page_rows=15, descending=True)).batch)
    store.release()

    assert rows == list(range(520))
    assert newest == list(range(519, 504, -1))
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


def flip(place):
    def damage(path):
        raw = bytearray(path.read_bytes())
        raw[place] ^= 0x10
        path.write_bytes(raw)

    return damage


DAMAGES = {
    "the mark": flip(0),
    "the number of rows": flip(8),
    "the checksum": flip(12),
    "the first row": flip(16),
    "the context's checksum": flip(24),
    "the size of a row": flip(28),
    "the form": flip(32),
    "the context's number": flip(36),
    "the time": flip(44),
    "a row": flip(150),
    "truncated": lambda path: os.truncate(path, 200),
    "garbage": lambda path: path.write_bytes(b"\xaa" * 70_000),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_damaged_rows_are_dropped_and_their_numbers_are_not_given_again(ring, folder, what):
    assert ring.append([numbered(0, 500)]) == 500
    keep(ring, range(500, 510))
    copy = killed(folder)
    DAMAGES[what](copy / PACK)

    ring = LogRing(copy, LIMIT_BYTES, record_batch)
    assert everything(ring) == list(range(500))
    first = ring.stats().next_row
    assert first >= 510
    keep(ring, [first])
    assert everything(ring) == [*range(500), first]
    ring.close()


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: os.truncate(path, 0)])
def test_a_pack_that_is_gone_is_begun_anew(ring, folder, damage):
    assert ring.append([numbered(0, 5)]) == 5
    copy = killed(folder)
    damage(copy / PACK)

    assert reopened(copy) == [0, 1, 2, 3, 4]


def test_the_pack_of_another_ring_is_dropped(ring, folder, tmp_path):
    other = LogRing(tmp_path / "other", LIMIT_BYTES, record_batch)
    other.append([answer({"column": [1.0]}, 1)])
    keep(ring, range(5))
    copy = killed(folder)
    shutil.copy(tmp_path / "other" / PACK, copy / PACK)
    other.close()

    ring = LogRing(copy, LIMIT_BYTES, record_batch)
    assert everything(ring) == []
    keep(ring, [0])
    ring.close()


@pytest.mark.parametrize("limits", [(64 << 20, 1 << 20), (1 << 20, 64 << 20)])
def test_another_limit_keeps_the_rows_of_a_kill(tmp_path, limits):
    ring = LogRing(tmp_path / "log", limits[0], record_batch)
    row = 0
    while row < 500 or ring._writer.store.pack.size < 50_000:
        keep(ring, [row])
        row += 1
    copy = killed(tmp_path / "log")
    ring.close()

    assert reopened(copy, limits[1]) == list(range(row))


def test_without_the_file_every_row_is_a_value(folder):
    (folder / PACK).mkdir(parents=True)
    ring = LogRing(folder, LIMIT_BYTES, record_batch)
    keep(ring, range(20))
    assert ring._writer.store.env.stat()["entries"] == 23
    (folder / PACK).rmdir()
    ring.maintain()
    keep(ring, range(20, 30))

    assert ring._writer.store.env.stat()["entries"] == 23
    assert everything(ring) == list(range(30))
    ring.close()


def test_rows_of_other_kinds_one_after_the_other(ring, folder):
    kinds = [{"a": [1.5]}, {"a": [2]}, {"b": [[1.0, 2.0]]}, {"text": ["x"]}]
    results = [answer(kinds[row % 4], 1, time_ms=row) for row in range(200)]
    for result in results:
        assert ring.append([result]) == 1
    copy = LogRing(killed(folder), LIMIT_BYTES, record_batch)

    rows, row = [], 0
    while row < 200:
        page = copy.page(PageQuery(start_row=row))
        rows += page.batch.to_pylist()
        row = page.next_row
    copy.close()
    assert str(rows) == str([row for r in results for row in record_batch(r).to_pylist()])


def test_rows_by_time_when_the_clock_stepped_back_among_rows_that_came_together(ring):
    """Such rows are found only where the step back is kept, which no transaction else would do."""
    times = [4_000_000, 5_000_000, 5_000_010, 1_000, 1_010]
    rows = [
        answer({"tensor": [[float(n)]]}, 1, has_literals=False, time_ms=at)
        for n, at in enumerate(times)
    ]
    assert (ring.append(rows[:1]), ring.append(rows[1:])) == (1, 4)

    assert numbers(ring.page(PageQuery(time_range_ms=(0, 2_000))).batch) == [3, 4]
    assert numbers(ring.page(PageQuery(time_range_ms=(4_999_999, 5_000_005))).batch) == [1]


@pytest.mark.parametrize("width", [1, 1_000, 4_000, 9_000])
def test_rows_of_every_width(folder, width):
    """Small ones are packed, large ones are values of their own, in between some fit a pack."""
    ring = LogRing(folder, 16 << 20, record_batch)
    rows = [[float(row)] * width for row in range(30)]
    results = [answer({"t": [row]}, 1, has_literals=False) for row in rows]
    for result in results[:15]:
        assert ring.append([result]) == 1
    assert ring.append(results[15:]) == 15

    copy = LogRing(killed(folder), 16 << 20, record_batch)
    batches = [batch for batch, _ in copy.batches(PageQuery())]
    copy.close()
    ring.close()
    values = [b.column("in").field("t").flatten().to_numpy() for b in batches]
    assert np.concatenate(values).tolist() == [value for row in rows for value in row]
