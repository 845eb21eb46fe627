"""uvicorn as the engine uses it: on a socket that is already bound, without signal handlers."""

from __future__ import annotations

import contextlib
import ssl
from typing import TYPE_CHECKING

import uvicorn

from engine.listening import unusable
from engine.rest.protocol import EngineProtocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

    from starlette.types import ASGIApp

    from engine.listening import TlsFiles
    from engine.rest.service import Service

__all__ = ["HttpServer"]

KEEP_ALIVE_S: Final = 30


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
        except OSError as error:
            raise unusable(error) from error
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
