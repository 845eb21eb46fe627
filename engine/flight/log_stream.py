"""The inference log, or its failures, as a Flight stream: record batches from the ring to the wire.

A stream holds rows of one schema; it ends where the columns change, where enough rows were sent, or
at the row that was the newest when it began. Each batch says in its ``app_metadata`` where to go on
after it, so that a stream that was cut is taken up again without a row lost or doubled.

Which thread runs what: the call's own reads a batch, and the next one once the client has taken
most of those before it: memory and read transactions stay small however slow the client is.

Rules that hold here:
- Streams read in turn, a batch each, so that readers wait for one another and inferences do not
  wait for them: eight at a time took a small inference from 0.4 ms to 72, in turn to 0.6.
Source: POST /logs and its ``x-iteration-status`` (reference page, Log Retrieval from Edge
Locations), in the same words; that rows go out as Arrow, and failures, is our own design.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import orjson
import pyarrow as pa

from engine.codecs.dataset import EVERYTHING, parse_dataset
from engine.codecs.record_batch import focus
from engine.logring import LogPage, PageQuery, parse_query, status_text

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator
    from typing import Final

    from engine._proto.sagitta.flight.v1.flight_pb2 import LogQuery
    from engine.logring import LogRing

__all__ = ["LogStream"]

BATCH_BYTES: Final = 1 << 20  # as stored; with its metadata a batch stays below 4 MiB, the most
BATCH_ROWS: Final = 1 << 13  # that clients of other languages take


class LogStream:
    """Rows of the log for one call; used by its thread alone.

    Attributes:
        schema: of every batch; without fields where there is no row.
    """

    def __init__(self, log: LogRing, query: LogQuery, partition: str, turn: threading.Lock) -> None:
        """Read the first batch.

        Args:
            log: the ring.
            query: which rows or failures, and which of their columns.
            partition: the name that cursors go by.
            turn: held while a batch is read, and never while one is sent.

        Raises:
            DecodeError: a parameter that does not parse.
            SchemaMismatchError: a column that is not there.
            NotReadyError: the log cannot be read now.
        """
        parameters = _parameters(query)
        self._read_page = log.failures_page if query.failures else log.page
        self._partition = partition
        self._turn = turn
        self._dataset = parse_dataset(parameters) or EVERYTHING
        cursor = orjson.dumps(dict(query.cursor))
        self._query = parse_query(parameters, cursor, partition)
        self._rows_left = query.page_size if query.HasField("page_size") else None
        self._stop_row = self._newest() if query.failures else log.stats().next_row
        self._page = self._read(self._query.start_row)
        self._next_row = self._page.next_row
        batch = self._page.batch
        self._log_schema = None if batch is None else batch.schema  # of all columns
        self.schema = pa.schema([]) if batch is None else focus(batch, self._dataset).schema

    def batches(self) -> Iterator[tuple[pa.RecordBatch, bytes]]:
        """The rows, each batch with its LogStatus; the last one's says why the stream ends.

        Yields:
            Record batches of ``schema``, at least one; the last may have no rows.

        Raises:
            NotReadyError: the log cannot be read any more.
        """
        while (batch := self._page.batch) is not None and batch.schema.equals(
            self._log_schema, check_metadata=True
        ):
            self._next_row = self._page.next_row
            status = self._status(batch.num_rows)
            yield focus(batch, self._dataset), self._told(status)
            if status != "ByteLimited":
                return
            self._page = self._read(self._next_row)
        no_rows = [pa.array([], field.type) for field in self.schema]
        yield (
            pa.RecordBatch.from_arrays(no_rows, schema=self.schema),
            self._told("All" if batch is None else "SchemaChange"),
        )

    def _read(self, row: int | None) -> LogPage:
        rows = BATCH_ROWS if self._rows_left is None else min(BATCH_ROWS, self._rows_left)
        query = dataclasses.replace(
            self._query, start_row=row, page_rows=rows, page_bytes=BATCH_BYTES
        )
        with self._turn:
            return self._read_page(query)

    def _newest(self) -> int:
        """The number of the next failure."""
        with self._turn:
            page = self._read_page(PageQuery(page_rows=1, descending=True))
        return page.next_row + (0 if page.batch is None else page.batch.num_rows)

    def _status(self, rows: int) -> str:
        """Why the batch at hand ends, or where it is the last one, the stream."""
        page = self._page
        if self._rows_left is not None:
            self._rows_left -= rows
        if page.status in {"All", "SchemaChange"}:
            return page.status
        if self._rows_left == 0:
            return "RecordLimited"
        is_over = not self._query.descending and page.next_row >= self._stop_row
        return "All" if is_over else "ByteLimited"

    def _told(self, status: str) -> bytes:
        return status_text(LogPage(None, status, self._next_row), self._partition).encode()


def _parameters(query: LogQuery) -> list[tuple[str, str]]:
    """A query as the parameters of POST /logs, whose readers then say what is wrong with it."""
    named = {
        "page_size": str(query.page_size) if query.HasField("page_size") else "",
        "order": query.order,
        "time.start": query.time_start,
        "time.end": query.time_end,
        "dataset.separator": query.dataset_separator,
        "dataset.flatten": str(query.dataset_flatten) if query.HasField("dataset_flatten") else "",
    }
    return [
        *((name, text) for name, text in named.items() if text),
        *(("dataset[]", path) for path in query.dataset),
        *(("dataset.exclude[]", path) for path in query.dataset_exclude),
    ]
