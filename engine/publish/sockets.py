"""Sockets whose every read has a deadline, below ``requests``.

Rule that holds here: a read waits until the deadline of the whole operation and no longer. The
timeouts of ``requests`` begin anew with each byte, so that a peer that sends one byte a second
would hold us for ever, in the middle of a header line too.
"""

import io
import socket
import ssl
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import requests.utils
import urllib3
import urllib3.connection
import urllib3.connectionpool
from requests.adapters import HTTPAdapter

from engine.config.parsers import is_loopback
from engine.publish.artifact import FetchError

__all__ = ["Deadline", "DeadlineAdapter", "is_plain_http", "unreachable_reason"]

_BUFFER_BYTES = 256 << 10


class Deadline:
    """A moment of the monotonic clock that every socket of one client looks at."""

    def __init__(self) -> None:
        self._at_s = float("inf")

    def start(self, seconds: float) -> None:
        """Move the deadline to so many seconds from now."""
        self._at_s = time.monotonic() + seconds

    def remaining_s(self) -> float:
        """Seconds left; at least a hundredth, so that a socket times out rather than blocks."""
        return max(0.01, self._at_s - time.monotonic())

    @property
    def is_over(self) -> bool:
        """Whether it has passed."""
        return time.monotonic() >= self._at_s


class DeadlineAdapter(HTTPAdapter):
    """Makes connections that obey a deadline; it tries nothing twice."""

    def __init__(self, deadline: Deadline, ca_file: Path | None) -> None:
        """Prepare the trust.

        Args:
            deadline: Looked at by every socket.
            ca_file: PEM certificates trusted beside the usual ones.

        Raises:
            FetchError: The file holds no certificate.
        """
        self._deadline = deadline
        self._context = None if ca_file is None else _trusting(ca_file)
        super().__init__(max_retries=0)

    def init_poolmanager(
        self, connections: int, maxsize: int, block: bool = False, **pool_kwargs: object
    ) -> None:
        """Make the pools, with the connection classes below."""
        super().init_poolmanager(connections, maxsize, block, **self._with_trust(pool_kwargs))
        self.poolmanager.pool_classes_by_scheme = _pools(self._deadline)

    def proxy_manager_for(self, proxy: str, **proxy_kwargs: object) -> urllib3.ProxyManager:
        """Make the pools of a proxy; see ``init_poolmanager``."""
        manager: urllib3.ProxyManager = super().proxy_manager_for(
            proxy, **self._with_trust(proxy_kwargs)
        )
        manager.pool_classes_by_scheme = _pools(self._deadline)
        return manager

    def _with_trust(self, kwargs: dict[str, object]) -> dict[str, object]:
        return kwargs if self._context is None else {**kwargs, "ssl_context": self._context}


def _trusting(ca_file: Path) -> ssl.SSLContext:
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise FetchError(f"OCI_CA_FILE={ca_file} holds no readable certificate: {error}") from error
    return context


def _pools(deadline: Deadline) -> dict[str, type]:
    class PlainConnection(urllib3.connection.HTTPConnection):
        def connect(self) -> None:
            super().connect()
            self.sock = _DeadlineSocket(self.sock, deadline)

    class TlsConnection(urllib3.connection.HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            self.sock = _DeadlineSocket(self.sock, deadline)

    class PlainPool(urllib3.connectionpool.HTTPConnectionPool):
        ConnectionCls = PlainConnection

    class TlsPool(urllib3.connectionpool.HTTPSConnectionPool):
        ConnectionCls = TlsConnection

    return {"http": PlainPool, "https": TlsPool}


def is_plain_http(host: str, *, asked: bool, timeout_s: float) -> bool:
    """Whether a registry is spoken to without TLS: where that was asked for, or on loopback.

    Args:
        host: ``host[:port]`` of the registry.
        asked: ``OCI_PLAIN_HTTP``.
        timeout_s: For the look at a registry on loopback, which may well speak TLS.

    Returns:
        Whether it is plain http.
    """
    name, port = _address(f"https://{host}")
    if asked or not is_loopback(name):
        return asked
    try:
        with socket.create_connection((name, port), timeout=timeout_s) as plain:
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE  # nothing is sent: it only asks "TLS or not"
            with context.wrap_socket(plain, server_hostname=name):
                return False
    except OSError:
        return True


def unreachable_reason(host: str, *, is_plain: bool, timeout_s: float) -> str | None:
    """Whether a TCP connection to a registry, or to the proxy before it, comes about.

    Args:
        host: ``host[:port]`` of the registry.
        is_plain: Whether it is spoken to over plain http.
        timeout_s: For the name and the connection together.

    Returns:
        None when it does; else why not.
    """
    url = f"{'http' if is_plain else 'https'}://{host}"
    proxy = requests.utils.select_proxy(url, requests.utils.get_environ_proxies(url))
    name, port = _address(proxy or url)
    outcome: list[str | None] = []

    def connect() -> None:
        try:
            socket.create_connection((name, port), timeout=timeout_s).close()
            outcome.append(None)
        except OSError as error:
            outcome.append(error.strerror or str(error))

    # Looking a name up cannot be interrupted and takes long without a network: hence a thread,
    # and one that does not keep the process when it is stuck there.
    thread = threading.Thread(target=connect, name="registry-probe", daemon=True)
    thread.start()
    thread.join(timeout=timeout_s)
    return outcome[0] if outcome else f"no answer in {timeout_s:g} s"


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)


class _DeadlineSocket:
    """A connected socket, plain or TLS; everything but reading is the socket's own."""

    def __init__(self, connected: socket.socket, deadline: Deadline) -> None:
        self._socket = connected
        self._deadline = deadline

    def __getattr__(self, name: str) -> object:
        return getattr(self._socket, name)

    def makefile(self, *_: object, **__: object) -> io.BufferedReader:
        """What ``http.client`` reads status line, headers and body from."""
        raw = self._socket.makefile("rb", buffering=0)
        return io.BufferedReader(_DeadlineReader(self._socket, raw, self._deadline), _BUFFER_BYTES)


class _DeadlineReader(io.RawIOBase):
    def __init__(self, connected: socket.socket, raw: socket.SocketIO, deadline: Deadline) -> None:
        self._socket = connected
        self._raw = raw
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int | None:  # type: ignore[override]
        self._socket.settimeout(self._deadline.remaining_s())
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()
