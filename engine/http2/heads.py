"""Header blocks of requests: put together, decompressed, and read as the beginning of a call.

Source: RFC 9113, 6.2, 6.10 and 8; gRPC over HTTP/2, Requests.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import hpack

from engine.http2.frames import PADDED, PRIORITY, Code, ConnectionFault

if TYPE_CHECKING:
    from typing import Final

__all__ = ["MAX_BLOCK_BYTES", "BlockReader", "RequestHead", "read_head"]

MAX_BLOCK_BYTES: Final = 16 << 10  # what gRPC's own library takes at most
PRIORITY_BYTES: Final = 5
UNITS_S: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
MAX_TIMEOUT_DIGITS: Final = 8


class BlockReader:
    """Puts the one header block together that a connection can be in the middle of.

    Attributes:
        stream: whose it is; 0 where there is none.
        flags: of its first frame.
        is_new: whether it begins a call, and does not end one.
    """

    def __init__(self) -> None:
        """Expect a block."""
        self.stream = 0
        self.flags = 0
        self.is_new = False
        self._block = b""
        self._decoder = hpack.Decoder(MAX_BLOCK_BYTES)

    def begin(self, flags: int, stream: int, body: bytes, *, is_new: bool) -> None:
        """Take a HEADERS frame.

        Raises:
            ConnectionFault: it is malformed.
        """
        at, pad = 0, 0
        if flags & PADDED:
            at, pad = 1, body[0] if body else 0
        if flags & PRIORITY:
            at += PRIORITY_BYTES
        if at + pad > len(body):
            raise ConnectionFault(Code.PROTOCOL_ERROR, "a header frame is too short")
        self.stream, self.flags, self.is_new = stream, flags, is_new
        self._block = body[at : len(body) - pad]

    def go_on(self, body: bytes) -> None:
        """Take a CONTINUATION frame.

        Raises:
            ConnectionFault: there is nothing to go on with, or too much.
        """
        if not self.stream or not body:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "a frame goes on with no header block")
        self._block += body
        if len(self._block) > MAX_BLOCK_BYTES:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "the headers are too large")

    def end(self) -> list[tuple[bytes, bytes]]:
        """The fields of the whole block.

        Raises:
            ConnectionFault: it cannot be decompressed, or is too large.
        """
        block, self._block, self.stream = self._block, b"", 0
        try:
            fields = self._decoder.decode(block, raw=True)
        except hpack.OversizedHeaderListError:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "the headers are too large") from None
        except (hpack.HPACKError, ValueError, IndexError):
            raise ConnectionFault(Code.COMPRESSION_ERROR, "the headers cannot be read") from None
        return [(bytes(field[0]), bytes(field[1])) for field in fields]


@dataclasses.dataclass(frozen=True, slots=True)
class RequestHead:
    """The beginning of a call.

    Attributes:
        path: of its method.
        headers: by lower-case name, the last of each; no pseudo headers.
        timeout_s: how long the client waits; infinite where it does not say.
        refused: HTTP status for what is no gRPC call; 0 for one that is.
    """

    path: bytes
    headers: dict[bytes, bytes]
    timeout_s: float
    refused: int


def read_head(fields: list[tuple[bytes, bytes]]) -> RequestHead | None:
    """Read a request's fields.

    Returns:
        What it asks for; None where the request is malformed.
    """
    pseudo: dict[bytes, bytes] = {}
    headers: dict[bytes, bytes] = {}
    for name, value in fields:
        if name.startswith(b":"):
            if headers or name in pseudo:
                return None
            pseudo[name] = value
        elif name in {b"connection", b"transfer-encoding", b"upgrade"} or name != name.lower():
            return None
        else:
            headers[name] = value
    if b":method" not in pseudo or b":path" not in pseudo:
        return None
    refused = 0
    if pseudo[b":method"] != b"POST":
        refused = 405
    elif not headers.get(b"content-type", b"").startswith(b"application/grpc"):
        refused = 415
    timeout_s = _timeout_s(headers.get(b"grpc-timeout"))
    if timeout_s is None:
        return None
    return RequestHead(pseudo[b":path"], headers, timeout_s, refused)


def _timeout_s(text: bytes | None) -> float | None:
    """What ``grpc-timeout`` says; None for nonsense."""
    if text is None:
        return math.inf
    digits, unit = text[:-1], UNITS_S.get(text[-1:])
    if unit is None or not digits.isdigit() or len(digits) > MAX_TIMEOUT_DIGITS:
        return None
    return int(digits) * unit
