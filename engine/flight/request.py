"""One batch of a call on its way to its answer.

Its reply is written by ``settle`` on the thread that ran it, and sent on the event loop.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from engine.request import InferRequest

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from engine.flight.incoming import OpenBatch
    from engine.flight.reply import Reply
    from engine.flight.service import FlightService
    from engine.flight.stream import Stream
    from engine.http2 import Call
    from engine.values import Frame

__all__ = ["BatchRequest"]


class BatchRequest(InferRequest):
    """One batch.

    Attributes:
        message: what it came in.
        opened: what the message declares, where it is read by the thread that runs it.
    """

    opened: OpenBatch | None = None
    _timer: asyncio.TimerHandle | None = None
    _has_left = False

    def __init__(
        self,
        stream: Stream,
        service: FlightService,
        call: Call,
        message: bytes | memoryview,
        *,
        settled: Callable[[BatchRequest, Reply | Exception], None],
        expired: Callable[[BatchRequest], None],
    ) -> None:
        """Begin a request; its clock starts now.

        Args:
            stream: reads the batch and writes the reply.
            service: what all calls share.
            call: whose it is.
            message: what it came in.
            settled: called with the reply, or why there is none; on the event loop.
            expired: called where it has waited too long; on the event loop.

        Raises:
            EngineError: no pipeline answers it.
        """
        super().__init__(stream.pipeline())
        self.message = message
        self.size_bytes = len(message)
        self._stream = stream
        self._service = service
        self._call = call
        self._settled = settled
        self._expired = expired

    def decoded(self) -> Frame:
        """The rows, decoded now if they are not yet."""
        if self.frame is None and self.opened is not None:
            return self._stream.read(self.opened)
        return super().decoded()

    def wait(self) -> None:
        """It is in the line; whoever is first, reply or deadline, answers."""
        if self.is_abandoned:  # before it came there: a timer would hold its message for long
            self._service.turn.abandon(self)
            return
        self._timer = self._call.loop.call_later(self._service.request_timeout_s, self._expire)

    def give_up(self, *, has_left: bool = True) -> None:
        """Wait no more for the answer; on the event loop.

        Args:
            has_left: its caller is gone, which is counted; else it is answered already.
        """
        if self._timer is not None:
            self._timer.cancel()
        self._has_left = has_left
        self._service.turn.abandon(self)

    def settle(self) -> None:
        """Write the reply, and have it sent."""
        if self.is_abandoned:
            self.outcome = self.frame = self.feeds = self.opened = None
            if self._has_left:
                self._service.metrics.record_cancelled()
            return
        reply = self._stream.write(self)
        if self.queued_ns:  # by a thread of the line
            self._service.turn.send(self._call.loop, self._finish, reply)
        else:
            self._settled(self, reply)

    def count(self, elapsed_ns: Sequence[int]) -> None:
        """Count it as answered; ``elapsed_ns`` are its steps', decoding first."""
        latency_ns = time.monotonic_ns() - self.started_ns
        run_ns = sum(elapsed_ns) - elapsed_ns[0]
        self._service.metrics.record(self.rows, latency_ns, self.queue_ns, run_ns)

    def _finish(self, reply: Reply | Exception) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._settled(self, reply)

    def _expire(self) -> None:
        self.give_up(has_left=False)
        self._expired(self)
