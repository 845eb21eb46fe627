"""A door that many may be inside of, which can be held shut until nobody is."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Gate"]


class Gate:
    """Counts who uses a resource, so that nobody takes it away under them.

    Attributes:
        is_paused: somebody waits for those inside to leave; those who can should, and come back.
    """

    def __init__(self, *, is_open: bool) -> None:
        """Make a gate with nobody inside."""
        self.is_paused = False
        self._condition = threading.Condition()
        self._inside = 0
        self._is_open = is_open

    @contextlib.contextmanager
    def entered(self) -> Iterator[bool]:
        """Be inside for a while; waits while it is paused. False: it is shut, this is outside."""
        with self._condition:
            self._condition.wait_for(lambda: not self.is_paused)
            is_inside = self._is_open
            self._inside += is_inside
        try:
            yield is_inside
        finally:
            if is_inside:
                with self._condition:
                    self._inside -= 1
                    self._condition.notify_all()

    @contextlib.contextmanager
    def paused(self, *, timeout_s: float) -> Iterator[None]:
        """Let nobody in meanwhile, and wait for those inside to leave, but not for ever."""
        with self._condition:
            self.is_paused = True
            self._condition.wait_for(lambda: self._inside == 0, timeout=timeout_s)
        try:
            yield
        finally:
            with self._condition:
                self.is_paused = False
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
