"""One small row on a connection that has the event loop to itself: the shortest way to its answer.

Where requests come one at a time the engine has slept before each, and its code and data are out of
the processor's caches: what counts then is how little of them a request touches. Here it meets
every rule that holds for all, of admission, running, logging and counting, in the fewest functions.

Rules that hold here:
- Whatever is not exactly one row of numbers that can be answered at once is left to the usual way,
  before anything was done for it that others see: None, never an error. So is a row that the model
  refuses: the usual way tells why.
- Everything runs on the event loop, which is the one thread that uses the pipeline's ``row``.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from engine.codecs.number_records import read_number_row
from engine.rest.exchange import write_answer
from engine.rest.media import BodyKind

if TYPE_CHECKING:
    from typing import Final

    from engine.rest.exchange import Service
    from engine.rest.inference import CallHead
    from engine.rest.media import Reply

__all__ = ["answer_lone"]

MAX_BYTES: Final = 4096


def answer_lone(service: Service, head: CallHead, body: bytes) -> Reply | None:
    """Answer a request here and now.

    Args:
        service: what every connection shares.
        head: what its head says.
        body: its whole body.

    Returns:
        The reply; None where the request is to go the usual way.
    """
    plane = service.plane
    pipeline = plane.current
    if pipeline is None or len(body) > min(MAX_BYTES, service.max_body_bytes):
        return None
    row, name = pipeline.row, head.pipeline_name
    if row is None or head.body_kind is BodyKind.ARROW:
        return None
    if name is not None and name != pipeline.identity.id:
        return None
    started_ns = time.monotonic_ns()
    columns = read_number_row(body, row.name, row.values)
    if columns is None or not service.turn.try_begin(1, pipeline.policy, pipeline.cost):
        return None
    try:
        result = pipeline.infer_row(row, columns, time.monotonic_ns() - started_ns)
    except Exception:  # noqa: BLE001 - whatever it is, it will be again, and be told
        return None
    else:
        if plane.log is not None:
            plane.log.append((result,))
    finally:
        service.turn.end()
    return write_answer(service, head, result, started_ns)
