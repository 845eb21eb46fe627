"""The engine's HTTP connection: uvicorn's, with limits, deadlines and a short way to inference.

uvicorn's own protocol has no limit on headers or bodies and no deadline for receiving them, and
spends more on a small request than the model does. Here ``POST /infer`` and ``POST
/pipelines/{name}`` become an ``Exchange`` as soon as their head is read; everything else goes on to
the Starlette application. Both ways obey the same limits, deadlines and order of replies.

Rules that hold here:
- Everything runs on the event loop. No timer per request: ``sweep`` looks at every connection once
  a second.
- A request that is refused before its end closes the connection, after its reply was sent and what
  was still coming was read past for a short while, so that the client sees the reply.
"""

from __future__ import annotations

import time
import urllib.parse
from typing import TYPE_CHECKING

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from engine.errors import EngineError
from engine.rest.errors import error_body, error_reply
from engine.rest.exchange import Exchange, too_large
from engine.rest.inference import read_head
from engine.rest.media import JSON_TYPE, Reply

if TYPE_CHECKING:
    from typing import Any, Final

    from engine.rest.exchange import Service

__all__ = ["EngineProtocol", "sweep"]

MAX_HEAD_BYTES: Final = 64 << 10
MAX_HEADERS: Final = 200
HEAD_TIMEOUT_S: Final = 10.0
BODY_TIMEOUT_S: Final = 30.0
WRITE_TIMEOUT_S: Final = 30.0
LINGER_S: Final = 2.0
MAX_OTHER_BODY_BYTES: Final = 1 << 20  # the other endpoints read a cursor at most
JOIN_BELOW: Final = 1 << 16  # a reply this small goes out in one piece with its head
PIPELINES: Final = b"/pipelines/"


class _RefusedError(Exception):
    """Raised inside a parser callback to stop parsing; the reply is already decided."""


class EngineProtocol(HttpToolsProtocol):
    """One connection."""

    service: Service  # these two are set on a subclass per listener, see server.py
    answers_inference: bool
    cycle: Any  # uvicorn's cycle or an Exchange: the newest request of the connection
    pipeline: Any  # the requests that wait for their turn, newest first

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - uvicorn's own
        super().__init__(*arguments, **options)
        self._deadline_s: float | None = time.monotonic() + HEAD_TIMEOUT_S
        self._deadline_status = 408
        self._head_bytes = 0
        self._is_in_head = True
        self._is_lingering = False
        self._refusal: Reply | None = None
        self._other_bytes = 0
        self._exchange: Exchange | None = None  # the request being parsed, if it is an inference
        self._parsed: Any = None  # the request being parsed, of either kind

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone: what was held for it is given back."""
        for cycle in (self.cycle, *(waiting for waiting, _ in self.pipeline)):
            if isinstance(cycle, Exchange):
                cycle.abandon()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what arrived, within the limits."""
        if self._is_lingering:
            return
        if self._is_in_head:
            self._head_bytes += len(data)
            if self._deadline_status != 408:
                self._set_deadline(HEAD_TIMEOUT_S, 408)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._close_after_reply()  # offered, as Java's client does, and not taken
        except httptools.HttpParserError as error:
            if self._refusal is None:
                text = f"this is not valid HTTP: {error}"
                self._refusal = _plain_reply(400, text)
            self._refuse(self._refusal)
        if self._is_in_head and self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(_head_too_large())

    def on_message_begin(self) -> None:
        """A new request; uvicorn's own dictionary for it is only made when it is needed."""
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._exchange = self._parsed = None
        self._other_bytes = 0
        self._is_in_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one header."""
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))
        if len(self.headers) > MAX_HEADERS:
            self._stop(_head_too_large())

    def on_headers_complete(self) -> None:
        """Choose the way of the request."""
        self._is_in_head = False
        if self._head_bytes > MAX_HEAD_BYTES and self._declared_head_bytes() > MAX_HEAD_BYTES:
            self._stop(_head_too_large())
        self._head_bytes = 0
        self._set_deadline(BODY_TIMEOUT_S, 408)
        name = self._pipeline_name()
        if name is None:
            self._start_other()
        else:
            self._start_exchange(name or None)

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        if self._exchange is None:
            self._other_bytes += len(body)
            if self._other_bytes > MAX_OTHER_BODY_BYTES:
                self._stop(error_reply(too_large(MAX_OTHER_BODY_BYTES)))
            super().on_body(body)
            return
        try:
            self._exchange.feed(body)
        except EngineError as error:
            self._stop(self._count(error))

    def on_message_complete(self) -> None:
        """The request is whole; what is left of the connection's time belongs to the engine."""
        self._deadline_s = None
        self._is_in_head = True
        self._parsed = None
        if self._exchange is None:
            super().on_message_complete()
        else:
            self._exchange.complete()

    def on_response_complete(self) -> None:
        """A reply is out: the next request may begin, or take its time."""
        super().on_response_complete()
        self._unset_keepalive_if_required()
        if self.flow.write_paused:
            self.flow.pause_reading()
        if self._deadline_s is None:
            self._set_deadline(float(self.timeout_keep_alive), 0)

    def write_reply(self, reply: Reply, *, keep_alive: bool) -> None:
        """Send a whole reply and let the connection's next request begin."""
        keep_alive = keep_alive and not self.service.plane.is_draining
        head = [STATUS_LINE[reply.status]]
        for name, value in self.server_state.default_headers:
            head.append(b"%b: %b\r\n" % (name, value))
        for name, value in reply.headers:
            head.append(b"%b: %b\r\n" % (name, value))
        head.append(
            b"content-type: %b\r\ncontent-length: %d\r\n%b\r\n"
            % (reply.content_type, len(reply.body), b"" if keep_alive else b"connection: close\r\n")
        )
        if len(reply.body) < JOIN_BELOW:
            head.append(reply.body)  # type: ignore[arg-type]
            self.transport.write(b"".join(head))
        else:
            self.transport.write(b"".join(head))
            self.transport.write(reply.body)
        if not keep_alive:
            self.transport.close()
        self.on_response_complete()

    def pause_writing(self) -> None:
        """The client reads slower than it is answered: take nothing more from it meanwhile."""
        super().pause_writing()
        self.flow.pause_reading()
        self._set_deadline(WRITE_TIMEOUT_S, -1)

    def resume_writing(self) -> None:
        """The client has caught up."""
        super().resume_writing()
        self.flow.resume_reading()
        self._deadline_s = None
        if self.cycle is None or self.cycle.response_complete:
            self._set_deadline(float(self.timeout_keep_alive), 0)

    def check_deadline(self, now_s: float) -> None:
        """Close a connection that is idle, sends or reads too slowly."""
        if self._deadline_s is None or now_s < self._deadline_s:
            return
        self._deadline_s = None
        if self._deadline_status == 408 and (self._head_bytes or not self._is_in_head):
            self._refuse(_plain_reply(408, "the request did not arrive in time"))
        elif self._deadline_status < 0:
            self.transport.abort()
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, in the engine's own words and shape."""
        self._refuse(_plain_reply(400, msg))

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:  # noqa: ANN401 - uvicorn's own
        if isinstance(cycle, Exchange):
            cycle.take_turn()
        else:
            super()._start_asgi_task(cycle, app)

    def _pipeline_name(self) -> str | None:
        """The name in ``/pipelines/{name}``, "" for ``/infer``, None for any other request."""
        if not self.answers_inference or self.parser.get_method() != b"POST":
            return None
        path = self.url.partition(b"?")[0]
        if path == b"/infer":
            return ""
        if path.startswith(PIPELINES) and b"/" not in path[len(PIPELINES) :]:
            return urllib.parse.unquote(path[len(PIPELINES) :].decode("latin-1")) or None
        return None

    def _start_exchange(self, pipeline_name: str | None) -> None:
        headers = dict(self.headers)
        length = headers.get(b"content-length")
        exchange = Exchange(
            self,
            self.service,
            length=None if length is None else int(length),
            keep_alive=self._may_keep_alive(),
        )
        try:
            if self.service.tokens is not None:
                self.service.tokens.check(headers.get(b"authorization", b""))
            if length is not None and int(length) > self.service.max_body_bytes:
                self._stop(self._count(too_large(self.service.max_body_bytes)))
            query = self.url.partition(b"?")[2]
            exchange.accept(read_head(pipeline_name, query, headers))
        except EngineError as error:
            exchange.reject(error)
        self._exchange = self._parsed = exchange
        earlier = self.cycle
        self.cycle = exchange
        if earlier is None or earlier.response_complete:
            if self.expect_100_continue:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            exchange.take_turn()
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((exchange, self.app))

    def _may_keep_alive(self) -> bool:
        parser = self.parser
        return (
            parser.should_keep_alive()
            and not parser.should_upgrade()
            and parser.get_http_version() != "1.0"
        )

    def _close_after_reply(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
        else:
            self.cycle.keep_alive = False

    def _start_other(self) -> None:
        """Give the request to uvicorn's way, with the dictionary that it wants."""
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)
        try:
            super().on_headers_complete()
            self._parsed = self.cycle
        except (httptools.HttpParserInvalidURLError, UnicodeDecodeError):
            self._stop(_plain_reply(400, "the request's URL is malformed"))

    def _declared_head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _set_deadline(self, seconds: float, status: int) -> None:
        self._deadline_s = time.monotonic() + seconds
        self._deadline_status = status

    def _count(self, error: EngineError) -> Reply:
        self.service.metrics.record_error(error.code)
        return error_reply(error)

    def _stop(self, reply: Reply) -> None:
        """Leave a parser callback for good; ``data_received`` sends the reply."""
        self._refusal = reply
        raise _RefusedError

    def _refuse(self, reply: Reply) -> None:
        """Send a last reply, then read past what still comes for a short while."""
        if self._is_lingering or self.transport.is_closing():
            return
        self._is_lingering = True
        cycle = self.cycle
        if self.pipeline or not (cycle is None or cycle.response_complete or cycle is self._parsed):
            self._close_after_reply()  # an earlier request is still to be answered
            return
        if self._parsed is not None:
            self._parsed.response_complete = self._parsed.disconnected = True
            self._parsed.message_event.set()
        head = b"%bcontent-type: %b\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % (
            STATUS_LINE[reply.status],
            reply.content_type,
            len(reply.body),
        )
        self.transport.write(head + bytes(reply.body))
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._set_deadline(LINGER_S, 0)
        else:
            self.transport.close()


def sweep(connections: Any) -> None:  # noqa: ANN401 - uvicorn's set of any protocols
    """Enforce the deadlines of all connections; called once a second."""
    now_s = time.monotonic()
    for connection in list(connections):
        if isinstance(connection, EngineProtocol):
            connection.check_deadline(now_s)


def _plain_reply(status: int, text: str) -> Reply:
    return Reply(status, JSON_TYPE, error_body(status, text))


def _head_too_large() -> Reply:
    text = (
        f"the request's head is too large: at most {MAX_HEAD_BYTES} bytes and {MAX_HEADERS} headers"
    )
    return _plain_reply(431, text)
