"""An open ring on disk: its databases, its files, and how much room they take.

Rules that hold here:
- What takes room is counted in pages, never in bytes: that is what LMDB runs out of.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import pathlib
from typing import TYPE_CHECKING

import lmdb

from engine.logring.gate import Gate
from engine.logring.synced import SyncedState

if TYPE_CHECKING:
    from lmdb import _Database

    from engine.logring.context import LogContext
    from engine.logring.pack import OpenPack

    Txn = lmdb.Transaction[memoryview]
    Database = _Database

__all__ = [
    "DISORDER_MS",
    "JITTER_MS",
    "Store",
    "boot_id",
    "file_stamp",
    "mark",
    "pages",
]

log = logging.getLogger("sagitta")

DISORDER_MS = b"disorder_ms"  # a mark
JITTER_MS = 1_000  # answers are logged in about the order of their times
_RECORD_SHARE = 16  # no record takes more than this part of the map
_BOOT_ID = pathlib.Path("/proc/sys/kernel/random/boot_id")


@dataclasses.dataclass(slots=True)
class Store:
    """An open ring on disk.

    Attributes:
        directory: the folder that holds it.
        env: the environment; rows are in its main database, see ``rows.py``.
        contexts: what many records share, by number.
        failures: failed requests, by number.
        about: marks, by name.
        map_bytes: upper bound of ``data.mdb``.
        page_bytes: LMDB's page size.
        floor_row: no new row may have a smaller number, whatever the file holds.
        owner: descriptor that holds the lock on the folder.
        synced: the state that a power cut leaves.
        pack: the newest rows of small answers; some or all of them are not in ``env`` yet.
        disorder_ms: the largest step back that the clock has made between two rows.
        written_pages: pages that rows have taken since ``begin_sync``.
        reads: every read transaction is inside it while it lasts, so that a writer without room can
            wait for what they pin.
        known_contexts: contexts that were read, by number.
        damaged_rows: where damaged records were met; each is told once.
    """

    directory: pathlib.Path
    env: lmdb.Environment
    contexts: Database
    failures: Database
    about: Database
    map_bytes: int
    page_bytes: int
    floor_row: int
    owner: int
    synced: SyncedState
    pack: OpenPack
    disorder_ms: int
    written_pages: int = 0
    reads: Gate = dataclasses.field(default_factory=functools.partial(Gate, is_open=True))
    known_contexts: dict[int, LogContext] = dataclasses.field(default_factory=dict)
    damaged_rows: set[int] = dataclasses.field(default_factory=set)

    @property
    def data_path(self) -> pathlib.Path:
        """The file that holds the rows."""
        return self.directory / "data.mdb"

    @property
    def largest_record_bytes(self) -> int:
        """A record with more bytes is not kept."""
        return self.map_bytes // _RECORD_SHARE

    @property
    def failure_pages(self) -> int:
        """Pages that the log of failures may take, out of the half that may be live."""
        return max(8, self.map_bytes // self.page_bytes // 32)

    @property
    def budget_pages(self) -> int:
        """Pages that rows and their contexts may take."""
        return self.map_bytes // self.page_bytes // 2 - self.failure_pages - 4

    def write_state(self, next_row: int, *, closed: bool = False) -> None:
        """Note where numbering stands and, once closed, what the file looked like.

        Args:
            next_row: number of the next row.
            closed: the environment is closed and synced: the file may be trusted while it is the
                same file, of the same size, untouched.
        """
        state: dict[str, object] = {"next_row": next_row, "boot": boot_id()}
        if closed:
            state["closed"] = file_stamp(self.data_path)
        temporary = self.directory / "state.json.new"
        with temporary.open("w") as file:
            json.dump(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.directory / "state.json")

    def begin_sync(self) -> tuple[bytes | None, bool]:
        """Hold the newest state for ``sync``; nobody may be writing.

        Returns:
            What to give to it, and whether the state was worth holding. It is not where the whole
            map was written since the last time: it would soon be given up, and until then cost the
            writer all pages that are free.
        """
        is_fast = self.written_pages > self.map_bytes // self.page_bytes
        self.written_pages = 0
        return (None if is_fast else self.synced.begin()), not is_fast

    def sync(self, page: bytes | None, next_row: int) -> None:
        """Bring what is committed to the disk.

        Args:
            page: what ``synced.begin`` gave.
            next_row: number of the next row.

        Raises:
            lmdb.Error: the disk refuses.
            OSError: the disk refuses.
        """
        self.env.sync(True)
        self.synced.complete(page)
        self.write_state(next_row)

    def release(self) -> None:
        """Close what was opened to read."""
        self.synced.release()
        self.pack.close()
        self.env.close()
        os.close(self.owner)

    def close(self, next_row: int, *, clean: bool) -> None:
        """Sync, close, and give the folder back; no thread may be using the environment.

        Args:
            next_row: number of the next row.
            clean: whether all went well: then the file is trusted at the next start.
        """
        try:
            self.synced.release()
            self.env.sync(True)
            self.env.close()
            if clean:
                self.write_state(next_row, closed=True)
        except (lmdb.Error, OSError) as error:
            log.warning("the inference log could not be closed cleanly: %s", error)
        finally:
            self.pack.close()
            self.env.close()
            os.close(self.owner)


def boot_id() -> str:
    """What tells one start of the machine from another; empty where nothing does."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def file_stamp(path: pathlib.Path) -> list[int]:
    """What tells whether a file was touched: inode, size, time of the last change in ns."""
    status = path.stat()
    return [status.st_ino, status.st_size, status.st_mtime_ns]


def mark(txn: Txn, about: Database, name: bytes) -> int | None:
    """A number that is noted under a name; None where there is none."""
    value = txn.get(name, db=about)
    return None if value is None else int.from_bytes(value, "big")


def pages(txn: Txn, db: Database | None = None) -> int:
    """Pages that a database takes; without one, the pages of the rows."""
    stat = txn.stat() if db is None else txn.stat(db)
    return stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
