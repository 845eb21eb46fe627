"""JSON request bodies to a Frame: pandas records, the legacy dict of batches, one single object.

Rules that hold here:
- Values stay the Python values that the text says (an integer stays an integer), because a records
  reply repeats them; ``tensors`` turns them into what the model takes.
- A dict is one record where each model input holds one row of the model's shape, and the legacy
  dict of whole columns otherwise; only the model's inputs decide which.
- JSON is read strictly: no NaN, no Infinity, no byte order mark, no trailing comma. Of a key that
  occurs twice the last one counts.
Source: reference page, Edge Inference Endpoints; the product's SDK for the legacy dict.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import orjson

from engine.codecs.number_records import read_number_records
from engine.errors import DecodeError, PayloadTooLargeError, SchemaMismatchError
from engine.values import Frame

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Final

    from engine.values import TensorSpec

__all__ = ["read_json", "repeat_json"]

SMALL_BYTES: Final = 4096  # from here on the quick way for numbers is quicker
MAX_ROWS: Final = 1 << 20
MAX_COLUMNS: Final = 1024
MAX_EXPLAINED_BYTES: Final = 1 << 20  # a longer text that is refused is not searched for the reason
MAX_ORIGINAL_BYTES: Final = 1 << 20  # a longer legacy request is answered with null, as documented


def read_json(
    body: bytes | bytearray, inputs: Sequence[TensorSpec], *, is_echoed: bool = True
) -> Frame:
    """Read a JSON request body of any accepted layout.

    Args:
        body: the whole request body, UTF-8.
        inputs: what the pipeline's first step takes; tells the two dict layouts apart.
        is_echoed: whether the values are repeated as they were sent; where they are not, a large
            column of numbers is read as float64, several times quicker.

    Returns:
        The rows; columns are lists of Python values, or an Arrow array of float64 lists.

    Raises:
        DecodeError: it is not JSON.
        SchemaMismatchError: it is JSON of another layout, or its rows differ in their columns.
        PayloadTooLargeError: more rows or columns than the limits.
    """
    if not is_echoed and len(body) > SMALL_BYTES:
        frame = _read_numbers(body, inputs)
        if frame is not None:
            return frame
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise DecodeError(f"the body is not valid JSON: {error}{_hint(body)}") from None
    if isinstance(document, list):
        frame = _read_records(document)
    elif isinstance(document, dict):
        frame = _read_object(document, inputs)
        if len(body) > MAX_ORIGINAL_BYTES:
            frame.original = None
    else:
        raise SchemaMismatchError(
            "the body is a bare JSON value: send a list of records, "
            '[{"tensor": [1.0, 2.0]}, …], or an object'
        )
    # true, false and null each hold one of these letters; two memchr cost 20 us per MB
    frame.has_literals = b"u" in body or b"l" in body
    return frame


def repeat_json(value: object) -> bytes:
    """A value of a request as JSON again, for the replies that repeat the request.

    Raises:
        SchemaMismatchError: it is nested deeper than the writer goes; the reader goes deeper.
    """
    try:
        return orjson.dumps(value)
    except TypeError as error:
        raise SchemaMismatchError(
            "the request has values nested more than 250 deep, which the reply cannot repeat: "
            "leave that column out of the request"
        ) from error


def _read_numbers(body: bytes | bytearray, inputs: Sequence[TensorSpec]) -> Frame | None:
    """The rows, where all there is are the numbers of the only input, which takes floats."""
    if len(inputs) != 1 or not inputs[0].element.numpy.startswith("float"):
        return None
    found = read_number_records(body)
    if found is None:
        return None
    name, column = found
    return Frame(len(column), {name: column}) if len(column) <= MAX_ROWS else None


def _hint(body: bytes | bytearray) -> str:
    start = bytes(body[:6])
    if not start:
        return " (the body is empty)"
    if start.startswith(b"\xef\xbb\xbf"):
        return " (it starts with a byte order mark: save it as UTF-8 without one)"
    if start == b"ARROW1":
        return " (it is an Arrow file: send Content-Type: application/vnd.apache.arrow.file)"
    place = _non_finite(body) if len(body) <= MAX_EXPLAINED_BYTES else None
    return f" ({place}: JSON has no such number)" if place else ""


def _non_finite(body: bytes | bytearray) -> str | None:
    """Where the first NaN or infinity is, in a text that is JSON but for them; slow."""
    import json  # noqa: PLC0415 - only a refused request pays for it

    try:
        return _find_non_finite(json.loads(body), "$")
    except (ValueError, RecursionError):
        return None


def _find_non_finite(value: object, place: str) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return f"{place} is {'NaN' if math.isnan(value) else 'infinite'}"
    items: Iterable[tuple[str, object]] = ()
    if isinstance(value, dict):
        items = ((f"{place}.{name}", item) for name, item in value.items())
    elif isinstance(value, list):
        items = ((f"{place}[{index}]", item) for index, item in enumerate(value))
    return next(filter(None, (_find_non_finite(item, name) for name, item in items)), None)


def _read_records(records: list[object]) -> Frame:
    if len(records) > MAX_ROWS:
        raise PayloadTooLargeError(f"{len(records)} rows: at most {MAX_ROWS} in one request")
    if not records:
        return Frame(0, {})
    first = records[0]
    if not isinstance(first, dict):
        raise SchemaMismatchError(
            f'$[0] is {_kind(first)}: each record is an object, e.g. {{"tensor": [1.0, 2.0]}}'
        )
    _check_columns(len(first))
    try:
        if len(records) == 1:
            columns = {}
            for name, value in first.items():  # a comprehension would be one call more
                columns[name] = [value]
            return Frame(1, columns)
        columns = {name: [record[name] for record in records] for name in first}  # type: ignore[index]
        if sum(map(len, records)) != len(first) * len(records):  # type: ignore[arg-type]
            raise KeyError
    except (KeyError, TypeError, IndexError):
        raise _odd_record(records, first) from None
    return Frame(len(records), columns)


def _odd_record(records: list[object], first: dict[str, object]) -> SchemaMismatchError:
    """Name the first record that is not like record 0."""
    for row, record in enumerate(records):
        if not isinstance(record, dict):
            return SchemaMismatchError(f"$[{row}] is {_kind(record)}: each record is an object")
        if record.keys() != first.keys():
            names = sorted(record.keys() ^ first.keys())
            return SchemaMismatchError(
                f"$[{row}] has the columns {sorted(record)}, record 0 has {sorted(first)}: "
                f"every record needs the same columns (they differ in {names})"
            )
    return SchemaMismatchError("the records differ in their columns")


def _read_object(document: dict[str, object], inputs: Sequence[TensorSpec]) -> Frame:
    _check_columns(len(document))
    if _is_single_record(document, inputs):
        return Frame(1, {name: [value] for name, value in document.items()}, original=document)
    rows: int | None = None
    for name, value in document.items():
        if not isinstance(value, list):
            raise SchemaMismatchError(
                f"$.{name} is {_kind(value)}: in an object of columns each one is a list of rows"
            )
        if rows is not None and len(value) != rows:
            raise SchemaMismatchError(
                f"$.{name} has {len(value)} rows, the columns before it have {rows}"
            )
        rows = len(value)
    if rows is None:
        raise SchemaMismatchError("the body is an empty object: it holds no column")
    if rows > MAX_ROWS:
        raise PayloadTooLargeError(f"{rows} rows: at most {MAX_ROWS} in one request")
    return Frame(rows, dict(document), original=document)


def _is_single_record(document: dict[str, object], inputs: Sequence[TensorSpec]) -> bool:
    """Whether the object is one row: the first model input in it has exactly a row's shape."""
    for spec in inputs:
        if spec.name in document:
            return _is_one_row(document[spec.name], spec)
    return False


def _is_one_row(value: object, spec: TensorSpec) -> bool:
    shape: list[int] = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    wanted = spec.row_shape
    if len(shape) == 1 and wanted:
        return shape != [0]  # one flat row, also for a model whose rows have several axes
    return len(shape) == len(wanted) and all(
        want is None or want == have for want, have in zip(wanted, shape, strict=True)
    )


def _check_columns(columns: int) -> None:
    if columns > MAX_COLUMNS:
        raise SchemaMismatchError(f"{columns} columns: at most {MAX_COLUMNS} are accepted")


def _kind(value: object) -> str:
    if value is None:
        return "null"
    names = {list: "a list", dict: "an object", str: "text", bool: "true or false"}
    return names.get(type(value), "a number")
