"""One inference request on a connection: gathers its body, gets it answered, writes the reply.

It stands where uvicorn keeps its own request-response cycle, so that a connection's requests are
answered in order whichever way each of them goes, and has the few attributes that uvicorn looks at.

Rules that hold here:
- Everything runs on the event loop, but for what the line runs.
- A body of known length is filled into one buffer; one that came in one piece is not copied.
- The bytes of all bodies that are held, arriving or waiting, have one bound: many slow uploads
  cannot take all memory. They are given back exactly once, when the exchange ends in any way.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from engine.errors import DeadlineExceededError, EngineError, OverloadedError, PayloadTooLargeError
from engine.rest.errors import error_reply
from engine.rest.inference import Call

if TYPE_CHECKING:
    import asyncio

    from engine.dataplane import DataPlane
    from engine.metrics import Metrics
    from engine.rest.inference import CallHead
    from engine.rest.media import Reply
    from engine.rest.protocol import EngineProtocol
    from engine.rest.turn import Turn
    from engine.tokens import TokenFile

__all__ = ["BodyBudget", "Exchange", "Service", "too_large"]


class BodyBudget:
    """The bytes of request bodies that may be held at a time; used on the event loop only."""

    def __init__(self, max_bytes: int) -> None:
        """Make an untouched budget of ``max_bytes``."""
        self._max_bytes = max_bytes
        self._held_bytes = 0

    def take(self, size_bytes: int) -> None:
        """Hold more bytes.

        Raises:
            OverloadedError: that would be more than the bound; nothing was taken.
        """
        if self._held_bytes + size_bytes > self._max_bytes:
            raise OverloadedError(
                f"the bodies of the requests that are waiting hold {self._held_bytes} bytes "
                f"(limit: QUEUE_MAX_BYTES={self._max_bytes}): try again shortly"
            )
        self._held_bytes += size_bytes

    def give_back(self, size_bytes: int) -> None:
        """Hold fewer bytes."""
        self._held_bytes -= size_bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Service:
    """What every connection shares.

    Attributes:
        plane: answers the requests.
        turn: runs them.
        metrics: counts them.
        budget: bounds the bodies that are held.
        max_body_bytes: largest accepted body.
        request_timeout_s: after this long a request that still waits is answered with 504.
        records_by_default: whether ``/infer`` answers records without being asked.
        tokens: accepted bearer tokens, or None where everybody is welcome.
    """

    plane: DataPlane
    turn: Turn
    metrics: Metrics
    budget: BodyBudget
    max_body_bytes: int
    request_timeout_s: float
    records_by_default: bool
    tokens: TokenFile | None = None


class _NoEvent:
    """uvicorn wakes a cycle's receive loop through an event; there is no loop here."""

    def set(self) -> None:
        """Nothing waits."""


_NO_EVENT = _NoEvent()


class Exchange:
    """One request and its reply."""

    __slots__ = (
        "_body",
        "_error",
        "_filled",
        "_head",
        "_held_bytes",
        "_is_turn",
        "_length",
        "_protocol",
        "_service",
        "_timer",
        "disconnected",
        "is_complete",
        "keep_alive",
        "message_event",
        "response_complete",
    )

    def __init__(
        self, protocol: EngineProtocol, service: Service, *, length: int | None, keep_alive: bool
    ) -> None:
        """Begin to gather a body.

        Args:
            protocol: the connection.
            service: what all connections share.
            length: the announced body length; None where it comes in chunks.
            keep_alive: whether the connection outlives the reply.
        """
        self._protocol = protocol
        self._service = service
        self._length = length
        self._body: bytes | bytearray = b""
        self._filled = 0
        self._held_bytes = 0
        self._head: CallHead | None = None
        self._error: EngineError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_turn = False
        self.keep_alive = keep_alive
        self.is_complete = False
        self.response_complete = False
        self.disconnected = False
        self.message_event = _NO_EVENT

    def accept(self, head: CallHead) -> None:
        """The head is fine: answer once the body is whole."""
        self._head = head

    def reject(self, error: EngineError) -> None:
        """The request is refused already; its body is read past and dropped."""
        self._error = error
        self._body = b""

    def feed(self, chunk: bytes) -> None:
        """Take a piece of the body.

        Raises:
            PayloadTooLargeError: it is larger than is accepted; nothing more may be read.
            OverloadedError: too much is held already; nothing more may be read.
        """
        self._filled += len(chunk)
        if self._filled > self._service.max_body_bytes:
            raise too_large(self._service.max_body_bytes)
        if self._error is not None:
            return
        self._service.budget.take(len(chunk))
        self._held_bytes += len(chunk)
        if self._filled == len(chunk):
            self._body = chunk  # the first piece, most often the only one
            return
        if self._length is None:
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += chunk
            return
        start = self._filled - len(chunk)
        if isinstance(self._body, bytes):
            whole = bytearray(self._length)
            whole[:start] = self._body
            self._body = whole
        self._body[start : self._filled] = chunk

    def complete(self) -> None:
        """The body is whole."""
        self.is_complete = True
        if self._is_turn:
            self._begin()

    def take_turn(self) -> None:
        """Every earlier request of the connection is answered."""
        self._is_turn = True
        if self.is_complete:
            self._begin()

    def abandon(self) -> None:
        """The connection is gone; what is queued already is skipped or ends by itself."""
        self.disconnected = True
        self._release()

    def _release(self) -> None:
        self._service.budget.give_back(self._held_bytes)
        self._held_bytes = 0
        self._body = b""

    def _begin(self) -> None:
        if self._error is not None or self._head is None:
            error = self._error or EngineError("a request without a head")
            self._service.metrics.record_error(error.code)
            self._finish(error_reply(error))
            return
        service = self._service
        try:
            call = Call(
                self._head,
                self._body,
                service.plane,
                service.metrics,
                records_by_default=service.records_by_default,
                caller=self,
            )
            call.decode_small()
        except Exception as error:  # noqa: BLE001 - a caller is never left waiting, bugs included
            code = error.code if isinstance(error, EngineError) else "internal"
            service.metrics.record_error(code)
            self._finish(error_reply(error))
            return
        protocol = self._protocol
        service.turn.add(call, protocol.loop, is_alone=len(protocol.connections) == 1)

    def is_gone(self) -> bool:
        """Whether nobody waits for the reply any more."""
        return self.disconnected or self.response_complete

    def wait(self, call: Call) -> None:
        """The call is in the line; whoever is first, reply or deadline, answers."""
        timeout_s = self._service.request_timeout_s
        self._timer = self._protocol.loop.call_later(timeout_s, self._expire, call)

    def deliver(self, reply: Reply, *, is_elsewhere: bool) -> None:
        """Take the reply, on the event loop or on the thread that ran the call."""
        if is_elsewhere:
            self._service.turn.send(self._protocol.loop, self._finish, reply)
        else:
            self._finish(reply)

    def _expire(self, call: Call) -> None:
        text = (
            f"no answer within {self._service.request_timeout_s:g} s (REQUEST_TIMEOUT_S): "
            "the engine is busy, or the request is too large for that time"
        )
        self._finish(call.refuse(DeadlineExceededError(text)))

    def _finish(self, reply: Reply) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self.response_complete:
            return
        self.response_complete = True
        self._release()
        if not self.disconnected:
            self._protocol.write_reply(reply, keep_alive=self.keep_alive)


def too_large(max_body_bytes: int) -> PayloadTooLargeError:
    """The refusal of a body over the limit."""
    return PayloadTooLargeError(
        f"the body is larger than {max_body_bytes} bytes (MAX_BODY_BYTES): send several requests"
    )
