"""The Flight server: what each call of Arrow Flight is answered with.

Threads: everything here is called on the event loop, but for the answers to calls that ask once,
which ``ShortCall`` makes on threads of their own. DoExchange and DoPut have none.
Source: our own design; the documented product has no public Flight endpoint.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING

import pyarrow.flight as fl

from engine.errors import EngineError, ShuttingDownError
from engine.flight.admission import Admission
from engine.flight.call import ExchangeCall, PutCall
from engine.flight.catalog import ACTIONS, Catalog
from engine.flight.descriptors import parse, read_descriptor, read_ticket
from engine.flight.errors import (
    finish_schema_with,
    finish_unimplemented,
    finish_with,
)
from engine.flight.messages import batch_pieces, field, schema_pieces
from engine.flight.results import Results
from engine.flight.short_call import ShortCall
from engine.http2.handler import NOBODY
from engine.http2.server import GrpcServer

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable, Generator
    from typing import Final

    from engine.flight.admission import Admitted
    from engine.flight.messages import Piece
    from engine.flight.service import FlightService
    from engine.flight.short_call import Answer
    from engine.http2.call import Call
    from engine.http2.handler import Handler
    from engine.tokens import TokenFile

    Messages = Generator[tuple[Piece, ...]]

__all__ = ["FlightServer"]

SERVICE: Final = "/arrow.flight.protocol.FlightService/"
MAX_MESSAGE_BYTES: Final = (1 << 31) - 1  # no client of Arrow sends more
LAST_WAIT_S: Final = 0.5  # for clients to end what is answered, and to go
LOOK_S: Final = 0.01  # how often it is looked whether all is answered
NOT_HERE: Final = {
    "Handshake": "there is no handshake here: where tokens are asked for, send the header "
    "'Authorization: Bearer <token>' with every call",
    "PollFlightInfo": "nothing here takes long to be described: use GetFlightInfo",
}


class FlightServer:
    """Arrow Flight around the data plane."""

    def __init__(
        self,
        service: FlightService,
        *,
        partition: str,
        max_calls: int,
        max_held_bytes: int,
        tokens: TokenFile | None,
    ) -> None:
        """Prepare to serve.

        Args:
            service: answers the batches of calls.
            partition: the name that cursors of the log go by.
            max_calls: calls at a time.
            max_held_bytes: of answers that wait for DoGet.
            tokens: accepted bearer tokens; None where everybody is welcome.
        """
        self._service = service
        self._catalog = Catalog(service.plane, partition)
        self._admission = Admission(max_calls, tokens, service.metrics)
        self._results = Results(max_held_bytes, service.request_timeout_s)
        self._exchanges: set[ExchangeCall] = set()
        self._short_calls: set[ShortCall] = set()
        self._is_stopping = False
        self._grpc = GrpcServer(self._accept, max_message_bytes=MAX_MESSAGE_BYTES)
        self._answers: dict[str, Answer] = {
            "DoGet": self._do_get,
            "GetSchema": self._get_schema,
            "GetFlightInfo": self._get_flight_info,
            "ListFlights": self._list_flights,
            "DoAction": self._do_action,
            "ListActions": self._list_actions,
        }

    @property
    def is_in_use(self) -> bool:
        """Whether a client is connected."""
        return bool(self._grpc.connections)

    async def serve(self, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
        """Accept clients from now on.

        Args:
            listener: bound already.
            tls: what connections are served with; None for plain ones.
        """
        await self._grpc.serve(listener, tls)

    def sweep(self) -> None:
        """Leave clients that get on with nothing; to be called once a second."""
        self._grpc.sweep(time.monotonic())

    async def stop(self, grace_s: float) -> None:
        """Refuse what comes, let what is being answered end, and leave all clients.

        Args:
            grace_s: how long answers may still take.
        """
        self._admission.is_closed = self._is_stopping = True
        self._grpc.go_away()
        for exchange in tuple(self._exchanges):
            exchange.refuse_new()
        for short_call in tuple(self._short_calls):
            short_call.refuse_new()
        deadline_s = time.monotonic() + grace_s
        await _while(self._is_answering, deadline_s)
        # a client that has its answers ends its stream; an idle one is ended in words
        await _while(lambda: bool(self._exchanges), _soon(deadline_s))
        for exchange in tuple(self._exchanges):
            exchange.end_idle()
        self._grpc.close()
        await _while(lambda: self.is_in_use, _soon(deadline_s))
        self._grpc.abort()

    def _is_answering(self) -> bool:
        return (
            bool(self._short_calls)
            or any(exchange.is_busy for exchange in self._exchanges)
            or any(
                call.unsent_bytes
                for connection in self._grpc.connections
                for call in connection.calls.values()
            )
        )

    # -- calls that begin, and their end ---------------------------------------------------------

    def _accept(self, call: Call) -> Handler:
        path = call.path.decode("ascii", "replace")
        method = path.removeprefix(SERVICE)
        is_stream = method in {"DoExchange", "DoPut"}
        answer = self._answers.get(method)
        if method == path or not (is_stream or answer or method in NOT_HERE):
            finish_unimplemented(call, f"there is no method {path[:100]!r}: this is Arrow Flight")
            return NOBODY
        try:
            admitted = self._admission.admit(call)
        except EngineError as error:
            finish_with(call, error, self._service.metrics)
            return NOBODY
        if is_stream:
            return self._begin_exchange(call, admitted, is_put=method == "DoPut")
        if answer is None:
            admitted.leave()
            finish_unimplemented(call, NOT_HERE[method])
            return NOBODY
        finish = finish_schema_with if method == "GetSchema" else finish_with
        short_call = ShortCall(
            call,
            answer,
            admitted.check,
            partial(finish, metrics=self._service.metrics),
            partial(self._end_short_call, admitted),
        )
        self._short_calls.add(short_call)
        return short_call

    def _begin_exchange(self, call: Call, admitted: Admitted, *, is_put: bool) -> ExchangeCall:
        on_end = partial(self._end_exchange, admitted)
        if is_put:
            exchange: ExchangeCall = PutCall(self._service, call, admitted, on_end, self._results)
        else:
            exchange = ExchangeCall(self._service, call, admitted, on_end)
        self._exchanges.add(exchange)
        return exchange

    def _end_exchange(self, admitted: Admitted, exchange: ExchangeCall) -> None:
        self._exchanges.discard(exchange)
        admitted.leave()

    def _end_short_call(self, admitted: Admitted, short_call: ShortCall) -> None:
        self._short_calls.discard(short_call)
        admitted.leave()

    # -- answers, on threads of their own --------------------------------------------------------

    def _do_get(self, call: ShortCall, request: bytes) -> Messages:
        """The answers of a DoPut, once; or rows of the log, or its failures."""
        wanted = read_ticket(parse(fl.Ticket, request))
        if isinstance(wanted, bytes):
            schema, parts = self._results.fetch(wanted)
            yield schema_pieces(schema)
            for batch, metadata in parts:
                yield batch_pieces(batch, metadata)
            return
        log = self._catalog.log_stream(wanted)
        yield schema_pieces(log.schema)
        for batch, metadata in log.batches():
            call.check()
            if self._is_stopping:
                raise ShuttingDownError("the engine is stopping: go on later from the last batch")
            yield batch_pieces(batch, metadata)

    def _get_schema(self, _call: ShortCall, request: bytes) -> Messages:
        """The schema of the replies, of the requests (path ends in ``input``), or of the log."""
        wanted = read_descriptor(parse(fl.FlightDescriptor, request))
        yield (fl.SchemaResult(self._catalog.schema(wanted)).serialize(),)

    def _get_flight_info(self, _call: ShortCall, request: bytes) -> Messages:
        """What a pipeline takes and gives, or the rows of the log with their ticket."""
        descriptor = parse(fl.FlightDescriptor, request)
        yield (self._catalog.info(read_descriptor(descriptor), descriptor).serialize(),)

    def _list_flights(self, _call: ShortCall, _criteria: bytes) -> Messages:
        """The pipeline that is served, the log and its failures; each where there is one."""
        for info in self._catalog.infos():
            yield (info.serialize(),)

    def _do_action(self, _call: ShortCall, request: bytes) -> Messages:
        """Answer an action of ``ACTIONS``."""
        yield (field(1, self._catalog.act(parse(fl.Action, request).type)),)

    def _list_actions(self, _call: ShortCall, _request: bytes) -> Messages:
        """Every action with its description."""
        for name, description in ACTIONS:
            yield (field(1, name.encode()) + field(2, description.encode()),)


def _soon(deadline_s: float) -> float:
    """A little later than now, or the deadline."""
    return min(time.monotonic() + LAST_WAIT_S, deadline_s)


async def _while(condition: Callable[[], bool], deadline_s: float) -> None:
    while condition() and time.monotonic() < deadline_s:  # noqa: ASYNC110 - many things to wait for
        await asyncio.sleep(LOOK_S)
