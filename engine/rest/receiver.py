"""Where the bytes of a connection arrive: in place, not in a new object for each read.

A whole small request is looked at where it arrived, and what is kept of it is copied; a large body
arrives where it stays.

Rules that hold here:
- The inbox is one for all connections of the event loop, which reads them one after another:
  nothing in it outlives the call that says it is there.
- The numbers of a body of Arrow data can be used where they lie only if their addresses are
  multiples of their size: a connection reads to where its bodies will begin at such an address.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from typing import Any, Final

__all__ = ["ALIGNMENT", "Inbox", "Receiver"]

INBOX_BYTES: Final = 1 << 18  # at most this is read at a time
ALIGNMENT: Final = 64
PASSED_ON: Final = (
    "get_buffer",
    "buffer_updated",
    "eof_received",
    "connection_lost",
    "pause_writing",
    "resume_writing",
)


class Inbox:
    """Memory that requests are read into.

    Attributes:
        data: the memory.
        aligned: what positions in it with an aligned address leave, divided by ``ALIGNMENT``.
    """

    def __init__(self) -> None:
        """Make an empty one."""
        self.data = bytearray(INBOX_BYTES + ALIGNMENT)
        self._view = memoryview(self.data)
        self.aligned: int = -np.frombuffer(self.data, np.uint8).ctypes.data % ALIGNMENT

    def room(self, head_bytes: int) -> tuple[int, memoryview]:
        """Where to read a request to, so that what follows its head lies at an aligned address.

        Args:
            head_bytes: the length of the head.

        Returns:
            The first byte, and the memory from there on.
        """
        start = (self.aligned - head_bytes) % ALIGNMENT
        return start, self._view[start:]


class Receiver(asyncio.BufferedProtocol):
    """What a transport reads for: a connection that is no ``asyncio.Protocol`` to it."""

    def __init__(self, connection: Any) -> None:  # noqa: ANN401 - whatever has these methods
        """Pass everything on to a connection."""
        for name in PASSED_ON:
            setattr(self, name, getattr(connection, name))
