"""Memory that a large body was in, for the next one: new memory costs as much as filling it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final

__all__ = ["Spares"]

MAX_SPARE_BYTES: Final = 64 << 20
LEAST_SPARE_BYTES: Final = 1 << 17
SOLE: Final = 2  # references to what only a list holds, that of the question included


class Spares:
    """The memory that is kept for bodies to come; used on the event loop only."""

    def __init__(self) -> None:
        self._spares: list[bytearray] = []
        self._spare_bytes = 0
        self._fewest_spares = 0  # since the last sweep: so many were not needed

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
