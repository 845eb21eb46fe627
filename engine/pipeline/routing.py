"""Which model of a split answers which row of a request.

Rules that hold here:
- A request whose split depends on nothing in it is drawn for once and answered by one model.
- A split by a column goes row by row: rows of one request may be answered by several models.
- Only values are looked at here; no model is known but by its position among the arms.
Source: the product's SDK, ``add_random_split`` and ``add_key_split``.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from engine.errors import SchemaMismatchError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from engine.pipeline.steps import MetaValueSplit, RandomSplit
    from engine.values import Array, Column

    Route = int | Array  # the arm of the whole request, or an array [rows] of arms

__all__ = ["KeySplit", "WeightSplit"]


class WeightSplit:
    """A RandomSplit: a number from 0 to 1 falls into one of the arms' shares."""

    def __init__(self, step: RandomSplit, draw: Callable[[], float]) -> None:
        """Lay the shares side by side.

        Args:
            step: weights and the column that may replace the drawn number.
            draw: gives numbers from 0 up to but not including 1.
        """
        weights = [arm.weight for arm in step.weights]
        self._bounds = [bound / sum(weights) for bound in accumulate(weights)]
        # an arm of weight 0 is never chosen, not even by a key of exactly 1.0
        self._last = max(index for index, weight in enumerate(weights) if weight > 0)
        self._hash_key = step.hash_key
        self._draw = draw

    def choose(self, columns: Mapping[str, Column]) -> Route:
        """Choose for a request.

        Args:
            columns: of the request; at least one row.

        Returns:
            One arm where it was drawn, or the arm of each row where the key column is present.

        Raises:
            SchemaMismatchError: a key is not a number from 0 to 1.
        """
        column = None if self._hash_key is None else columns.get(self._hash_key)
        if column is None:
            return self._arm(self._draw())
        keys = _scalars(column)
        if set(map(type, keys)) <= {float, int}:
            numbers = np.array(keys, dtype=np.float64)
            if ((numbers >= 0.0) & (numbers <= 1.0)).all():
                arms = np.searchsorted(self._bounds, numbers, side="right")
                return _whole_or_rows(np.minimum(arms, self._last))
        for row, key in enumerate(keys):
            self._check(key, row)
        raise AssertionError("keys that are no numbers from 0 to 1 were all found to be")

    def _arm(self, key: float) -> int:
        return min(bisect_right(self._bounds, key), self._last)

    def _check(self, key: object, row: int) -> None:
        if type(key) not in (int, float) or not 0.0 <= key <= 1.0:  # type: ignore[operator]
            raise SchemaMismatchError(
                f"$[{row}].{self._hash_key} is {key!r}: the key that chooses the model is a "
                "number from 0.0 to 1.0"
            )


class KeySplit:
    """A MetaValueSplit: a column's value names the arm; any other value is the control's, arm 0."""

    def __init__(self, step: MetaValueSplit) -> None:
        """Take the routes; route ``i`` is arm ``i + 1``."""
        self._split_key = step.split_key
        self._arms = {route.value: arm for arm, route in enumerate(step.routes, start=1)}

    def choose(self, columns: Mapping[str, Column]) -> Route:
        """Choose for a request.

        Args:
            columns: of the request; at least one row.

        Returns:
            The arm of each row, or one arm where all rows agree or the column is absent.
        """
        column = columns.get(self._split_key)
        if column is None:
            return 0
        keys = _scalars(column)
        if len({type(key) for key in keys if key is not None}) > 1:
            return _whole_or_rows(np.array([self._arm(key) for key in keys]))
        arms = {key: self._arm(key) for key in set(keys)}  # of one type: 1 is not 1.0 nor True
        return _whole_or_rows(np.array([arms[key] for key in keys]))

    def _arm(self, key: object) -> int:
        for text in _spellings(key):
            if text in self._arms:
                return self._arms[text]
        return 0


def _scalars(column: Column) -> Sequence[object]:
    """One value per row; a list of one stands for its value, any other list for none."""
    values = column if isinstance(column, list) else column.to_pylist()
    if list not in set(map(type, values)) and dict not in set(map(type, values)):
        return values
    return [_scalar(value) for value in values]


def _scalar(value: object) -> object:
    if isinstance(value, list):
        value = value[0] if len(value) == 1 else None
    return None if isinstance(value, list | dict) else value


def _spellings(key: object) -> Sequence[str]:
    """How the routes of a definition may spell this key; null is no key."""
    if key is None:
        return ()
    if isinstance(key, bool):
        return ("true" if key else "false",)
    if isinstance(key, float) and key.is_integer():  # also what JSON makes of 1 beside 2.5
        return (str(int(key)), str(key))
    return (str(key),)


def _whole_or_rows(arms: Array) -> Route:
    return int(arms[0]) if (arms == arms[0]).all() else arms
