"""The thread that makes the log durable: once a second, off every request's path.

Rules that hold here:
- It never ends because of an error: a log that stopped syncing would break its promise silently.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LogSync"]

log = logging.getLogger("sagitta")


class LogSync:
    """Calls ``LogRing.maintain`` at a steady pace."""

    def __init__(self, maintain: Callable[[], None], *, interval_s: float = 1.0) -> None:
        """Serve one ring.

        Args:
            maintain: what to call; takes as long as the disk does.
            interval_s: a power cut loses at most about this much.
        """
        self._maintain = maintain
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log-sync")

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self, *, timeout_s: float) -> bool:
        """Stop the thread.

        Args:
            timeout_s: how long to wait for it; a disk may take long to sync.

        Returns:
            Whether it has ended.
        """
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.wait(timeout=self._interval_s):
            try:
                self._maintain()
            except Exception:
                log.exception("the inference log could not be maintained; going on")
