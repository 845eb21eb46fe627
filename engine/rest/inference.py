"""The inference endpoints without their transport: head and body of a request in, a Reply out.

Which thread runs what: a body is decoded where it arrived (the event loop) unless it is large
JSON; the model runs there too when it is expected to be quick and a run slot is free, since a
thread hop costs more than a small model. Everything else goes to a slot thread, which decodes what
is not decoded yet, runs and encodes. One ``Call`` does the same three steps either way.

Rules that hold here:
- Everything that can be refused from the head alone is refused before the body arrives.
- An exception never leaves ``Call``: whatever happens becomes a Reply.
Source: reference page, Edge Inference Endpoints; recorded requests and replies.
"""

from __future__ import annotations

import dataclasses
import time
import urllib.parse
from typing import TYPE_CHECKING

from engine.codecs.arrow_ipc import read_arrow, write_arrow_file, write_arrow_stream
from engine.codecs.dataset import EVERYTHING, parse_dataset
from engine.codecs.json_body import read_json
from engine.codecs.legacy import write_legacy
from engine.codecs.pandas_records import write_records
from engine.codecs.record_batch import record_batch
from engine.errors import EngineError, UnsupportedMediaTypeError
from engine.metrics import RequestSample
from engine.rest.errors import error_reply
from engine.rest.media import (
    ARROW_FILE,
    ARROW_STREAM,
    RECORDS,
    BodyKind,
    Reply,
    body_kind,
    reply_kind,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

    from engine.codecs.dataset import Dataset
    from engine.dataplane import DataPlane, RunningPipeline
    from engine.metrics import Metrics
    from engine.values import Frame, InferResult

__all__ = ["Call", "CallHead", "read_head"]

INLINE_JSON_BYTES: Final = 1 << 20  # decoded on the event loop: some 3 ms
INLINE_RUN_NS: Final = 1_000_000  # run on the event loop: others wait no longer than this


@dataclasses.dataclass(frozen=True, slots=True)
class CallHead:
    """What a request's head says about it.

    Attributes:
        pipeline_name: as in ``/pipelines/{name}``; None for ``/infer``.
        body_kind: how the body is written.
        reply_kind: how the reply is to be written.
        dataset: the columns of a records reply; None where the query does not say.
    """

    pipeline_name: str | None
    body_kind: BodyKind
    reply_kind: BodyKind
    dataset: Dataset | None


def read_head(pipeline_name: str | None, query: bytes, headers: Mapping[bytes, bytes]) -> CallHead:
    """Read everything that the head of an inference request says.

    Args:
        pipeline_name: decoded name from the path, or None.
        query: raw query string.
        headers: lower-case names to values, the last of each name.

    Returns:
        The head.

    Raises:
        UnsupportedMediaTypeError: Content-Type or Content-Encoding that no codec reads.
        NotAcceptableError: Accept that no codec writes.
        SchemaMismatchError: bad dataset parameters.
    """
    encoding = headers.get(b"content-encoding", b"identity").strip().lower()
    if encoding not in {b"identity", b""}:
        raise UnsupportedMediaTypeError(
            f"Content-Encoding {encoding.decode('latin-1')[:50]!r} is not supported: send the body "
            "as it is (Arrow data may be compressed inside, with LZ4 or ZSTD buffers)"
        )
    dataset = None
    if query:
        pairs = urllib.parse.parse_qsl(query.decode("latin-1"), keep_blank_values=True)
        dataset = parse_dataset(pairs)
    return CallHead(
        pipeline_name,
        body_kind(headers.get(b"content-type", b"")),
        reply_kind(headers.get(b"accept", b"")),
        dataset,
    )


class Call:
    """One inference request with its whole body; every method may run on another thread."""

    __slots__ = ("_body", "_frame", "_head", "_metrics", "_pipeline", "_records", "_started_ns")

    def __init__(
        self,
        head: CallHead,
        body: bytes | bytearray,
        plane: DataPlane,
        metrics: Metrics,
        *,
        records_by_default: bool,
    ) -> None:
        """Take a request; nothing is decoded yet.

        Raises:
            NotReadyError: no pipeline is served yet.
            NotFoundError: the path names another pipeline.
        """
        name = head.pipeline_name
        self._pipeline: RunningPipeline = plane.running if name is None else plane.named(name)
        self._head = head
        self._body = body
        self._metrics = metrics
        self._records = records_by_default or head.dataset is not None
        self._started_ns = time.monotonic_ns()
        self._frame: Frame | None = None

    @property
    def size_bytes(self) -> int:
        """Size of the body."""
        return len(self._body)

    def rows(self) -> int:
        """The rows, or while nothing is decoded an upper estimate: one for each object."""
        return self._frame.rows if self._frame is not None else max(self._body.count(b"{"), 1)

    def decode_small(self) -> None:
        """Decode the body here and now, unless that takes long.

        Raises:
            EngineError: the body cannot be decoded.
        """
        if len(self._body) <= INLINE_JSON_BYTES or self._is_arrow():
            self._frame = self._decode()

    def is_quick(self) -> bool:
        """Whether the rest is expected to take less than a thread hop is worth."""
        if self._frame is None:
            return False
        estimate_ns = self._pipeline.cost.estimate_ns(self._frame.rows)
        return estimate_ns is not None and estimate_ns <= INLINE_RUN_NS

    def answer(self, queue_ns: int = 0) -> Reply:
        """Decode what is not decoded, run, encode; takes a run slot for granted.

        Args:
            queue_ns: how long the request waited for its slot.

        Returns:
            The reply, also where something failed.
        """
        try:
            frame = self._frame if self._frame is not None else self._decode()
            result = self._pipeline.infer(frame, self._started_ns + queue_ns)
            reply = self._encode(result)
        except Exception as error:  # noqa: BLE001 - every failure is answered, bugs included
            return self.refuse(error)
        self._metrics.record(
            RequestSample(
                frame.rows,
                time.monotonic_ns() - self._started_ns,
                queue_ns,
                sum(result.elapsed_ns[1:]),
            )
        )
        return reply

    def refuse(self, error: Exception) -> Reply:
        """The reply to a request that cannot be answered, counted."""
        self._metrics.record_error(error.code if isinstance(error, EngineError) else "internal")
        return error_reply(error)

    def _is_arrow(self) -> bool:
        kind = self._head.body_kind
        return kind is BodyKind.ARROW or (
            kind is BodyKind.SNIFF and self._body[:4] in {b"ARRO", b"\xff\xff\xff\xff"}
        )

    def _decode(self) -> Frame:
        if self._is_arrow():
            return read_arrow(self._body)
        return read_json(self._body, self._pipeline.inputs)

    def _encode(self, result: InferResult) -> Reply:
        kind = self._head.reply_kind
        if kind is BodyKind.JSON:
            if self._records:
                return Reply(200, RECORDS, write_records(result, self._head.dataset or EVERYTHING))
            return Reply(200, RECORDS, write_legacy(result))
        batch = record_batch(result, self._head.dataset or EVERYTHING)
        write, media_type = (
            (write_arrow_file, ARROW_FILE)
            if kind is BodyKind.ARROW
            else (write_arrow_stream, ARROW_STREAM)
        )
        return Reply(200, media_type.encode(), memoryview(write(batch.schema, [batch])))
