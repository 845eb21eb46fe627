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

__all__ = ["CancelledError", "finish_unimplemented", "finish_with"]

ARROW_IO_ERROR: Final = b"5"
ARROW_NOT_IMPLEMENTED: Final = b"10"
CANCELLED: Final = 1
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


class CancelledError(Exception):
    """The client is gone or has given up: nobody reads what is answered."""


def finish_with(call: Call, error: BaseException, metrics: Metrics) -> None:
    """End a call with an error, and count it; the event loop calls.

    Args:
        call: what ends.
        error: anything; what is not an EngineError counts as a bug, and is logged as one. A
            CancelledError is counted by whoever saw the client go.
        metrics: counts it by its code.
    """
    if isinstance(error, CancelledError):
        _finish(call, CANCELLED, "Cancelled", "the call was cancelled by the client", b"")
        return
    refusal = refusal_of(error)
    metrics.record_error(refusal.code)
    status, detail = _ENDS_BY_CODE.get(refusal.code) or _ENDS[refusal.fault]
    _finish(call, status, detail, refusal.text, refusal.body)


def finish_unimplemented(call: Call, text: str) -> None:
    """End a call for which there is nothing here; ``text`` says so."""
    trailers = [
        (b"x-arrow-status", ARROW_NOT_IMPLEMENTED),
        (b"x-arrow-status-message-bin", text.encode()),
    ]
    call.finish(UNIMPLEMENTED, text, trailers)


def _finish(call: Call, status: int, detail: str, text: str, body: bytes) -> None:
    trailers = [
        (b"x-arrow-status", ARROW_IO_ERROR),
        (b"x-arrow-status-detail-bin", detail.encode()),
        (b"x-arrow-status-message-bin", text.encode()),
    ]
    if body:
        trailers.append((b"grpc-status-details-bin", body))
    call.finish(status, f"{text}. Detail: {detail}", trailers)
