"""Challengers: models that run beside the answer and can neither fail it nor hold it up.

A challenger starts when the answer is there, on a thread of its own. What it makes of the rows
joins the answer if it is ready in time: within ``GRACE_NS``, or as long as the answer itself took.
One that is usually later than that is not waited for at all, until it has become quicker again.

Rules that hold here:
- Whatever a challenger does, the worst that happens to the answer is the grace time, once.
- Work that piles up before a slow challenger is skipped, so that it holds no memory.
- Every result that is missing was reported to ``observe``, by its reason.
"""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING

from engine.values import Shadow

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final

    from engine.pipeline.actions import Model
    from engine.values import Array, Output

__all__ = ["Challenger", "Work"]

GRACE_NS: Final = 50_000_000
"""Long beside a busy machine's wake-ups and most models; a hang costs it once, no request twice."""

_WAITING_PER_THREAD = 2


class Work:
    """The rows of one request on their way through a challenger."""

    __slots__ = ("done", "feeds", "outputs", "rows", "started_ns")

    def __init__(self, feeds: Sequence[Array], rows: int) -> None:
        """Take the rows; nothing runs yet."""
        self.feeds: Sequence[Array] = feeds
        self.rows = rows
        self.started_ns = time.monotonic_ns()
        self.outputs: tuple[Output, ...] | None = None
        self.done = threading.Event()


class Challenger:
    """One challenger and its threads; every method but ``start`` and ``close`` from any thread."""

    def __init__(
        self,
        model: Model,
        no_rows: tuple[Output, ...],
        *,
        threads: int,
        observe: Callable[[str, str, str], None],
    ) -> None:
        """Take a model; no thread runs before ``start``.

        Args:
            model: the challenger.
            no_rows: its outputs as they are for no rows: what stands for a missing result.
            threads: how many requests it works on at a time.
            observe: gets the model's name, one of ``failed``, ``late``, ``skipped``, and a
                sentence about it; called from any thread.
        """
        self.model = model
        self.no_rows = no_rows
        self._observe = observe
        self._line: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._limit = threads * (1 + _WAITING_PER_THREAD)
        self._lock = threading.Lock()
        self._open_works = 0  # guarded by _lock
        self._usual_ns = 0.0  # from submission to result; a lost update costs a little staleness
        name = f"shadow-{model.identity.name}"
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{index}") for index in range(threads)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def close(self, timeout_s: float) -> bool:
        """End the threads once what waits is done.

        Args:
            timeout_s: how long to wait; who still runs then cannot be stopped, only left behind.

        Returns:
            Whether every thread ended in time.
        """
        for _ in self._threads:
            self._line.put(None)
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(timeout=max(deadline - time.monotonic(), 0.0))
        return not any(thread.is_alive() for thread in self._threads)

    def submit(self, feeds: Sequence[Array], rows: int) -> Work | None:
        """Hand over the rows of a request; None where too much is waiting already."""
        with self._lock:
            is_full = self._open_works >= self._limit
            self._open_works += not is_full
        if is_full:
            self.report("skipped", f"{self._limit} requests are still before it")
            return None
        work = Work(feeds, rows)
        self._line.put(work)
        return work

    def collect(self, work: Work | None, asked_ns: int, answer_ns: int) -> Shadow:
        """The result of a work, if it is there in time.

        Args:
            work: as ``submit`` gave it; None where there is none.
            asked_ns: monotonic time from which the waiting counts.
            answer_ns: how long the answer itself took.

        Returns:
            The challenger's outputs, or none where it failed or is late.
        """
        outputs = None if work is None else self._wait(work, asked_ns, answer_ns)
        name = self.model.identity.name
        return Shadow(name, self.no_rows if outputs is None else outputs, outputs is None)

    def report(self, reason: str, text: str) -> None:
        """Tell that a request is answered without this challenger."""
        self._observe(self.model.identity.name, reason, text)

    def _wait(self, work: Work, asked_ns: int, answer_ns: int) -> tuple[Output, ...] | None:
        grace_ns = max(GRACE_NS, answer_ns)
        wait_ns = asked_ns + grace_ns - time.monotonic_ns() if self._usual_ns <= grace_ns else 0
        if not work.done.wait(timeout=max(wait_ns, 0) / 1e9):
            self._usual_ns = max(self._usual_ns, 2.0 * grace_ns)  # until it proves itself again
            self.report("late", "its result was not ready in time")
            return None
        return work.outputs

    def _run(self) -> None:
        while (work := self._line.get()) is not None:
            try:
                outputs = self.model.run(work.feeds, work.rows)
                if all(_fits(output, work.rows) for output in outputs):
                    work.outputs = outputs
                else:
                    self.report("failed", "its outputs have not one value per row")
            except Exception as error:  # noqa: BLE001 - nothing of a challenger reaches an answer
                self.report("failed", f"{type(error).__name__}: {error}")
            work.feeds = ()
            took_ns = time.monotonic_ns() - work.started_ns
            self._usual_ns += (took_ns - self._usual_ns) / 4 if self._usual_ns else took_ns
            with self._lock:
                self._open_works -= 1
            work.done.set()


def _fits(output: Output, rows: int) -> bool:
    """Whether an output can stand beside the answer, in every kind of reply."""
    if output.per_row:
        return len(output.values) == rows and not output.ragged
    return rows == 1
