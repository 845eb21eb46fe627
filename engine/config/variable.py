"""One environment variable as one row: a dataclass field that knows how it is read and explained.

Rule: name, parser, default, unit and help stand together at the field, and nowhere else.
"""

import dataclasses
import enum
from collections.abc import Callable
from typing import TypeVar, cast

from engine.config.values import Secret

__all__ = ["Variable", "show", "variable", "variables_of"]

ValueT = TypeVar("ValueT")
DefaultT = TypeVar("DefaultT")
BINARY_UNITS = (("Ti", 1 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """How one environment variable becomes one field.

    Attributes:
        name: The environment variable.
        field: The field of the configuration object.
        parse: Text to value, or ``ValueError``; None when the value needs the caller's decoder.
        unit: Unit or kind of the value, for the reader of the help.
        help: Meaning, and the reason of the default or where it is documented.
        default: The value when the variable is not given.
        default_text: The default as a user would write it.
        required: Whether there is no default.
        empty_is_value: Whether the empty text is a value, and not the same as unset.
    """

    name: str
    field: str
    parse: Callable[[str], object] | None
    default: object
    unit: str
    help: str
    default_text: str
    required: bool
    empty_is_value: bool

    @property
    def is_secret(self) -> bool:
        """Whether the text must never be printed."""
        return self.parse is None or self.parse is Secret


def variable(
    name: str,
    parse: Callable[[str], ValueT] | None,
    default: DefaultT,
    unit: str,
    help: str,
    *,
    default_text: str | None = None,
    required: bool = False,
    empty_is_value: bool = False,
) -> ValueT | DefaultT:
    """Declare a field; typed as the field's value so that the checker compares the two."""
    if default_text is None:
        default_text = show(default, unit)
    row = Variable(
        name=name,
        field="",
        parse=parse,
        default=default,
        unit=unit,
        help=help,
        default_text=default_text,
        required=required,
        empty_is_value=empty_is_value,
    )
    metadata = {"variable": row}
    if required:
        return cast(ValueT, dataclasses.field(metadata=metadata))
    return dataclasses.field(default=default, metadata=metadata)


def variables_of(kind: type) -> tuple[Variable, ...]:
    """Return the rows of a configuration class, in their order in the class."""
    return tuple(
        dataclasses.replace(field.metadata["variable"], field=field.name)
        for field in dataclasses.fields(kind)
        if "variable" in field.metadata
    )


def show(value: object, unit: str) -> str:
    """Return a value as a user would write it in the environment; a secret as ``<secret>``."""
    if value is None:
        return "off"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, enum.StrEnum):
        return value.value
    if unit == "size" and isinstance(value, int):
        return _show_size(value)
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    return text if text.isprintable() else ascii(text)


def _show_size(size_bytes: int) -> str:
    for suffix, multiplier in BINARY_UNITS:
        if size_bytes % multiplier == 0:
            return f"{size_bytes // multiplier}{suffix}"
    return str(size_bytes)
