"""What all Flight calls share; used on the event loop only, but for what says otherwise."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.budget import ByteBudget
    from engine.codecs.ipc_guard import IpcLimits
    from engine.dataplane import DataPlane
    from engine.metrics import Metrics
    from engine.turn import Turn

__all__ = ["FlightService"]


@dataclasses.dataclass(frozen=True, slots=True)
class FlightService:
    """What every call shares.

    Attributes:
        plane: answers the requests.
        turn: runs them.
        metrics: counts them.
        limits: what one batch may hold.
        budget: bounds the large messages that are arriving or being answered, of all calls.
        request_timeout_s: after this long a batch that still waits is answered with an error.
    """

    plane: DataPlane
    turn: Turn
    metrics: Metrics
    limits: IpcLimits
    budget: ByteBudget
    request_timeout_s: float
