"""Opening the ring's files: checked, sized and owned before they are trusted.

Rules that hold here:
- Nothing of ``data.mdb`` is mapped into memory before it was checked: a truncated or damaged map is
  a SIGBUS or worse, so what fails the check is set aside as ``data.mdb.bad-<time>``.
- All files together stay within the limit, the one that was set aside included. The space is
  allocated at once where the file system can, so a full disk elsewhere does not reach the ring.
- ``writemap`` is never used: with it a full disk is a SIGBUS. ``sync`` is off: a commit survives
  the process (the page cache has it), and ``LogRing.maintain`` makes it survive the machine.
- One process owns the folder (``owner.lock``): row numbers are counted in memory, so two would
  overwrite each other.
- Row numbers go on growing after a file was set aside: an uploader's position stays meaningful.
"""

from __future__ import annotations

import logging
import os
import pathlib
from mmap import PAGESIZE

import lmdb
import lmdb.verify

from engine.errors import ConfigError
from engine.logring.files import (
    StoreUnavailableError,
    find_damage,
    own_folder,
    read_state,
    set_aside,
)
from engine.logring.leftover import drop_known_rows
from engine.logring.pack import OpenPack, open_pack, pack_bytes, read_pack
from engine.logring.rows import evict, first_row, stop_row
from engine.logring.store import DISORDER_MS, JITTER_MS, Store, boot_id, file_stamp, mark, pages
from engine.logring.synced import SyncedState, forget, restore

__all__ = ["open_store", "open_to_read"]

log = logging.getLogger("sagitta")

MIN_LIMIT_BYTES = 1 << 20  # below this LMDB's own pages leave no room to work with
OVERHEAD_BYTES = 64 << 10  # lock.mdb, owner.lock, state.json and the folder itself
LOCK_BYTES = 8192  # of lock.mdb, with LMDB's default of 126 readers
ROW_GAP = 1 << 20  # rows that may have been numbered after state.json was last written

_FORMAT = b"sagitta-log-2"
_REFUSED = (
    lmdb.InvalidError,
    lmdb.CorruptedError,
    lmdb.VersionMismatchError,
    lmdb.IncompatibleError,
    lmdb.PageNotFoundError,
)


def open_store(directory: pathlib.Path, limit_bytes: int) -> Store:
    """Open the ring under a folder, or make it.

    Args:
        directory: created with mode 0700 where it is missing.
        limit_bytes: bound of everything under the folder; at least ``MIN_LIMIT_BYTES``.

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
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = own_folder(directory)
    except OSError as error:
        raise _refusal(directory, error) from error
    try:
        return _open_owned(directory, limit_bytes, owner)
    except BaseException as error:
        os.close(owner)
        if isinstance(error, OSError | lmdb.Error):
            raise _refusal(directory, error) from error
        raise


def open_to_read(directory: pathlib.Path) -> Store:
    """Open the ring of an engine that does not run, without changing anything in it.

    Args:
        directory: the ring's folder; may be on a read-only disk.

    Returns:
        The store; its lock keeps an engine from starting on it meanwhile.

    Raises:
        StoreUnavailableError: there is none, an engine has it, or it is damaged.
    """
    data = directory / "data.mdb"
    try:
        if not (data.is_file() and data.stat().st_size):
            raise StoreUnavailableError("disk", f"{directory} holds no inference log")
        owner = own_folder(directory, os.O_RDONLY)
    except OSError as error:
        raise _refusal(directory, error) from error
    try:
        damage = find_damage(data, read_state(directory)[1])
        if damage is not None:
            raise StoreUnavailableError("disk", f"{data} is damaged: {damage}")
        env = lmdb.open(
            str(directory), readonly=True, lock=False, max_dbs=3, create=False, lib_version=0
        )
        store = _store(directory, env, owner, 0, read_pack(directory))
        with env.begin(buffers=True) as txn:
            drop_known_rows(txn, store)
        return store
    except BaseException as error:
        os.close(owner)
        if isinstance(error, OSError | lmdb.Error | ValueError):
            raise _refusal(directory, error) from error
        raise


def _refusal(directory: pathlib.Path, error: Exception) -> StoreUnavailableError:
    """What the disk or LMDB said, with the folder's name once."""
    text = str(error)
    if isinstance(error, OSError):
        text = f"{error.filename or directory}: {error.strerror}"
    elif str(directory) not in text:
        text = f"{directory}: {text}"
    return StoreUnavailableError("disk", text)


def _open_owned(directory: pathlib.Path, limit_bytes: int, owner: int) -> Store:
    data = directory / "data.mdb"
    for leftover in directory.glob("data.mdb.new*"):
        leftover.unlink()
    floor, closed, boot = read_state(directory)
    is_restored = False
    is_cut = boot is not None and boot != boot_id() and data.exists() and closed != file_stamp(data)
    if is_cut and restore(directory):
        log.warning("the machine went down: the inference log goes on from its last synced state")
        floor += ROW_GAP
        is_restored = True
    damage = find_damage(data, closed)
    if damage is None:
        try:
            return _open_synced(directory, limit_bytes, owner, floor, is_restored=is_restored)
        except _REFUSED as error:
            damage = str(error)
    set_aside(data, limit_bytes, damage)
    return _open_synced(directory, limit_bytes, owner, floor + ROW_GAP if floor else 0)


def _open_synced(
    directory: pathlib.Path, limit_bytes: int, owner: int, floor: int, *, is_restored: bool = False
) -> Store:
    """Open, and have the disk know that the file is in use before anything is written to it."""
    store = _open_checked(directory, limit_bytes, owner, floor)
    try:
        with store.env.begin(buffers=True) as txn:
            drop_known_rows(txn, store, is_restored=is_restored)
        if store.pack.is_damaged:  # how many rows it had is not known
            store.floor_row += ROW_GAP
        store.sync(store.synced.begin(), floor)
    except BaseException:
        store.synced.release()
        store.pack.close()
        store.env.close()
        raise
    return store


def _open_checked(directory: pathlib.Path, limit_bytes: int, owner: int, floor: int) -> Store:
    aside = sum(path.stat().st_size for path in directory.glob("data.mdb.bad-*"))
    pack_size = pack_bytes(directory, limit_bytes)
    map_bytes = (limit_bytes - OVERHEAD_BYTES - pack_size - aside) // PAGESIZE * PAGESIZE
    env = _open_env(directory, map_bytes)
    if env.info()["map_size"] > map_bytes:  # LMDB keeps a larger map where data lies beyond it
        _shrink(directory, env, map_bytes)
        env = _open_env(directory, map_bytes)
    try:
        _reserve(directory / "data.mdb", map_bytes)
        return _adopt(directory, env, pack_size, owner, floor)
    except BaseException:
        env.close()
        raise


def _open_env(directory: pathlib.Path, map_bytes: int) -> lmdb.Environment:
    # LMDB maps lock.mdb for writing as a file with holes: on a full disk that is a SIGBUS
    descriptor = os.open(directory / "lock.mdb", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, LOCK_BYTES)
    finally:
        os.close(descriptor)
    return lmdb.open(
        str(directory),
        map_size=map_bytes,
        max_dbs=3,
        sync=False,
        metasync=False,
        writemap=False,
        readahead=False,
        meminit=False,  # pages are written whole by us; zeroing them first costs 10 % of a commit
        mode=0o600,
        lib_version=0,  # the 0.9 file format; the other one cannot be read back by this one
    )


def _reserve(data: pathlib.Path, map_bytes: int) -> None:
    """Give back what lies beyond the map, and allocate what lies within it."""
    descriptor = os.open(data, os.O_RDWR | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        if size > map_bytes:
            os.ftruncate(descriptor, map_bytes)
            return
        try:
            os.posix_fallocate(descriptor, 0, map_bytes)
        except OSError as error:
            os.ftruncate(descriptor, size)  # gives back what a failed attempt had taken
            log.warning(
                "the inference log could not reserve its %d bytes (%s): rows are dropped and "
                "counted whenever the disk is full",
                map_bytes,
                error.strerror,
            )
    finally:
        os.close(descriptor)


def _adopt(
    directory: pathlib.Path, env: lmdb.Environment, pack_size: int, owner: int, floor: int
) -> Store:
    env.reader_check()  # slots of readers that were killed
    about = env.open_db(b"about")
    for name in (b"contexts", b"failures"):
        env.open_db(name)
    with env.begin(write=True, buffers=True) as txn:
        known = txn.get(b"format", db=about)
        if known is None and txn.stat(about)["entries"] == 0 and first_row(txn.cursor()) is None:
            txn.put(b"format", _FORMAT, db=about)
        elif known is None or bytes(known) != _FORMAT:
            raise lmdb.InvalidError("the file was not written by this log")
        try:
            stop_row(txn.cursor())
        except ValueError as error:
            raise lmdb.CorruptedError(f"the newest record is damaged: {error}") from error
    return _store(directory, env, owner, floor, open_pack(directory, pack_size))


def _store(
    directory: pathlib.Path, env: lmdb.Environment, owner: int, floor: int, pack: OpenPack
) -> Store:
    """The store of an environment whose databases are there."""
    about = env.open_db(b"about", create=False)
    with env.begin(buffers=True) as txn:
        disorder_ms = mark(txn, about, DISORDER_MS) or JITTER_MS
    return Store(
        directory=directory,
        env=env,
        contexts=env.open_db(b"contexts", create=False),
        failures=env.open_db(b"failures", create=False),
        about=about,
        map_bytes=env.info()["map_size"],
        page_bytes=env.stat()["psize"],
        floor_row=floor,
        owner=owner,
        synced=SyncedState(directory, env),
        pack=pack,
        disorder_ms=disorder_ms,
    )


def _shrink(directory: pathlib.Path, env: lmdb.Environment, map_bytes: int) -> None:
    """Evict down to the new size and rewrite the file compactly; the environment gets closed."""
    forget(directory)  # nothing holds the pages that it names, and then they are not there at all
    rewritten = directory / "data.mdb.new"
    page_bytes = env.stat()["psize"]
    budget = map_bytes // page_bytes // 2
    try:
        while True:
            with env.begin(write=True, buffers=True) as txn:
                excess = pages(txn) - budget
                if excess <= 0 or evict(txn, min(excess, 4096), page_bytes) == 0:
                    break
        with rewritten.open("wb") as file:
            env.copyfd(file.fileno(), compact=True)
            os.fsync(file.fileno())
    finally:
        env.close()
    rewritten.replace(directory / "data.mdb")
    log.info("the inference log was cut down to %d bytes", map_bytes)
