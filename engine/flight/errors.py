"""Engine errors to the end of a call: a gRPC status for the machine, the documented body for both.

The trailers are those that Arrow's own servers send, from which its clients of every language make
their errors: in pyarrow ``FlightServerError`` and its like, with the body as ``extra_info``.

Rules that hold here:
- A call ends in an error through this module alone, so that nothing of Python reaches a client.
- A client's fault has the status UNKNOWN: of INVALID_ARGUMENT pyarrow makes an error that is no
  FlightError and has no ``extra_info``. The number in there is what tells.
Source: recorded from the server of pyarrow 26 with a plain gRPC client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import DeadlineExceededError, Fault, UnauthorizedError
from engine.refusal import refusal_of

if TYPE_CHECKING:
    from typing import Final

    from engine.http2.call import Call
    from engine.metrics import Metrics

__all__ = ["finish_schema_with", "finish_unimplemented", "finish_with"]

ARROW_KEY_ERROR: Final = b"2"
ARROW_INVALID: Final = b"4"
ARROW_IO_ERROR: Final = b"5"
ARROW_UNKNOWN_ERROR: Final = b"9"
ARROW_NOT_IMPLEMENTED: Final = b"10"
UNIMPLEMENTED: Final = 12

_ENDS: Final = {  # gRPC status, and what Arrow calls it
    Fault.CLIENT: (2, "Failed"),
    Fault.CAPACITY: (14, "Unavailable"),
    Fault.SERVER: (13, "Internal"),
}
_ENDS_BY_CODE: Final = {
    UnauthorizedError.code: (16, "Unauthenticated"),
    DeadlineExceededError.code: (4, "TimedOut"),
}
_SCHEMA_ENDS: Final = {404: (5, ARROW_KEY_ERROR), 400: (3, ARROW_INVALID)}
_OTHER_SCHEMA_END: Final = 2, ARROW_UNKNOWN_ERROR


def finish_with(call: Call, error: BaseException, metrics: Metrics) -> None:
    """End a call with an error, and count it; the event loop calls.

    Args:
        call: what ends.
        error: anything; what is not an EngineError counts as a bug, and is logged as one.
        metrics: counts it by its code.
    """
    refusal = refusal_of(error)
    metrics.record_error(refusal.code)
    status, detail = _ENDS_BY_CODE.get(refusal.code) or _ENDS[refusal.fault]
    _finish(call, status, refusal.text, detail, body=refusal.body)


def finish_schema_with(call: Call, error: BaseException, metrics: Metrics) -> None:
    """What ``finish_with`` is to other calls, for GetSchema.

    Of this call alone pyarrow makes no FlightError, whatever it is told: it gets NOT_FOUND and
    INVALID_ARGUMENT, of which it makes ``ArrowKeyError`` and ``ArrowInvalid``.
    """
    refusal = refusal_of(error)
    metrics.record_error(refusal.code)
    status, kind = _SCHEMA_ENDS.get(refusal.status, _OTHER_SCHEMA_END)
    _finish(call, status, refusal.text, kind=kind, body=refusal.body)


def finish_unimplemented(call: Call, text: str) -> None:
    """End a call for which there is nothing here; ``text`` says so."""
    _finish(call, UNIMPLEMENTED, text, kind=ARROW_NOT_IMPLEMENTED)


def _finish(
    call: Call,
    status: int,
    text: str,
    detail: str = "",
    *,
    kind: bytes = ARROW_IO_ERROR,
    body: bytes = b"",
) -> None:
    trailers = [(b"x-arrow-status", kind), (b"x-arrow-status-message-bin", text.encode())]
    if detail:
        trailers.append((b"x-arrow-status-detail-bin", detail.encode()))
        text = f"{text}. Detail: {detail}"
    if body:
        trailers.append((b"grpc-status-details-bin", body))
    call.finish(status, text, trailers)
