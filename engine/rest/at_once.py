"""A small request is answered as soon as it is read: the shortest way to its answer.

Where requests come one at a time the engine has slept before each, and its code and data are out of
the processor's caches: what counts then is how little of them a request touches. Where they come
from a few connections, sharing a run saves what a run costs before its first row, and collecting
the requests for it costs some 20 us for each. Here a request meets every rule that holds for all,
of admission, running, logging and counting, in the fewest functions.

Rules that hold here:
- Whatever is not one row of numbers as JSON, or an Arrow table like one before it, or cannot be
  answered at once, is left to the usual way before anything was done for it that others see: None,
  never an error. So is a request that is to be refused: the usual way tells why.
- So is a request that others might share a run with, where that saves something.
- What the client need not wait for is done once its reply is on its way.
- Everything runs on the event loop, which is the one thread that uses the pipeline's ``row``.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from engine.codecs.number_records import read_number_row
from engine.rest.inference import is_arrow, write_result
from engine.rest.media import BodyKind
from engine.rest.service import refuse
from engine.values import BoundRows, Frame

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final

    from engine.rest.inference import CallHead
    from engine.rest.media import Reply
    from engine.rest.service import Service
    from engine.running import RunningPipeline
    from engine.values import Array, InferResult

__all__ = ["answer_at_once"]

MAX_JSON_BYTES: Final = 4096
FEW_CONNECTIONS: Final = 4  # beyond, replies that leave together save more than sharing costs
WORTH_SHARING_NS: Final = 15_000  # a run of one row


def answer_at_once(
    service: Service,
    head: CallHead,
    data: bytearray,
    start: int,
    stop: int,
    *,
    connections: int,
    send: Callable[[Reply], None],
) -> bool:
    """Answer a request here and now.

    Args:
        service: what every connection shares.
        head: what its head says.
        data: holds its body; nothing of it is used after the return.
        start: the body's first byte, at an address that Arrow's numbers may have.
        stop: the one after its last.
        connections: how many there are that could send a request.
        send: sends the reply.

    Returns:
        Whether it was answered; False where it is to go the usual way.
    """
    plane = service.plane
    pipeline = plane.current
    if (
        pipeline is None
        or stop - start > service.max_body_bytes
        or (head.pipeline_name is not None and head.pipeline_name != pipeline.identity.id)
        or (connections > 1 and _is_worth_sharing(pipeline, connections))
    ):
        return False
    started_ns = time.monotonic_ns()
    kind = head.body_kind
    is_table = kind is BodyKind.ARROW or (kind is BodyKind.SNIFF and is_arrow(head, data, start))
    read = _read_table if is_table else _read_row
    given = read(service, pipeline, data, start, stop)
    if given is None:
        return False
    result = _infer(service, pipeline, *given, started_ns)
    if result is None:
        return False
    try:
        reply = write_result(head, result, service.records_by_default)
    except Exception as error:  # noqa: BLE001 - every failure is answered, bugs included
        send(refuse(service, error))
        return True
    answered_ns = time.monotonic_ns()
    send(reply)
    rows, (_, run_ns) = result.frame.rows, result.elapsed_ns
    pipeline.cost.learn(rows, run_ns)
    service.metrics.record(rows, answered_ns - started_ns, 0, run_ns)
    return True


def _infer(
    service: Service,
    pipeline: RunningPipeline,
    frame: Frame,
    feeds: Sequence[Array] | BoundRows,
    started_ns: int,
) -> InferResult | None:
    """Run the rows and log the answer; None where that cannot be done here, or has failed."""
    end = service.turn.begin(frame.rows, pipeline.policy, pipeline.cost)
    if end is None:
        return None
    try:
        parse_ns = time.monotonic_ns() - started_ns
        outputs, run_ns = pipeline.run(feeds, frame.rows)
        result = pipeline.conclude(frame, outputs, parse_ns, run_ns)
    except Exception:  # noqa: BLE001 - whatever it is, it will be again, and be told
        return None
    else:
        log = service.plane.log
        if log is not None:
            log.append((result,))
        return result
    finally:
        end()


def _is_worth_sharing(pipeline: RunningPipeline, connections: int) -> bool:
    """Whether a run and a commit of its own cost a request more than waiting for others does."""
    if pipeline.policy is None:
        return False
    run_ns = pipeline.cost.least_ns(1)
    return connections > FEW_CONNECTIONS or run_ns is None or run_ns > WORTH_SHARING_NS


def _read_row(
    _service: Service, pipeline: RunningPipeline, data: bytearray, start: int, stop: int
) -> tuple[Frame, Sequence[Array] | BoundRows] | None:
    """A row of numbers as JSON, and the memory in which they stand."""
    row = pipeline.row
    if row is None or stop - start > MAX_JSON_BYTES:
        return None
    columns = read_number_row(data[start:stop], row.name, row.values)
    return None if columns is None else (Frame(1, columns, has_literals=False), row)


def _read_table(
    service: Service, pipeline: RunningPipeline, data: bytearray, start: int, stop: int
) -> tuple[Frame, Sequence[Array] | BoundRows] | None:
    """The rows of an Arrow table, and their tensors or the memory in which they stand."""
    if not pipeline.has_one_model:
        return None
    frame = service.tables.read_known(data, start, stop)
    if frame is None:
        return None
    try:
        feeds, _ = pipeline.feeds(frame)
    except Exception:  # noqa: BLE001 - whatever it is, the usual way tells it
        return None
    bound = pipeline.bound_rows(frame.rows)
    if bound is None:
        return frame, feeds
    bound.tensor[...] = feeds[0]
    return frame, bound
