"""uvicorn as the engine uses it: on a socket that is already bound, without signal handlers.

A socket is bound before anything is loaded, so that a taken port ends the start at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import ssl
from typing import TYPE_CHECKING

import uvicorn

from engine.errors import StartupError
from engine.rest.protocol import EngineProtocol

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator
    from typing import Final

    from starlette.types import ASGIApp

    from engine.config import EngineConfig
    from engine.rest.service import Service

__all__ = ["HttpServer", "TlsFiles", "listen", "tls_files"]

KEEP_ALIVE_S: Final = 30


@dataclasses.dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of a TLS listener; with a client CA it accepts only clients that it signed."""

    certificate: pathlib.Path
    key: pathlib.Path
    client_ca: pathlib.Path | None


def tls_files(config: EngineConfig) -> TlsFiles | None:
    """What a listener serves TLS with; None where it serves plain HTTP."""
    if config.tls_cert_file is None or config.tls_key_file is None:
        return None
    return TlsFiles(config.tls_cert_file, config.tls_key_file, config.tls_client_ca_file)


class HttpServer(uvicorn.Server):
    """One HTTP listener; signals are the business of whoever runs several of them."""

    def __init__(
        self,
        app: ASGIApp,
        service: Service,
        *,
        answers_inference: bool,
        tls: TlsFiles | None,
    ) -> None:
        """Prepare a listener.

        Args:
            app: answers what is not an inference.
            service: answers inferences; gives the limits.
            answers_inference: whether this listener does; the metrics port does not.
            tls: serve TLS with these files; None for plain HTTP.

        Raises:
            StartupError: the TLS files cannot be used.
        """
        bound = {"service": service, "answers_inference": answers_inference}
        protocol = type("BoundProtocol", (EngineProtocol,), bound)
        config = uvicorn.Config(
            app,
            http=protocol,
            ws="none",
            loop="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            ssl_certfile=str(tls.certificate) if tls else None,
            ssl_keyfile=str(tls.key) if tls else None,
            ssl_ca_certs=str(tls.client_ca) if tls and tls.client_ca else None,
            ssl_cert_reqs=ssl.CERT_REQUIRED if tls and tls.client_ca else ssl.CERT_NONE,
        )
        try:
            config.load()
        except (OSError, ssl.SSLError) as error:
            raise StartupError(
                f"TLS_CERT_FILE, TLS_KEY_FILE or TLS_CLIENT_CA_FILE cannot be used: {error}"
            ) from error
        super().__init__(config)

    def stop(self, grace_s: float) -> None:
        """Accept no more connections, and let ``serve`` end once those that are open are answered.

        Args:
            grace_s: how long they may still take.
        """
        # read when the time begins; uvicorn's own type is whole seconds, of which 0 would be none
        self.config.timeout_graceful_shutdown = max(grace_s, 0.01)  # type: ignore[assignment]
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


def listen(name: str, host: str, port: int) -> socket.socket:
    """Bind a listening socket.

    Args:
        name: ``HTTP`` or ``METRICS``, for the message.
        host: address to listen on.
        port: 0 takes any free one.

    Returns:
        The listening socket; whoever connects waits until it is served.

    Raises:
        StartupError: the address or port cannot be had.
    """
    try:
        listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()  # nobody is refused from here on, as the start-up log is about to say
        listener.setblocking(False)
    except OSError as error:
        raise StartupError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another port with "
            f"{name}_PORT (0 = any free one) or another address with BIND_HOST"
        ) from error
    return listener
