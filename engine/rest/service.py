"""What every HTTP connection shares, and how a request is refused."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from engine.codecs.known_tables import KnownTables
from engine.errors import EngineError
from engine.rest.errors import error_reply
from engine.rest.receiver import Inbox
from engine.rest.spares import Spares

if TYPE_CHECKING:
    from engine.budget import ByteBudget
    from engine.dataplane import DataPlane
    from engine.metrics import Metrics
    from engine.rest.media import Reply
    from engine.tokens import TokenFile
    from engine.turn import Turn

__all__ = ["Service", "refuse"]


@dataclasses.dataclass(frozen=True, slots=True)
class Service:
    """What every connection shares.

    Attributes:
        plane: answers the requests.
        turn: runs them.
        metrics: counts them.
        budget: bounds the bodies that are held.
        max_body_bytes: largest accepted body.
        request_timeout_s: after this long a request that still waits is answered with 504.
        records_by_default: whether ``/infer`` answers records without being asked.
        tables: the layouts of the Arrow bodies that came.
        spares: memory for large bodies.
        inbox: what connections read into.
        tokens: accepted bearer tokens, or None where everybody is welcome.
    """

    plane: DataPlane
    turn: Turn
    metrics: Metrics
    budget: ByteBudget
    max_body_bytes: int
    request_timeout_s: float
    records_by_default: bool
    tables: KnownTables = dataclasses.field(default_factory=KnownTables)
    spares: Spares = dataclasses.field(default_factory=Spares)
    inbox: Inbox = dataclasses.field(default_factory=Inbox)
    tokens: TokenFile | None = None


def refuse(service: Service, error: Exception) -> Reply:
    """Count a request that is not answered, and say why in the reply that is about to be sent."""
    code = error.code if isinstance(error, EngineError) else "internal"
    service.metrics.record_error(code)
    return error_reply(error)
