"""A log's folder: whose it is, what is known of its last use, and its rings of segments.

Rules that hold here:
- One process owns the folder (``owner.lock``): row numbers are counted in memory.
- What full segments say of themselves is believed where nothing can have been lost since: the
  engine closed the log, or only the engine died and the machine did not (``boot``). After a power
  cut every record is checked, since a disk may have kept what was written later and not what was
  written before.
- Row numbers go on growing whatever was lost: an uploader's position stays meaningful.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import logging
import os
import pathlib
import threading
import time

from engine.errors import ConfigError
from engine.logring.context import LogContext
from engine.logring.segments import SegmentRing

__all__ = ["Store", "StoreUnavailableError", "open_store", "open_to_read"]

log = logging.getLogger("sagitta")

MIN_LIMIT_BYTES = 1 << 20
_OVERHEAD_BYTES = 32 << 10  # owner.lock, state.json and the folder itself
_FAILURES_SHARE = 32  # part of the limit that failed requests may take
_FAILURES_BYTES = 8 << 20
_SEGMENTS = 16
_SEGMENT_BYTES = 64 << 20  # a larger limit has more segments instead of larger ones
_MOST_SEGMENTS = 256  # each is an open file
_ROW_GAP = 1 << 20  # rows that may have been numbered after state.json was last written
_DAMAGES_TOLD = 100
_BOOT_ID = pathlib.Path("/proc/sys/kernel/random/boot_id")


class StoreUnavailableError(Exception):
    """The log cannot be opened now; trying again later may help.

    Attributes:
        reason: one word for counters: ``in_use`` or ``disk``.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclasses.dataclass(frozen=True, slots=True)
class _State:
    """What was noted about a log.

    Attributes:
        next_row: the row that numbering had reached, or a little less.
        uploaded_to: the row that an uploader sends next; None where there never was one.
        boot: the machine's start that this is of.
        is_closed: the log was closed, and everything is on the disk.
    """

    next_row: int
    uploaded_to: int | None
    boot: str
    is_closed: bool

    @classmethod
    def read(cls, directory: pathlib.Path) -> _State | None:
        """What is noted; None where nothing is, or nothing that can be read."""
        try:
            state = json.loads((directory / "state.json").read_bytes())
            uploaded_to = state["uploaded_to"]
            return cls(
                int(state["next_row"]),
                None if uploaded_to is None else int(uploaded_to),
                str(state["boot"]),
                state["is_closed"] is True,
            )
        except (OSError, ValueError, TypeError, KeyError):
            return None


@dataclasses.dataclass(slots=True)
class Store:
    """An open log on disk.

    Attributes:
        directory: the folder that holds it.
        owner: descriptor that holds the lock on the folder.
        rows: answered rows.
        failures: failed requests.
        first_new_row: number of the next row.
        uploaded_to: the row that an uploader sends next; None where there never was one.
        known_contexts: contexts that were read, by their segment and place.
    """

    directory: pathlib.Path
    owner: int
    rows: SegmentRing
    failures: SegmentRing
    first_new_row: int = 0
    uploaded_to: int | None = None
    known_contexts: dict[object, LogContext] = dataclasses.field(default_factory=dict)
    _damaged_rows: set[int] = dataclasses.field(default_factory=set)
    _state_lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def tell_damage(self, row: int, what: str) -> None:
        """Say once that the records from a row on cannot be read."""
        if row not in self._damaged_rows and len(self._damaged_rows) < _DAMAGES_TOLD:
            self._damaged_rows.add(row)
            log.error("the inference log is damaged at row %d: %s", row, what)

    def write_state(self, next_row: int, *, is_closed: bool = False, is_durable: bool) -> None:
        """Note where numbering and uploading stand.

        Args:
            next_row: number of the next row.
            is_closed: all segments are on the disk, and nothing is written any more.
            is_durable: return only once this is on the disk.

        Raises:
            OSError: the disk refuses.
        """
        state = _State(next_row, self.uploaded_to, _boot(), is_closed)
        temporary = self.directory / "state.json.new"
        with self._state_lock, temporary.open("w") as file:
            json.dump(dataclasses.asdict(state), file)
            if is_durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(self.directory / "state.json")
        if is_durable:
            folder = os.open(self.directory, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def sync(self, next_row: int) -> None:
        """Bring everything that was written to the disk, then note how far it goes.

        Raises:
            OSError: the disk refuses.
        """
        self.rows.sync()
        self.failures.sync()
        self.write_state(next_row, is_durable=True)

    def close(self, next_row: int) -> None:
        """Sync, close, and give the folder back; nobody may be reading or writing."""
        try:
            self.sync(next_row)
            self.write_state(next_row, is_closed=True, is_durable=True)
        except OSError as error:
            log.warning("the inference log could not be closed cleanly: %s", error)
        finally:
            self.release()

    def release(self) -> None:
        """Close the files and give the folder back; nobody may be reading."""
        self.rows.close()
        self.failures.close()
        os.close(self.owner)


def open_store(directory: pathlib.Path, limit_bytes: int) -> Store:
    """Open the log under a folder, or make it.

    Args:
        directory: created with mode 0700 where it is missing.
        limit_bytes: bound of everything under the folder; at least 1 MiB.

    Returns:
        The store, owned by this process.

    Raises:
        ConfigError: the limit is too small.
        StoreUnavailableError: another process has it, or the disk refuses.
    """
    if limit_bytes < MIN_LIMIT_BYTES:
        raise ConfigError(
            f"LOCAL_INFERENCE_STORAGE is {limit_bytes} bytes: the log needs at least 1Mi"
        )
    store = None
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        store = _describe(directory, limit_bytes, os.O_RDWR | os.O_CREAT)
        _load(store, os.O_RDWR)
        store.rows.fit()
        store.failures.fit()
        store.write_state(store.first_new_row, is_durable=True)
    except OSError as error:
        if store is not None:
            store.release()
        raise StoreUnavailableError("disk", f"{directory}: {error}") from error
    if not (store.rows.is_reserved and store.failures.is_reserved):
        log.warning(
            "the inference log could not reserve its %d bytes: rows are dropped and counted "
            "whenever the disk is full",
            limit_bytes,
        )
    return store


def open_to_read(directory: pathlib.Path) -> Store:
    """Open the log of an engine that does not run, without changing anything in it.

    Args:
        directory: the log's folder; may be on a read-only disk.

    Returns:
        The store; its lock keeps an engine from starting on it meanwhile.

    Raises:
        StoreUnavailableError: there is none, or an engine has it.
    """
    if not (directory / "owner.lock").is_file():
        raise StoreUnavailableError("disk", f"{directory} holds no inference log")
    store = None
    try:
        store = _describe(directory, MIN_LIMIT_BYTES, os.O_RDONLY)
        _load(store, os.O_RDONLY)
    except OSError as error:
        if store is not None:
            store.release()
        raise StoreUnavailableError("disk", f"{directory}: {error}") from error
    return store


def _describe(directory: pathlib.Path, limit_bytes: int, flags: int) -> Store:
    """Lock the folder and share the limit out."""
    owner = os.open(directory / "owner.lock", flags | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(owner)
        raise StoreUnavailableError("in_use", f"{directory} belongs to a running engine") from error
    failures_bytes = min(limit_bytes // _FAILURES_SHARE, _FAILURES_BYTES)
    rows_bytes = limit_bytes - _OVERHEAD_BYTES - failures_bytes
    count = min(max(_SEGMENTS, rows_bytes // _SEGMENT_BYTES), _MOST_SEGMENTS)
    return Store(
        directory,
        owner,
        SegmentRing(directory, "rows", rows_bytes, count),
        SegmentRing(directory, "failures", failures_bytes, 2),
    )


def _load(store: Store, flags: int) -> None:
    state = _State.read(store.directory)
    is_trusted = state is not None and (state.is_closed or state.boot == _boot())
    store.rows.load(is_trusted=is_trusted, flags=flags)
    store.failures.load(is_trusted=is_trusted, flags=flags)
    stop_row = store.rows.stop_row
    if state is None:
        store.first_new_row = stop_row and stop_row + _ROW_GAP
        return
    store.uploaded_to = state.uploaded_to
    store.first_new_row = max(stop_row, state.next_row, state.uploaded_to or 0)
    if not state.is_closed and (not is_trusted or stop_row < state.next_row):
        store.first_new_row += _ROW_GAP


def _boot() -> str:
    """What tells one start of the machine from another."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return f"unknown-{os.getpid()}-{time.time_ns()}"  # like no other: nothing is believed
