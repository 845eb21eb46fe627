"""Answers of DoPut that wait to be fetched by DoGet, for clients that cannot exchange.

Rules that hold here:
- A key is random and fetches once. What is not fetched in time is dropped.
- The answers that wait are bounded by the memory that they take, which for small ones is what
  describes them, until they are sent; more are refused at once.
"""

from __future__ import annotations

import secrets
import threading
import time
from typing import TYPE_CHECKING

from engine.errors import NotFoundError, OverloadedError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from typing import Final

    import pyarrow as pa

    from engine.flight.reply import Part, Reply

__all__ = ["Results"]

COLUMN_BYTES: Final = 1 << 10  # that an answer's column takes, and the answer, besides its values


class _Waiting:
    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.size_bytes = 0
        self.deadline_s = 0.0


class Results:
    """The answers that wait; every method may be called from any thread.

    Attributes:
        fetching: how many keys' answers are being sent.
    """

    def __init__(self, max_bytes: int, timeout_s: float) -> None:
        """Hold nothing yet.

        Args:
            max_bytes: of all answers together.
            timeout_s: how long an answer waits after the last one of its key was added.
        """
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._lock = threading.RLock()  # guards the fields below; a stream may end anywhere
        self._waiting: dict[bytes, _Waiting] = {}  # in the order of their deadlines
        self._held_bytes = 0
        self.fetching = 0

    def add(self, key: bytes | None, reply: Reply) -> bytes:
        """Hold an answer.

        Args:
            key: where earlier answers of the same call are; None for the first.
            reply: the answer.

        Returns:
            The key that fetches it.

        Raises:
            OverloadedError: too much is waiting.
        """
        batch = reply.batch
        columns = 1 + sum(1 + kind.num_fields for kind in batch.schema.types)
        size_bytes = max(batch.get_total_buffer_size(), reply.kept_bytes) + columns * COLUMN_BYTES
        now_s = time.monotonic()
        with self._lock:
            self._drop_expired(now_s)
            if self._held_bytes + size_bytes > self._max_bytes:
                raise OverloadedError(
                    f"answers of {self._held_bytes} bytes wait to be fetched (limit: "
                    f"QUEUE_MAX_BYTES={self._max_bytes}): fetch them with DoGet, or use DoExchange"
                )
            waiting = self._waiting.get(key) if key is not None else None
            if waiting is None or key is None:
                key, waiting = secrets.token_bytes(16), _Waiting()
            else:
                del self._waiting[key]
            self._waiting[key] = waiting  # the last one to be dropped
            waiting.replies.append(reply)
            waiting.size_bytes += size_bytes
            waiting.deadline_s = now_s + self._timeout_s
            self._held_bytes += size_bytes
            return key

    def fetch(self, key: bytes) -> tuple[pa.Schema, Iterator[Part]]:
        """The answers of a key, which is forgotten.

        Returns:
            Their schema, and their parts; what they take is held until these are gone.

        Raises:
            NotFoundError: there are none: fetched already, or too late.
        """
        with self._lock:
            self._drop_expired(time.monotonic())
            waiting = self._waiting.pop(key, None)
            if waiting is None:
                raise NotFoundError(
                    "no answers wait under this ticket: a ticket fetches once, and within "
                    f"{self._timeout_s:g} s (REQUEST_TIMEOUT_S)"
                )
            self.fetching += 1
        sending = self._send(waiting)
        return next(sending), sending  # parts from here on

    def _send(self, waiting: _Waiting) -> Generator[Part | pa.Schema]:
        """The schema, then the parts; begun at once, so that its end is sure to be seen."""
        try:
            yield waiting.replies[0].batch.schema
            for reply in waiting.replies:
                yield from reply.parts()
        finally:
            with self._lock:
                self.fetching -= 1
                self._held_bytes -= waiting.size_bytes

    def _drop_expired(self, now_s: float) -> None:
        while self._waiting:
            key, waiting = next(iter(self._waiting.items()))  # the first one to be dropped
            if waiting.deadline_s >= now_s:
                return
            self._held_bytes -= waiting.size_bytes
            del self._waiting[key]
