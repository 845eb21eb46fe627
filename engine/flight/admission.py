"""Who may call, and how many at a time: checked before any handler runs.

Arrow Flight gives every call a thread, without a limit of its own; a call that is one too many is
refused here at once. The count goes down when a call ends in any way, a killed client's included.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pyarrow.flight as fl

from engine.errors import EngineError, OverloadedError, ShuttingDownError
from engine.flight.errors import flight_error

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engine.metrics import Metrics
    from engine.tokens import TokenFile

__all__ = ["Admission"]


class Admission(fl.ServerMiddlewareFactory):
    """Refuses callers without a token, and calls over the limit; any thread."""

    def __init__(self, max_calls: int, tokens: TokenFile | None, metrics: Metrics) -> None:
        """Admit nobody yet.

        Args:
            max_calls: calls at a time, open streams included.
            tokens: accepted bearer tokens; None where everybody is welcome.
            metrics: counts refusals and open calls.
        """
        super().__init__()
        self._max_calls = max_calls
        self._tokens = tokens
        self._metrics = metrics
        self._lock = threading.Lock()  # guards the count
        self._calls = 0
        self.is_closed = False  # set once, when the engine stops

    def start_call(
        self, info: fl.CallInfo, headers: Mapping[str, Sequence[str | bytes]]
    ) -> fl.ServerMiddleware:
        """Admit a call, or raise what refuses it."""
        try:
            if self._tokens is not None:
                self._tokens.check(_last(headers.get("authorization")))
            self._enter()
        except EngineError as error:
            self._metrics.record_error(error.code)
            raise flight_error(error) from None
        return _Admitted(self)

    def leave(self) -> None:
        """A call has ended."""
        with self._lock:
            self._calls -= 1
            self._metrics.flight_calls = self._calls

    def _enter(self) -> None:
        if self.is_closed:
            raise ShuttingDownError("the engine is stopping and takes no new calls")
        with self._lock:
            if self._calls >= self._max_calls:
                raise OverloadedError(
                    f"{self._calls} Flight calls are open, streams included (limit: "
                    f"FLIGHT_MAX_STREAMS={self._max_calls}): try again shortly, or send more "
                    "batches over one stream"
                )
            self._calls += 1
            self._metrics.flight_calls = self._calls


class _Admitted(fl.ServerMiddleware):
    """One admitted call."""

    def __init__(self, admission: Admission) -> None:
        super().__init__()
        self._admission = admission

    def call_completed(self, exception: Exception | None) -> None:
        """The call has ended, in whatever way."""
        self._admission.leave()


def _last(values: Sequence[str | bytes] | None) -> bytes:
    value = values[-1] if values else b""
    return value.encode("latin-1", "replace") if isinstance(value, str) else value
