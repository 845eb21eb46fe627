"""What goes to standard output: the engine's words, and the text of others made harmless."""

import logging
import sys

__all__ = ["flush", "log_to_stdout", "printable"]

log = logging.getLogger("sagitta")


class _Formatter(logging.Formatter):
    """Plain lines for what is said on purpose; the level in front of what is not."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno == logging.INFO else f"{record.levelname.lower()}: {text}"


def log_to_stdout(*, debug: bool) -> None:
    """Send the engine's log, and uvicorn's warnings, to standard output."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Formatter())
    log.handlers = [handler]
    log.setLevel(logging.DEBUG if debug else logging.INFO)
    log.propagate = False
    http_log = logging.getLogger("uvicorn.error")
    http_log.handlers = [handler]
    http_log.setLevel(logging.WARNING)
    http_log.propagate = False


def flush() -> None:
    """Write out what is buffered, before a process that cannot end leaves."""
    sys.stdout.flush()
    sys.stderr.flush()


def printable(text: str) -> str:
    """A text of somebody else without the characters that steer a terminal; line ends stay."""
    if text.isprintable():
        return text
    return "".join(
        mark if mark.isprintable() or mark == "\n" else repr(mark)[1:-1] for mark in text
    )
