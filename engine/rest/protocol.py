"""The engine's HTTP connection: a short way to inference beside the Starlette application.

uvicorn spends more on a small request than the model does. Here ``POST /infer`` and ``POST
/pipelines/{name}`` become an ``Exchange`` as soon as their head is read; everything else goes on to
the Starlette application. Both ways obey the same limits, deadlines and order of replies.
"""

from __future__ import annotations

import urllib.parse
from typing import TYPE_CHECKING

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from engine.errors import EngineError
from engine.rest.at_once import answer_at_once
from engine.rest.connection import LimitedProtocol, plain_reply
from engine.rest.errors import error_reply, too_large
from engine.rest.exchange import Exchange
from engine.rest.inference import read_head
from engine.rest.known_head import KnownHead
from engine.rest.receiver import ALIGNMENT, Receiver
from engine.rest.service import refuse

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Final

    from engine.rest.inference import CallHead
    from engine.rest.media import Reply
    from engine.rest.service import Service

__all__ = ["EngineProtocol"]

MAX_OTHER_BODY_BYTES: Final = 1 << 20  # the other endpoints read a cursor at most
JOIN_BELOW: Final = 1 << 16  # a reply this small goes out in one piece with its head
PIPELINES: Final = b"/pipelines/"
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class EngineProtocol(LimitedProtocol):
    """One connection."""

    service: Service  # these two are set on a subclass per listener, see server.py
    answers_inference: bool

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - uvicorn's own
        super().__init__(*arguments, **options)
        self._exchange: Exchange | None = None  # the request being parsed, if it is an inference
        self._other_bytes = 0  # of the body of any other
        self._lesson: tuple[CallHead, bytes] | None = None  # of a head that is worth knowing
        self._known: KnownHead | None = None
        self._start, self._room = self.service.inbox.room(0)
        self._filling: Exchange | None = None  # whose body the next bytes belong to, and no other
        self._common: list[tuple[bytes, bytes]] = []  # headers of every reply, and their lines
        self._common_fields = b""

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401 - uvicorn's own
        """A client has come."""
        super().connection_made(transport)
        transport.set_protocol(Receiver(self))

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone: what was held for it is given back."""
        for cycle in (self.cycle, *(waiting for waiting, _ in self.pipeline)):
            if isinstance(cycle, Exchange):
                cycle.abandon()
        super().connection_lost(exc)

    def get_buffer(self, _size_hint: int) -> memoryview:
        """Where the next bytes are to arrive."""
        return self._room if self._filling is None else self._filling.room()

    def buffer_updated(self, size: int) -> None:
        """Bytes have arrived: take a request whose head is known, or parse them."""
        if self._filling is not None:
            self._fill(self._filling, size)
            return
        room, is_whole = self._room, self.is_between and not self.is_lingering
        if is_whole and self._known is not None and self._take_known(self._known, size):
            return
        data = bytes(room[:size])
        self.data_received(data)
        if is_whole and self.is_between and self._lesson is not None:
            self._known = KnownHead.learn(data, *self._lesson)
        elif self._exchange is not None and self._exchange.expects_much:
            self._filling = self._exchange

    def _fill(self, exchange: Exchange, size: int) -> None:
        """Take bytes that arrived where the body has them, past the parser."""
        try:
            if not self.is_lingering:
                exchange.take(size)
        except EngineError as error:
            self._refuse(refuse(self.service, error))
        if self.is_lingering:
            self._filling = None
        elif exchange.is_full:
            self._filling = None
            self.parser = self.new_parser()  # the other one still waits for this body
            self.on_message_complete()

    def on_message_begin(self) -> None:
        """A new request."""
        super().on_message_begin()
        self._exchange = self._lesson = None
        self._other_bytes = 0

    def on_headers_complete(self) -> None:
        """Choose the way of the request."""
        self.end_head()
        if self.offers_upgrade():
            return
        name = self._pipeline_name()
        if name is None:
            self._start_other()
        else:
            self._start_exchange(name or None)

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._head_bytes = 0
        if self._exchange is None:
            self._other_bytes += len(body)
            if self._other_bytes > MAX_OTHER_BODY_BYTES:
                self.stop(error_reply(too_large(MAX_OTHER_BODY_BYTES)))
            super().on_body(body)
            return
        try:
            self._exchange.feed(body)
        except EngineError as error:
            self.stop(refuse(self.service, error))

    def on_message_complete(self) -> None:
        """The request is whole."""
        if self.offers_upgrade():
            return
        self.end_request()
        if self._exchange is None:
            super().on_message_complete()
        else:
            self._exchange.complete()

    def write_reply(
        self, reply: Reply, *, keep_alive: bool = True, is_refusal: bool = False
    ) -> None:
        """Send a whole reply and let the connection's next request begin."""
        keep_alive = keep_alive and not self.service.plane.is_draining
        body = reply.body
        common = self.server_state.default_headers
        if common is not self._common:  # uvicorn makes a new list once a second, for the date
            self._common, self._common_fields = common, _fields(common)
        fields = self._common_fields
        if reply.headers:
            fields += _fields(reply.headers)
        is_small = len(body) < JOIN_BELOW
        head = b"%b%bcontent-type: %b\r\ncontent-length: %d\r\n%b\r\n%b" % (
            STATUS_LINE[reply.status],
            fields,
            reply.content_type,
            len(body),
            b"" if keep_alive else b"connection: close\r\n",
            body if is_small else b"",  # type: ignore[str-format] # takes any buffer
        )
        if is_small:
            self.transport.write(head)
        else:
            self.transport.writelines((head, body))
        if is_refusal:
            return
        if not keep_alive:
            self.transport.close()
        self.on_response_complete()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:  # noqa: ANN401 - uvicorn's own
        if isinstance(cycle, Exchange):
            if self.expect_100_continue and not self.is_between:
                self.transport.write(CONTINUE)
            cycle.take_turn()
        else:
            super()._start_asgi_task(cycle, app)

    def _pipeline_name(self) -> str | None:
        """The name in ``/pipelines/{name}``, "" for ``/infer``, None for any other request."""
        if not self.answers_inference or self.parser.get_method() != b"POST":
            return None
        path = self.url.partition(b"?")[0]
        if not path.startswith(b"/"):  # as to a proxy: with scheme and host
            path = b"/" + path.partition(b"://")[2].partition(b"/")[2]
        if path == b"/infer":
            return ""
        if path.startswith(PIPELINES) and b"/" not in path[len(PIPELINES) :]:
            return urllib.parse.unquote(path[len(PIPELINES) :].decode("latin-1")) or None
        return None

    def _start_exchange(self, pipeline_name: str | None) -> None:
        headers = dict(self.headers)
        text = headers.get(b"content-length")
        length = None if text is None else int(text)
        keep_alive = self.may_keep_alive()
        exchange = Exchange(self, self.service, keep_alive=keep_alive)
        authorization = headers.get(b"authorization", b"")
        try:
            if self.service.tokens is not None:
                self.service.tokens.check(authorization)
            if length is not None and length > self.service.max_body_bytes:
                self.stop(refuse(self.service, too_large(self.service.max_body_bytes)))
            query = self.url.partition(b"?")[2]
            head = read_head(pipeline_name, query, headers)
            exchange.accept(head, length or 0)
            if keep_alive and length is not None and not self.expect_100_continue:
                self._lesson = head, authorization
        except EngineError as error:
            exchange.reject(error)
        self._exchange = self._parsed = exchange
        self._take_its_turn(exchange)

    def _take_known(self, known: KnownHead, size: int) -> bool:
        """Take a whole request with the head of the one before; False leaves it to the parser.

        What is to be refused is left to the parser too, so that it is refused in one place.
        """
        service, first = self.service, self._start
        data, stop = service.inbox.data, first + size
        start = known.find_body(data, first, stop)
        if not start:
            return False
        if start % ALIGNMENT != service.inbox.aligned:
            self._start, self._room = service.inbox.room(start - first)  # of the next request
            data = data[start:stop]
            start, stop = 0, stop - start
        try:
            if service.tokens is not None:
                service.tokens.check(known.authorization)
            if self.cycle is None or self.cycle.response_complete:
                self._deadline_s, self._head_bytes = None, 0  # the request is whole
                if answer_at_once(
                    service,
                    known.call,
                    data,
                    start,
                    stop,
                    connections=len(self.connections),
                    send=self.write_reply,
                ):
                    return True
            exchange = Exchange(self, service, keep_alive=True)
            exchange.feed(bytes(memoryview(data)[start:stop]))
        except EngineError:
            return False
        self.end_request()
        self.expect_100_continue = False
        exchange.accept(known.call, 0)
        exchange.is_complete = True
        self._take_its_turn(exchange)
        return True

    def _take_its_turn(self, exchange: Exchange) -> None:
        earlier = self.cycle
        self.cycle = exchange
        if earlier is None or earlier.response_complete:
            if self.expect_100_continue:
                self.transport.write(CONTINUE)
            exchange.take_turn()
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((exchange, self.app))

    def _start_other(self) -> None:
        """Give the request to uvicorn's way, with the dictionary that it wants."""
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        HttpToolsProtocol.on_message_begin(self)
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)
        try:
            super().on_headers_complete()
            self._parsed = self.cycle
        except (httptools.HttpParserInvalidURLError, UnicodeDecodeError):
            self.stop(plain_reply(400, "the request's URL is malformed"))


def _fields(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join([b"%b: %b\r\n" % field for field in headers])
