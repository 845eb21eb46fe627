"""One small row on a connection that has the event loop to itself: the shortest way to its answer.

Where requests come one at a time the engine has slept before each, and its code and data are out of
the processor's caches: what counts then is how little of them a request touches. Here it meets
every rule that holds for all, of admission, running, logging and counting, in the fewest functions.

Rules that hold here:
- Whatever is not exactly one row of numbers that can be answered at once is left to the usual way,
  before anything was done for it: None, never an error.
- Everything runs on the event loop.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from engine.codecs.number_records import read_number_row
from engine.request import InferRequest
from engine.rest.exchange import write_outcome
from engine.rest.media import BodyKind
from engine.values import Frame

if TYPE_CHECKING:
    from typing import Final

    from engine.rest.exchange import Service
    from engine.rest.inference import CallHead
    from engine.rest.media import Reply

__all__ = ["answer_lone"]

MAX_BYTES: Final = 4096


class _LoneRequest(InferRequest):
    """A request whose outcome is taken by whoever has run it."""

    def settle(self) -> None:
        """Nobody waits elsewhere."""


def answer_lone(service: Service, head: CallHead, body: bytes) -> Reply | None:
    """Answer a request here and now.

    Args:
        service: what every connection shares.
        head: what its head says.
        body: its whole body.

    Returns:
        The reply; None where the request is to go the usual way.
    """
    if len(body) > min(MAX_BYTES, service.max_body_bytes) or head.body_kind is BodyKind.ARROW:
        return None
    pipeline = service.plane.current
    if pipeline is None or pipeline.lone_input is None:
        return None
    name = head.pipeline_name
    if name is not None and name != pipeline.identity.id:
        return None
    request = _LoneRequest(pipeline)
    row = read_number_row(body, pipeline.lone_input)
    if row is None:
        return None
    columns, tensor = row
    request.frame = Frame(1, columns, has_literals=False)
    request.feeds = (tensor,)
    request.rows = 1
    request.policy = pipeline.policy
    request.parse_ns = time.monotonic_ns() - request.started_ns
    if not service.turn.run_now((request,)):
        return None
    return write_outcome(service, head, request)
