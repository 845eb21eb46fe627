"""Where an inference is run, and how its reply gets back to the event loop: for every shell.

What arrives in one turn of the event loop is run together there and then, when that is expected to
be quick and a slot is free: the requests that are waiting are those whose bytes the loop has just
read. A thread hop costs more than a small model, and one run for all costs less than one for each.
Everything else goes into the line.

Rules that hold here:
- Only the event loop calls ``add``; ``send`` is called by whoever ran the request.
- A lone connection waits for nobody: its request is run at once.
- Replies from other threads come back through one queue, so that a batch of them wakes the loop
  once.
"""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING, TypeVar

from engine.errors import EngineError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence
    from typing import Any, Final

    from engine.batching.cost import RunCost
    from engine.batching.entry import BatchPolicy
    from engine.batching.line import Line
    from engine.request import InferRequest

__all__ = ["TINY_RUN_NS", "Turn", "holds_no_slot"]

TINY_RUN_NS: Final = 100_000
INLINE_RUN_NS: Final = 1_000_000  # run on the event loop: others wait no longer than this

ReplyT = TypeVar("ReplyT")


def holds_no_slot() -> None:
    """What follows a run that needed no slot."""


class Turn:
    """Collects the calls of one turn of the event loop."""

    def __init__(
        self, answer: Callable[[Sequence[InferRequest]], None], line: Line[InferRequest]
    ) -> None:
        """Make a turn without calls.

        Args:
            answer: runs calls of one key on the calling thread, which holds a slot.
            line: takes what cannot be run at once.
        """
        self._answer = answer
        self._line = line
        self._calls: list[InferRequest] = []
        self._replies: deque[tuple[Callable[[Any], None], Any]] = deque()

    def add(self, call: InferRequest, loop: asyncio.AbstractEventLoop, *, is_alone: bool) -> None:
        """Run a decoded call with what else arrives in this turn.

        Args:
            call: with its frame, or without where decoding it takes long.
            loop: the event loop, which is the caller.
            is_alone: whether there is no other connection that could send a request.
        """
        if is_alone or call.policy is None:
            self._run([call])
            return
        self._calls.append(call)
        if len(self._calls) == 1:
            loop.call_soon(self._flush)

    def abandon(self, call: InferRequest) -> None:
        """Wait no more for a call that was put into the line; who runs it already settles it."""
        if self._line.abandon(call):
            call.settle()

    def send(
        self, loop: asyncio.AbstractEventLoop, finish: Callable[[ReplyT], None], reply: ReplyT
    ) -> None:
        """Bring a reply back from another thread: ``finish(reply)`` on the event loop."""
        self._replies.append((finish, reply))
        with contextlib.suppress(RuntimeError):  # the loop has ended, and every connection with it
            loop.call_soon_threadsafe(self._send_all)

    def _send_all(self) -> None:
        while self._replies:
            finish, reply = self._replies.popleft()
            finish(reply)

    def _flush(self) -> None:
        calls, self._calls = self._calls, []
        while calls:
            first, rest = calls[0], []
            batch, rows, most = [first], first.rows, first.policy.max_rows if first.policy else 0
            for call in calls[1:]:
                if call.key == first.key and rows + call.rows <= most:
                    batch.append(call)
                    rows += call.rows
                else:
                    rest.append(call)
            self._run(batch)
            calls = rest

    def begin(
        self, rows: int, policy: BatchPolicy | None, cost: RunCost
    ) -> Callable[[], None] | None:
        """Whether rows may be run here and now, before whatever waits.

        A run that is tiny needs no slot: it is over before anybody could have it.

        Args:
            rows: how many.
            policy: how they may be run with others.
            cost: what their runs take.

        Returns:
            What is to be called after the run; None where they may not be run here.
        """
        least_ns = cost.least_ns(rows)
        if least_ns is not None and least_ns <= TINY_RUN_NS:
            return None if _is_held_back(rows, policy) else holds_no_slot
        return self._take_slot(rows, policy, cost)

    def _take_slot(
        self, rows: int, policy: BatchPolicy | None, cost: RunCost
    ) -> Callable[[], None] | None:
        """As ``begin``, where a slot is free and nobody waits for one."""
        if _is_held_back(rows, policy):
            return None
        estimate_ns = cost.estimate_ns(rows)
        if estimate_ns is None or estimate_ns > INLINE_RUN_NS or not self._line.try_acquire():
            return None
        return self._line.release

    def _run(self, batch: list[InferRequest]) -> None:
        """Run calls of one key here, or put them into the line."""
        first = batch[0]
        rows = first.rows if len(batch) == 1 else sum([call.rows for call in batch])
        end = None
        if first.frame is not None:
            end = self._take_slot(rows, first.policy, first.pipeline.cost)
        if end is not None:
            try:
                self._answer(batch)
            finally:
                end()
            return
        for call in batch:
            try:
                self._line.submit(call)
            except EngineError as error:
                call.outcome = error
                call.settle()
            else:
                call.wait()


def _is_held_back(rows: int, policy: BatchPolicy | None) -> bool:
    """Whether rows wait for company, as ``MAX_BATCH_DELAY_US`` asks."""
    return policy is not None and policy.delay_ns > 0 and rows < policy.target_rows
