"""How many bytes of request bodies are held: of one, and of all together."""

from __future__ import annotations

from engine.errors import OverloadedError, PayloadTooLargeError

__all__ = ["BodyBudget", "too_large"]


class BodyBudget:
    """The bytes of request bodies that may be held at a time; used on the event loop only."""

    def __init__(self, max_bytes: int) -> None:
        """Make an untouched budget of ``max_bytes``."""
        self._max_bytes = max_bytes
        self._held_bytes = 0

    def take(self, size_bytes: int) -> None:
        """Hold more bytes.

        Raises:
            OverloadedError: that would be more than the bound; nothing was taken.
        """
        if self._held_bytes + size_bytes > self._max_bytes:
            raise OverloadedError(
                f"the bodies of the requests that are waiting hold {self._held_bytes} bytes "
                f"(limit: QUEUE_MAX_BYTES={self._max_bytes}): try again shortly"
            )
        self._held_bytes += size_bytes

    def give_back(self, size_bytes: int) -> None:
        """Hold fewer bytes."""
        self._held_bytes -= size_bytes


def too_large(max_body_bytes: int) -> PayloadTooLargeError:
    """The refusal of a body over the limit."""
    return PayloadTooLargeError(
        f"the body is larger than {max_body_bytes} bytes (MAX_BODY_BYTES): send several requests"
    )
