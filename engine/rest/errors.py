"""Engine errors to HTTP replies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import PayloadTooLargeError
from engine.refusal import refusal_of
from engine.rest.media import JSON_TYPE, Reply

if TYPE_CHECKING:
    from typing import Final

__all__ = ["error_reply", "too_large"]

RETRY_AFTER_S: Final = b"1"


def error_reply(error: Exception) -> Reply:
    """Turn any exception into its reply, with ``Retry-After`` where trying again helps.

    Args:
        error: an EngineError, or anything else, which counts as a bug.

    Returns:
        The JSON reply.
    """
    refusal = refusal_of(error)
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if refusal.status in {429, 503}:
        headers = ((b"retry-after", RETRY_AFTER_S),)
    elif refusal.status == 401:
        headers = ((b"www-authenticate", b"Bearer"),)
    return Reply(refusal.status, JSON_TYPE, refusal.body, headers)


def too_large(max_body_bytes: int) -> PayloadTooLargeError:
    """The refusal of a body over the limit."""
    return PayloadTooLargeError(
        f"the body is larger than {max_body_bytes} bytes (MAX_BODY_BYTES): send several requests"
    )
