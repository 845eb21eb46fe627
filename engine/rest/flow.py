"""What one connection may make the engine hold: requests that wait, and replies that nobody reads.

Rules that hold here:
- Nothing is read while requests wait for their turn, or while replies wait to be read.
- A client that reads, however slowly, gets the whole of its reply; one that does not is cut off.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import sys
import termios
import time
from typing import TYPE_CHECKING

from uvicorn.protocols.http.flow_control import FlowControl

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sized
    from typing import Final

__all__ = ["Flow"]

WRITE_TIMEOUT_S: Final = 30.0


class Flow(FlowControl):
    """uvicorn's own, with these rules; used on the event loop only."""

    def __init__(self, transport: asyncio.Transport, waiting: Sized) -> None:
        """Watch over a connection; ``waiting`` holds the requests whose turn is to come."""
        super().__init__(transport)
        self._waiting = waiting
        self._deadline_s = math.inf
        self._unread_bytes = 0

    def resume_reading(self) -> None:
        """Read on, unless there is enough to do."""
        if not self._waiting and not self.write_paused:
            super().resume_reading()

    def pause_writing(self) -> None:
        """The client reads slower than it is answered."""
        super().pause_writing()
        self.watch()

    def resume_writing(self) -> None:
        """The client has caught up."""
        super().resume_writing()
        self._deadline_s = math.inf

    def watch(self) -> None:
        """From now on see to it that the client reads."""
        self._unread_bytes = self._count_unread()
        self._deadline_s = time.monotonic() + WRITE_TIMEOUT_S

    def is_stuck(self, now_s: float) -> bool:
        """Whether the client has read nothing for too long; to be asked once a second."""
        if self._deadline_s == math.inf:
            return False
        if self._count_unread() != self._unread_bytes:
            self.watch()
            return False
        return now_s >= self._deadline_s

    def _count_unread(self) -> int:
        """Bytes that the client's side has not taken: ours, and those that the system holds.

        The system takes no more from us until a third of what it holds, of megabytes, is read.
        """
        held = 0
        connection = self._transport.get_extra_info("socket")
        with contextlib.suppress(OSError):  # it is closed, or no socket of this kind
            queued = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4))
            held = int.from_bytes(queued, sys.byteorder)
        return held + self._transport.get_write_buffer_size()
