"""A batch of one plain tensor: the shortest way to its answer, from bytes to bytes.

After a wait for bytes the engine's code and data are out of the processor's caches: what counts is
how few functions and objects a batch touches. Messages of one schema and size differ in nothing but
their numbers: where all bytes before the numbers are those of one that was read before, the numbers
lie where they lay there. Such a batch meets every rule that holds for all, of limits, admission,
running, logging and counting, in the fewest functions; neither Arrow nor protobuf is asked
anything.

Rules that hold here:
- Whatever is not exactly that, or cannot be answered at once, is left to the usual way, before
  anything was done for it; nothing is an error here.
- Nothing is known but of messages that the usual way has read, checked and answered.
- Everything runs on the event loop, which is the one thread that uses ``bound_rows``.
- What the client need not wait for is done once its answer is on its way.
- With the log on an answer leaves after its rows are committed. The log gets what it would get the
  usual way: the numbers as they lie in the message, which nobody writes to meanwhile.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from engine.codecs.arrow_frame import row_shapes
from engine.codecs.ipc_guard import is_compressed
from engine.turn import TINY_RUN_NS, holds_no_slot
from engine.values import Frame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, Final

    from engine.flight.incoming import OpenBatch
    from engine.flight.reply import ReplyWriter
    from engine.flight.service import FlightService
    from engine.logring import LogRing
    from engine.pipeline.actions import Model
    from engine.running import RunningPipeline
    from engine.values import Array, Column, Output

__all__ = ["ShortWay"]

MOST_LAYOUTS: Final = 16
MOST_TRIALS: Final = 4  # the reply is worked out where as many rows come for the second time


@dataclasses.dataclass(frozen=True, slots=True)
class _Layout:
    """What is known of the messages of one size.

    Attributes:
        before: all bytes before the body.
        rows: how many they hold.
        start: where the numbers begin.
    """

    before: bytes
    rows: int
    start: int


class ShortWay:
    """The way of one stream's batches through one pipeline."""

    def __init__(
        self,
        schema: pa.Schema,
        pipeline: RunningPipeline,
        reply: ReplyWriter,
        service: FlightService,
        *,
        rest: Callable[[], None],
    ) -> None:
        """Prepare for the batches of a stream.

        Args:
            schema: theirs, which ``is_open_to`` has let through.
            pipeline: answers them.
            reply: writes the answers.
            service: runs, counts and keeps them.
            rest: called where a run has taken long.
        """
        (spec,) = pipeline.inputs
        self._field = schema.field(0)
        self._row_shapes = row_shapes(schema)
        self._dtype = np.dtype(spec.element.numpy)
        self._row_shape: tuple[Any, ...] = spec.row_shape
        self._row_bytes = (spec.row_size or 1) * self._dtype.itemsize
        policy = pipeline.policy
        self._policy = policy
        self._most_shared_rows = 0 if policy is None else policy.max_rows
        self._model: Model = pipeline.lone_model  # type: ignore[assignment] # see is_open_to
        self._cost = pipeline.cost
        self._pipeline = pipeline
        self._reply = reply
        self._turn = service.turn
        self._metrics = service.metrics
        self._log = service.plane.log
        self._rest = rest
        self._layouts: dict[int, _Layout] = {}
        self._failures: dict[int, int] = {}  # by size: runs whose answer went the usual way

    @staticmethod
    def is_open_to(schema: pa.Schema, pipeline: RunningPipeline) -> bool:
        """Whether batches of a schema hold one plain tensor, which one model answers."""
        if pipeline.lone_model is None or len(schema) != 1:
            return False
        (spec,) = pipeline.inputs
        kind = schema.field(0).type
        return (
            schema.names[0] == spec.name
            and spec.element.array_code is not None
            and pa.types.is_fixed_size_list(kind)
            and kind.list_size == spec.row_size
            and kind.value_type == pa.from_numpy_dtype(spec.element.numpy)
        )

    def learn(self, size_bytes: int, opened: OpenBatch, batch: pa.RecordBatch) -> None:
        """Know messages like one that was read, checked and accepted the usual way.

        Args:
            size_bytes: of the message.
            opened: what it declares.
            batch: what was read.
        """
        (begin, end), content, before = opened.data.body, opened.content, opened.data.before
        if end != size_bytes or not before or is_compressed(memoryview(opened.data.header)):
            return  # of a compressed buffer its first bytes, in the body, say how it is to be read
        if self._failures.get(size_bytes, 0) >= MOST_TRIALS:
            return  # the model would be run twice for each
        list_nulls, nulls, values = batch.column(0).buffers()
        if list_nulls is not None or nulls is not None or values is None:
            return
        # in the body, and not in memory of its own
        offset = values.address - np.frombuffer(content, np.uint8).ctypes.data
        offset -= len(content) - (end - begin)
        most = end - begin - batch.num_rows * self._row_bytes
        if not batch.num_rows or not 0 <= offset <= most:
            return
        if len(self._layouts) >= MOST_LAYOUTS:
            self._layouts.clear()
        layout = _Layout(before, batch.num_rows, begin + offset)
        self._layouts[size_bytes] = layout

    def answer(self, message: bytes | memoryview, send: Callable[..., None]) -> bool:
        """Answer a message here and now.

        Args:
            message: what came.
            send: sends the pieces of a message.

        Returns:
            Whether it was answered; False where it is to go the usual way.
        """
        started_ns = time.monotonic_ns()
        layout = self._layouts.get(len(message))
        if layout is None or bytes(message[: len(layout.before)]) != layout.before:
            return False
        rows = layout.rows
        end = self._begin(rows)
        if end is None:
            return False
        try:
            tensor: Any = np.ndarray((rows, *self._row_shape), self._dtype, message, layout.start)
            bound = self._pipeline.bound_rows(rows)
            parsed_ns = time.monotonic_ns()
            if bound is not None:
                bound.tensor[...] = tensor
                bound.run()
                outputs = bound.outputs
            else:
                fed = tensor if tensor.flags.aligned else tensor.copy()
                outputs = self._model.run((fed,), rows)
            run_ns = time.monotonic_ns() - parsed_ns
            elapsed_ns = parsed_ns - started_ns, run_ns
            pieces = self._reply.pieces(outputs, rows, elapsed_ns, is_lent=bound is not None)
            if pieces is not None and self._log is not None:
                self._keep(self._log, tensor, outputs, elapsed_ns)
        except Exception:  # noqa: BLE001 - whatever it is, it will be again, and be told
            pieces = None
        finally:
            if end is not holds_no_slot:
                end()
                self._rest()
        if pieces is None:
            self._forget(len(message))
            return False
        latency_ns = time.monotonic_ns() - started_ns
        send(*pieces)
        self._cost.learn(rows, run_ns)
        self._metrics.record(rows, latency_ns, 0, run_ns)
        return True

    def _keep(
        self, log: LogRing, tensor: Array, outputs: tuple[Output, ...], elapsed_ns: tuple[int, int]
    ) -> None:
        """Commit the rows of an answer."""
        rows, name = len(tensor), self._field.name
        values = tensor.reshape(rows, -1)
        column = _LoneColumn(self._field, values)
        frame = Frame(rows, column, row_shapes=self._row_shapes, dense={name: values})
        log.append((self._pipeline.conclude(frame, outputs, *elapsed_ns),))

    def _forget(self, size_bytes: int) -> None:
        """Messages of a size were run for nothing: let them be learnt again, but not for ever."""
        failures = self._failures.pop(size_bytes, 0) + 1
        if len(self._failures) >= MOST_LAYOUTS:
            self._failures.clear()
        self._failures[size_bytes] = failures
        del self._layouts[size_bytes]

    def _begin(self, rows: int) -> Callable[[], None] | None:
        """What follows a run here and now; None where the rows may not be run so."""
        if rows <= self._most_shared_rows and (self._cost.least_ns(rows) or 0.0) > TINY_RUN_NS:
            return None  # others may come to share the run
        return self._turn.begin(rows, self._policy, self._cost)


class _LoneColumn(Mapping[str, "Column"]):
    """The one column of a batch, made when it is asked for: the log most often needs none."""

    __slots__ = ("_field", "_values")

    def __init__(self, field: pa.Field, values: Array) -> None:
        self._field = field
        self._values = values

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[str]:
        return iter((self._field.name,))

    def __getitem__(self, name: str) -> Column:
        if name != self._field.name:
            raise KeyError(name)
        kind, values = self._field.type, self._values
        numbers = [None, pa.py_buffer(values)]
        leaf = pa.Array.from_buffers(kind.value_type, values.size, numbers, 0)
        return pa.Array.from_buffers(kind, len(values), [None], 0, 0, [leaf])
