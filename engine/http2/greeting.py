"""What both sides of a connection send before anything else.

Source: RFC 9113, 3.4 and 6.5.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.http2.frames import (
    INITIAL_WINDOW_BYTES,
    MAX_WINDOW,
    MOST_FRAME_BYTES,
    U32,
    Code,
    ConnectionFault,
    Kind,
    Setting,
    frame,
    window_update,
)
from engine.http2.heads import MAX_BLOCK_BYTES
from engine.http2.inbox import WINDOW_BYTES

if TYPE_CHECKING:
    from typing import Final

__all__ = ["GREETING", "KIND_AT", "NOT_HTTP2", "preface_bytes"]

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
KIND_AT: Final = len(PREFACE) + 3  # of the frame that follows
GREETING: Final = frame(
    Kind.SETTINGS,
    0,
    0,
    b"".join(
        bytes((0, key)) + U32.pack(value)
        for key, value in (
            (Setting.INITIAL_WINDOW_SIZE, WINDOW_BYTES),
            (Setting.MAX_FRAME_SIZE, MOST_FRAME_BYTES),
            (Setting.MAX_HEADER_LIST_SIZE, MAX_BLOCK_BYTES),
        )
    ),
) + window_update(0, MAX_WINDOW - INITIAL_WINDOW_BYTES)
NOT_HTTP2: Final = (
    b"HTTP/1.1 505 HTTP Version Not Supported\r\ncontent-type: text/plain\r\nconnection: close\r\n"
    b"\r\nThis port speaks Arrow Flight (gRPC). HTTP is answered on HTTP_PORT, 8080 by default.\n"
)


def preface_bytes(data: memoryview) -> int:
    """How many bytes a client's preface takes; 0 where what follows has not shown its kind yet.

    Raises:
        ConnectionFault: it is another protocol's.
    """
    if not PREFACE.startswith(bytes(data[: len(PREFACE)])):
        raise ConnectionFault(Code.PROTOCOL_ERROR, "this is not how HTTP/2 begins")
    return len(PREFACE) if len(data) > KIND_AT else 0
