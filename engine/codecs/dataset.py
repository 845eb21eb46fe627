"""The ``dataset`` query parameters: which columns a records reply holds, nested or flat.

Source: the product's SDK and Plateau's ``DataFocus``: ``dataset[]`` (``*`` = everything),
``dataset.exclude[]``, ``dataset.separator``, ``dataset.flatten``. A column asked for by its full
path is kept even where its parent is excluded; a single struct is answered without its own name.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from engine.errors import SchemaMismatchError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import TypeAlias

    Path: TypeAlias = tuple[str, ...]

__all__ = ["EVERYTHING", "Dataset", "Selection", "parse_dataset"]

PREFIX = "dataset"


@dataclasses.dataclass(frozen=True, slots=True)
class Selection:
    """The chosen columns of a record.

    Attributes:
        paths: full paths of the chosen leaves, in reply order, e.g. ``("in", "tensor")``.
        depth: how many leading names of each path the reply leaves out (1 for a lone struct).
        separator: joins a path into one flat key; None keeps the nesting.
    """

    paths: tuple[Path, ...]
    depth: int
    separator: str | None

    def key(self, path: Path) -> Path:
        """The path as the reply spells it: nested names, or one joined name."""
        names = path[self.depth :]
        return names if self.separator is None else (self.separator.join(names),)


@dataclasses.dataclass(frozen=True, slots=True)
class Dataset:
    """What the query asked for; ``select`` applies it to the columns that there are."""

    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    separator: str | None = None

    def select(self, paths: Sequence[Path]) -> Selection:
        """Choose among the leaves of a record.

        Args:
            paths: every leaf's full path, in reply order.

        Returns:
            The chosen leaves.

        Raises:
            SchemaMismatchError: a path names nothing; the text lists what there is.
        """
        if self.include == ("*",) and not self.exclude:
            return Selection(tuple(paths), 0, self.separator)
        found: dict[str, list[Path]] = {name: [] for name in self.include}
        excluded = frozenset(self.exclude)
        for path in paths:
            names = _prefixes(path)
            if "*" in found and excluded.isdisjoint(names):
                found["*"].append(path)
            for name in names:
                if name in found:
                    found[name].append(path)
        for name, matching in found.items():
            if not matching and name != "*":
                known = ", ".join(".".join(path) for path in paths)
                raise SchemaMismatchError(
                    f"invalid path: key not found: {name} (dataset takes *, or any of: {known})"
                )
        chosen = dict.fromkeys(path for matching in found.values() for path in matching)
        lone_struct = len(self.include) == 1 and self.include[0] != "*"
        depth = self.include[0].count(".") + 1 if lone_struct else 0
        if depth and all(len(path) == depth for path in chosen):
            depth -= 1  # a leaf keeps its own name
        return Selection(tuple(chosen), depth, self.separator)


EVERYTHING = Dataset()


def parse_dataset(query: Iterable[tuple[str, str]]) -> Dataset | None:
    """Read the ``dataset…`` parameters of a decoded query string.

    Args:
        query: name and value pairs, percent-decoded, in order.

    Returns:
        The dataset, or None where the query has no ``dataset…`` parameter at all.

    Raises:
        SchemaMismatchError: a parameter of this family that is not known, or a bad value.
    """
    include: list[str] = []
    exclude: list[str] = []
    separator: str | None = None
    found = False
    for raw_name, value in query:
        name = raw_name.removesuffix("[]")
        if not name.startswith(PREFIX):
            continue
        found = True
        match name.removeprefix(PREFIX):
            case "":
                include.append(value)
            case ".exclude":
                exclude.append(value)
            case ".separator":
                separator = value or separator
            case ".flatten":
                separator = _flatten_separator(value, separator)
            case ".max_bytes":
                pass  # Plateau's page limit: a reply to /infer is never cut
            case _:
                raise SchemaMismatchError(
                    f"unknown query parameter {raw_name!r}: the dataset family is dataset[], "
                    "dataset.exclude[], dataset.separator and dataset.flatten"
                )
    if not found:
        return None
    return Dataset(tuple(include) or ("*",), tuple(exclude), separator)


def _flatten_separator(value: str, separator: str | None) -> str | None:
    if value.lower() not in {"true", "false"}:
        raise SchemaMismatchError(f"dataset.flatten is {value!r}: it takes true or false")
    return (separator or ".") if value.lower() == "true" else None


def _prefixes(path: Path) -> list[str]:
    """What asks for a path: itself and everything above it, names joined by dots."""
    joined = ".".join(path)
    names, dot = [joined], joined.rfind(".")
    while dot >= 0:
        names.append(joined[:dot])
        dot = joined.rfind(".", 0, dot)
    return names
