"""The ring: what leaves, what is counted, what a restart finds."""

import random

import numpy as np
import pyarrow as pa
import pytest
from support.answers import answer, numbered, numbers

from engine.codecs.record_batch import record_batch
from engine.errors import ConfigError, NotReadyError
from engine.logring import Failure, LogRing, PageQuery
from engine.values import Output


def folder_bytes(folder):
    return sum(path.stat().st_size for path in folder.iterdir())


def everything(ring):
    return [n for batch, _ in ring.batches(PageQuery()) for n in numbers(batch)]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "log"


@pytest.mark.parametrize("sizes", [(1,), (1, 200), (37,), (3000,), (1, 1, 1, 2500)])
def test_the_oldest_rows_leave_and_the_files_stay_within_the_limit(folder, sizes):
    ring = LogRing(folder, 1 << 20, record_batch)
    first = 0
    for turn in range(400):
        rows = sizes[turn % len(sizes)]
        assert ring.append([numbered(first, rows, width=10)]) == rows
        first += rows

    stats = ring.stats()
    assert folder_bytes(folder) <= 1 << 20
    assert everything(ring) == list(range(stats.first_row, first))
    assert stats.rows_kept == stats.next_row == first
    assert stats.rows_evicted == stats.first_row
    assert stats.rows_not_kept == {}
    assert 0 < stats.live_bytes <= stats.budget_bytes < 1 << 19
    ring.close()


def test_more_rows_at_once_than_the_ring_holds_leaves_the_newest(folder):
    ring = LogRing(folder, 1 << 20, record_batch)

    assert ring.append([numbered(0, 50_000)]) == 50_000

    stats = ring.stats()
    assert everything(ring) == list(range(stats.first_row, 50_000))
    assert 5_000 < 50_000 - stats.first_row < 50_000
    ring.close()


def test_a_row_that_is_larger_than_a_record_may_be_is_counted(folder):
    ring = LogRing(folder, 1 << 20, record_batch)

    assert ring.append([numbered(0, 1), numbered(1, 2, width=20_000), numbered(3, 1)]) == 2

    assert ring.stats().rows_not_kept == {"too_large": 2}
    assert everything(ring) == [0, 3]
    ring.close()


def test_rows_that_are_too_large_are_told_once_and_leave_the_log_well(folder, caplog):
    """Others between them are kept as ever: nothing has failed, and nothing is mended."""
    ring = LogRing(folder, 1 << 20, record_batch)

    for row in range(3):
        assert ring.append([numbered(row, 1, width=20_000)]) == 0
        assert ring.stats().failing is None
        assert ring.append([numbered(row, 1)]) == 1

    assert ring.stats().rows_not_kept == {"too_large": 3}
    assert [record.getMessage() for record in caplog.records if record.levelname != "INFO"] == [
        "rows are missing from the inference log (too_large): "
        "a row takes more than LOCAL_INFERENCE_STORAGE leaves for one"
    ]
    ring.close()


@pytest.mark.parametrize(
    ("limit_mib", "rows", "width"),
    [(1, 10_000, 29), (8, 1_000, 1_000), (4, 64, 12_288), (24, 3, 99_000)],
)
def test_an_answer_of_many_records_is_kept_to_its_last_row(folder, limit_mib, rows, width):
    """However its rows and the headers of its records round."""
    ring = LogRing(folder, limit_mib << 20, record_batch)

    assert ring.append([numbered(0, rows, width=width)]) == rows

    assert ring.stats().rows_not_kept == {}
    assert everything(ring) == list(range(ring.stats().first_row, rows))
    ring.close()


def test_texts_of_all_lengths_are_kept(folder):
    ring = LogRing(folder, 4 << 20, record_batch)
    luck = random.Random(1)
    rows = [luck.choice([0, 10, 5_000, 120_000]) * "x" for _ in range(60)]

    assert ring.append([answer({"text": rows}, 60)]) == 60

    assert ring.stats().rows_not_kept == {}
    kept = ring.page(PageQuery(page_rows=100)).batch.column("in").field("text").to_pylist()
    assert kept == rows[-len(kept) :]
    ring.close()


def test_a_large_column_behind_255_others(folder):
    rows = 900
    columns = {f"c{index:03}": pa.array(np.full(rows, index, np.float32)) for index in range(256)}
    values = np.arange(rows * 20, dtype=np.float32).reshape(rows, 20)
    ring = LogRing(folder, 64 << 20, record_batch)

    assert (
        ring.append([answer(columns, rows, outputs=(Output("y", values, per_row=True),))]) == rows
    )

    batch = ring.page(PageQuery(page_rows=rows)).batch
    assert batch.column("out").field("y").to_pylist() == values.tolist()
    assert batch.column("in").field("c255").to_pylist() == [255.0] * rows
    ring.close()


def test_what_a_transaction_forgot_in_vain_is_known_again(folder):
    ring = LogRing(folder, 1 << 20, record_batch)
    for number in range(5):
        ring.append([answer({f"column-{number}": [1.0]}, 1)])
    store, contexts = ring._writer.store, ring._writer._contexts
    known = list(contexts._last_use.items())
    with store.env.begin(write=True) as txn:
        contexts.forget(txn, store.contexts, 3)
        assert list(contexts._last_use.items()) == known[-2:]
        txn.abort()

    contexts.roll_back()

    assert list(contexts._last_use.items()) == known
    ring.close()


def test_a_restart_goes_on_where_it_ended(folder):
    for turn in range(3):
        ring = LogRing(folder, 1 << 20, record_batch)
        assert ring.stats().next_row == turn * 10
        ring.append([numbered(turn * 10, 10)])
        ring.close()

    ring = LogRing(folder, 1 << 20, record_batch)
    assert everything(ring) == list(range(30))
    ring.close()


def test_contexts_leave_with_their_rows(folder):
    ring = LogRing(folder, 1 << 20, record_batch)
    for number in range(3000):
        assert ring.append([answer({f"column-{number}": [1.0]}, 1)]) == 1

    stats = ring.stats()
    page = ring.page(PageQuery())
    assert page.batch.schema.field("in").type.field(0).name == f"column-{stats.first_row}"
    assert stats.rows_evicted == stats.first_row > 2000
    assert len(ring._writer._contexts._last_use) <= 3000 - stats.first_row
    ring.close()
    ring = LogRing(folder, 1 << 20, record_batch)
    assert ring.append([answer({"column-2999": [1.0]}, 1)]) == 1
    assert ring.page(PageQuery(start_row=2999)).batch.num_rows == 2
    ring.close()


def test_rows_that_leave_before_they_were_uploaded_are_counted_apart(folder):
    ring = LogRing(folder, 1 << 20, record_batch)
    ring.append([numbered(0, 5_000)])
    assert ring.stats().uploaded_to is None
    ring.mark_uploaded(3_000)
    ring.close()
    ring = LogRing(folder, 1 << 20, record_batch)
    assert ring.stats().uploaded_to == 3_000

    for turn in range(40):
        ring.append([numbered(turn, 1_000)])

    stats = ring.stats()
    assert stats.rows_evicted > 5_000
    assert stats.rows_evicted_before_upload == stats.rows_evicted - 3_000
    ring.close()


def test_failures_are_kept_apart_and_bounded(folder):
    ring = LogRing(folder, 1 << 20, record_batch)
    for turn in range(5):
        for number in range(500):
            ring.failures.add(Failure(turn, f"{number}: " + "x" * 900, "v1", "edge-1"))
        ring.maintain()

    stats = ring.stats()
    page = ring.failures_page(PageQuery(page_rows=10_000))
    rows = page.batch.to_pylist()
    assert (stats.failures_kept, stats.failures_lost) == (2500, 0)
    assert 10 < len(rows) < 200
    assert (page.status, page.next_row) == ("All", 2500)
    assert rows[-1]["error"].startswith("499: x")
    assert rows[-1]["metadata"] == {
        "pipeline_version": "v1",
        "partition": "edge-1",
    }
    ring.close()


def test_a_flood_of_failures_is_counted(folder):
    ring = LogRing(folder, 1 << 20, record_batch)
    for _ in range(1500):
        ring.failures.add(Failure(0, "no \ud800 text", "", ""))

    ring.maintain()

    assert (ring.stats().failures_kept, ring.stats().failures_lost) == (1000, 500)
    (last,) = ring.failures_page(PageQuery(start_row=999)).batch.to_pylist()
    assert last["error"] == "no ? text"
    ring.close()


def test_a_closed_ring_counts_and_reads_as_empty(folder):
    ring = LogRing(folder, 1 << 20, record_batch)
    ring.close()

    assert ring.append([numbered(0, 3)]) == 0
    assert ring.stats().rows_not_kept == {"closed": 3}
    with pytest.raises(NotReadyError, match="closed"):
        ring.page(PageQuery())
    with pytest.raises(NotReadyError, match="closed"):
        ring.failures_page(PageQuery())
    ring.maintain()
    assert ring.stats().closed == "closed"


def test_two_engines_do_not_share_a_folder(folder):
    first = LogRing(folder, 1 << 20, record_batch)
    second = LogRing(folder, 1 << 20, record_batch)

    assert second.append([numbered(0, 1)]) == 0
    assert second.stats().rows_not_kept == {"in_use": 1}
    first.append([numbered(0, 1)])
    first.close()
    second.maintain()
    assert second.append([numbered(1, 1)]) == 1
    assert everything(second) == [0, 1]
    second.close()


def test_a_limit_that_leaves_no_room_is_refused(folder):
    with pytest.raises(ConfigError, match="at least 1Mi"):
        LogRing(folder, (1 << 20) - 1, record_batch)
