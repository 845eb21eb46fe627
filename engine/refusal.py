"""An error as every shell tells it: a number, a text that may leave the process, and one body.

Rules that hold here:
- The text of a server fault goes to the log under a request id; the caller gets a fixed sentence.
- An error is turned into words once: the caller and the log of failures have the same request id.
- A text repeats names out of the request, so it is cut: Flight sends it in headers, of which gRPC
  takes 8 KB, and what is longer arrives as another error altogether.
- ``STATUS`` is the one table from an error's code to the documented number, which is also the HTTP
  status; it is tested for every class of ``errors``.
Source: the documented error body ``{"code", "status", "error", "source"}``, which the product's
SDK and OpenAPI document parse.
"""

from __future__ import annotations

import dataclasses
import logging
import uuid
from typing import TYPE_CHECKING

import orjson

from engine.errors import EngineError, Fault, InternalError

if TYPE_CHECKING:
    from typing import Final

__all__ = ["STATUS", "Refusal", "error_body", "refusal_of"]

STATUS: Final = {
    "bad_request": 400,
    "decode_error": 400,
    "schema_mismatch": 400,
    "unauthorized": 401,
    "not_found": 404,
    "not_acceptable": 406,
    "conflict": 409,
    "payload_too_large": 413,
    "unsupported_media_type": 415,
    "overloaded": 429,
    "internal": 500,
    "inference_failed": 500,
    "capacity": 503,
    "not_ready": 503,
    "shutting_down": 503,
    "deadline_exceeded": 504,
}

LONGEST_TEXT_BYTES: Final = 2000

log = logging.getLogger("sagitta")


@dataclasses.dataclass(frozen=True, slots=True)
class Refusal:
    """What a caller is told.

    Attributes:
        code: the error's code.
        fault: whose fault it is.
        status: the documented number.
        text: what was wrong, where, and what to do; nothing that is private.
    """

    code: str
    fault: Fault
    status: int
    text: str

    @property
    def body(self) -> bytes:
        """The documented error body."""
        return error_body(self.status, self.text)


def refusal_of(error: BaseException) -> Refusal:
    """Turn any exception into what its caller is told; a server fault's details are logged.

    Args:
        error: an EngineError, or anything else, which counts as a bug.

    Returns:
        The refusal; of the same error always the same, and it is logged once.
    """
    known = vars(error)
    if "refusal" not in known:
        known["refusal"] = _refusal_of(error)
    refusal: Refusal = known["refusal"]
    return refusal


def _refusal_of(error: BaseException) -> Refusal:
    if not isinstance(error, EngineError):
        log.error("unexpected error in a request", exc_info=error)
        error = InternalError(type(error).__name__)
    text = str(error)
    if error.fault is Fault.SERVER:
        request_id = uuid.uuid4().hex[:12]
        log.error("request %s: %s", request_id, text)
        what = (
            "the model failed on this request"
            if error.code == "inference_failed"
            else "internal processing error"
        )
        text = f"{what}; the engine's log has the reason under request {request_id}"
    return Refusal(error.code, error.fault, STATUS[error.code], _cut(text))


def _cut(text: str) -> str:
    content = text.encode(errors="replace")
    if len(content) <= LONGEST_TEXT_BYTES:
        return content.decode()
    return f"{content[:LONGEST_TEXT_BYTES].decode(errors='ignore')}…"


def error_body(status: int, text: str) -> bytes:
    """The documented error body."""
    return orjson.dumps({"code": status, "status": "Error", "error": text, "source": "engine"})
