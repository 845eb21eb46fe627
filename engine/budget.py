"""How many bytes of requests a shell holds: those that are arriving, and those being answered."""

from __future__ import annotations

from engine.errors import OverloadedError

__all__ = ["ByteBudget"]


class ByteBudget:
    """The bytes that may be held at a time; used on the event loop only.

    Attributes:
        held_bytes: now.
    """

    def __init__(self, max_bytes: int) -> None:
        """Make an untouched budget of ``max_bytes``."""
        self._max_bytes = max_bytes
        self.held_bytes = 0

    def take(self, size_bytes: int, *, own_bytes: int = 0) -> None:
        """Hold more bytes.

        Args:
            size_bytes: how many more.
            own_bytes: so many of those held do not count: their holder takes these in their place.

        Raises:
            OverloadedError: with what is held already that would be more than the bound; nothing
                was taken. Where nothing is held, anything is.
        """
        held_bytes = self.held_bytes - own_bytes
        if held_bytes and held_bytes + size_bytes > self._max_bytes:
            raise OverloadedError(
                f"the requests that are being received or answered hold {held_bytes} bytes "
                f"(limit: QUEUE_MAX_BYTES={self._max_bytes}): try again shortly"
            )
        self.held_bytes += size_bytes

    def give_back(self, size_bytes: int) -> None:
        """Hold fewer bytes."""
        self.held_bytes -= size_bytes
