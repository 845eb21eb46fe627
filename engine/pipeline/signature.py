"""What is known, at load, of the columns between two stages of a pipeline.

Rules that hold here:
- After a split there are as many alternatives as arms; the next stage must take each of them.
- Between models nothing is cast: element types are equal or the pipeline is refused. Row shapes
  must hold the same number of values, as far as the models declare them.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from engine.pipeline.stages import refuse
from engine.values import ELEMENT_TYPES, SPLIT_COLUMN, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engine.pipeline.actions import Model
    from engine.pipeline.check_validation import Positions

__all__ = ["Placed", "Signature"]

_SPLIT_SPEC = TensorSpec(SPLIT_COLUMN, ELEMENT_TYPES["string"], (None, 1))


@dataclass(frozen=True, slots=True)
class Placed:
    """A model and the JSON path that names it."""

    path: str
    model: Model


@dataclass(frozen=True, slots=True)
class _Given:
    """One set of columns that the stage before may give, and who gives it."""

    source: str
    columns: Mapping[str, TensorSpec]


@dataclass(frozen=True, slots=True)
class Signature:
    """The columns before a stage.

    Attributes:
        request_inputs: what the first model stage reads from the request.
        given: what the stage before gives; None where that is the request itself.
        positions: the columns of the models that a check of the older kind may name here.
        keeps_rows: whether the current rows are the request's rows.
    """

    request_inputs: tuple[TensorSpec, ...] = ()
    given: tuple[_Given, ...] | None = None
    positions: Positions = field(default_factory=dict)
    keeps_rows: bool = True

    def after(self, placed: Sequence[Placed], *, told: bool = False) -> Signature:
        """The columns after one of these models ran (any of them, where they are several).

        Args:
            placed: the models.
            told: whether the result tells which of them ran.

        Raises:
            StartupError: a model does not take what is given; names path and both types.
        """
        taken = self.fed(placed)
        given, positions = [], {}
        for one in placed:
            model = one.model
            columns = {spec.name: spec for spec in model.outputs}
            if told:
                columns[SPLIT_COLUMN] = _SPLIT_SPEC
            given.append(_Given(f"model {model.identity.name!r}", columns))
            names = tuple(f"out.{spec.name}" for spec in model.outputs)
            positions[model.identity.name, "output"] = names
            if self.given is None:
                names = tuple(f"in.{spec.name}" for spec in model.inputs)
                positions[model.identity.name, "input"] = names
        return replace(taken, given=tuple(given), positions=positions)

    def fed(self, placed: Sequence[Placed]) -> Signature:
        """The same columns, taken by these models as they are; see ``after``."""
        if self.given is None:
            inputs = {spec.name: spec for one in placed for spec in one.model.inputs}
            return replace(self, request_inputs=tuple(inputs.values()))
        for one in placed:
            for given in self.given:
                for spec in one.model.inputs:
                    _refuse_mismatch(one, spec, given)
        return self

    def alike(self, placed: Sequence[Placed], why: str) -> Signature:
        """The columns after models whose outputs must be the same.

        Raises:
            StartupError: they are not, or a model does not take what is given.
        """
        first = placed[0].model
        for other in placed[1:]:
            if not _are_alike(first.outputs, other.model.outputs):
                raise refuse(
                    other.path,
                    f"{why}: model {other.model.identity.name!r} gives "
                    f"{_listed(other.model.outputs)}, model {first.identity.name!r} gives "
                    f"{_listed(first.outputs)}",
                )
        self.fed(placed)
        return self.after(placed)

    def only_column(self, path: str, reader: Model | None) -> TensorSpec:
        """The one tensor ``[rows, k]`` that a rearranging step works on.

        Args:
            path: of the step.
            reader: the model that takes the result; tells what to read from the request.

        Raises:
            StartupError: there are several, or it has no columns.
        """
        if self.given is None:
            inputs = () if reader is None else reader.inputs
            if len(inputs) != 1:
                raise refuse(
                    path,
                    "it rearranges the one column of the request, so the next model must have one "
                    f"input; it has {_listed(inputs)}",
                )
            return replace(inputs[0], shape=(None, None))
        for given in self.given:
            specs = tuple(given.columns.values())
            if len(specs) != 1 or len(specs[0].shape) != 2:
                raise refuse(
                    path,
                    "it rearranges one tensor of [rows, columns]; the step before gives "
                    f"{_listed(specs)} ({given.source})",
                )
        return next(iter(self.given[0].columns.values()))

    def rearranged(self, path: str, spec: TensorSpec, width: int, *, keeps_rows: bool) -> Signature:
        """The columns after a rearranging step gave rows of ``width`` values."""
        source = path.rpartition(".")[2]
        inputs = (spec,) if self.given is None else self.request_inputs
        return Signature(
            inputs,
            (_Given(source, {spec.name: replace(spec, shape=(None, width))}),),
            {},
            keeps_rows and self.keeps_rows,
        )

    @property
    def first_columns(self) -> tuple[TensorSpec, ...]:
        """What the last model gives, ordered by name; after a split, what the first arm gives."""
        columns = self.given[0].columns if self.given else {}
        return tuple(columns[name] for name in sorted(columns))

    @property
    def results(self) -> list[dict[str, TensorSpec | None]]:
        """Per alternative, the columns of the last model, as ``out.NAME``."""
        return [
            {f"out.{name}": spec for name, spec in given.columns.items()}
            for given in self.given or (_Given("the request", {}),)
        ]


def _refuse_mismatch(taker: Placed, wanted: TensorSpec, given: _Given) -> None:
    name = taker.model.identity.name
    spec = given.columns.get(wanted.name)
    if spec is None:
        near = difflib.get_close_matches(wanted.name, given.columns, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise refuse(
            taker.path,
            f"model {name!r} takes {wanted}, which the step before does not give{hint} "
            f"({given.source} gives {_listed(tuple(given.columns.values()))}): name the column to "
            "read in the model's tensor_fields",
        )
    if spec.element != wanted.element or not _same_width(spec, wanted):
        raise refuse(
            taker.path,
            f"model {name!r} takes {wanted}, but {given.source} before it gives {spec}",
        )


def _same_width(given: TensorSpec, wanted: TensorSpec) -> bool:
    if bool(given.shape) != bool(wanted.shape):
        return False
    have, want = given.row_shape, wanted.row_shape
    if None not in have and None not in want:
        return math.prod(axis or 0 for axis in have) == math.prod(axis or 0 for axis in want)
    return len(have) != len(want) or all(
        a is None or b is None or a == b for a, b in zip(have, want, strict=True)
    )


def _are_alike(first: Sequence[TensorSpec], other: Sequence[TensorSpec]) -> bool:
    return len(first) == len(other) and all(
        a.name == b.name and a.element == b.element and _same_width(a, b)
        for a, b in zip(first, other, strict=True)
    )


def _listed(specs: Sequence[TensorSpec]) -> str:
    return "; ".join(map(str, specs)) or "nothing"
