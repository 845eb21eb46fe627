"""How many bytes of request bodies are held: of one, and of all together.

Memory that a large body was in is lent to the next one: new memory costs as much as filling it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from engine.errors import OverloadedError, PayloadTooLargeError

if TYPE_CHECKING:
    from typing import Final

__all__ = ["BodyBudget", "too_large"]

MAX_SPARE_BYTES: Final = 64 << 20
LEAST_SPARE_BYTES: Final = 1 << 17
SOLE: Final = 2  # references to what only a list holds, that of the question included


class BodyBudget:
    """The bytes of request bodies that may be held at a time; used on the event loop only."""

    def __init__(self, max_bytes: int) -> None:
        """Make an untouched budget of ``max_bytes``."""
        self._max_bytes = max_bytes
        self._held_bytes = 0
        self._spares: list[bytearray] = []
        self._spare_bytes = 0
        self._fewest_spares = 0  # since the last sweep: so many were not needed

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

    def lend(self, size_bytes: int) -> bytearray | None:
        """Memory for a body of this size, with anything in it; None where there is none."""
        for index, spare in enumerate(self._spares):
            if size_bytes <= len(spare) <= 2 * size_bytes:
                del self._spares[index]
                self._spare_bytes -= len(spare)
                self._fewest_spares = min(self._fewest_spares, len(self._spares))
                del spare[size_bytes:]
                return spare
        return None

    def keep(self, bodies: list[bytearray]) -> None:
        """Keep the memory of a body for others, where nobody looks at it any more.

        Args:
            bodies: the one body, which the caller has no other reference to.
        """
        if sys.getrefcount(bodies[0]) != SOLE:
            return
        size_bytes = len(bodies[0])
        if LEAST_SPARE_BYTES <= size_bytes <= MAX_SPARE_BYTES - self._spare_bytes:
            self._spares.append(bodies[0])
            self._spare_bytes += size_bytes

    def sweep(self) -> None:
        """Let go of memory that was not needed since the last call."""
        for spare in self._spares[: self._fewest_spares]:
            self._spare_bytes -= len(spare)
        del self._spares[: self._fewest_spares]
        self._fewest_spares = len(self._spares)


def too_large(max_body_bytes: int) -> PayloadTooLargeError:
    """The refusal of a body over the limit."""
    return PayloadTooLargeError(
        f"the body is larger than {max_body_bytes} bytes (MAX_BODY_BYTES): send several requests"
    )
