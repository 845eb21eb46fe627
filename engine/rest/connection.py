"""An HTTP connection with limits and deadlines, which uvicorn's own has not.

Rules that hold here:
- Everything runs on the event loop. No timer per request: ``sweep`` looks at every connection once
  a second.
- A request that is refused before its end closes the connection, after its reply was sent and what
  was still coming was read past for a short while, so that the client sees the reply.
- Which endpoint answers is none of its business: that is ``protocol``'s.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from engine.refusal import error_body
from engine.rest.flow import Flow
from engine.rest.media import JSON_TYPE, Reply

if TYPE_CHECKING:
    from typing import Any, Final

__all__ = ["LimitedProtocol", "plain_reply", "sweep"]

MAX_HEAD_BYTES: Final = 64 << 10
MAX_HEADERS: Final = 200
HEAD_TIMEOUT_S: Final = 10.0
BODY_TIMEOUT_S: Final = 30.0
LINGER_S: Final = 2.0
REQUEST_TIMEOUT: Final = 408  # what a missed deadline is answered with while a request arrives
IDLE: Final = 0  # ... between requests: nothing, the connection is closed


class RefusedError(Exception):
    """Raised inside a parser callback to stop parsing; the reply is already decided."""


class LimitedProtocol(HttpToolsProtocol):
    """One connection."""

    cycle: Any  # the newest request of the connection, which has uvicorn's few attributes
    flow: Flow
    pipeline: Any  # the requests that wait for their turn, newest first

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - uvicorn's own
        super().__init__(*arguments, **options)
        self._deadline_s: float | None = time.monotonic() + HEAD_TIMEOUT_S
        self._deadline_status = REQUEST_TIMEOUT
        self._is_next_due = False  # once the replies before it are read
        self._head_bytes = 0  # of a head, or of trailers: what came without a byte of a body
        self._is_in_head = True
        self.is_between = True  # no byte of the next request was parsed yet
        self.is_lingering = False  # refused: what still comes is dropped
        self._refusal: Reply | None = None
        self._parsed: Any = None  # the request being parsed

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401 - uvicorn's own
        """A client has come."""
        super().connection_made(transport)
        self.flow = Flow(transport, self.pipeline)

    def data_received(self, data: bytes) -> None:
        """Parse what arrived, within the limits."""
        if self.is_lingering:
            return
        self._head_bytes += len(data)
        if self._is_in_head and self._deadline_status != REQUEST_TIMEOUT:
            self._set_deadline(HEAD_TIMEOUT_S, REQUEST_TIMEOUT)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            if self._refusal is None:
                text = f"this is not valid HTTP: {error}"
                self._refusal = plain_reply(400, text)
            self._refuse(self._refusal)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(_head_too_large())

    def on_message_begin(self) -> None:
        """A new request; uvicorn's own dictionary for it is only made where it is needed."""
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._parsed = None
        self._is_in_head = True
        self.is_between = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one header; what trails a body is of no use, and no header."""
        if not self._is_in_head:
            return
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))
        if len(self.headers) > MAX_HEADERS:
            self.stop(_head_too_large())

    def end_head(self) -> None:
        """The head is whole: the body has a time of its own."""
        self._is_in_head = False
        if self._head_bytes > MAX_HEAD_BYTES and self._declared_head_bytes() > MAX_HEAD_BYTES:
            self.stop(_head_too_large())
        self._head_bytes = 0
        if self.expect_100_continue and self.parser.get_http_version() == "1.0":
            self.expect_100_continue = False  # it knows of no reply before the reply
        self._set_deadline(BODY_TIMEOUT_S, REQUEST_TIMEOUT)

    def end_request(self) -> None:
        """The request is whole; what is left of the connection's time belongs to the engine."""
        self._deadline_s = None
        self._head_bytes = 0
        self._is_in_head = self.is_between = True
        self._parsed = None

    def on_response_complete(self) -> None:
        """A reply is out: the next request may begin, or take its time.

        In uvicorn's place, without the timer that it would start here: ``sweep`` closes idle
        connections.
        """
        self.server_state.total_requests += 1
        if not self.transport.is_closing():
            if self.pipeline:
                self.loop.call_soon(self._start_next)  # not from here: they may be thousands
            elif self.is_lingering and self._refusal is not None:
                self._send_refusal(self._refusal)
            elif self.flow.read_paused:
                self.flow.resume_reading()
        if self._deadline_s is None:
            self._deadline_s = time.monotonic() + self.timeout_keep_alive
            self._deadline_status = IDLE

    def _start_next(self) -> None:
        self._is_next_due = self.flow.write_paused
        if self._is_next_due or not self.pipeline or self.transport.is_closing():
            return
        if len(self.pipeline) == 1 and not self.is_between:  # the rest of it was not read so far
            self._set_deadline(BODY_TIMEOUT_S, REQUEST_TIMEOUT)
        self._start_asgi_task(*self.pipeline.pop())
        self.flow.resume_reading()

    def pause_writing(self) -> None:
        """The client reads slower than it is answered: take nothing more from it meanwhile."""
        super().pause_writing()
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        """The client has caught up."""
        super().resume_writing()
        if self._deadline_s is not None and self._deadline_status == IDLE:
            self._set_deadline(self.timeout_keep_alive, IDLE)
        if self._is_next_due:
            self.loop.call_soon(self._start_next)
        self.flow.resume_reading()

    def check_deadline(self, now_s: float) -> None:
        """Close a connection that is idle, or sends or reads too slowly."""
        if self.flow.is_stuck(now_s):
            self.transport.abort()
            return
        if self._deadline_s is None or now_s < self._deadline_s:
            return
        if self.flow.read_paused:  # it is not heard: what it sends cannot be late
            self._deadline_s = now_s + BODY_TIMEOUT_S
            return
        self._deadline_s = None
        if self._deadline_status == REQUEST_TIMEOUT and (self._head_bytes or not self._is_in_head):
            self._refuse(plain_reply(REQUEST_TIMEOUT, "the request did not arrive in time"))
        else:
            self.flow.watch()  # closing waits until the replies are read
            self.transport.close()

    def write_reply(
        self, reply: Reply, *, keep_alive: bool = True, is_refusal: bool = False
    ) -> None:
        """Send a whole reply; what follows a refusal is done by ``_send_refusal``."""
        raise NotImplementedError

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, in the engine's own words and shape."""
        self._refuse(plain_reply(400, msg))

    def may_keep_alive(self) -> bool:
        """Whether the connection may outlive the request whose head is being read."""
        parser = self.parser
        return (
            parser.should_keep_alive()
            and not parser.should_upgrade()
            and parser.get_http_version() != "1.0"
        )

    def offers_upgrade(self) -> bool:
        """Whether another protocol is offered, as Java's client does on its first request.

        The parser then takes the body for that protocol's and ends the request with its head:
        nothing may be begun for it.
        """
        return bool(self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT")

    def _decline_upgrade(self, rest: bytes) -> None:
        """Read the same request again without the offer, which is how it is declined."""
        if not self.offers_upgrade():
            self._close_after_reply()
            return
        fields = [
            b"%b: %b\r\n" % field
            for field in self.headers
            if field[0] not in {b"upgrade", b"connection", b"http2-settings"}
        ]
        if any(_closes(value) for name, value in self.headers if name == b"connection"):
            fields.append(b"connection: close\r\n")
        version = self.parser.get_http_version().encode()
        line = b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, version)
        self.parser = self.new_parser()
        self.data_received(b"%b%b\r\n%b" % (line, b"".join(fields), rest))

    def new_parser(self) -> httptools.HttpRequestParser:
        """A parser that expects a request."""
        parser = httptools.HttpRequestParser(self)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        return parser

    def _close_after_reply(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
        else:
            self.cycle.keep_alive = False

    def _declared_head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _set_deadline(self, seconds: float, status: int) -> None:
        self._deadline_s = time.monotonic() + seconds
        self._deadline_status = status

    def stop(self, reply: Reply) -> None:
        """Leave a parser callback for good; ``data_received`` sends the reply."""
        self._refusal = reply
        raise RefusedError

    def _refuse(self, reply: Reply) -> None:
        """Send a last reply once earlier requests are answered; what still comes is dropped."""
        if self.is_lingering or self.transport.is_closing():
            return
        self.is_lingering = True
        self._refusal = reply
        parsed, last = self._parsed, self.cycle
        is_first = last is None or last.response_complete
        if parsed is not None:
            is_first = not (self.pipeline and self.pipeline[0][0] is parsed)
            if not is_first:
                self.pipeline.popleft()
            parsed.response_complete = parsed.disconnected = True
            parsed.message_event.set()
        if is_first:
            self._send_refusal(reply)

    def _send_refusal(self, reply: Reply) -> None:
        """Send the connection's last reply, then read past what still comes for a short while."""
        self._refusal = None
        self.write_reply(reply, keep_alive=False, is_refusal=True)
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._set_deadline(LINGER_S, IDLE)
        else:
            self.transport.close()
        self.flow.resume_reading()


def sweep(connections: Any) -> None:  # noqa: ANN401 - uvicorn's set of any protocols
    """Enforce the deadlines of all connections; called once a second."""
    now_s = time.monotonic()
    for connection in list(connections):
        if isinstance(connection, LimitedProtocol):
            connection.check_deadline(now_s)


def plain_reply(status: int, text: str) -> Reply:
    """An error of HTTP itself in the documented shape."""
    return Reply(status, JSON_TYPE, error_body(status, text))


def _closes(connection: bytes) -> bool:
    """Whether the value of a Connection header asks for the end of it after the reply."""
    return b"close" in {token.strip() for token in connection.lower().split(b",")}


def _head_too_large() -> Reply:
    text = (
        f"the request's head is too large: at most {MAX_HEAD_BYTES} bytes and {MAX_HEADERS} headers"
    )
    return plain_reply(431, text)
