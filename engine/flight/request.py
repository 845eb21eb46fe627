"""One batch of a call on its way to its answer.

Its reply is written by ``settle`` on the thread that ran it, and sent on the event loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.request import InferRequest

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

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

    def __init__(
        self,
        stream: Stream,
        service: FlightService,
        call: Call,
        message: bytes | memoryview,
        *,
        settled: Callable[[BatchRequest, Reply | Exception], None],
        expired: Callable[[], None],
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

    def give_up(self) -> None:
        """Its call is over: wait no more for the answer, and count that; on the event loop."""
        self._service.metrics.record_cancelled()
        self._abandon()

    def settle(self) -> None:
        """Write the reply, and have it sent."""
        outcome = self.take_outcome()
        self.opened = None
        if self.is_abandoned:
            return
        reply = self._stream.write(outcome, self.size_bytes)
        if self.queued_ns:  # by a thread of the line
            self._service.turn.send(self._call.loop, self._finish, reply)
        else:
            self._finish(reply)

    def _finish(self, reply: Reply | Exception) -> None:
        if self.is_abandoned:  # meanwhile: it is counted already
            return
        if self._timer is not None:
            self._timer.cancel()
        self._settled(self, reply)

    def _expire(self) -> None:
        self._abandon()
        self._expired()

    def _abandon(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._service.turn.abandon(self)
