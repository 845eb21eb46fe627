"""The bytes of HTTP/2 frames, and of the header blocks that are sent.

Header blocks are written without a table: every field stands in them whole. Replies have few, and
a block that depends on nothing before it can be made once for all connections.
Source: RFC 9113, 4 and 6; RFC 7541, 6.2.2.
"""

from __future__ import annotations

import enum
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

__all__ = [
    "ACK",
    "END_HEADERS",
    "END_STREAM",
    "HEAD",
    "INITIAL_WINDOW_BYTES",
    "LEAST_FRAME_BYTES",
    "MAX_WINDOW",
    "MOST_FRAME_BYTES",
    "NO_TABLE",
    "PADDED",
    "PRIORITY",
    "U32",
    "Code",
    "ConnectionFault",
    "Kind",
    "Setting",
    "frame",
    "go_away",
    "header_block",
    "header_frames",
    "window_update",
]

MAX_WINDOW: Final = (1 << 31) - 1
INITIAL_WINDOW_BYTES: Final = (1 << 16) - 1  # of a connection and its calls
LEAST_FRAME_BYTES: Final = 1 << 14  # that everybody takes
MOST_FRAME_BYTES: Final = (1 << 24) - 1
END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITY: Final = 0x20
NO_TABLE: Final = b"\x20"  # begins a reply: who wants a small table of headers waits to be told
MAX_PREFIX: Final = 127  # of a length in its first byte

HEAD: Final = struct.Struct(">HBBBL")  # length in 16 and 8 bits, kind, flags, stream
U32: Final = struct.Struct(">L")


class Kind(enum.IntEnum):
    """Frame types."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Setting(enum.IntEnum):
    """Settings that mean something here."""

    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


class Code(enum.IntEnum):
    """Why a stream or a connection ends."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


class ConnectionFault(Exception):
    """What a client sent breaks the rules of the connection, which ends with this code."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    size = len(payload)
    return HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def go_away(last_stream: int, code: int, text: bytes) -> bytes:
    """Tell that no call after this one is taken, and why."""
    return frame(Kind.GOAWAY, 0, 0, U32.pack(last_stream) + U32.pack(code) + text)


def window_update(stream: int, size_bytes: int) -> bytes:
    """Let the client send more; stream 0 is the connection."""
    return frame(Kind.WINDOW_UPDATE, 0, stream, U32.pack(size_bytes))


def header_frames(flags: int, stream: int, block: bytes) -> bytes:
    """A header block in as many frames as it takes."""
    if len(block) <= LEAST_FRAME_BYTES:
        return frame(Kind.HEADERS, flags | END_HEADERS, stream, block)
    frames = [frame(Kind.HEADERS, flags, stream, block[:LEAST_FRAME_BYTES])]
    for at in range(LEAST_FRAME_BYTES, len(block), LEAST_FRAME_BYTES):
        part = block[at : at + LEAST_FRAME_BYTES]
        is_last = at + len(part) == len(block)
        frames.append(frame(Kind.CONTINUATION, END_HEADERS if is_last else 0, stream, part))
    return b"".join(frames)


def header_block(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Fields as literals that no table remembers."""
    return b"".join(
        [b"\0%b%b%b%b" % (_length(name), name, _length(value), value) for name, value in fields]
    )


def _length(content: bytes) -> bytes:
    """The length of a string that is not compressed, with a prefix of seven bits."""
    size = len(content)
    if size < MAX_PREFIX:
        return bytes((size,))
    encoded, size = bytearray((MAX_PREFIX,)), size - MAX_PREFIX
    while size > MAX_PREFIX:
        encoded.append(size & 0x7F | 0x80)
        size >>= 7
    encoded.append(size)
    return bytes(encoded)
