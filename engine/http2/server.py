"""The listener of gRPC calls on the event loop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from engine.http2.connection import GREET_TIMEOUT_S, Connection

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable
    from typing import Final

    from engine.http2.call import Call
    from engine.http2.handler import Handler

__all__ = ["GrpcServer"]

RECEIVE_BYTES: Final = 256 << 10
ALIGNED_AT: Final = 2  # what follows the 14 bytes before a message then lies at a multiple of 16
BACKLOG: Final = 1024


class GrpcServer:
    """Accepts connections; everything but the constructor is called on the event loop.

    Attributes:
        accept: takes every new call.
        max_message_bytes: largest message that is accepted.
        connections: those that are open.
        buffer: what all of them receive into.
    """

    def __init__(self, accept: Callable[[Call], Handler], *, max_message_bytes: int) -> None:
        """Prepare to serve."""
        self.accept = accept
        self.max_message_bytes = max_message_bytes
        self.connections: set[Connection] = set()
        self.buffer = memoryview(bytearray(RECEIVE_BYTES + ALIGNED_AT))[ALIGNED_AT:]
        self._listener: asyncio.Server | None = None

    async def serve(self, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
        """Accept from now on.

        Args:
            listener: bound; closed by ``close``.
            tls: what connections are secured with, ``h2`` by ALPN; None for plain ones.
        """
        self._listener = await asyncio.get_running_loop().create_server(
            lambda: Connection(self),
            sock=listener,
            ssl=tls,
            backlog=BACKLOG,
            ssl_handshake_timeout=GREET_TIMEOUT_S if tls else None,
        )

    def sweep(self, now_s: float) -> None:
        """Cut off clients that get on with nothing; to be called once a second.

        Args:
            now_s: monotonic time.
        """
        for connection in list(self.connections):
            connection.check(now_s)

    def go_away(self) -> None:
        """Tell every client that no new calls are welcome; open ones go on."""
        for connection in list(self.connections):
            connection.go_away()

    def close(self) -> None:
        """Accept no more, and leave every client once it has read what was written."""
        if self._listener is not None:
            self._listener.close()
        for connection in list(self.connections):
            connection.leave()

    def abort(self) -> None:
        """Wait for no client any longer; after ``close``."""
        for connection in list(self.connections):
            connection.abort()
