"""Telling how far a transfer is: a bar where somebody looks, a line now and then elsewhere.

Rule that holds here: a transfer that is over before the first line would be due says nothing.
"""

import time
from collections.abc import Callable
from typing import TextIO

from engine.publish.artifact import Progress, Report

__all__ = ["format_bytes", "line_progress", "progress_for", "terminal_progress"]

_LINE_INTERVAL_S = 10.0
_DRAW_INTERVAL_S = 0.1
_BAR_CHARS = 24
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


class _Rate:
    """When a blob began to move and how fast it does; one blob at a time."""

    def __init__(self, clock: Callable[[], float], interval_s: float) -> None:
        self._clock = clock
        self._interval_s = interval_s
        self._digest = ""
        self._started_s = 0.0
        self._started_bytes = 0
        self._due_s = 0.0

    def is_due(self, digest: str, done_bytes: int) -> bool:
        """Whether it is time to say something again."""
        now_s = self._clock()
        if digest != self._digest:
            self._digest, self._started_s, self._started_bytes = digest, now_s, done_bytes
            self._due_s = now_s + self._interval_s
        if now_s < self._due_s:
            return False
        self._due_s = now_s + self._interval_s
        return True

    def describe(self, done_bytes: int, size_bytes: int) -> str:
        """Size, rate and time left."""
        elapsed_s = self._clock() - self._started_s
        rate = (done_bytes - self._started_bytes) / elapsed_s if elapsed_s > 0 else 0.0
        left = f", {_duration((size_bytes - done_bytes) / rate)} left" if rate > 0 else ""
        return (
            f"{format_bytes(done_bytes)} of {format_bytes(size_bytes)}, "
            f"{format_bytes(rate)}/s{left}"
        )


def line_progress(report: Report, clock: Callable[[], float] = time.monotonic) -> Progress:
    """Progress as a plain line every ten seconds.

    Args:
        report: Takes the lines.
        clock: Seconds, never going back.

    Returns:
        To be called with digest, bytes done and size.
    """
    rate = _Rate(clock, _LINE_INTERVAL_S)

    def progress(digest: str, done_bytes: int, size_bytes: int) -> None:
        if done_bytes < size_bytes and rate.is_due(digest, done_bytes):
            report(f"  {rate.describe(done_bytes, size_bytes)}")

    return progress


def terminal_progress(stream: TextIO, clock: Callable[[], float] = time.monotonic) -> Progress:
    """Progress as a bar that is drawn over itself.

    Args:
        stream: A terminal.
        clock: Seconds, never going back.

    Returns:
        To be called with digest, bytes done and size.
    """
    rate = _Rate(clock, _DRAW_INTERVAL_S)
    drawn = ""

    def progress(digest: str, done_bytes: int, size_bytes: int) -> None:
        nonlocal drawn
        if done_bytes >= size_bytes:
            if drawn == digest:
                stream.write("\r\x1b[2K")
                stream.flush()
            drawn = ""
        elif rate.is_due(digest, done_bytes):
            filled = done_bytes * _BAR_CHARS // size_bytes
            bar = "█" * filled + "░" * (_BAR_CHARS - filled)
            stream.write(f"\r\x1b[2K  {bar} {rate.describe(done_bytes, size_bytes)}")
            stream.flush()
            drawn = digest

    return progress


def progress_for(stream: TextIO, report: Report) -> Progress:
    """A bar when the stream is a terminal, else lines."""
    return terminal_progress(stream) if stream.isatty() else line_progress(report)


def format_bytes(count: float) -> str:
    """A number of bytes for people, in powers of 1024."""
    unit = 0
    while count >= 1024 and unit < len(_UNITS) - 1:
        count /= 1024
        unit += 1
    return f"{count:.0f} {_UNITS[unit]}" if unit == 0 else f"{count:.1f} {_UNITS[unit]}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
