"""The run slots: at most this many runs at a time, and a bounded line before them.

A slot is the right to run a model; there are ``ceil(CONFIG_CPUS)`` of them. Small work is run by
whoever has it, on its own thread, when a slot is free and nobody waits (``try_acquire``): a thread
hop costs more than a small model. Everything else is a job in the line, taken by a slot thread.

Rules that hold here:
- A full line refuses at once (OverloadedError); nothing ever waits to get into it.
- The line is bounded by rows and by bytes of the requests in it, whichever fills first; a request
  larger than a bound is taken when the line is empty, so that it can be served at all.
- A job is a callable that answers its own caller and never raises; ``skip`` says that its caller
  is gone, asked when the job leaves the line.
- Threads are started in ``start`` and joined in ``close`` with a deadline.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from engine.errors import OverloadedError, ShuttingDownError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Job", "Slots"]


@dataclasses.dataclass(slots=True)
class Job:
    """One request on its way to a slot thread.

    Attributes:
        run: does the work and answers the caller; gets the time spent in the line, ns.
        skip: whether the caller is gone, so that the work is not done.
        rows: rows of the request, or an upper estimate before it is decoded.
        size_bytes: size of the request.
        queued_ns: monotonic time of entry.
    """

    run: Callable[[int], None]
    skip: Callable[[], bool]
    rows: int
    size_bytes: int
    queued_ns: int = 0


class Slots:
    """The slots and their line; every method may be called from any thread."""

    def __init__(self, count: int, *, max_rows: int, max_bytes: int) -> None:
        """Make the slots; no thread runs before ``start``.

        Args:
            count: how many runs may go on at a time, at least 1.
            max_rows: most rows waiting in the line.
            max_bytes: most request bytes waiting in the line.
        """
        self.count = count
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._lock = threading.Lock()  # guards every field below
        self._wake = threading.Condition(self._lock)
        self._line: deque[Job] = deque()
        self._waiting_rows = 0
        self._waiting_bytes = 0
        self._free = count
        self._open = False
        self._threads: list[threading.Thread] = []

    def __repr__(self) -> str:
        with self._lock:
            return (
                f"<Slots [{self.count - self._free} of {self.count} busy, "
                f"{len(self._line)} waiting, {self._waiting_rows} rows]>"
            )

    @property
    def waiting(self) -> tuple[int, int, int]:
        """Requests, rows and bytes in the line."""
        return len(self._line), self._waiting_rows, self._waiting_bytes

    @property
    def busy(self) -> int:
        """Slots in use."""
        return self.count - self._free

    def start(self) -> None:
        """Start one thread per slot."""
        self._open = True
        for index in range(self.count):
            thread = threading.Thread(target=self._work, name=f"slot-{index}")
            self._threads.append(thread)
            thread.start()

    def try_acquire(self) -> bool:
        """Take a slot for work on the calling thread, if one is free and nobody waits."""
        with self._lock:
            if self._free and not self._line and self._open:
                self._free -= 1
                return True
            return False

    def release(self) -> None:
        """Give back what ``try_acquire`` took."""
        with self._wake:
            self._free += 1
            if self._line:
                self._wake.notify()

    def submit(self, job: Job) -> None:
        """Put a job into the line.

        Raises:
            OverloadedError: the line is full.
            ShuttingDownError: the slots are closed.
        """
        with self._wake:
            if not self._open:
                raise ShuttingDownError("the engine is stopping and takes no new requests")
            if self._line and (
                self._waiting_rows + job.rows > self._max_rows
                or self._waiting_bytes + job.size_bytes > self._max_bytes
            ):
                raise OverloadedError(
                    f"the queue is full ({len(self._line)} requests, {self._waiting_rows} rows "
                    f"waiting; limits: QUEUE_MAX_ROWS={self._max_rows}, "
                    f"QUEUE_MAX_BYTES={self._max_bytes}): try again shortly"
                )
            job.queued_ns = time.monotonic_ns()
            self._line.append(job)
            self._waiting_rows += job.rows
            self._waiting_bytes += job.size_bytes
            if self._free:
                self._wake.notify()

    def close(self, timeout_s: float) -> bool:
        """Take no more work, let the line empty, and end the threads.

        Args:
            timeout_s: how long to wait for all of them together.

        Returns:
            Whether every thread ended in time.
        """
        with self._wake:
            self._open = False
            self._wake.notify_all()
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(timeout=max(deadline - time.monotonic(), 0.0))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                if not job.skip():
                    job.run(time.monotonic_ns() - job.queued_ns)
            finally:
                self.release()

    def _next(self) -> Job | None:
        with self._wake:
            while not (self._line and self._free):
                if not self._open and not self._line:
                    return None
                self._wake.wait()
            self._free -= 1
            job = self._line.popleft()
            self._waiting_rows -= job.rows
            self._waiting_bytes -= job.size_bytes
            return job
