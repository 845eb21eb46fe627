"""A JSON document read strictly: every complaint names the place, what is there and what belongs.

Rules that hold here:
- Nothing is converted: a number in quotes is not a number, a missing key is not a default unless
  the caller asks for one.
- An error shows at most a short excerpt of what it found.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import orjson

from engine.errors import StartupError

__all__ = ["Node", "read_document"]

_EXCERPT_CHARS = 80


def read_document(document: bytes) -> "Node":
    """Parse a JSON document.

    Args:
        document: UTF-8 JSON.

    Returns:
        Its root, with the path ``$``.

    Raises:
        StartupError: It is not JSON; the text gives line and column.
    """
    try:
        return Node("$", orjson.loads(document))
    except orjson.JSONDecodeError as error:
        raise StartupError(f"the pipeline definition is not JSON: {error}") from None


@dataclass(frozen=True, slots=True)
class Node:
    """One value of the document and the JSON path that leads to it.

    Attributes:
        path: For instance ``$.steps[0].ModelInference``.
        value: The JSON value; absent keys are read as null.
    """

    path: str
    value: object

    @property
    def is_null(self) -> bool:
        """Whether the value is null, or its key absent."""
        return self.value is None

    def keys(self) -> tuple[str, ...]:
        """The keys of an object, in document order."""
        return tuple(self._object())

    def get(self, key: str) -> "Node":
        """The value of a key; null when the key is absent."""
        path = f"{self.path}.{key}" if key.isidentifier() else f"{self.path}[{key!r}]"
        return Node(path, self._object().get(key))

    def has(self, key: str) -> bool:
        """Whether this is an object that holds the key with anything but null."""
        return isinstance(self.value, dict) and self.value.get(key) is not None

    def items(self) -> Iterator["Node"]:
        """The elements of an array."""
        if not isinstance(self.value, list):
            raise self.error("an array")
        for position, value in enumerate(self.value):
            yield Node(f"{self.path}[{position}]", value)

    def text(self) -> str:
        """A string that is not empty and holds no control characters."""
        if not isinstance(self.value, str) or not self.value or not self.value.isprintable():
            raise self.error("a printable string that is not empty")
        return self.value

    def string(self) -> str:
        """Any string."""
        if not isinstance(self.value, str):
            raise self.error("a string")
        return self.value

    def integer(self, minimum: int = 0) -> int:
        """A whole number of at least ``minimum``."""
        if type(self.value) is not int or self.value < minimum:
            raise self.error(f"a whole number of at least {minimum}")
        return self.value

    def number(self) -> float:
        """A finite number of at least 0."""
        if type(self.value) not in (int, float) or not isinstance(self.value, int | float):
            raise self.error("a number of at least 0")
        if not math.isfinite(self.value) or self.value < 0:
            raise self.error("a number of at least 0")
        return float(self.value)

    def optional_text(self) -> str | None:
        """A string, or None for null or an absent key."""
        return None if self.is_null else self.text()

    def error(self, expected: str) -> StartupError:
        """What to raise when the value is not what belongs here."""
        found = "nothing" if self.is_null else orjson.dumps(self.value).decode()
        if len(found) > _EXCERPT_CHARS:
            found = found[:_EXCERPT_CHARS] + "…"
        return StartupError(f"pipeline definition, {self.path}: found {found}, expected {expected}")

    def _object(self) -> dict[str, object]:
        if not isinstance(self.value, dict):
            raise self.error("an object")
        return self.value
