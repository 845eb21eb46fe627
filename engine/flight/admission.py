"""Who may call, and how many at a time: checked before anything else is looked at.

A call that is one too many is refused at once. The count goes down when a call ends in any way, a
killed client's included. Streams may stay open for ever: whether their token still holds is asked
again for every batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import OverloadedError, ShuttingDownError

if TYPE_CHECKING:
    from engine.http2.call import Call
    from engine.metrics import Metrics
    from engine.tokens import TokenFile

__all__ = ["Admission", "Admitted"]


class Admission:
    """Refuses callers without a token, and calls over the limit; the event loop's alone.

    Attributes:
        is_closed: set once, when the engine stops: nobody is admitted any more.
    """

    def __init__(self, max_calls: int, tokens: TokenFile | None, metrics: Metrics) -> None:
        """Admit nobody yet.

        Args:
            max_calls: calls at a time, open streams included.
            tokens: accepted bearer tokens; None where everybody is welcome.
            metrics: tells how many calls are open.
        """
        self._max_calls = max_calls
        self._tokens = tokens
        self._metrics = metrics
        self._calls = 0
        self.is_closed = False

    def admit(self, call: Call) -> Admitted:
        """Admit a call; whoever owns it calls ``leave`` of what is returned when it is over.

        Raises:
            UnauthorizedError: it has no accepted token.
            ShuttingDownError: the engine stops.
            OverloadedError: too many calls are open.
        """
        admitted = Admitted(self, self._tokens, call.headers.get(b"authorization", b""))
        admitted.check()
        if self.is_closed:
            raise ShuttingDownError("the engine is stopping and takes no new calls")
        if self._calls >= self._max_calls:
            raise OverloadedError(
                f"{self._calls} Flight calls are open, streams included (limit: "
                f"FLIGHT_MAX_STREAMS={self._max_calls}): try again shortly, or send more "
                "batches over one stream"
            )
        self.count(1)
        return admitted

    def count(self, calls: int) -> None:
        """So many calls more are open."""
        self._calls += calls
        self._metrics.flight_calls = self._calls


class Admitted:
    """One admitted call.

    Attributes:
        is_token_asked: whether ``check`` has anything to check.
    """

    def __init__(
        self, admission: Admission, tokens: TokenFile | None, authorization: bytes
    ) -> None:
        """Take what the call's header ``authorization`` says."""
        self._admission = admission
        self._tokens = tokens
        self._authorization = authorization
        self.is_token_asked = tokens is not None

    def check(self) -> None:
        """Whether the caller is still welcome: a call may outlive its token. Any thread.

        Raises:
            UnauthorizedError: its token is accepted no more.
        """
        if self._tokens is not None:
            self._tokens.check(self._authorization)

    def leave(self) -> None:
        """The call is over, in whatever way; to be called once."""
        self._admission.count(-1)
