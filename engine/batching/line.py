"""The run slots and the one bounded line before them, in which batches form.

A slot is the right to run a model; there are ``ceil(CONFIG_CPUS)`` of them. Work is run by whoever
has it, on its own thread, when a slot is free and nobody waits (``try_acquire``): a thread hop
costs more than a small model. Everything else is an entry in the line, and is run by a slot thread.
Entries that wait while the slots are busy and have equal keys leave it together, as one batch,
which may hold entries of both shells.

Rules that hold here:
- A full line refuses at once (OverloadedError); nothing ever waits to get into it.
- The line is bounded by rows and by bytes of the requests in it, whichever fills first; a request
  larger than a bound is taken when the line is empty, so that it can be served at all.
- First come, first served: an entry is overtaken only by later ones that fill up an earlier batch.
- Nothing is held back for company unless its policy says so, and then by its first entry's clock.
- ``run`` answers every entry of its batch, gone ones aside, and never raises.
- Threads are started in ``start`` and joined in ``close`` with a deadline.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

from engine.batching.entry import Entry
from engine.errors import OverloadedError, ShuttingDownError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

__all__ = ["Line"]

LOOK_AHEAD: Final = 256  # entries of other keys that a forming batch looks past


EntryT = TypeVar("EntryT", bound=Entry)


class Line(Generic[EntryT]):
    """The slots and their line; every method may be called from any thread."""

    def __init__(
        self, slots: int, run: Callable[[list[EntryT]], None], *, max_rows: int, max_bytes: int
    ) -> None:
        """Make the slots; no thread runs before ``start``.

        Args:
            slots: how many runs may go on at a time, at least 1.
            run: answers the entries of a batch; called with a slot taken for it.
            max_rows: most rows waiting in the line.
            max_bytes: most request bytes waiting in the line.
        """
        self.slots = slots
        self._run = run
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._lock = threading.Lock()  # guards every field below
        self._wake = threading.Condition(self._lock)
        self._entries: deque[EntryT] = deque()
        self._waiting_rows = 0
        self._waiting_bytes = 0
        self._free = slots
        self._open = False
        self._threads: list[threading.Thread] = []

    def __repr__(self) -> str:
        with self._lock:
            return (
                f"<Line [{self.slots - self._free} of {self.slots} slots busy, "
                f"{len(self._entries)} waiting, {self._waiting_rows} rows]>"
            )

    @property
    def waiting(self) -> tuple[int, int, int]:
        """Requests, rows and bytes in the line."""
        return len(self._entries), self._waiting_rows, self._waiting_bytes

    @property
    def busy(self) -> int:
        """Slots in use."""
        return self.slots - self._free

    def start(self) -> None:
        """Start one thread per slot."""
        self._open = True
        for index in range(self.slots):
            thread = threading.Thread(target=self._work, name=f"slot-{index}")
            self._threads.append(thread)
            thread.start()

    def try_acquire(self) -> bool:
        """Take a slot for work on the calling thread, if one is free and nobody waits."""
        with self._lock:
            if self._free and not self._entries and self._open:
                self._free -= 1
                return True
            return False

    def release(self) -> None:
        """Give back a slot, to a slot thread where somebody waits."""
        with self._lock:
            self._free += 1
            if not self._open:
                self._wake.notify_all()
            elif self._entries:
                self._wake.notify()

    def submit(self, entry: EntryT) -> None:
        """Put an entry into the line, to be run by whoever comes to it.

        Raises:
            OverloadedError: the line is full.
            ShuttingDownError: the line is closed.
        """
        with self._lock:
            if not self._open:
                raise ShuttingDownError("the engine is stopping and takes no new requests")
            if self._entries and (
                self._waiting_rows + entry.rows > self._max_rows
                or self._waiting_bytes + entry.size_bytes > self._max_bytes
            ):
                raise OverloadedError(
                    f"the queue is full ({len(self._entries)} requests, {self._waiting_rows} rows "
                    f"waiting; limits: QUEUE_MAX_ROWS={self._max_rows}, "
                    f"QUEUE_MAX_BYTES={self._max_bytes}): try again shortly"
                )
            entry.queued_ns = time.monotonic_ns()
            self._entries.append(entry)
            self._waiting_rows += entry.rows
            self._waiting_bytes += entry.size_bytes
            if self._free:
                self._wake.notify()

    def abandon(self, entry: EntryT) -> bool:
        """Stop waiting for an entry's answer; where it is being run already, nobody gets it.

        Its room is free at once: who gives up again and again must not keep others out.

        Returns:
            Whether it was still in the line: then nobody else has it any more.
        """
        with self._lock:
            entry.is_abandoned = True
            try:
                self._entries.remove(entry)
            except ValueError:
                return False
            self._leave(entry)
            if self._free:  # whoever is the first now need not be held back
                self._wake.notify()
            return True

    def close(self, timeout_s: float) -> bool:
        """Take no more entries, let the line empty, and end the threads.

        Args:
            timeout_s: how long to wait for all of them together.

        Returns:
            Whether every thread ended in time.
        """
        with self._lock:
            self._open = False
            self._wake.notify_all()
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(timeout=max(deadline - time.monotonic(), 0.0))
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        while (batch := self._next_batch()) is not None:
            try:
                self._run(batch)
            finally:
                self.release()

    def _next_batch(self) -> list[EntryT] | None:
        """What a slot thread runs next; None when the line is closed and empty."""
        with self._lock:
            while True:
                if self._entries and self._free:
                    hold_ns = self._hold_ns()
                    if hold_ns <= 0:
                        self._free -= 1
                        return self._take()
                    self._wake.wait(hold_ns / 1e9)
                elif not self._entries and not self._open:
                    return None
                else:
                    self._wake.wait()

    def _hold_ns(self) -> int:
        """How long the first entry is still to be held back."""
        first = self._entries[0]
        policy = first.policy
        if policy is None or policy.delay_ns <= 0 or not self._open:
            return 0
        hold_ns = first.queued_ns + policy.delay_ns - time.monotonic_ns()
        if hold_ns <= 0:
            return 0
        rows = 0
        for entry, _ in zip(self._entries, range(LOOK_AHEAD), strict=False):
            rows += entry.rows if entry.key == first.key else 0
            if rows >= policy.target_rows:
                return 0
        return hold_ns

    def _take(self) -> list[EntryT]:
        """Take the first entry and those that may be run with it out of the line."""
        entries = self._entries
        first = entries.popleft()
        self._leave(first)
        batch = [first]
        policy = first.policy
        if policy is None or not entries:
            return batch
        rows = first.rows
        passed: list[EntryT] = []
        while entries and rows < policy.max_rows and len(passed) < LOOK_AHEAD:
            entry = entries.popleft()
            if entry.policy is None or entry.key != first.key:
                passed.append(entry)
            elif rows + entry.rows > policy.max_rows:
                passed.append(entry)
                break
            else:
                self._leave(entry)
                batch.append(entry)
                rows += entry.rows
        entries.extendleft(reversed(passed))
        return batch

    def _leave(self, entry: EntryT) -> None:
        self._waiting_rows -= entry.rows
        self._waiting_bytes -= entry.size_bytes
