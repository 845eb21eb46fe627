"""One HTTP request to a registry, with what plain ``requests`` leaves open.

Rules that hold here:
- Every read from a socket has a deadline, status line and headers included, so that a peer that
  sends one byte a second cannot hold us longer than one that sends nothing.
- Only what may pass by itself is tried again (connection, 408, 429, 5xx), a bounded number of
  times, with jitter, inside the budget of the whole operation.
- Redirects are followed here and not by ``requests``: another origin never gets a credential, and
  https never becomes http.
- ``~/.netrc`` is never read; proxies and CA bundles of the environment are honoured.
"""

import http.client
import io
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import urllib3.exceptions

from engine.publish.artifact import FetchError
from engine.publish.credentials import Limits
from engine.publish.manifest import MAX_DOCUMENT_BYTES
from engine.publish.sockets import Deadline, DeadlineAdapter

__all__ = [
    "TRANSFER_ERRORS",
    "Request",
    "Transport",
    "explain",
    "jittered_s",
    "join_url",
    "origin",
]

_RETRIED = frozenset({408, 429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 5
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 15.0
_CHUNK_BYTES = 64 << 10

TRANSFER_ERRORS = (
    requests.exceptions.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
)
"""What a connection that breaks raises, depending on where it breaks."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent; ``body`` makes a fresh body for every attempt."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Callable[[], Any] | None = None


class Transport:
    """Sends requests for one registry client; used by one thread."""

    def __init__(self, session: requests.Session, limits: Limits, ca_file: Path | None) -> None:
        """Take over a session.

        Args:
            session: Its adapters and authentication are replaced.
            limits: Deadlines and attempts.
            ca_file: PEM certificates trusted beside the usual ones.

        Raises:
            FetchError: The CA file cannot be read.
        """
        self.deadline = Deadline()
        self._session = session
        self._limits = limits
        session.auth = _no_netrc
        adapter = DeadlineAdapter(self.deadline, ca_file)
        session.mount("http://", adapter)
        session.mount("https://", adapter)

    def send(
        self,
        request: Request,
        *,
        is_streamed: bool = False,
        follow: bool = True,
        attempts: int | None = None,
    ) -> requests.Response:
        """Send a request until it is answered, refused or out of time.

        Args:
            request: What to send; its ``Authorization`` goes to its own origin only.
            is_streamed: Leave the body unread; else it is read, as a small document.
            follow: Whether redirects are followed.
            attempts: Tries; by default those of the limits.

        Returns:
            The response; any status that is not worth another try.

        Raises:
            FetchError: The registry cannot be reached or keeps failing.
        """
        host = urlsplit(request.url).netloc
        attempts = attempts or self._limits.attempts
        for attempt in range(1, attempts + 1):
            pause_s = jittered_s(attempt)
            try:
                response = self._follow(request) if follow else self._once(request)
                if not is_streamed:
                    _read_body(response)
            except TRANSFER_ERRORS as error:
                if _is_final(error):
                    raise FetchError(
                        f"{host} cannot be reached: {explain(error)}; the certificates of a "
                        "private CA are named in OCI_CA_FILE"
                    ) from error
                reason = explain(error)
            else:
                if response.status_code not in _RETRIED:
                    return response
                reason = f"HTTP {response.status_code}"
                pause_s = max(pause_s, _retry_after_s(response))
                response.close()
            if self.deadline.is_over or pause_s >= self.deadline.remaining_s():
                break
            if attempt < attempts:
                time.sleep(pause_s)
        raise FetchError(f"{host} cannot be reached: {reason} ({attempt} attempts)")

    def _follow(self, request: Request) -> requests.Response:
        response = self._once(request)
        url, headers = request.url, dict(request.headers)
        for _ in range(_MAX_REDIRECTS):
            location = response.headers.get("Location")
            if response.status_code not in _REDIRECTS or not location:
                return response
            response.close()
            target = join_url(url, location)
            if origin(target) != origin(url):
                headers.pop("Authorization", None)
            if urlsplit(target).scheme not in ("https", urlsplit(url).scheme):
                raise FetchError(
                    f"{urlsplit(url).netloc} redirects to {_shown(target)} over plain http; refused"
                )
            url = target
            response = self._once(Request(request.method, url, headers, request.body))
        response.close()
        raise FetchError(
            f"{urlsplit(request.url).netloc} redirects more than {_MAX_REDIRECTS} times"
        )

    def _once(self, request: Request) -> requests.Response:
        body = request.body() if request.body else None
        try:
            return self._session.request(
                request.method,
                request.url,
                headers={"Accept-Encoding": "identity", **request.headers},
                data=body,
                stream=True,
                allow_redirects=False,
                timeout=(self._limits.connect_s, self._limits.document_s),
            )
        except requests.exceptions.RequestException:
            raise  # some of them are a ValueError too
        except ValueError as error:  # it parses where a redirect leads, also when told not to
            host = urlsplit(request.url).netloc
            raise FetchError(f"{host} redirects to {error}, which is no URL") from error
        finally:
            if isinstance(body, io.IOBase):
                body.close()


def explain(error: BaseException) -> str:
    """The reason at the bottom of a stack of wrapped network errors, short."""
    reason: BaseException = error
    while True:
        inner = getattr(reason, "reason", None) or next(
            (item for item in reason.args if isinstance(item, BaseException)), None
        )
        if not isinstance(inner, BaseException):
            break
        reason = inner
    text = str(reason).rpartition(": ")[2] if "Failed to " in str(reason) else str(reason)
    return (text or type(reason).__name__)[:300]


def jittered_s(attempt: int) -> float:
    """How long to wait after a failed attempt, counted from 1."""
    longest_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**attempt)
    return random.uniform(0.5, 1) * longest_s  # noqa: S311  # jitter, not a secret


def _read_body(response: requests.Response) -> None:
    """Read a small body where ``requests`` keeps it; an endless one ends at the limit."""
    body = bytearray()
    while chunk := response.raw.read1(_CHUNK_BYTES):
        body += chunk
        if len(body) > MAX_DOCUMENT_BYTES:
            response.close()
            raise FetchError(
                f"{urlsplit(response.url).netloc} sent more than {MAX_DOCUMENT_BYTES} bytes "
                "where a small document belongs"
            )
    response._content = bytes(body)
    response._content_consumed = True
    response.close()  # gives the connection back, now that the body is read


def _is_final(error: BaseException) -> bool:
    """Whether trying again cannot help: the certificate is not trusted."""
    is_tls = isinstance(error, requests.exceptions.SSLError)
    return is_tls and "CERTIFICATE_VERIFY_FAILED" in str(error)


def _retry_after_s(response: requests.Response) -> float:
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdecimal() and len(text) < 6 else 0.0


def origin(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port of a URL: what a credential belongs to.

    Raises:
        FetchError: It is none; registries send those, too.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError as error:
        raise FetchError(f"the registry names {_cut(url)!r}, which is no URL: {error}") from error
    return parts.scheme, parts.hostname, port


def join_url(base: str, location: str) -> str:
    """Where a ``Location`` header leads.

    Raises:
        FetchError: It is no URL.
    """
    try:
        return urljoin(base, location)
    except ValueError as error:
        raise FetchError(
            f"the registry sends to {_cut(location)!r}, which is no URL: {error}"
        ) from error


def _cut(url: str) -> str:
    """A URL without its query, in which storage services put signatures."""
    return url.partition("?")[0][:200]


def _shown(url: str) -> str:
    """A URL without its query and without a user name."""
    parts = urlsplit(url)
    return _cut(f"{parts.scheme}://{parts.hostname}{parts.path}")


def _no_netrc(prepared: requests.PreparedRequest) -> requests.PreparedRequest:
    return prepared
