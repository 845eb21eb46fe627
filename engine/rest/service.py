"""What every HTTP connection shares, and how an answer becomes a reply.

Rules that hold here:
- Every request is counted once, here, whatever became of it.
- Callable on any thread; nothing is kept.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

from engine.codecs.known_tables import KnownTables
from engine.errors import EngineError
from engine.rest.errors import error_reply
from engine.rest.inference import write_result
from engine.rest.receiver import Inbox

if TYPE_CHECKING:
    from engine.dataplane import DataPlane
    from engine.metrics import Metrics
    from engine.rest.budget import BodyBudget
    from engine.rest.inference import CallHead
    from engine.rest.media import Reply
    from engine.tokens import TokenFile
    from engine.turn import Turn
    from engine.values import InferResult

__all__ = ["Service", "refuse", "write_answer"]


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
        inbox: what connections read into.
        tokens: accepted bearer tokens, or None where everybody is welcome.
    """

    plane: DataPlane
    turn: Turn
    metrics: Metrics
    budget: BodyBudget
    max_body_bytes: int
    request_timeout_s: float
    records_by_default: bool
    tables: KnownTables = dataclasses.field(default_factory=KnownTables)
    inbox: Inbox = dataclasses.field(default_factory=Inbox)
    tokens: TokenFile | None = None


def write_answer(
    service: Service, head: CallHead, result: InferResult, started_ns: int, queue_ns: int = 0
) -> Reply:
    """Encode an answer and count it; where it cannot be written, the reply says so.

    Args:
        service: what every connection shares.
        head: what the request's head says.
        result: its answer.
        started_ns: monotonic time of its arrival.
        queue_ns: how long it waited for a slot.

    Returns:
        The reply.
    """
    try:
        reply = write_result(head, result, service.records_by_default)
    except Exception as error:  # noqa: BLE001 - every failure is answered, bugs included
        return refuse(service, error)
    run_ns = sum(result.elapsed_ns[1:])
    service.metrics.record(result.frame.rows, time.monotonic_ns() - started_ns, queue_ns, run_ns)
    return reply


def refuse(service: Service, error: Exception) -> Reply:
    """Count a request that cannot be answered, and say why in a reply."""
    code = error.code if isinstance(error, EngineError) else "internal"
    service.metrics.record_error(code)
    return error_reply(error)
