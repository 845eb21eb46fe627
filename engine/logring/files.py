"""The ring's files before LMDB sees them: whose they are, whether they are sound.

Rules that hold here:
- Nothing here maps a file into memory: the check reads it, so that no damage can hurt.
- A file that was closed by us and is untouched since is trusted. The check of any other takes as
  long as it has values: 0.1 s for a ring of 1 GiB whose rows are numbers, 3 s for one of a million
  records of text. It is told before it begins, and how long it took where it took long.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import logging
import os
import struct
import time
from typing import TYPE_CHECKING

import lmdb
import lmdb.verify

from engine.logring.store import file_stamp

if TYPE_CHECKING:
    import pathlib

__all__ = [
    "StoreUnavailableError",
    "disk_text",
    "find_damage",
    "own_folder",
    "read_state",
    "set_aside",
]

log = logging.getLogger("sagitta")

_LONG_S = 2.0
_SPARE_BYTES = 4 << 20  # where fewer are free, a disk that takes no more is full
SET_ASIDE_SHARE = 8  # a damaged file keeps at most this fraction of the limit
_DAMAGE = (  # what a hostile file makes the verifier raise, besides what it reports
    lmdb.verify.VerifyError,
    struct.error,
    IndexError,
    ValueError,
    OverflowError,
    MemoryError,
    RecursionError,
)


class StoreUnavailableError(Exception):
    """The ring cannot be opened now; trying again later may help.

    Attributes:
        reason: one word for counters: ``in_use`` or ``disk``.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


def disk_text(error: lmdb.Error, directory: pathlib.Path) -> str:
    """Why LMDB could not write: it says of a full disk that reading or writing has failed."""
    disk = os.statvfs(directory)
    free_bytes = disk.f_bavail * disk.f_frsize
    if not isinstance(error, lmdb.DiskError) or free_bytes >= _SPARE_BYTES:
        return str(error)
    return f"no space left on the disk of {directory}, {free_bytes} bytes are free: make room there"


def own_folder(directory: pathlib.Path, flags: int = os.O_RDWR | os.O_CREAT) -> int:
    """Lock the folder for this process; the descriptor that holds the lock.

    Raises:
        StoreUnavailableError: another process has it.
        OSError: the disk refuses.
    """
    descriptor = os.open(directory / "owner.lock", flags | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise StoreUnavailableError("in_use", f"{directory} belongs to a running engine") from error
    return descriptor


def read_state(directory: pathlib.Path) -> tuple[int, object, str | None]:
    """Where numbering stood, the file's stamp if it was closed by us, and the machine's start."""
    try:
        state = json.loads((directory / "state.json").read_text())
        return int(state["next_row"]), state.get("closed"), state.get("boot")
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return 0, None, None


def find_damage(data: pathlib.Path, closed: object) -> str | None:
    """What is wrong with the file, if anything; a file closed by us and untouched since is good."""
    if not data.exists() or closed == file_stamp(data):
        return None
    size_bytes = data.stat().st_size
    if size_bytes == 0:
        data.unlink()
        return None
    if size_mib := size_bytes >> 20:
        text = "The inference log was not closed by its engine: checking %s, %d MiB"
        log.info(text, data, size_mib)
    started_s = time.monotonic()
    try:
        problems = lmdb.verify.verify(str(data.parent))  # type: ignore[no-untyped-call]
    except _DAMAGE as error:
        return str(error)
    took_s = time.monotonic() - started_s
    if took_s >= _LONG_S:
        log.info("The inference log was checked in %.0f s", took_s)
    return str(problems[0]) if problems else None


def set_aside(data: pathlib.Path, limit_bytes: int, damage: str) -> None:
    """Keep the newest damaged file, cut so that the folder stays within its limit."""
    for older in data.parent.glob("data.mdb.bad-*"):
        older.unlink()
    now = datetime.datetime.now(datetime.UTC)
    kept = data.with_name(f"data.mdb.bad-{now:%Y%m%dT%H%M%SZ}")
    data.rename(kept)
    if kept.stat().st_size > limit_bytes // SET_ASIDE_SHARE:
        os.truncate(kept, limit_bytes // SET_ASIDE_SHARE)
    with contextlib.suppress(FileNotFoundError):
        (data.parent / "lock.mdb").unlink()
    log.error("the inference log was damaged and is set aside as %s: %s", kept, damage)
