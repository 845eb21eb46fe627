"""A door that many may be inside of, and that closes only when nobody is."""

from __future__ import annotations

import threading

__all__ = ["Gate"]


class Gate:
    """Counts who uses a resource, so that nobody takes it away under them."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._inside = 0
        self._is_open = False

    def enter(self) -> bool:
        """Go in, if it is open; who got True must call ``leave``."""
        with self._condition:
            self._inside += self._is_open
            return self._is_open

    def leave(self) -> None:
        """Go out again."""
        with self._condition:
            self._inside -= 1
            self._condition.notify_all()

    def open(self) -> None:
        """Let everyone in."""
        with self._condition:
            self._is_open = True

    def shut(self) -> None:
        """Let nobody in any more, and wait until everyone has left."""
        with self._condition:
            self._is_open = False
            self._condition.wait_for(lambda: self._inside == 0)
