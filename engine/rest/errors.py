"""Engine errors to HTTP: one table, one body.

Source: DECISIONS of the error body ``{"code", "status", "error", "source"}``, which the product's
SDK and OpenAPI document parse; reference page for the endpoints.
"""

from __future__ import annotations

import logging
import uuid
from typing import TYPE_CHECKING

import orjson

from engine.errors import EngineError, Fault, InternalError
from engine.rest.media import JSON_TYPE, Reply

if TYPE_CHECKING:
    from typing import Final

__all__ = ["STATUS", "error_body", "error_reply"]

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
RETRY_AFTER_S: Final = b"1"

log = logging.getLogger("sagitta")


def error_reply(error: Exception) -> Reply:
    """Turn any exception into its reply; a server fault's details go to the log only.

    Args:
        error: an EngineError, or anything else, which counts as a bug.

    Returns:
        The JSON reply, with ``Retry-After`` where trying again helps.
    """
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
            else ("internal processing error")
        )
        text = f"{what}; the engine's log has the reason under request {request_id}"
    status = STATUS[error.code]
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if status in {429, 503}:
        headers = ((b"retry-after", RETRY_AFTER_S),)
    elif status == 401:
        headers = ((b"www-authenticate", b"Bearer"),)
    return Reply(status, JSON_TYPE, error_body(status, text), headers)


def error_body(status: int, text: str) -> bytes:
    """The documented error body."""
    return orjson.dumps({"code": status, "status": "Error", "error": text, "source": "engine"})
