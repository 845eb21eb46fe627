"""Whatever lies where the log should be: the engine starts, keeps rows, and never dies of it.

Every case runs in a process of its own: reading a damaged map can be a SIGBUS.
"""

import os
import random
import shutil

import lmdb
import pytest
from support.answers import numbered, numbers

from engine.codecs.record_batch import record_batch
from engine.logring import LogRing, PageQuery

pytestmark = pytest.mark.fault

LIMIT_BYTES = 2 << 20
ROWS = 3000


def start_append_read_stop(folder, limit, first):
    """What an engine does with its log; tells the row it started at."""
    ring = LogRing(folder, limit, record_batch)
    start = ring.stats().next_row
    for turn in range(300):
        assert ring.append([numbered(start + turn * 20, 20)]) == 20
    for batch, _ in ring.batches(PageQuery()):
        numbers(batch)
    ring.maintain()
    ring.close()
    first.send(start)


@pytest.fixture
def use(forks):
    """Use the log of a folder in a process of its own; the row it started at."""

    def run(folder, limit=LIMIT_BYTES):
        receiver, sender = forks.Pipe(duplex=False)
        child = forks.Process(target=start_append_read_stop, args=(folder, limit, sender))
        child.start()
        sender.close()
        child.join(timeout=60)
        assert child.exitcode == 0
        return receiver.recv()

    return run


@pytest.fixture
def folder(tmp_path):
    """A log with rows in it, small and large records, as a killed engine leaves it."""
    ring = LogRing(tmp_path / "made", LIMIT_BYTES, record_batch)
    for first in range(0, ROWS // 2, 3):
        ring.append([numbered(first, 3)])
    for first in range(ROWS // 2, ROWS, 500):
        ring.append([numbered(first, 500)])
    ring.maintain()
    ring.close()
    (tmp_path / "log").mkdir()
    shutil.copy(tmp_path / "made" / "data.mdb", tmp_path / "log" / "data.mdb")
    shutil.copy(tmp_path / "made" / "state.json", tmp_path / "log" / "state.json")
    return tmp_path / "log"


def set_aside(folder):
    return list(folder.glob("data.mdb.bad-*"))


def total(folder):
    return sum(path.stat().st_size for path in folder.iterdir())


def used_bytes(folder):
    """How much of the file has data in it; what lies behind is reserved only."""
    data = (folder / "data.mdb").read_bytes()
    return len(data.rstrip(b"\0"))


def test_an_untouched_copy_is_used_as_it_is(folder, use):
    assert use(folder) == ROWS
    assert not set_aside(folder)


def garble(data, size):
    data.write_bytes(random.Random(1).randbytes(size))


def other_endian(data):
    raw = bytearray(data.read_bytes())
    for page in (0, 4096):
        raw[page + 16 : page + 20] = raw[page + 16 : page + 20][::-1]
    data.write_bytes(raw)


def foreign(data):
    """A database of somebody else."""
    data.unlink()
    env = lmdb.open(str(data.parent), lib_version=0, map_size=1 << 20)
    with env.begin(write=True) as txn:
        txn.put(b"\xff" * 8, b"hello")
    env.close()


def newer_format(data):
    data.unlink()
    env = lmdb.open(str(data.parent), lib_version=1, map_size=1 << 20)
    with env.begin(write=True) as txn:
        txn.put(b"\xff" * 8, b"hello")
    env.close()


DAMAGES = {
    "garbage": lambda data: garble(data, 100_000),
    "short": lambda data: garble(data, 10),
    "zeros": lambda data: data.write_bytes(bytes(1 << 20)),
    "one meta page": lambda data: os.truncate(data, 4096),
    "two meta pages": lambda data: os.truncate(data, 8192),
    "truncated": lambda data: os.truncate(data, used_bytes(data.parent) // 2),
    "truncated in a page": lambda data: os.truncate(data, used_bytes(data.parent) // 2 + 100),
    "other endian": other_endian,
    "foreign": foreign,
    "newer format": newer_format,
    "text": lambda data: data.write_text("hello"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_set_aside(folder, damage, use):
    DAMAGES[damage](folder / "data.mdb")

    first = use(folder)

    assert first >= ROWS, "an uploader's position must stay meaningful"
    assert len(set_aside(folder)) == 1
    assert total(folder) <= LIMIT_BYTES
    use(folder)
    assert len(set_aside(folder)) == 1


def test_an_empty_file_is_nothing(folder, use):
    (folder / "data.mdb").write_bytes(b"")

    assert use(folder) >= ROWS
    assert not set_aside(folder)


def test_only_the_newest_damaged_file_is_kept(folder, use):
    for _ in range(3):
        garble(folder / "data.mdb", 2 << 20)
        use(folder)

    assert len(set_aside(folder)) == 1
    assert total(folder) <= LIMIT_BYTES


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_flipped_bytes_never_kill(folder, seed, use):
    """Damage that the checks cannot see (a row's value) is served; all other is set aside."""
    luck = random.Random(seed)
    pristine = (folder / "data.mdb").read_bytes()
    used = used_bytes(folder)
    for _ in range(4):
        raw = bytearray(pristine)
        for _ in range(luck.choice([1, 8, 200])):
            raw[luck.randrange(used)] = luck.randrange(256)
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / "data.mdb").write_bytes(raw)
        use(folder)


@pytest.mark.parametrize("limit", [1 << 20, (1 << 20) + 300_000, 4 << 20, 16 << 20])
def test_another_limit_is_honoured_at_the_next_start(folder, limit, use):
    full = LogRing(folder, LIMIT_BYTES, record_batch)
    for turn in range(100):
        full.append([numbered(ROWS + turn * 300, 300)])
    stop = full.stats().next_row
    full.close()

    ring = LogRing(folder, limit, record_batch)

    kept = [n for batch, _ in ring.batches(PageQuery()) for n in numbers(batch)]
    assert kept == list(range(ring.stats().first_row, stop))
    assert len(kept) > 5_000
    assert total(folder) <= limit
    for turn in range(1000):
        assert ring.append([numbered(stop + turn * 50, 50)]) == 50
    assert total(folder) <= limit
    assert not set_aside(folder)
    ring.close()
    assert use(folder, limit) == stop + 50_000


def test_a_folder_that_cannot_be_made_is_counted_and_tried_again(tmp_path, caplog):
    (tmp_path / "log").write_text("a file where the folder should be")
    ring = LogRing(tmp_path / "log", LIMIT_BYTES, record_batch)

    assert ring.append([numbered(0, 2)]) == 0
    assert ring.stats().rows_not_kept == {"disk": 2}
    assert ring.stats().closed == "disk"
    assert caplog.messages[-1] == "rows are missing from the inference log (disk): it is closed"

    (tmp_path / "log").unlink()
    ring.maintain()
    assert ring.append([numbered(0, 2)]) == 2
    assert ring.stats().failing is None
    ring.close()
