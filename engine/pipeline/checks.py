"""The checks of a pipeline: for each row, which of them found an anomaly.

Rules that hold here:
- True is an anomaly; a check that comes out null (a missing value, an element beyond the end of
  its list) found none.
- ``anomaly.count`` counts every check that is true. Of several checks with one name the last is
  the one that is shown. A check called ``count`` is dropped with a warning: the reply has that
  field already (source: SDK, ``wallaroo.checks``; reference page, Anomaly fields).
- Checks know no model and no request: columns come in by name, verdicts go out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import orjson

from engine.errors import SchemaMismatchError, StartupError
from engine.pipeline.check_columns import CheckTypeError, Value
from engine.pipeline.check_operations import type_name
from engine.pipeline.check_program import Program
from engine.pipeline.check_text import compile_text
from engine.pipeline.check_tree import read_check
from engine.pipeline.check_validation import read_validations
from engine.pipeline.document import Node
from engine.values import CheckResult

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engine.pipeline.check_program import Slot
    from engine.pipeline.check_validation import Positions
    from engine.values import Array, Column, TensorSpec

__all__ = ["Checks", "compile_checks", "publish_check"]

_RESERVED_NAME = "count"


@dataclass(frozen=True, slots=True)
class _Check:
    """One check: the slot of its verdict, and what the legacy reply prints when it is true."""

    name: str
    verdict: Slot
    place: str
    failure: Mapping[str, Mapping[str, str]]


class Checks:
    """Compiled checks; any number of threads may evaluate them at once.

    Attributes:
        warnings: a line for each check that was dropped.
    """

    def __init__(self, program: Program, checks: Sequence[_Check], warnings: list[str]) -> None:
        self._program = program
        self._checks = tuple(checks)
        self.warnings = tuple(warnings)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read, as ``in.NAME`` and ``out.NAME``."""
        return self._program.columns

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the checks, each once, in their order."""
        return tuple(dict.fromkeys(check.name for check in self._checks))

    def validate(self, columns: Mapping[str, TensorSpec | None]) -> tuple[str, ...]:
        """Compare the checks with the columns that requests and results have.

        Args:
            columns: per column its type, or None where the client chooses it.

        Returns:
            A line for each check that can never find anything.

        Raises:
            StartupError: A check names a column that does not exist, or does with it what its
                type does not allow; the text names the JSON path.
        """
        slots, warnings = self._program.type_check(columns)
        for check in self._checks:
            verdict = slots[check.verdict]
            if verdict is None:
                continue
            complaint = _not_a_verdict(verdict)
            if complaint:
                raise StartupError(
                    f"pipeline definition, {check.place}: check {check.name!r} {complaint}; "
                    "it must be true or false for each row"
                )
        return tuple(warnings)

    def without_rows(self) -> CheckResult:
        """The result for a request without rows."""
        flags = {name: np.zeros(0, bool) for name in self.names}
        return CheckResult(np.zeros(0, np.uint32), flags, ())

    def evaluate(self, columns: Mapping[str, Column | Array], rows: int) -> CheckResult:
        """Check the rows of one request.

        Args:
            columns: ``self.columns``, as far as the request has them; tensors ``[rows, …]``, Arrow
                arrays or lists of JSON values. They are read in place.
            rows: rows of the request.

        Returns:
            The verdicts; arrays of their own.

        Raises:
            SchemaMismatchError: A column of this request has a type that a check does not take.
        """
        try:
            slots = self._program.run(columns, rows)
        except CheckTypeError as error:
            raise SchemaMismatchError(f"this request cannot be checked: {error}") from None
        count = np.zeros(rows, np.uint32)
        flags, verdicts = {}, []
        for check in self._checks:
            verdict = slots[check.verdict]
            if verdict is None:  # null in every row
                verdict = Value(np.zeros((), bool))
            complaint = _not_a_verdict(verdict)
            if complaint or not isinstance(verdict, Value):
                raise SchemaMismatchError(
                    f"this request cannot be checked: check {check.name!r} {complaint}"
                )
            true = verdict.data if verdict.null is None else verdict.data & ~verdict.null
            flag = true if true.shape == (rows,) else np.full(rows, true)  # one for every row
            count += flag
            flags[check.name] = flag
            verdicts.append((check.failure, flag))
        return CheckResult(count, flags, tuple(verdicts))


def compile_checks(
    trees: Sequence[str],
    *,
    places: Sequence[str] | None = None,
    positions: Positions | None = None,
) -> Checks:
    """Compile the checks of one or several ``Check`` steps.

    Args:
        trees: each the JSON text of a polars 0.18.15 expression, a document of the older kind
            (``check_validation``), or the readable ``NAME: EXPRESSION`` (``check_text``).
        places: the JSON path of each tree, for errors; default ``$.tree[0]``, ``$.tree[1]``, …
        positions: the columns of the models that checks of the older kind may name.

    Returns:
        The checks, ready to evaluate.

    Raises:
        StartupError: A tree is not JSON, or holds what this engine does not evaluate; the text
            names it, its JSON path and what is supported.
    """
    program = Program()
    checks: list[_Check] = []
    warnings: list[str] = []
    for index, text in enumerate(trees):
        tree = _parse(text, places[index] if places else f"$.tree[{index}]")
        for check in _read(tree, program, positions or {}):
            if check.name == _RESERVED_NAME:
                warnings.append(
                    f"pipeline definition, {check.place}: the check named {_RESERVED_NAME!r} is "
                    "dropped, anomaly.count is the number of checks that are true: rename it"
                )
            else:
                checks.append(check)
    return Checks(program, checks, warnings)


def _read(tree: Node, program: Program, positions: Positions) -> list[_Check]:
    if tree.has("values"):
        return [
            _Check(one.name, one.verdict, tree.path, {"False": {"expr": one.text}})
            for one in read_validations(tree, program, positions)
        ]
    name, verdict = read_check(tree, program)
    return [_Check(name, verdict, tree.path, {"True": {"expr": name}})]


def publish_check(tree: str, place: str) -> str:
    """A check as it is published: JSON, whatever form it was written in.

    Args:
        tree: an element of ``Check.tree``.
        place: its JSON path, for errors.

    Returns:
        JSON text.

    Raises:
        StartupError: it is written in the readable form, and not in that language.
    """
    return tree if tree.lstrip().startswith("{") else _compile_readable(tree, place)


def _parse(text: str, place: str) -> Node:
    try:
        return Node(place, orjson.loads(publish_check(text, place)))
    except orjson.JSONDecodeError as error:
        raise StartupError(
            f"pipeline definition, {place}: the check is not JSON: {error}"
        ) from None


def _compile_readable(text: str, place: str) -> str:
    name, colon, expression = text.partition(":")
    if not colon or not name.strip():
        raise Node(place, text).error(
            'the JSON of an expression, or "NAME: EXPRESSION" as in "too_high: out.price[0] > 9"'
        )
    try:
        return compile_text(name.strip(), expression.strip())
    except StartupError as error:
        raise StartupError(f"pipeline definition, {place}: {error}") from None


def _not_a_verdict(operand: object) -> str | None:
    if not isinstance(operand, Value) or operand.data.ndim > 1:
        return "gives a list"
    if operand.data.dtype.kind != "b":
        return f"gives {type_name(operand.data)}"
    return None
