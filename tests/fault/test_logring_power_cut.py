"""A power cut on a disk that writes in any order: what was synced is there, whatever else is not.

The disk's state after the cut is made by hand: of every sector that was written since the last
sync, the file has one of the versions that it had since then, at random.
"""

import json
import random
import shutil

import pytest
from support.answers import answer, numbered, numbers

from engine.codecs.record_batch import record_batch
from engine.logring import LogRing, PageQuery

pytestmark = pytest.mark.fault

LIMIT_BYTES = 1 << 20
SECTOR_BYTES = 512


class Writer:
    """Fills a ring with rows that are told apart by their number."""

    def __init__(self, folder, seed):
        self.folder = folder
        self.ring = LogRing(folder, LIMIT_BYTES, record_batch)
        self._luck = random.Random(seed)

    def write(self, rows):
        stop = self.ring.stats().next_row + rows
        while (first := self.ring.stats().next_row) < stop:
            count = self._luck.choice([1, 1, 1, 30, 700])
            width = self._luck.choice([4, 4, 60]) if count < 100 else 4
            assert self.ring.append([numbered(first, count, width=width)]) == count

    def files(self):
        return {path.name: path.read_bytes() for path in self.folder.iterdir()}


def mixed(versions, luck):
    """One file out of the sectors of its versions; the first one is what the disk had for sure."""
    share = luck.choice([0.02, 0.5, 0.5, 0.98])
    later = [version for version in versions[1:] if len(version) == len(versions[0])]
    sectors = []
    for at in range(0, len(versions[0]), SECTOR_BYTES):
        source = luck.choice(later) if later and luck.random() < share else versions[0]
        sectors.append(source[at : at + SECTOR_BYTES])
    return b"".join(sectors)


def after_the_cut(folder, snapshots, luck):
    """Write what the disk has into a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, synced in snapshots[0].items():
        versions = [synced, *(snapshot[name] for snapshot in snapshots[1:])]
        if name.startswith("state"):
            state = json.loads(luck.choice(versions))
            (folder / name).write_text(json.dumps({**state, "boot": "the one before"}))
        else:
            (folder / name).write_bytes(mixed(versions, luck))


@pytest.mark.parametrize("more_rows", [3, 200, 4_000, 40_000])
@pytest.mark.parametrize("seed", range(3))
def test_synced_rows_survive_any_mix_of_sectors(tmp_path, more_rows, seed):
    luck = random.Random(seed)
    writer = Writer(tmp_path / "log", seed)
    writer.write(luck.choice([20, 3_000, 40_000]))
    writer.ring.maintain()
    synced_row = writer.ring.stats().next_row
    snapshots = [writer.files()]
    for _ in range(3):
        writer.write(-(-more_rows // 3))
        snapshots.append(writer.files())
    stats = writer.ring.stats()
    writer.ring.close()
    promised = set(range(stats.first_row, synced_row))

    for _ in range(25):
        after_the_cut(tmp_path / "disk", snapshots, luck)
        ring = LogRing(tmp_path / "disk", LIMIT_BYTES, record_batch)
        kept = [n for batch, _ in ring.batches(PageQuery()) for n in numbers(batch)]
        assert kept == sorted(set(kept))
        assert promised <= set(kept)
        assert all(n < stats.next_row for n in kept)
        assert ring.stats().next_row >= stats.next_row, "a number is never given twice"
        assert ring.append([answer({"note": ["after"]}, 1)]) == 1
        newest = ring.page(PageQuery(page_rows=1, descending=True)).batch
        assert newest.column("in").field("note").to_pylist() == ["after"]
        ring.close()


@pytest.mark.parametrize("seed", range(3))
def test_rows_of_a_closed_log_survive_a_cut_after_the_next_start(tmp_path, seed):
    """What a clean end says of the files is not believed once they were written again."""
    luck = random.Random(seed)
    writer = Writer(tmp_path / "log", seed)
    writer.write(40_000)
    writer.ring.close()
    writer.ring = LogRing(tmp_path / "log", LIMIT_BYTES, record_batch)
    closed_row = writer.ring.stats().next_row
    snapshots = [writer.files()]
    writer.write(8_000)
    snapshots.append(writer.files())
    first_row = writer.ring.stats().first_row
    writer.ring.close()

    for _ in range(25):
        after_the_cut(tmp_path / "disk", snapshots, luck)
        ring = LogRing(tmp_path / "disk", LIMIT_BYTES, record_batch)
        kept = [n for batch, _ in ring.batches(PageQuery()) for n in numbers(batch)]
        ring.close()
        assert kept == sorted(set(kept))
        assert set(range(first_row, closed_row)) <= set(kept)
