"""One published model in one ONNX Runtime session: load, warm up, run.

Rules that hold here:
- A request's rows are one ``InferenceSession.run``; only a model that takes a fixed number of rows,
  or that was published for single rows, is run in a loop. The numbers depend on it: tree ensembles
  sum in an order that depends on the rows of the run and on the thread count.
- The session is shared: ONNX Runtime's ``run`` is safe from any number of threads.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort

from engine.errors import EngineError, InferenceFailedError, SchemaMismatchError, StartupError
from engine.sessions.bound import bind_rows
from engine.sessions.generated import generated, lengths_to_try
from engine.sessions.opening import open_session, reason_of, request_names, tensor_spec
from engine.sessions.providers import CPU
from engine.sessions.sequences import columns_of_sequence, found_spec
from engine.values import Output, TensorSpec

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable, Sequence

    from engine.sessions.opening import ModelOptions
    from engine.values import Array, BoundRows, ModelIdentity

__all__ = ["ModelSession"]

WARM_UP_ROWS = (1, 1, 2, 3)


class ModelSession:
    """A loaded model.

    Attributes:
        identity: name, version and sha256.
        inputs: what a request must hold, in the model's order, under the request's names.
        outputs: what the model gives, ordered by name; complete once it was warmed up.
    """

    def __init__(self, identity: ModelIdentity, path: pathlib.Path, options: ModelOptions) -> None:
        """Load a model.

        Args:
            identity: who it is, for messages and replies.
            path: the ONNX file; stays where it is while the session lives.
            options: how to run it.

        Raises:
            StartupError: it is no model that can be served; the text says why.
        """
        self.identity = identity
        self._single_rows = options.single_rows
        self._session = open_session(identity, path, options)
        names = [value.name for value in self._session.get_inputs()]
        self.inputs = tuple(
            tensor_spec(value, name, identity)
            for value, name in zip(
                self._session.get_inputs(),
                request_names(identity, names, options.tensor_fields),
                strict=True,
            )
        )
        self._input_names = names
        # ONNX Runtime's wrapper would check the names again, which takes 2 us, and swap a provider
        # that fails for another in silence; options that are shared save another 0.7 us.
        self._run_native = getattr(self._session, "_sess", self._session).run
        self._run_options = ort.RunOptions()
        declared = sorted(self._session.get_outputs(), key=lambda value: value.name)
        self._output_names = [value.name for value in declared]
        tensors = [value for value in declared if value.type.startswith("tensor(")]
        self.outputs = tuple(tensor_spec(value, value.name, identity) for value in tensors)
        self._per_row = {value.name: self._declared_per_row(value) for value in tensors}
        self._fixed_rows = self._find_fixed_rows()
        self._runs_pieces = self._single_rows or self._fixed_rows is not None

    @property
    def provider(self) -> str:
        """The execution provider that ONNX Runtime really chose."""
        return str(self._session.get_providers()[0])

    @property
    def takes_any_rows(self) -> bool:
        """Whether one run takes any number of rows, each input with one value per row."""
        is_free = self._fixed_rows is None and not self._single_rows
        return is_free and all(spec.shape for spec in self.inputs)

    def warm_up(self, observe: Callable[[int, int], None]) -> str | None:
        """Run generated rows so that the first request finds everything allocated and tuned.

        It also settles which outputs have one value per row, for models that do not declare it,
        and the columns that sequence outputs become.

        Args:
            observe: gets rows and time (ns) of each run but the first, which allocates.

        Returns:
            None, or why the model could not be run on generated rows; requests may still succeed.
        """
        problems = []
        for length in lengths_to_try(self.inputs):
            problem = self._run_generated(length, observe)
            if problem is None:
                return None
            problems.append(problem)
        return problems[0]

    def bind_rows(self, rows: int) -> BoundRows | None:
        """Memory for a caller that runs equally many rows again and again.

        Args:
            rows: how many.

        Returns:
            The rows, zeros at first; None where the model takes no such rows of numbers, or runs
            elsewhere than on the CPU.
        """
        if len(self.inputs) != 1 or self._runs_row_by_row(rows) or self.provider != CPU:
            return None
        if any(
            None in spec.row_shape or not self._per_row.get(spec.name, False)
            for spec in self.outputs
        ):
            return None
        return bind_rows(self._session, self.inputs[0], self.run, rows)

    def _run_generated(self, length: int, observe: Callable[[int, int], None]) -> str | None:
        """Warm up with open axes of this length; why that could not be run."""
        seen: dict[str, list[bool]] = {}
        for rows in WARM_UP_ROWS:
            feeds = [generated(spec, rows, length) for spec in self.inputs]
            started_ns = time.monotonic_ns()
            try:
                outputs = self.run(feeds, rows)
            except EngineError as error:
                return str(error)
            if seen:
                observe(rows, time.monotonic_ns() - started_ns)
            for output in outputs:
                fits = output.values.ndim > 0 and output.values.shape[0] == rows
                seen.setdefault(output.name, []).append(fits)
        if not self._runs_row_by_row(rows=2):
            self._per_row = {name: all(fits) for name, fits in seen.items()}
        declared = {spec.name for spec in self.outputs}
        found = [found_spec(output) for output in outputs if output.name not in declared]
        specs = map(self._row_output, (*self.outputs, *found))
        self.outputs = tuple(sorted(specs, key=lambda spec: spec.name))
        return None

    def run(self, feeds: Sequence[Array], rows: int) -> tuple[Output, ...]:
        """Run the model on a request's rows; callable from any thread.

        Args:
            feeds: one tensor ``[rows, …]`` per input, in the order of ``inputs``.
            rows: how many rows they hold; at least one.

        Returns:
            The outputs ordered by name. Their arrays belong to the caller.

        Raises:
            InferenceFailedError: the model raised.
            SchemaMismatchError: ONNX Runtime refused the shapes.
        """
        if self._runs_pieces and self._runs_row_by_row(rows):
            return self._run_pieces(feeds, rows)
        return self._run_once(feeds)

    def _runs_row_by_row(self, rows: int) -> bool:
        return bool((self._single_rows and rows > 1) or self._fixed_rows not in {None, rows})

    def _run_once(self, feeds: Sequence[Array]) -> tuple[Output, ...]:
        names = self._output_names
        try:
            inputs = dict(zip(self._input_names, feeds, strict=True))
            values = self._run_native(names, inputs, self._run_options)
        except ort.capi.onnxruntime_pybind11_state.InvalidArgument as error:
            raise SchemaMismatchError(
                f"model {self.identity.name!r} refused the request's shapes: {reason_of(error)}"
            ) from error
        except Exception as error:
            raise InferenceFailedError(
                f"model {self.identity.name!r} failed: {reason_of(error)}"
            ) from error
        per_row = self._per_row
        outputs: list[Output] = []
        for name, value in zip(names, values, strict=True):
            if isinstance(value, np.ndarray):
                outputs.append(Output(name, value, per_row[name]))
            else:
                outputs.extend(columns_of_sequence(name, value))
        return tuple(outputs)

    def _run_pieces(self, feeds: Sequence[Array], rows: int) -> tuple[Output, ...]:
        """Run a fixed number of rows at a time; the last piece is filled up and cut again."""
        step = self._fixed_rows or 1
        pieces: list[tuple[Output, ...]] = []
        for start in range(0, rows, step):
            piece = [feed[start : start + step] for feed in feeds]
            missing = step - min(step, rows - start)
            if missing:
                piece = [np.concatenate([p, np.repeat(p[-1:], missing, axis=0)]) for p in piece]
            pieces.append(self._run_once(piece))
        return tuple(
            _join([piece[index] for piece in pieces], rows, step) for index in range(len(pieces[0]))
        )

    def _find_fixed_rows(self) -> int | None:
        fixed = {spec.shape[0] for spec in self.inputs if spec.shape and spec.shape[0] is not None}
        if len(fixed) > 1:
            raise StartupError(
                f"model {self.identity.name!r} takes inputs of different fixed row counts "
                f"{sorted(map(str, fixed))}: it cannot be served by rows"
            )
        return next(iter(fixed), None)

    def _row_output(self, spec: TensorSpec) -> TensorSpec:
        """An output as one row has it: whole, where it has not one value per row."""
        is_per_row = self._per_row.get(spec.name, True)
        return spec if is_per_row else dataclasses.replace(spec, shape=(None, *spec.shape))

    def _declared_per_row(self, value: ort.NodeArg) -> bool:
        """Whether the output's first axis is, by its name or length, an input's first axis."""
        if not value.shape or value.shape[0] is None:
            return False
        inputs = self._session.get_inputs()
        return any(given.shape and given.shape[0] == value.shape[0] for given in inputs)


def _join(parts: list[Output], rows: int, step: int) -> Output:
    first = parts[0]
    if first.per_row:
        return Output(first.name, np.concatenate([p.values for p in parts])[:rows], per_row=True)
    if step > 1:
        raise SchemaMismatchError(
            f"the model runs {step} rows at a time and gives {first.name!r} once for them all: "
            f"send requests of {step} rows"
        )
    values = np.empty(len(parts), dtype=object)
    for index, part in enumerate(parts):
        values[index] = part.values
    return Output(first.name, values, per_row=True, ragged=True)
