"""A power cut on a disk that writes in any order: the log goes on from its last synced state.

The disk's state after the cut is made by hand: of every sector of the file that was written since
the last sync, it has one of the versions that the sector had since then, at random.
"""

import json
import random
import shutil

import pytest
from support.answers import numbered, numbers

from engine.codecs.record_batch import record_batch
from engine.logring import LogRing, PageQuery, opening

pytestmark = pytest.mark.fault

LIMIT_BYTES = 4 << 20
SECTOR_BYTES = 512
CUTS = 20


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
    """One file out of the sectors of its versions; the first is what the disk had for sure."""
    share = luck.choice([0.02, 0.5, 0.5, 0.98])
    sectors = []
    for at in range(0, len(versions[0]), SECTOR_BYTES):
        source = luck.choice(versions[1:]) if luck.random() < share else versions[0]
        sectors.append(source[at : at + SECTOR_BYTES])
    return b"".join(sectors)


def after_the_cut(folder, snapshots, luck):
    """Write what the disk has into a folder, as another start of the machine finds it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, last in snapshots[-1].items():
        data = last
        if name in {"data.mdb", "newest.rows"}:
            data = mixed([snapshot[name] for snapshot in snapshots], luck)
        elif name == "state.json":
            data = json.dumps({**json.loads(data), "boot": "the one before"}).encode()
        (folder / name).write_bytes(data)


def everything(ring):
    return [n for batch, _ in ring.batches(PageQuery()) for n in numbers(batch)]


def assert_goes_on_from(rows, synced):
    """All that was synced is there, and what is there of later rows follows without a hole."""
    assert rows[: len(synced)] == synced
    assert rows == list(range(rows[0], rows[0] + len(rows)))


@pytest.mark.parametrize("more_rows", [3, 200, 5_000])
@pytest.mark.parametrize("seed", range(3))
def test_synced_rows_survive_any_mix_of_sectors(tmp_path, more_rows, seed):
    luck = random.Random(seed)
    writer = Writer(tmp_path / "log", seed)
    writer.write(luck.choice([20, 3_000, 80_000]))
    writer.ring.maintain()
    writer.ring.maintain()  # where the first one found that rows came too fast
    synced = everything(writer.ring)
    snapshots = [writer.files()]
    for _ in range(3):
        writer.write(-(-more_rows // 3))
        snapshots.append(writer.files())
    next_row = writer.ring.stats().next_row
    writer.ring.close()
    assert "synced.meta" in snapshots[-1]

    for _ in range(CUTS):
        after_the_cut(tmp_path / "disk", snapshots, luck)
        ring = LogRing(tmp_path / "disk", LIMIT_BYTES, record_batch)
        assert_goes_on_from(everything(ring), synced)
        first = ring.stats().next_row
        assert first >= next_row, "a number is never given twice"
        assert ring.append([numbered(first, 3)]) == 3
        assert everything(ring)[-3:] == [first, first + 1, first + 2]
        ring.close()
        assert not list((tmp_path / "disk").glob("*.bad-*"))


def test_rows_survive_a_cut_in_the_first_second_after_a_start(tmp_path):
    """What a clean end says of the file is not believed once it was written again."""
    luck = random.Random(1)
    writer = Writer(tmp_path / "log", 1)
    writer.write(40_000)
    writer.ring.close()
    writer.ring = LogRing(tmp_path / "log", LIMIT_BYTES, record_batch)
    closed = everything(writer.ring)
    snapshots = [writer.files()]
    writer.write(5_000)
    snapshots.append(writer.files())
    writer.ring.close()

    for _ in range(CUTS):
        after_the_cut(tmp_path / "disk", snapshots, luck)
        ring = LogRing(tmp_path / "disk", LIMIT_BYTES, record_batch)
        assert_goes_on_from(everything(ring), closed)
        ring.close()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_rows_that_came_one_by_one_since_the_last_sync(tmp_path, share):
    """They are there where the disk has the pack as it was at some moment, and else none is."""
    luck = random.Random(5)
    writer = Writer(tmp_path / "log", 5)
    for row in range(40):
        assert writer.ring.append([numbered(row, 1)]) == 1
        if row == 9:
            writer.ring.maintain()
            snapshots = [writer.files()]
    snapshots.append(writer.files())
    writer.ring.close()

    for _ in range(CUTS):
        after_the_cut(tmp_path / "disk", snapshots, luck)
        packs = [snapshot["newest.rows"] for snapshot in snapshots]
        sectors = [
            luck.choices(packs, [1 - share, share])[0][at : at + SECTOR_BYTES]
            for at in range(0, len(packs[0]), SECTOR_BYTES)
        ]
        (tmp_path / "disk" / "newest.rows").write_bytes(b"".join(sectors))
        ring = LogRing(tmp_path / "disk", LIMIT_BYTES, record_batch)
        kept = len(everything(ring))
        assert everything(ring) == list(range(kept))
        assert kept in {0.0: {10}, 0.5: {10, 40}, 1.0: {40}}[share]
        ring.close()


def test_a_ring_that_was_cut_down_does_not_go_back_to_what_it_was(tmp_path):
    """The power is cut when the smaller file has just taken the place of the larger one."""
    writer = Writer(tmp_path / "log", 3)
    writer.write(80_000)
    writer.ring.maintain()
    writer.ring.maintain()
    stop = writer.ring.stats().next_row
    after_the_cut(tmp_path / "disk", [writer.files()] * 2, random.Random(3))
    writer.ring.close()
    assert (tmp_path / "disk" / "synced.meta").exists()

    opening._shrink(
        tmp_path / "disk", opening._open_env(tmp_path / "disk", LIMIT_BYTES), LIMIT_BYTES // 4
    )
    ring = LogRing(tmp_path / "disk", LIMIT_BYTES // 3, record_batch)

    rows = everything(ring)
    assert rows == list(range(rows[0], stop))
    assert ring.append([numbered(ring.stats().next_row, 3)]) == 3
    ring.close()
    assert not list((tmp_path / "disk").glob("*.bad-*"))


def test_a_ring_written_over_between_two_syncs_keeps_rows_and_starts_again(tmp_path):
    """The synced state is given up, on the disk as well, before one of its pages is used."""
    luck = random.Random(2)
    writer = Writer(tmp_path / "log", 2)
    writer.write(40_000)
    writer.ring.maintain()
    snapshots = [writer.files()]
    for _ in range(3):
        writer.write(60_000)
        snapshots.append(writer.files())
    assert writer.ring.stats().rows_not_kept == {}
    assert "synced.meta" not in snapshots[-1]
    writer.ring.maintain()  # too fast to be held: it would be in the way, and given up again
    assert "synced.meta" not in writer.files()
    writer.ring.maintain()
    assert "synced.meta" in writer.files()
    writer.ring.close()

    for _ in range(CUTS):
        after_the_cut(tmp_path / "disk", snapshots, luck)
        ring = LogRing(tmp_path / "disk", LIMIT_BYTES, record_batch)
        first = ring.stats().next_row
        assert ring.append([numbered(first, 3)]) == 3
        ring.close()
