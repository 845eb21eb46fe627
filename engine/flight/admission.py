"""Who may call, and how many at a time: checked before any handler runs.

Arrow Flight gives every call a thread, without a limit of its own; a call that is one too many is
refused here at once. The count goes down when a call ends in any way, a killed client's included.
Streams may stay open for ever: whether their token still holds is asked again for every batch.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pyarrow.flight as fl

from engine.errors import EngineError, OverloadedError, ShuttingDownError
from engine.flight.errors import flight_error

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Final

    from engine.metrics import Metrics
    from engine.tokens import TokenFile

__all__ = ["NAME", "Admission", "Admitted"]

NAME: Final = "admission"


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
        self.is_token_asked = tokens is not None
        self._metrics = metrics
        self._lock = threading.Lock()  # guards the count
        self._calls = 0
        self.is_closed = False  # set once, when the engine stops

    def start_call(
        self, info: fl.CallInfo, headers: Mapping[str, Sequence[str | bytes]]
    ) -> fl.ServerMiddleware:
        """Admit a call, or raise what refuses it."""
        try:
            admitted = Admitted(self, _last(headers.get("authorization")))
            admitted.check()
            self._enter()
        except EngineError as error:
            raise flight_error(error, self._metrics) from None
        return admitted

    def check(self, authorization: bytes) -> None:
        """Refuse who has no accepted token.

        Raises:
            UnauthorizedError: none, or none any more.
        """
        if self._tokens is not None:
            self._tokens.check(authorization)

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


class Admitted(fl.ServerMiddleware):
    """One admitted call.

    Attributes:
        is_token_asked: whether ``check`` has anything to check.
    """

    def __init__(self, admission: Admission, authorization: bytes) -> None:
        """Take what the call's header ``authorization`` says."""
        super().__init__()
        self._admission = admission
        self._authorization = authorization
        self.is_token_asked = admission.is_token_asked

    @staticmethod
    def of(context: fl.ServerCallContext) -> Admitted:
        """What has admitted a call."""
        admitted: Admitted = context.get_middleware(NAME)
        return admitted

    def check(self) -> None:
        """Whether the caller is still welcome: a call may outlive its token.

        Raises:
            UnauthorizedError: its token is accepted no more.
        """
        self._admission.check(self._authorization)

    def call_completed(self, exception: Exception | None) -> None:
        """The call has ended, in whatever way."""
        self._admission.leave()


def _last(values: Sequence[str | bytes] | None) -> bytes:
    value = values[-1] if values else b""
    return value.encode("latin-1", "replace") if isinstance(value, str) else value
