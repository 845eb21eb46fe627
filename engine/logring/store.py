"""An open ring on disk: its databases, the keys of its rows, and how much room they take.

Rules that hold here:
- Rows are in the main database: a record's key is the number of its first row (``ROW_KEY``). A
  large column has a value of its own behind its record's, under that key and one byte more, so that
  it is copied once less. A cursor is always at a record, never at such a column.
- What takes room is counted in pages, never in bytes: that is what LMDB runs out of.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import pathlib
import struct
from typing import TYPE_CHECKING

import lmdb

from engine.logring.gate import Gate
from engine.logring.header import RecordHeader, read_header
from engine.logring.synced import SyncedState

if TYPE_CHECKING:
    from lmdb import Cursor, _Database

    from engine.logring.context import LogContext

    Txn = lmdb.Transaction[memoryview]
    Database = _Database

__all__ = [
    "ROW_KEY",
    "ROW_KEY_BASE",
    "Store",
    "boot_id",
    "evict",
    "file_stamp",
    "first_row",
    "header_of",
    "pages",
    "row_key",
    "row_of",
    "stop_row",
    "to_last",
    "to_next",
    "to_previous",
    "to_row",
]

log = logging.getLogger("sagitta")

ROW_KEY = struct.Struct(">Q")
# Row keys sort after the names of the named databases, which LMDB keeps in the same tree: so the
# newest row is always the last key, and appending never splits a page in half.
ROW_KEY_BASE = 1 << 63
_BOOT_ID = pathlib.Path("/proc/sys/kernel/random/boot_id")
_FIRST_KEY = ROW_KEY.pack(ROW_KEY_BASE)


@dataclasses.dataclass(slots=True)
class Store:
    """An open ring on disk.

    Attributes:
        directory: the folder that holds it.
        env: the environment; rows are in its main database under ``ROW_KEY``.
        contexts: what many records share, by number.
        failures: failed requests, by number.
        about: marks, by name.
        map_bytes: upper bound of ``data.mdb``.
        page_bytes: LMDB's page size.
        floor_row: no new row may have a smaller number, whatever the file holds.
        owner: descriptor that holds the lock on the folder.
        synced: the state that a power cut leaves.
        disorder_ms: the largest step back that the clock has made between two rows.
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
    disorder_ms: int = 0
    reads: Gate = dataclasses.field(default_factory=functools.partial(Gate, is_open=True))
    known_contexts: dict[int, LogContext] = dataclasses.field(default_factory=dict)
    damaged_rows: set[int] = dataclasses.field(default_factory=set)

    @property
    def data_path(self) -> pathlib.Path:
        """The file that holds the rows."""
        return self.directory / "data.mdb"

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


def pages(txn: Txn, db: Database | None = None) -> int:
    """Pages that a database takes; without one, the pages of the rows."""
    stat = txn.stat() if db is None else txn.stat(db)
    return stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]


def first_row(txn: Txn) -> int | None:
    """Number of the oldest row; None where there is no row."""
    cursor = txn.cursor()
    return row_of(cursor) if cursor.set_range(_FIRST_KEY) else None


def stop_row(txn: Txn) -> int:
    """The row after the newest one; 0 where there is no row.

    Raises:
        ValueError: the newest record is damaged.
    """
    cursor = txn.cursor()
    return row_of(cursor) + read_header(cursor.value()).rows if to_last(cursor) else 0


def row_key(row: int) -> bytes:
    """The key of the record that begins with a row."""
    return ROW_KEY.pack(ROW_KEY_BASE + row)


def row_of(cursor: Cursor[memoryview]) -> int:
    """The first row of the record that the cursor is at."""
    return int(ROW_KEY.unpack_from(cursor.key())[0]) - ROW_KEY_BASE


def to_next(cursor: Cursor[memoryview]) -> bool:
    """Move to the next record; False where there is none."""
    while cursor.next():
        if len(cursor.key()) == ROW_KEY.size:
            return True
    return False


def to_previous(cursor: Cursor[memoryview]) -> bool:
    """Move to the record before; False where there is none."""
    return bool(cursor.prev()) and _to_own_record(cursor)


def to_last(cursor: Cursor[memoryview]) -> bool:
    """Move to the newest record; False where there is none."""
    return bool(cursor.last()) and _to_own_record(cursor)


def _to_own_record(cursor: Cursor[memoryview]) -> bool:
    """From a record or one of its columns to the record; False from what is no row."""
    key = bytes(cursor.key())
    return key >= _FIRST_KEY and bool(cursor.set_range(key[: ROW_KEY.size]))


def header_of(cursor: Cursor[memoryview]) -> RecordHeader | None:
    """The header of the record that the cursor is at; None where it is damaged."""
    try:
        return read_header(cursor.value())
    except ValueError:
        return None


def to_row(cursor: Cursor[memoryview], row: int, *, forward: bool) -> bool:
    """Move to the record with this row; where it is in a gap, to the next or the one before."""
    key = row_key(row)
    found = cursor.set_range(key)  # the first record that starts at the row or later
    if found and bytes(cursor.key()) == key:
        return True
    if to_previous(cursor) if found else to_last(cursor):
        header = header_of(cursor)
        if not forward or (header is not None and row_of(cursor) + header.rows > row):
            return True
        return to_next(cursor)
    return forward and bool(cursor.set_range(key))


def evict(txn: Txn, count: int, page_bytes: int) -> int:
    """Delete the oldest records until about this many pages are free.

    Args:
        txn: a write transaction.
        count: how many pages to free; the caller measures again afterwards.
        page_bytes: LMDB's page size.

    Returns:
        How many values were deleted; 0 where no row is left.
    """
    wanted = count * page_bytes
    freed = deleted = 0
    cursor = txn.cursor()
    if not cursor.set_range(_FIRST_KEY):
        return 0
    while freed < wanted or len(cursor.key()) > ROW_KEY.size:
        size = len(cursor.value())  # 0 behind the last record: no value is empty
        if not size:
            break
        # a value of half a page or more has pages of its own
        freed += size + 24 if size < page_bytes // 2 else -(-(size + 16) // page_bytes) * page_bytes
        cursor.delete()
        deleted += 1
    return deleted
