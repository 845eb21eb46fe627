"""The bounded log of inferences on disk, as the rest of the engine sees it.

Rules that hold here:
- ``append`` commits before it returns: the rows survive ``kill -9`` at any later moment.
- ``append`` never raises for what the disk does: rows that could not be kept are counted by
  reason, and keeping resumes by itself (``maintain`` reopens what broke).
- One lock orders the writers. Readers take no lock of theirs, and the environment is closed only
  when no reader is inside (``Gate``).
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import lmdb
import pyarrow as pa

from engine.errors import NotReadyError
from engine.logring.counters import Counters, RingStats, snapshot
from engine.logring.failures import Failure, FailureLog, read_failures
from engine.logring.files import StoreUnavailableError, disk_text
from engine.logring.gate import Gate
from engine.logring.header import PackedRows, Record
from engine.logring.opening import open_store
from engine.logring.pages import LogPage, PageQuery
from engine.logring.reader import read_batches, read_page
from engine.logring.record import MAX_COLUMN_BYTES, LogEncoder
from engine.logring.sync import LogSync
from engine.logring.writer import RowWriter

if TYPE_CHECKING:
    from engine.logring.store import Store
    from engine.values import InferResult, PipelineIdentity

__all__ = ["LogRing"]

log = logging.getLogger("sagitta")

_CLOSED = "closed"


class LogRing:
    """The log of one engine. Any thread may call any method.

    ``_writer``, ``_broken`` and ``_dirty`` belong to the holder of ``_lock``; others only look.
    """

    def __init__(
        self,
        directory: Path,
        limit_bytes: int,
        batch_of: Callable[[InferResult], pa.RecordBatch],
        *,
        max_column_bytes: int = MAX_COLUMN_BYTES,
    ) -> None:
        """Open the log; where the disk refuses, stay closed and try again at every ``maintain``.

        Args:
            directory: the ring's own folder; made where it is missing.
            limit_bytes: bound of everything in it; ``LOCAL_INFERENCE_STORAGE``.
            batch_of: writes an answer as Arrow; it defines the log's schema.
            max_column_bytes: a column with more bytes a row is left out of the log.

        Raises:
            ConfigError: the limit is below 1 MiB.
        """
        self._directory = directory
        self._limit_bytes = limit_bytes
        self._encoder = LogEncoder(batch_of, max_column_bytes=max_column_bytes)
        self._counters = Counters()
        self._gate = Gate(is_open=False)
        self._lock = threading.Lock()
        self._writer: RowWriter | None = None
        self._broken = False
        self._dirty = False
        self._closed: str | None = None  # why there is no writer, in one word
        self.failures = FailureLog()
        self._sync_thread = LogSync(self.maintain)
        self._open()

    # -- writing -------------------------------------------------------------------------------

    def append(self, results: Sequence[InferResult]) -> int:
        """Keep the rows of some answers, in one transaction but for what is large for the ring.

        Args:
            results: answers in the order in which their rows are to be read; their arrays must
                not change before this returns.

        Returns:
            How many rows were kept: they are committed. The others are counted by reason.
        """
        started_ns, first, encoder = time.perf_counter_ns(), results[0], self._encoder
        pattern = encoder.row_pattern if first.frame.dense is None else encoder.table_pattern
        try:  # nearly always, and in few steps: an engine that has slept runs them uncached
            items = None if pattern is None else pattern.items(results)
            if pattern is not None and items:
                rows = len(items) // pattern.row_bytes
                with self._lock:
                    writer = self._writer
                    if (
                        writer is not None
                        and self._counters.failing is None
                        and not self._broken
                        and writer.add(
                            pattern.context, rows, items, first.time_ms, results[-1].time_ms
                        )
                    ):
                        self._dirty = True
                        self._counters.committed(rows, time.perf_counter_ns() - started_ns)
                        return rows
            return self._append_others(results, started_ns)
        except Exception as error:
            log.exception("answers could not be written for the inference log")  # a bug
            self._counters.not_kept(_rows_of(results), "no_record_form", error)
            return 0

    def _append_others(self, results: Sequence[InferResult], started_ns: int) -> int:
        """Keep rows that are not the open pack's next ones."""
        records = self._encode(results)
        if not records:
            return 0
        with self._lock:
            kept = self._append(records)
            if kept:
                self._counters.committed(kept, time.perf_counter_ns() - started_ns)
        return kept

    def _encode(self, results: Sequence[InferResult]) -> Sequence[Record | PackedRows]:
        """Answers as records, those that cannot be kept counted and left out."""
        writer = self._writer
        if writer is None:
            self._counters.not_kept(_rows_of(results), self._closed or _CLOSED)
            return []
        return self._encoder.encode_all(results, writer.store.largest_record_bytes, self._counters)

    def _append(self, records: Sequence[Record | PackedRows]) -> int:
        writer, rows = self._writer, sum([record.rows for record in records])
        if writer is None or self._broken:
            self._counters.not_kept(rows, self._closed or "disk")
            return 0
        first = writer.next_row
        try:
            writer.append(records)
        except lmdb.Error as error:
            # a full disk may take the next commit; after anything else the file is opened anew
            self._broken = not isinstance(error, lmdb.DiskError | lmdb.MapFullError)
            reason = "map_full" if isinstance(error, lmdb.MapFullError) else "disk"
            text = disk_text(error, self._directory)
            self._counters.not_kept(rows - writer.next_row + first, reason, text)
        else:
            self._counters.kept_again()
        kept = writer.next_row - first
        self._dirty = self._dirty or kept > 0
        return kept

    def append_failure(self, pipeline: PipelineIdentity, partition: str, error: str) -> None:
        """Remember why a request failed, as its caller is told; on disk about a second later."""
        self.failures.add(Failure(time.time_ns() // 1_000_000, error, pipeline.version, partition))

    def mark_uploaded(self, row: int) -> None:
        """Note that every row before ``row`` is safe elsewhere: such rows leave without loss."""
        with self._lock:
            if self._writer is None or self._broken:
                return
            try:
                self._writer.mark_uploaded(row)
            except lmdb.Error as error:
                log.warning("the upload position could not be noted: %s", error)

    # -- opening, maintaining, closing ---------------------------------------------------------

    def _open(self) -> None:
        try:
            self._writer = RowWriter(open_store(self._directory, self._limit_bytes), self._counters)
        except StoreUnavailableError as error:
            if self._closed != error.reason:
                log.error("the inference log is closed (%s): %s", error.reason, error)
            self._closed = error.reason
            return
        first, stop = self._writer.first_row, self._writer.next_row
        text = "Inference log: %s, at most %d bytes, rows %d to %d"
        log.info(text, self._directory, self._limit_bytes, first, stop)
        self._closed = None
        self._broken = False
        self._gate.open()

    def maintain(self) -> None:
        """Make every committed row durable, and the failures that wait; reopen what broke.

        Called about once a second by the thread of ``start``; takes as long as the disk does.
        """
        with self._lock:
            if self._broken:
                self._shut()
            if self._writer is None and self._closed != _CLOSED:
                self._open()
            if self._writer is not None:
                self._put_waiting(self._writer)
            dirty, self._dirty, page = self._dirty, False, None
            if dirty and self._writer is not None:
                page, is_held = self._writer.store.begin_sync()
                self._dirty = not is_held  # the next one will be
        if dirty:
            self._sync(page)

    def _put_waiting(self, writer: RowWriter) -> None:
        """Write the rows of the open pack and the failures into the ring."""
        try:
            self._dirty |= writer.put_pack()
            if len(self.failures):
                self.failures.keep(writer.store)
                self._dirty = True
        except lmdb.Error as error:
            self._broken = not isinstance(error, lmdb.DiskError | lmdb.MapFullError)

    def _sync(self, page: bytes | None) -> None:
        with self._reading() as writer:
            if writer is None:
                return
            next_row = writer.next_row
            try:
                writer.store.sync(page, next_row)
                self._counters.syncs += 1
            except (lmdb.Error, OSError) as error:
                self._dirty = True
                log.warning("the inference log could not be synced to the disk: %s", error)

    def _shut(self) -> None:
        """Close the environment once no reader is inside; the caller holds the lock."""
        self._gate.shut()
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.store.close(writer.next_row, clean=not self._broken)

    def start(self) -> None:
        """Start the thread that calls ``maintain`` once a second."""
        self._sync_thread.start()

    def close(self, *, timeout_s: float = 10.0) -> None:
        """Write what waits, sync, and give the folder back; rows sent later are not kept.

        Args:
            timeout_s: how long to wait for the thread; a disk may take long to sync.
        """
        self._sync_thread.close(timeout_s=timeout_s)
        self.maintain()
        with self._lock:
            self._closed = _CLOSED
            self._shut()

    # -- reading -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _reading(self) -> Iterator[RowWriter | None]:
        with self._gate.entered() as is_open:
            yield self._writer if is_open else None

    def page(self, query: PageQuery) -> LogPage:
        """Read one page; see ``read_page``.

        Raises:
            NotReadyError: the ring is closed.
        """
        return self._read(read_page, query)

    def failures_page(self, query: PageQuery) -> LogPage:
        """Read one page of failed requests, the newest included; raises as ``page`` does."""
        with self._lock:
            if self._writer is not None and not self._broken and len(self.failures):
                self._put_waiting(self._writer)
        return self._read(read_failures, query)

    def _read(self, read: Callable[[Store, PageQuery], LogPage], query: PageQuery) -> LogPage:
        with self._reading() as writer:
            if writer is not None:
                return read(writer.store, query)
        reason = f"({self._closed}); the engine's log says why"
        raise NotReadyError(f"the inference log cannot be read now {reason}")

    def batches(self, query: PageQuery) -> Iterator[tuple[pa.RecordBatch, int]]:
        """All the rows that a query matches, up to the one that is the newest now.

        See ``read_batches``; raises as ``page`` does.
        """
        return read_batches(self.page, query, self.stats().next_row)

    def stats(self) -> RingStats:
        """A snapshot of the counters; takes no lock."""
        return snapshot(self._counters, self._writer, self.failures, closed=self._closed)


def _rows_of(results: Sequence[InferResult]) -> int:
    return sum([result.frame.rows for result in results])
