"""What all Flight calls share; used on the event loop only, but for what says otherwise."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from engine.errors import OverloadedError

if TYPE_CHECKING:
    from engine.codecs.ipc_guard import IpcLimits
    from engine.dataplane import DataPlane
    from engine.metrics import Metrics
    from engine.turn import Turn

__all__ = ["FlightService"]


@dataclasses.dataclass(slots=True)
class FlightService:
    """What every call shares.

    Attributes:
        plane: answers the requests.
        turn: runs them.
        metrics: counts them.
        limits: what one batch may hold.
        max_held_bytes: of large messages that are arriving or being answered, of all calls.
        request_timeout_s: after this long a batch that still waits is answered with an error.
        held_bytes: of such messages, now.
    """

    plane: DataPlane
    turn: Turn
    metrics: Metrics
    limits: IpcLimits
    max_held_bytes: int
    request_timeout_s: float
    held_bytes: int = 0

    def hold(self, size_bytes: int, own_bytes: int) -> None:
        """Hold a large message.

        Args:
            size_bytes: of the message.
            own_bytes: held by its call already: of a batch that is being answered. Until it is,
                the next one, which this is, is kept from coming by the client's window.

        Raises:
            OverloadedError: others hold too much already; one that is alone is always taken.
        """
        others_bytes = self.held_bytes - own_bytes
        if others_bytes and others_bytes + size_bytes > self.max_held_bytes:
            raise OverloadedError(
                f"the batches that are being received hold {others_bytes} bytes (limit: "
                f"QUEUE_MAX_BYTES={self.max_held_bytes}): try again shortly"
            )
        self.held_bytes += size_bytes
