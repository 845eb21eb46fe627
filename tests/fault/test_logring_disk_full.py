"""A disk that is full or read-only: answers go on, rows are counted, keeping resumes by itself."""

import contextlib
import os
import subprocess
import threading

import pytest
from support.answers import numbered, numbers

from engine.codecs.record_batch import record_batch
from engine.config.persist import resolve_persist_dir
from engine.errors import ConfigError
from engine.logring import LogRing, PageQuery

pytestmark = pytest.mark.fault


@pytest.fixture
def disk(tmp_path):
    """A small file system of its own."""
    point = tmp_path / "disk"
    point.mkdir()
    mount(point, "-t", "tmpfs", "-o", "size=3m", "tmpfs")
    yield point
    subprocess.run(["umount", "-l", str(point)], check=False)


def mount(point, *arguments):
    try:
        subprocess.run(
            ["mount", *arguments, str(point)], check=True, capture_output=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"cannot mount a file system here: {error}")


def fill(disk):
    """Leave no free byte."""
    with (disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def append_until(ring, first, wanted):
    """Append until an append keeps (or does not keep) its rows; the next number."""
    for _ in range(20_000):
        kept = ring.append([numbered(first, 5)])
        first += 5
        if (kept > 0) == wanted:
            return first
    raise AssertionError("it never came to that")


def everything(ring):
    return [n for batch, _ in ring.batches(PageQuery()) for n in numbers(batch)]


def test_reserved_space_is_not_taken_by_others(disk):
    ring = LogRing(disk / "log", 2 << 20, record_batch)
    fill(disk)

    for first in range(0, 100_000, 50):
        assert ring.append([numbered(first, 50)]) == 50
    ring.maintain()

    assert everything(ring)[-1] == 99_999
    assert ring.stats().rows_not_kept == {}
    ring.close()


def test_a_full_disk_is_counted_and_keeping_resumes(disk, caplog):
    ring = LogRing(disk / "log", 16 << 20, record_batch)  # more than there is: cannot be reserved
    append_until(ring, 0, wanted=True)
    fill(disk)

    first = append_until(ring, 5, wanted=False)
    for number in range(100):
        assert ring.append([numbered(number, 5)]) == 0
    stats = ring.stats()
    assert stats.rows_not_kept == {"disk": 505}
    assert stats.failing == "disk"
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert f"no space left on the disk of {disk / 'log'}, 0 bytes are free" in told
    ring.maintain()
    assert everything(ring) == list(range(first - 5))

    (disk / "filler").unlink()
    assert ring.append([numbered(0, 5)]) == 5
    assert ring.stats().failing is None
    assert len(everything(ring)) == first
    ring.close()


def test_rows_that_came_one_by_one_stay_readable_on_a_full_disk(disk):
    """The open pack is full and cannot become a value; nothing of it is lost meanwhile."""
    ring = LogRing(disk / "log", 16 << 20, record_batch)
    assert ring.append([numbered(0, 1)]) == 1
    fill(disk)

    row = 1
    while ring.append([numbered(row, 1)]):
        row += 1
    ring.maintain()
    assert everything(ring) == list(range(row))
    assert ring.stats().rows_not_kept == {"disk": 1}
    ring.close()

    (disk / "filler").unlink()
    ring = LogRing(disk / "log", 16 << 20, record_batch)
    assert everything(ring) == list(range(row))
    for more in range(5):
        assert ring.append([numbered(row + more, 1)]) == 1
    assert everything(ring) == list(range(row + 5))
    ring.close()


def test_a_log_that_starts_on_a_full_disk_begins_once_there_is_room(disk):
    fill(disk)
    ring = LogRing(disk / "log", 1 << 20, record_batch)

    assert ring.append([numbered(0, 5)]) == 0
    (disk / "filler").unlink()
    ring.maintain()

    assert ring.append([numbered(0, 5)]) == 5
    assert everything(ring) == [0, 1, 2, 3, 4]
    ring.close()


def test_a_read_only_disk_is_counted_and_keeping_resumes(disk):
    LogRing(disk / "log", 1 << 20, record_batch).close()
    mount(disk, "-o", "remount,ro")
    ring = LogRing(disk / "log", 1 << 20, record_batch)

    assert ring.append([numbered(0, 5)]) == 0
    assert ring.stats().rows_not_kept == {"disk": 5}
    mount(disk, "-o", "remount,rw")
    ring.maintain()

    assert ring.append([numbered(0, 5)]) == 5
    ring.close()


def test_a_damaged_file_on_a_read_only_disk_does_not_stop_the_start(disk):
    LogRing(disk / "log", 1 << 20, record_batch).close()
    os.truncate(disk / "log" / "data.mdb", 10_000)
    mount(disk, "-o", "remount,ro")

    ring = LogRing(disk / "log", 1 << 20, record_batch)

    assert ring.stats().closed == "disk"
    ring.close()


@pytest.mark.slow
def test_readers_and_writers_at_once(tmp_path):
    """Pages stay whole while rows come and leave at full rate, and no append is refused."""
    ring = LogRing(tmp_path / "log", 4 << 20, record_batch)
    stop, problems, pages = threading.Event(), [], []

    def read(*, descending):
        while not stop.is_set():
            page = ring.page(PageQuery(page_rows=5000, descending=descending))
            seen = [] if page.batch is None else numbers(page.batch)
            pages.append(len(seen))
            expected = sorted(range(min(seen), max(seen) + 1), reverse=descending) if seen else []
            if seen != expected:
                problems.append(seen)

    readers = [
        threading.Thread(target=read, kwargs={"descending": descending})
        for descending in (False, True)
    ]
    for reader in readers:
        reader.start()
    first = 0
    try:
        for turn in range(3000):
            rows = (1, 40, 900)[turn % 3]
            assert ring.append([numbered(first, rows)]) == rows
            first += rows
    finally:
        stop.set()
        for reader in readers:
            reader.join(timeout=30)
    assert not problems
    assert sum(pages) > 0
    assert ring.stats().rows_not_kept == {}
    ring.close()


def test_a_read_only_volume_is_called_so_at_start(disk):
    mount(disk, "-o", "remount,ro")

    with pytest.raises(ConfigError, match="mounted read-only"):
        resolve_persist_dir(disk)
