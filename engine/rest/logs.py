"""``POST /logs``: a page of the inference log, as the documented endpoint answers it.

``POST /logs/failures`` answers a page of the failed requests in the same way; that is our own.

The body is a cursor, and a forgiving one: whatever cannot be read, ``{}`` included, means "from the
oldest row"; any Content-Type is taken. What Plateau says in ``x-iteration-status`` is said here.
Source: reference page, Log Retrieval from Edge Locations; Plateau's ``topic_iterate``.

Rules that hold here:
- Reading and writing a page takes milliseconds: it is done on another thread, one page at a time,
  so that readers of the log wait for one another and inferences do not wait for them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pyarrow as pa
from starlette.responses import Response

from engine.codecs.arrow_ipc import write_arrow_file, write_arrow_stream
from engine.codecs.dataset import EVERYTHING, parse_dataset
from engine.codecs.pandas_records import write_batch_records
from engine.codecs.record_batch import focus
from engine.logring import LogRing, parse_query, status_text
from engine.rest.media import ARROW_FILE, ARROW_STREAM, RECORDS, BodyKind, reply_kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from engine.codecs.dataset import Dataset
    from engine.dataplane import DataPlane
    from engine.logring import LogPage, PageQuery

__all__ = ["LogEndpoint"]


class LogEndpoint:
    """Answers ``POST /logs`` and ``POST /logs/failures``."""

    def __init__(self, plane: DataPlane, partition: str) -> None:
        """Read the log of a data plane.

        Args:
            plane: has the log, or none.
            partition: the name that cursors go by.
        """
        self._plane = plane
        self._partition = partition
        self._turn = asyncio.Lock()

    async def rows(self, request: Request) -> Response:
        """Answer a request for rows; raises as ``failures`` does."""
        return await self._answer(request, LogRing.page)

    async def failures(self, request: Request) -> Response:
        """Answer a request for failed requests.

        Raises:
            NotFoundError: the log is off.
            NotReadyError: its disk cannot be read now.
            DecodeError: a parameter that does not parse.
            NotAcceptableError: Accept that no codec writes.
            SchemaMismatchError: the dataset parameters name no column.
        """
        return await self._answer(request, LogRing.failures_page)

    async def _answer(
        self, request: Request, read_page: Callable[[LogRing, PageQuery], LogPage]
    ) -> Response:
        log = self._plane.kept_log
        parameters = request.query_params.multi_items()
        dataset = parse_dataset(parameters) or EVERYTHING
        kind = reply_kind(request.headers.get("accept", "").encode("latin-1"))
        query = parse_query(parameters, await request.body(), self._partition)

        def read() -> Response:
            return self._write(read_page(log, query), kind, dataset)

        async with self._turn:
            return await asyncio.to_thread(read)

    def _write(self, page: LogPage, kind: BodyKind, dataset: Dataset) -> Response:
        status = status_text(page, self._partition)
        headers = {"x-iteration-status": status}
        if kind is BodyKind.JSON:
            body = b"[]" if page.batch is None else write_batch_records(page.batch, dataset)
            return Response(body, headers=headers, media_type=RECORDS.decode())
        batch = pa.RecordBatch.from_pylist([], schema=pa.schema([]))
        if page.batch is not None:
            batch = focus(page.batch, dataset)
        batch = batch.replace_schema_metadata({"status": status})
        write, media_type = (
            (write_arrow_file, ARROW_FILE)
            if kind is BodyKind.ARROW
            else (write_arrow_stream, ARROW_STREAM)
        )
        content = memoryview(write(batch.schema, [batch]))
        return Response(content, headers=headers, media_type=media_type)
