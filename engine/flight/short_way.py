"""A small batch of one plain tensor: the shortest way to its answer.

After a wait for bytes the engine's code and data are out of the processor's caches, and with
several streams every change of threads costs more than a small model's run: what counts is how few
functions and objects a batch touches, and how often the interpreter's lock changes hands. Here it
meets every rule that holds for all, of limits, admission, running and counting, in the fewest.

Rules that hold here:
- Whatever is not exactly that, or cannot be answered at once, is left to the usual way, before
  anything was done for it: None, never an error.
- Nothing of the batch is read but three buffers, and of these only the values: no nulls can be
  where neither lists nor values have a bitmap, and numpy refuses a buffer that is too small. What
  else ``validate(full=True)`` looks at, how long the values say they are, is not used. It lets the
  interpreter's lock go, as few other calls do: reading, running, writing.
- With the log on nothing goes this way: the log reads the columns themselves.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from typing import Any, Final

    from engine.codecs.ipc_guard import IpcLimits
    from engine.flight.reply import Part, ReplyWriter
    from engine.metrics import Metrics
    from engine.pipeline.actions import Model
    from engine.running import RunningPipeline
    from engine.values import BoundRows

__all__ = ["TINY_RUN_NS", "ShortWay"]

TINY_RUN_NS: Final = 100_000  # needs no slot: to hand one over costs more
MOST_BOUND_BYTES: Final = 1 << 14
MOST_BINDINGS: Final = 8  # in a stream: each is tried with some ten runs


class ShortWay:
    """The way of one stream's batches through one pipeline; used by the call's thread alone."""

    def __init__(
        self,
        pipeline: RunningPipeline,
        reply: ReplyWriter,
        limits: IpcLimits,
        metrics: Metrics,
    ) -> None:
        """Prepare for batches of a schema that ``is_open_to`` has let through."""
        (spec,) = pipeline.inputs
        width = spec.row_size or 1
        policy, dtype = pipeline.policy, np.dtype(spec.element.numpy)
        self._dtype = dtype
        self._row_shape: tuple[Any, ...] = spec.row_shape
        self._least_rows = 1
        if policy is not None and policy.delay_ns > 0:
            self._least_rows = policy.target_rows  # fewer wait for company
        self._most_rows = min(limits.rows, limits.values // (width + 1))
        self._most_bytes = limits.decoded_bytes
        self._model: Model = pipeline.lone_model  # type: ignore[assignment] # see is_open_to
        self._row_bytes = width * dtype.itemsize
        self._bound: BoundRows | None = None
        self._bound_rows = 0
        self._bindings = 0
        self._last_rows = 0
        self._cost = pipeline.cost
        self._reply = reply
        self._metrics = metrics

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

    def answer(self, batch: pa.RecordBatch) -> Part | None:
        """Answer a batch here and now.

        Returns:
            What goes out; None where the batch is to go the usual way.
        """
        started_ns = time.monotonic_ns()
        rows: int = batch.num_rows
        if not self._least_rows <= rows <= self._most_rows:
            return None
        tiny_ns = self._cost.least_ns(rows)
        if tiny_ns is None or tiny_ns > TINY_RUN_NS:
            return None
        list_nulls, nulls, values = batch.column(0).buffers()
        if list_nulls is not None or nulls is not None or values is None:
            return None
        if values.size > self._most_bytes:
            return None
        try:
            tensor = np.ndarray((rows, *self._row_shape), self._dtype, values)
            parsed_ns = time.monotonic_ns()
            bound = self._bound
            if bound is not None and rows == self._bound_rows:
                bound.tensor[...] = tensor
                bound.run()
                outputs = bound.outputs
            else:
                bound, outputs = None, self._model.run((tensor,), rows)
            run_ns = time.monotonic_ns() - parsed_ns
            elapsed_ns = parsed_ns - started_ns, run_ns
            part = self._reply.write_whole(outputs, rows, elapsed_ns, is_lent=bound is not None)
        except Exception:  # noqa: BLE001 - whatever it is, it will be again, and be told
            return None
        if bound is None:
            self._bind(rows)
        if part is not None:
            self._cost.learn(rows, run_ns)
            self._metrics.record(rows, time.monotonic_ns() - started_ns, 0, run_ns)
        return part

    def _bind(self, rows: int) -> None:
        """Where as many rows come again, and answers are copied: run them in the same memory."""
        if (
            rows == self._last_rows
            and rows != self._bound_rows
            and self._bindings < MOST_BINDINGS
            and rows * self._row_bytes <= MOST_BOUND_BYTES
            and self._reply.is_small(rows)
        ):
            self._bindings += 1
            self._bound_rows, self._bound = rows, self._model.bind_rows(rows)
        self._last_rows = rows
