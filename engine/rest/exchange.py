"""One inference request on a connection: gathers its body, gets it answered, sends the reply.

It stands where uvicorn keeps its own request-response cycle, so that a connection's requests are
answered in order whichever way each of them goes, and has the few attributes that uvicorn looks at.

Rules that hold here:
- A body is decoded where it arrived, the event loop, unless it is large JSON; the model runs there
  too when it is expected to be quick and a run slot is free (``turn``). Everything else goes into
  the line, and whoever runs it there decodes what is not decoded yet, runs and encodes.
- An exception never leaves an exchange: whatever happens becomes a reply.
- It ends once, on the event loop, which there counts what the client got: an answer, a refusal, or
  nothing, since it had left. What a slot thread brings after that is dropped.
- A body that came in one piece is not copied again; a large one arrives in memory that grows as it
  comes, or was left by another. What a head announces takes no memory.
- The bytes of all bodies that are held, arriving or waiting, have one bound: many slow uploads
  cannot take all memory. They are given back exactly once, when the exchange ends in any way.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from engine.errors import DeadlineExceededError, EngineError
from engine.request import InferRequest
from engine.rest.errors import too_large
from engine.rest.inference import is_arrow, read_body, write_result
from engine.rest.service import refuse

if TYPE_CHECKING:
    import asyncio
    from typing import Final

    from engine.rest.inference import CallHead
    from engine.rest.media import Reply
    from engine.rest.protocol import EngineProtocol
    from engine.rest.service import Service
    from engine.values import Frame, InferResult

__all__ = ["Exchange"]

INLINE_JSON_BYTES: Final = 1 << 20  # decoded on the event loop: some 3 ms
MUCH_BYTES: Final = 1 << 16  # less than that is parsed with what came before


class _NoEvent:
    """uvicorn wakes a cycle's receive loop through an event; there is no loop here."""

    def set(self) -> None:
        """Nothing waits."""


_NO_EVENT = _NoEvent()


class Exchange(InferRequest):
    """One request and its reply; whatever happens to it, the client gets exactly one reply.

    Its body is gathered and its reply sent on the event loop; ``decoded`` and ``settle`` are called
    on the thread that runs it.
    """

    keep_alive: bool  # uvicorn's few attributes of a cycle, and whether the client has gone
    is_complete = False
    response_complete = False
    disconnected = False
    message_event = _NO_EVENT

    _head: CallHead
    _error: EngineError | None = None
    _body: bytes | bytearray = b""
    _filled = 0
    _announced = 0
    _held_bytes = 0
    _timer: asyncio.TimerHandle | None = None
    _is_turn = False

    def __init__(self, protocol: EngineProtocol, service: Service, *, keep_alive: bool) -> None:
        """Begin to gather a body.

        Args:
            protocol: the connection.
            service: what all connections share.
            keep_alive: whether the connection outlives the reply.
        """
        self._protocol = protocol
        self._service = service
        self.keep_alive = keep_alive

    def accept(self, head: CallHead, length: int) -> None:
        """The head is fine: answer once the body is whole.

        Args:
            head: what it says.
            length: of the body, where the head says so, else 0.
        """
        self._head = head
        self._announced = length

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
        service = self._service
        size_bytes = len(chunk)
        self._filled += size_bytes
        if self._filled > service.max_body_bytes:
            raise too_large(service.max_body_bytes)
        if self._error is not None:
            return
        service.budget.take(size_bytes)
        self._held_bytes += size_bytes
        if self._filled == size_bytes:
            self._body = chunk  # the first piece, most often the only one
            return
        if isinstance(self._body, bytes):
            self._body = bytearray(self._body)
        self._body += chunk

    @property
    def expects_much(self) -> bool:
        """Whether there is so much to come that ``room`` should be asked where to put it."""
        return self._announced - self._filled >= MUCH_BYTES and self._error is None

    @property
    def is_full(self) -> bool:
        """Whether as much is here as was announced."""
        return self._filled == self._announced

    def room(self) -> memoryview:
        """Where the next bytes of the body are to be put, of which ``take`` is to be told.

        It is no more than twice what has come: what is announced takes no memory.
        """
        body, filled = self._body, self._filled
        if isinstance(body, bytes):
            whole = self._service.spares.lend(self._announced)
            if whole is None:
                whole = bytearray(min(self._announced, max(2 * filled, MUCH_BYTES)))
            whole[:filled] = body
            body = self._body = whole
        elif len(body) == filled:
            body *= 2
            del body[self._announced :]
        return memoryview(body)[filled:]

    def take(self, size_bytes: int) -> None:
        """Count bytes that were put where ``room`` said.

        Raises:
            OverloadedError: too much is held already; nothing more may be read.
        """
        self._service.budget.take(size_bytes)
        self._held_bytes += size_bytes
        self._filled += size_bytes

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
        """The connection is gone: its request leaves the line, or is run and not answered."""
        self.disconnected = True
        if self.is_complete and not self.response_complete:
            self._end()
            self._service.metrics.record_cancelled()
            self._service.turn.abandon(self)
        self._release()  # not before: who takes it out of the line reads its body

    def wait(self) -> None:
        """The request is in the line; whoever is first, reply or deadline, answers."""
        if self.is_abandoned:  # in the very turn of the event loop that the request came in
            self._service.turn.abandon(self)
            return
        timeout_s = self._service.request_timeout_s
        self._timer = self._protocol.loop.call_later(timeout_s, self._expire)

    def decoded(self) -> Frame:
        """The rows, decoded now if they are not yet."""
        return self.frame if self.frame is not None else self._decode()

    def settle(self) -> None:
        """Encode the reply, unless something failed, and have it sent."""
        outcome = self.take_outcome()
        if self.is_abandoned:
            return
        reply = self._write(outcome)
        if self.queued_ns:  # by a thread of the line
            self._service.turn.send(self._protocol.loop, self._finish, reply)
        else:
            self._finish(reply)

    def _begin(self) -> None:
        service, protocol = self._service, self._protocol
        if self._error is not None:
            self._finish(self._error)
            return
        self.started_ns = time.monotonic_ns()
        try:
            head, body, plane = self._head, self._body, service.plane
            name = head.pipeline_name
            self.pipeline = plane.running if name is None else plane.named(name)
            self.size_bytes = len(body)
            if self.size_bytes <= INLINE_JSON_BYTES or is_arrow(head, body):
                self.prepare(self._decode())
            else:
                self.rows = max(body.count(b"{"), 1)  # at most: one for each object
        except Exception as error:  # noqa: BLE001 - a caller is never left waiting, bugs included
            self._finish(error)
            return
        service.turn.add(self, protocol.loop, is_alone=len(protocol.connections) == 1)

    def _decode(self) -> Frame:
        service = self._service
        # the log keeps a column of numbers as float64 unless all of them are integers
        is_exact = service.plane.log is None or b"." in self._body
        return read_body(
            self._head,
            self._body,
            self.pipeline.inputs,
            service.tables,
            is_echoed=service.records_by_default or not is_exact,
        )

    def _write(self, outcome: InferResult | Exception) -> Reply | Exception:
        if isinstance(outcome, Exception):
            return outcome
        try:
            return write_result(self._head, outcome, self._service.records_by_default)
        except Exception as error:  # noqa: BLE001 - every failure is answered, bugs included
            return error

    def _expire(self) -> None:
        text = (
            f"no answer within {self._service.request_timeout_s:g} s (REQUEST_TIMEOUT_S): "
            "the engine is busy, or the request is too large for that time"
        )
        self._service.turn.abandon(self)
        self._finish(DeadlineExceededError(text))

    def _finish(self, reply: Reply | Exception) -> None:
        """Count and send the reply, unless the exchange has ended; on the event loop."""
        if self.response_complete:
            return
        self._end()
        self._release()
        if isinstance(reply, Exception):
            reply = refuse(self._service, reply)
        else:
            self.count(self._service.metrics)
        self._protocol.write_reply(reply, keep_alive=self.keep_alive)

    def _end(self) -> None:
        """Nothing more is sent, or counted."""
        self.response_complete = True
        if self._timer is not None:
            self._timer.cancel()

    def _release(self) -> None:
        service, body = self._service, self._body
        service.budget.give_back(self._held_bytes)
        self._held_bytes = 0
        self._body = b""
        if isinstance(body, bytearray):
            # not at once: the transport holds the memory until its last bytes are taken
            self._protocol.loop.call_soon(service.spares.keep, [body])
