"""What a page of the log is, and how a request names one.

Pages follow Plateau's ``topic_iterate``, which the documented ``/logs`` exposes: oldest rows first,
1,000 rows unless told otherwise, never two schemas in one page, and a cursor to go on from.

Rules that hold here:
- A cursor is forgiving (what cannot be read means "from the start"), a parameter is not.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Iterable

import pyarrow as pa

from engine.errors import DecodeError

__all__ = ["LogPage", "PageQuery", "parse_query", "status_text"]

PAGE_ROWS = 1_000
MAX_PAGE_ROWS = 10_000
PAGE_BYTES = 10_240_000
MAX_ROW = 1 << 62


@dataclasses.dataclass(frozen=True, slots=True)
class PageQuery:
    """Which rows a page holds.

    Attributes:
        start_row: first row wanted; descending: the page ends before it. None = from the end
            that the order starts at.
        page_rows: at most this many rows.
        page_bytes: at most this many stored bytes.
        descending: newest first.
        time_range_ms: only rows answered in this range, both ends included.
    """

    start_row: int | None = None
    page_rows: int = PAGE_ROWS
    page_bytes: int = PAGE_BYTES
    descending: bool = False
    time_range_ms: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class LogPage:
    """Some rows of the log.

    Attributes:
        batch: the rows in the order asked for; None where there is none.
        status: ``All``, ``SchemaChange``, ``RecordLimited`` or ``ByteLimited``.
        next_row: where the next page starts.
    """

    batch: pa.RecordBatch | None
    status: str
    next_row: int


def parse_query(parameters: Iterable[tuple[str, str]], body: bytes, partition: str) -> PageQuery:
    """Read a request for a page, as Plateau does.

    Args:
        parameters: the query string's pairs, decoded.
        body: ``{"<partition>": <start row>}``; anything else means from the start.
        partition: the log's own partition.

    Returns:
        The query. ``page_size`` is cut to 10,000.

    Raises:
        DecodeError: a parameter that does not parse, or two that exclude each other.
    """
    values = dict(parameters)
    order = values.get("order", "asc").lower()
    if order not in {"asc", "desc"}:
        raise DecodeError(f"order is {values['order'][:40]!r}: it takes asc or desc")
    time_range = None
    if "time.start" in values or "time.end" in values:
        if "time.start" not in values or "time.end" not in values:
            raise DecodeError("time.start and time.end go together: give both, or neither")
        if order == "desc":
            raise DecodeError("time.start and time.end go with order=asc only")
        time_range = (_epoch_ms(values, "time.start"), _epoch_ms(values, "time.end"))
    return PageQuery(
        start_row=_cursor(body, partition),
        page_rows=min(_count(values, "page_size", PAGE_ROWS), MAX_PAGE_ROWS),
        page_bytes=min(_count(values, "dataset.max_bytes", PAGE_BYTES), PAGE_BYTES),
        descending=order == "desc",
        time_range_ms=time_range,
    )


def status_text(page: LogPage, partition: str) -> str:
    """The page's ``x-iteration-status``."""
    status = {"status": page.status, "next": {partition: page.next_row}}
    return json.dumps(status, separators=(",", ":"))


def _cursor(body: bytes, partition: str) -> int | None:
    try:
        row = json.loads(body)[partition]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        return None
    return row if type(row) is int and 0 <= row < MAX_ROW else None


def _count(values: dict[str, str], name: str, default: int) -> int:
    text = values.get(name, str(default))
    if not (text.isascii() and text.isdigit() and int(text[:19]) > 0):
        raise DecodeError(f"{name} is {text[:40]!r}: it takes a whole number of 1 or more")
    return int(text[:19])


def _epoch_ms(values: dict[str, str], name: str) -> int:
    try:
        moment = datetime.datetime.fromisoformat(values[name].upper())
        if moment.tzinfo is None:
            raise ValueError("no time zone")
        return int(moment.timestamp() * 1000)
    except (ValueError, OverflowError) as error:
        raise DecodeError(
            f"{name} is {values[name][:40]!r}: it takes a moment with its time zone, like "
            "2026-01-31T12:00:00Z or 2026-01-31T13:00:00+01:00 (in a URL the + is written %2B)"
        ) from error
