"""The inferences of one Flight call: its batches in, their answers out, one after the other.

Which thread runs what: everything is the event loop's, but for what stands in the line. A batch is
checked and read where it arrived, unless it is large; the model runs there too when that is
expected to be quick and a run slot is free (``turn``). Whatever goes into the line is run, and its
answer written, by a slot thread, and sent by the event loop.

Rules that hold here:
- One batch of a call is answered at a time; until it is, no further message of it is taken.
- The end of the stream means nothing: a killed client looks like one that is done. What counts is
  the answer to each batch.
- Whatever happens becomes the end of the call; nothing is ever raised to its caller.
"""

from __future__ import annotations

from time import monotonic_ns
from typing import TYPE_CHECKING

from engine._proto.sagitta.flight.v1 import flight_pb2
from engine.errors import DeadlineExceededError, DecodeError, OverloadedError, ShuttingDownError
from engine.flight.descriptors import write_ticket
from engine.flight.errors import finish_with
from engine.flight.messages import batch_pieces, field, schema_pieces
from engine.flight.request import BatchRequest
from engine.flight.stream import Stream
from engine.http2 import HIGH_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Final

    from engine.flight.admission import Admitted
    from engine.flight.reply import Part, Reply
    from engine.flight.results import Results
    from engine.flight.service import FlightService
    from engine.http2 import Call

__all__ = ["ExchangeCall", "PutCall"]

LONG_NS: Final = 100_000  # one batch of a call that took longer in each turn of the event loop
LATE_BYTES: Final = 4 << 20  # also once decoded; more is read by the thread that runs it


class ExchangeCall:
    """One DoExchange; the handler of its messages."""

    is_put = False

    def __init__(
        self,
        service: FlightService,
        call: Call,
        admitted: Admitted,
        on_end: Callable[[ExchangeCall], None],
    ) -> None:
        """Expect the schema.

        Args:
            service: what all calls share.
            call: whose messages come, and where the answers go.
            admitted: says whether its token still holds.
            on_end: called once, when the call is over.
        """
        self._service = service
        self._call = call
        self._admitted = admitted
        self._is_token_asked = admitted.is_token_asked
        self._on_end = on_end
        self._stream = Stream(service, self._rest, is_kept=self.is_put)
        self._request: BatchRequest | None = None  # the batch that is being answered
        self._parts: Iterator[Part] | None = None  # of its answer, still to be sent
        self._is_held = False
        self._is_begun = False  # the schema of the answers was sent
        self._is_refusing = False
        self._is_closed = False
        self._held_bytes = 0  # of large messages

    @property
    def is_busy(self) -> bool:
        """Whether a batch is being answered, or its answer sent."""
        return self._request is not None or self._parts is not None

    def refuse_new(self) -> None:
        """The engine stops: what is being answered is, and nothing after it."""
        self._is_refusing = True

    def end_idle(self) -> None:
        """The engine stops, and has waited long enough for the client to end the call."""
        if not self.is_busy:
            self._fail(_stopping())

    # -- http2's handler -------------------------------------------------------------------------

    def place(self, size_bytes: int, first: memoryview) -> memoryview | None:
        """Where a large message is to stand; None where too much is held already."""
        try:  # the client's window keeps it from coming before what is held already is answered
            self._service.budget.take(size_bytes, own_bytes=self._held_bytes)
        except OverloadedError as error:
            self._fail(error)
            return None
        self._held_bytes += size_bytes
        return self._stream.incoming.place(size_bytes, first)

    def take_at_once(self, message: bytes | memoryview) -> bool:
        """A batch that can go the short way."""
        try:
            if self._is_refusing:
                raise _stopping()
            if self._is_token_asked:
                self._admitted.check()
            if not self._stream.answer_at_once(message, self._call.send):
                return False
            if self._held_bytes:  # it was placed
                self._stream.incoming.skip(message)
                self._let_go(message)
            if self._call.unsent_bytes:
                self._hold_while_unsent()
        except Exception as error:  # noqa: BLE001 - whatever it is ends the call
            self._fail(error)
        return True

    def take(self, message: bytes | memoryview) -> None:
        """The schema, or a batch."""
        try:
            if self._stream.has_schema:
                self._answer(message)
            else:
                self._stream.begin(message)
                self._let_go(message)
        except Exception as error:  # noqa: BLE001 - whatever it is ends the call
            self._fail(error)

    def end(self) -> None:
        """The client has sent all it wants answers to."""
        if not self._stream.has_schema:
            self._fail(DecodeError("the stream has ended before it had a schema"))
            return
        self._call.finish()
        self._close()

    def drained(self) -> None:
        """Send on, or take the next batch, where the client has read."""
        if self._parts is not None:
            self._send_parts()
        elif self._request is None:
            self._go_on_when_read()

    def leave(self) -> None:
        """Nobody waits for an answer any more."""
        self._close()

    # -- one batch -------------------------------------------------------------------------------

    def _answer(self, message: bytes | memoryview) -> None:
        """Answer a batch, now or later."""
        stream, service, call = self._stream, self._service, self._call
        opened = stream.incoming.open_batch(message)
        if opened is None:  # metadata alone
            self._let_go(message)
            return
        request = BatchRequest(
            stream, service, call, message, settled=self._settled, expired=self._expired
        )
        if max(len(message), opened.decoded_bytes) <= LATE_BYTES:
            stream.prepare(request, opened)
        else:
            request.rows, request.opened = opened.rows, opened
        self._request = request
        service.turn.add(request, call.loop, is_alone=service.metrics.flight_calls <= 1)
        if self._request is not None:
            self._hold()
        elif monotonic_ns() - request.started_ns > LONG_NS:
            self._rest()

    def _settled(self, request: BatchRequest, reply: Reply | Exception) -> None:
        """Send a reply; on the event loop."""
        self._request = None
        self._let_go(request.message)
        if isinstance(reply, Exception):
            self._fail(reply)
            return
        try:
            self._respond(reply)
            request.count(self._service.metrics)
            self._send_parts()
        except Exception as error:  # noqa: BLE001 - whatever it is ends the call
            self._fail(error)

    def _expired(self) -> None:
        """The request has waited too long."""
        self._request = None
        text = (
            f"no answer within {self._service.request_timeout_s:g} s (REQUEST_TIMEOUT_S): the "
            "engine is busy, or the batch too large for that time"
        )
        self._fail(DeadlineExceededError(text))

    def _respond(self, reply: Reply) -> None:
        """Begin to send a reply; what comes after is in ``_parts``."""
        if not self._is_begun:
            self._is_begun = True
            self._call.send(*schema_pieces(reply.batch.schema))
        self._parts = reply.parts()

    def _send_parts(self) -> None:
        """Send as much of an answer as the client reads."""
        call, parts = self._call, self._parts
        while parts is not None and not call.is_over:
            if self._hold_while_unsent():
                return
            part = next(parts, None)
            if part is None:
                break
            call.send(*batch_pieces(*part))
        self._parts = None
        self._go_on_when_read()

    # -- holding back ----------------------------------------------------------------------------

    def _rest(self) -> None:
        """Let others have their turn: a client may have sent hundreds of batches at once."""
        self._hold()
        self._call.loop.call_soon(self.drained)

    def _hold(self) -> None:
        self._is_held = True
        self._call.hold()

    def _hold_while_unsent(self) -> bool:
        is_high = self._call.unsent_bytes > HIGH_BYTES
        if is_high:
            self._hold()
        return is_high

    def _go_on_when_read(self) -> None:
        if not self._hold_while_unsent() and self._is_held and not self._is_closed:
            self._is_held = False
            self._call.go_on()

    def _fail(self, error: BaseException) -> None:
        finish_with(self._call, error, self._service.metrics)
        self._close()

    def _let_go(self, message: bytes | memoryview) -> None:
        """A message is not held any more."""
        if isinstance(message, memoryview):
            self._service.budget.give_back(len(message))
            self._held_bytes -= len(message)

    def _close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        request, self._request = self._request, None
        if request is not None:  # the end came while a batch was being answered
            request.give_up()
        self._service.budget.give_back(self._held_bytes)
        self._held_bytes = 0
        self._parts = None
        self._stream.end()
        self._on_end(self)


class PutCall(ExchangeCall):
    """One DoPut: its answers are kept for DoGet, and each is told of with its ticket."""

    is_put = True

    def __init__(
        self,
        service: FlightService,
        call: Call,
        admitted: Admitted,
        on_end: Callable[[ExchangeCall], None],
        results: Results,
    ) -> None:
        """Expect the schema; ``results`` keep the answers."""
        super().__init__(service, call, admitted, on_end)
        self._results = results
        self._key: bytes | None = None

    def _respond(self, reply: Reply) -> None:
        self._key = self._results.add(self._key, reply)
        told = flight_pb2.PutReply(
            sequence=reply.told.sequence,
            rows=reply.told.rows,
            elapsed_ns=reply.told.elapsed_ns,
            ticket=write_ticket(self._key),
        )
        self._call.send(field(1, told.SerializeToString()))


def _stopping() -> ShuttingDownError:
    return ShuttingDownError("the engine is stopping and takes no new batches")
