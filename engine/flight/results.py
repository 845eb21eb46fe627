"""Answers of DoPut that wait to be fetched by DoGet, for clients that cannot exchange.

Rules that hold here:
- A key is random and fetches once. What is not fetched in time is dropped.
- The answers that wait are bounded by their bytes; more are refused at once.
"""

from __future__ import annotations

import secrets
import threading
import time
from typing import TYPE_CHECKING

from engine.errors import NotFoundError, OverloadedError

if TYPE_CHECKING:
    import pyarrow as pa

    Parts = list[tuple[pa.RecordBatch, bytes]]

__all__ = ["Results"]


class _Waiting:
    def __init__(self, deadline_s: float) -> None:
        self.schema: pa.Schema | None = None
        self.parts: Parts = []
        self.size_bytes = 0
        self.deadline_s = deadline_s


class Results:
    """The answers that wait; every method may be called from any thread."""

    def __init__(self, max_bytes: int, timeout_s: float) -> None:
        """Hold nothing yet.

        Args:
            max_bytes: of all answers together.
            timeout_s: how long an answer waits after the last one of its key was added.
        """
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._lock = threading.Lock()  # guards the two fields below
        self._waiting: dict[bytes, _Waiting] = {}
        self._held_bytes = 0

    def add(self, key: bytes | None, schema: pa.Schema, parts: Parts) -> bytes:
        """Hold an answer.

        Args:
            key: where earlier answers of the same call are; None for the first.
            schema: of the batches.
            parts: batches with their ``app_metadata``.

        Returns:
            The key that fetches it.

        Raises:
            OverloadedError: too much is waiting.
        """
        size_bytes = sum(batch.get_total_buffer_size() + len(text) for batch, text in parts)
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
                key, waiting = secrets.token_bytes(16), _Waiting(now_s)
                self._waiting[key] = waiting
            waiting.schema = schema
            waiting.parts.extend(parts)
            waiting.size_bytes += size_bytes
            waiting.deadline_s = now_s + self._timeout_s
            self._held_bytes += size_bytes
            return key

    def fetch(self, key: bytes) -> tuple[pa.Schema, Parts]:
        """The answers of a key, which is forgotten.

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
            self._held_bytes -= waiting.size_bytes
            return waiting.schema, waiting.parts

    def _drop_expired(self, now_s: float) -> None:
        for key in [k for k, waiting in self._waiting.items() if waiting.deadline_s < now_s]:
            self._held_bytes -= self._waiting.pop(key).size_bytes
