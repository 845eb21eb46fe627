"""Listening sockets, and what TLS is served with on them: the same for every shell.

A socket is bound before anything is loaded, so that a taken port ends the start at once.
"""

from __future__ import annotations

import dataclasses
import socket
import ssl
from typing import TYPE_CHECKING

from engine.errors import StartupError

if TYPE_CHECKING:
    import pathlib

    from engine.config import EngineConfig

__all__ = ["TlsFiles", "listen", "tls_context", "tls_files", "unusable"]


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


def tls_context(files: TlsFiles, protocol: str) -> ssl.SSLContext:
    """What connections of one protocol are served with.

    Args:
        files: of the listener.
        protocol: the only one that is offered, by its ALPN name.

    Raises:
        StartupError: the files cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols([protocol])
    try:
        context.load_cert_chain(files.certificate, files.key)
        if files.client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(files.client_ca)
    except OSError as error:  # an SSLError is one
        raise unusable(error) from error
    return context


def unusable(error: OSError) -> StartupError:
    """What to say of TLS files that cannot be used."""
    return StartupError(
        f"TLS_CERT_FILE, TLS_KEY_FILE or TLS_CLIENT_CA_FILE cannot be used: {error}"
    )


def listen(name: str, host: str, port: int) -> socket.socket:
    """Bind a listening socket.

    Args:
        name: ``HTTP``, ``METRICS`` or ``FLIGHT``, for the message.
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
