"""Whatever lies where the log should be: the engine starts, keeps rows, and never dies of it.

Every case runs in a process of its own, so that a crash would be seen.
"""

import json
import os
import random
import shutil
import subprocess
import sys

import pytest
from support.answers import numbered, numbers

from engine.codecs.record_batch import record_batch
from engine.logring import LogRing, PageQuery

pytestmark = pytest.mark.fault

LIMIT_BYTES = 2 << 20
ROWS = 12_000
USE = """
import sys, pathlib
sys.path[:0] = {path!r}
from support.answers import numbered, numbers
from engine.codecs.record_batch import record_batch
from engine.logring import LogRing, PageQuery
ring = LogRing(pathlib.Path({folder!r}), {limit}, record_batch)
first = ring.stats().next_row
kept = [n for batch, _ in ring.batches(PageQuery()) for n in numbers(batch)]
for turn in range(300):
    assert ring.append([numbered(first + turn * 20, 20)]) == 20
for batch, _ in ring.batches(PageQuery()):
    numbers(batch)
ring.maintain()
ring.close()
print(first, sorted(set(range({rows})) - set(kept)))
"""


@pytest.fixture
def folder(tmp_path):
    """A log with rows in it, small and large records, in several files."""
    ring = LogRing(tmp_path / "log", LIMIT_BYTES, record_batch)
    for first in range(0, ROWS // 2, 3):
        ring.append([numbered(first, 3)])
    for first in range(ROWS // 2, ROWS, 500):
        ring.append([numbered(first, 500)])
    ring.maintain()
    ring.close()
    return tmp_path / "log"


def use(folder, limit=LIMIT_BYTES):
    """Start, read, append, read, stop: the row it started at, and the rows that were missing."""
    code = USE.format(path=[*sys.path], folder=str(folder), limit=limit, rows=ROWS)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    first, _, missing = done.stdout.partition(" ")
    return int(first), json.loads(missing)


def total(folder):
    return sum(path.stat().st_size for path in folder.iterdir())


def used(folder):
    """The files that hold rows, the oldest first: each one's bytes up to where rows end."""
    files = [path for path in sorted(folder.glob("rows-*")) if path.read_bytes().rstrip(b"\0")]
    return {
        path: len(path.read_bytes().rstrip(b"\0"))
        for path in sorted(files, key=lambda path: path.read_bytes()[8:16])
    }


def test_an_untouched_copy_is_used_as_it_is(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")

    assert use(tmp_path / "copy") == (ROWS, [])


def garble(path, size):
    path.write_bytes(random.Random(1).randbytes(size))


def other_endian(path, used_bytes):
    raw = bytearray(path.read_bytes())
    for at in range(0, used_bytes, 8):
        raw[at : at + 8] = raw[at : at + 8][::-1]
    path.write_bytes(raw)


def newer_format(path, used_bytes):
    raw = path.read_bytes()
    path.write_bytes(b"sagilog2" + raw[8:])


DAMAGES = {
    "garbage": lambda path, _: garble(path, 100_000),
    "short": lambda path, _: garble(path, 10),
    "empty": lambda path, _: path.write_bytes(b""),
    "gone": lambda path, _: path.unlink(),
    "zeros": lambda path, _: path.write_bytes(bytes(1 << 20)),
    "a header only": lambda path, _: os.truncate(path, 64),
    "truncated": lambda path, used_bytes: os.truncate(path, used_bytes // 2),
    "other endian": other_endian,
    "newer format": newer_format,
    "text": lambda path, _: path.write_text("hello"),
    "a hole": lambda path, used_bytes: hole(path, used_bytes // 2),
}


def hole(path, at):
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes(4096))


@pytest.mark.parametrize(
    ("which", "state"), [("oldest", "lost"), ("middle", "closed"), ("newest", "closed")]
)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_costs_no_rows_of_other_files(folder, damage, which, state):
    files = used(folder)
    paths = [*files]
    assert len(paths) >= 3
    place = {"oldest": 0, "middle": 1, "newest": -1}[which] % len(paths)
    bounds = [*(int.from_bytes(path.read_bytes()[8:16], "little") for path in paths), ROWS]
    DAMAGES[damage](paths[place], files[paths[place]])
    if state == "lost":
        (folder / "state.json").unlink()

    first, missing = use(folder)

    assert missing
    assert set(missing) <= set(range(bounds[place], bounds[place + 1]))
    if state == "closed":
        assert first >= ROWS, "an uploader's position must stay meaningful"
    assert total(folder) <= LIMIT_BYTES


def test_a_log_of_nothing_but_damage_begins_anew(folder):
    for path in used(folder):
        garble(path, 100_000)

    first, missing = use(folder)

    assert (first >= ROWS, len(missing)) == (True, ROWS)


def test_a_file_that_is_there_twice_is_read_once(folder):
    oldest = next(iter(used(folder)))
    spare = next(path for path in folder.glob("rows-*") if path not in used(folder))
    shutil.copy(oldest, spare)

    assert use(folder) == (ROWS, [])


@pytest.mark.parametrize("state", [b"", b"{}", b"[]", b"hello", b'{"next_row":"x"}', bytes(100)])
def test_a_damaged_state_costs_no_row(folder, state):
    (folder / "state.json").write_bytes(state)

    first, missing = use(folder)

    assert (first > ROWS, missing) == (True, [])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_flipped_bytes_never_kill(folder, seed):
    """Damage that cannot be seen where files are trusted (a row's value) is served."""
    luck = random.Random(seed)
    pristine = {path: (path.read_bytes(), size) for path, size in used(folder).items()}
    for is_trusted in (True, True, False, False):
        if not is_trusted:
            (folder / "state.json").unlink()
        for path, (data, size) in pristine.items():
            raw = bytearray(data)
            for _ in range(luck.choice([0, 1, 8, 200])):
                raw[luck.randrange(size)] = luck.randrange(256)
            path.write_bytes(raw)
        use(folder)


@pytest.mark.parametrize("limit", [1 << 20, (1 << 20) + 300_000, 4 << 20, 16 << 20])
def test_another_limit_is_honoured_at_the_next_start(folder, limit):
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
    ring.close()
    assert use(folder, limit)[0] == stop + 50_000


def test_a_folder_that_cannot_be_made_is_counted_and_tried_again(tmp_path):
    (tmp_path / "log").write_text("a file where the folder should be")
    ring = LogRing(tmp_path / "log", LIMIT_BYTES, record_batch)

    assert ring.append([numbered(0, 2)]) == 0
    assert ring.stats().rows_not_kept == {"disk": 2}
    assert ring.stats().closed == "disk"

    (tmp_path / "log").unlink()
    ring.maintain()
    assert ring.append([numbered(0, 2)]) == 2
    assert ring.stats().failing is None
    ring.close()
