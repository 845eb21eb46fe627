"""The inference endpoints without their transport: head and body of a request in, a Reply out.

Which thread runs what: a body is decoded where it arrived (the event loop) unless it is large
JSON; the model runs there too when it is expected to be quick and a run slot is free (``turn``).
Everything else goes into the line, and whoever runs it there decodes what is not decoded yet, runs
and encodes. One ``Call`` does the same three steps either way.

Rules that hold here:
- Everything that can be refused from the head alone is refused before the body arrives.
- An exception never leaves ``Call``: whatever happens becomes a Reply.
Source: reference page, Edge Inference Endpoints; recorded requests and replies.
"""

from __future__ import annotations

import dataclasses
import functools
import time
import urllib.parse
from typing import TYPE_CHECKING, Protocol

from engine.codecs.arrow_ipc import read_arrow, write_arrow_file, write_arrow_stream
from engine.codecs.dataset import EVERYTHING, parse_dataset
from engine.codecs.json_body import read_json
from engine.codecs.legacy import write_legacy
from engine.codecs.pandas_records import write_records
from engine.codecs.record_batch import record_batch
from engine.errors import EngineError, InternalError, UnsupportedMediaTypeError
from engine.request import InferRequest
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
    from engine.dataplane import DataPlane
    from engine.metrics import Metrics
    from engine.values import Frame, InferResult

__all__ = ["Call", "CallHead", "read_head"]

ARROW_STARTS: Final = (b"ARRO", b"\xff\xff\xff\xff")  # of a file, of a stream
INLINE_JSON_BYTES: Final = 1 << 20  # decoded on the event loop: some 3 ms


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
    return _read_head(
        pipeline_name,
        query,
        headers.get(b"content-encoding", b""),
        headers.get(b"content-type", b""),
        headers.get(b"accept", b""),
    )


@functools.lru_cache(maxsize=64)  # a client's requests all have the same head
def _read_head(
    pipeline_name: str | None, query: bytes, encoding: bytes, content_type: bytes, accept: bytes
) -> CallHead:
    encoding = encoding.strip().lower()
    if encoding not in {b"identity", b""}:
        raise UnsupportedMediaTypeError(
            f"Content-Encoding {encoding.decode('latin-1')[:50]!r} is not supported: send the body "
            "as it is (Arrow data may be compressed inside, with LZ4 or ZSTD buffers)"
        )
    dataset = None
    if query:
        pairs = urllib.parse.parse_qsl(query.decode("latin-1"), keep_blank_values=True)
        dataset = parse_dataset(pairs)
    return CallHead(pipeline_name, body_kind(content_type), reply_kind(accept), dataset)


class Caller(Protocol):
    """Whoever waits for the reply."""

    def is_gone(self) -> bool:
        """Whether nobody waits any more."""

    def wait(self, call: Call) -> None:
        """The call is in the line: from now on time counts; on the event loop."""

    def deliver(self, reply: Reply, *, is_elsewhere: bool) -> None:
        """Take the reply; ``is_elsewhere`` when this is not the event loop."""


class Call(InferRequest):
    """One inference request with its whole body; every method may run on another thread."""

    def __init__(
        self,
        head: CallHead,
        body: bytes | bytearray,
        plane: DataPlane,
        metrics: Metrics,
        *,
        records_by_default: bool,
        caller: Caller,
    ) -> None:
        """Take a request; nothing is decoded yet.

        Args:
            head: what its head says.
            body: its whole body.
            plane: tells which pipeline answers.
            metrics: counts the answer.
            records_by_default: whether the reply is records where the head does not say.
            caller: waits for the reply.

        Raises:
            NotReadyError: no pipeline is served yet.
            NotFoundError: the path names another pipeline.
        """
        name = head.pipeline_name
        super().__init__(plane.running if name is None else plane.named(name))
        self._head = head
        self._body = body
        self._metrics = metrics
        self._records = records_by_default or head.dataset is not None
        # the log keeps a column of numbers as float64 unless all of them are integers
        is_kept_exactly = plane.log is None or b"." in body
        self._is_echoed = (
            self._records or head.reply_kind is not BodyKind.JSON or not is_kept_exactly
        )
        self.caller = caller
        self.size_bytes = len(body)

    def decode_small(self) -> None:
        """Decode the body here and now, unless that takes long.

        Raises:
            EngineError: the body cannot be decoded.
        """
        if len(self._body) <= INLINE_JSON_BYTES or self._is_arrow():
            self.prepare(self._decode())
        else:
            self.rows = max(self._body.count(b"{"), 1)  # an upper estimate: one for each object

    def decoded(self) -> Frame:
        """The rows, decoded now if they are not yet."""
        return self.frame if self.frame is not None else self._decode()

    def is_gone(self) -> bool:
        """Whether nobody waits for the reply any more."""
        return self.caller.is_gone()

    def settle(self) -> None:
        """Encode and deliver the reply, also where something failed."""
        result, self.outcome = self.outcome, None
        if isinstance(result, Exception) or result is None:
            self._deliver(self.refuse(result or InternalError("no outcome")))
            return
        try:
            reply = self._encode(result)
        except Exception as error:  # noqa: BLE001 - every failure is answered, bugs included
            reply = self.refuse(error)
        else:
            self._metrics.record(
                result.frame.rows,
                time.monotonic_ns() - self.started_ns,
                self.queue_ns,
                sum(result.elapsed_ns[1:]),
            )
        self._deliver(reply)

    def refuse(self, error: Exception) -> Reply:
        """The reply to a request that cannot be answered, counted."""
        self._metrics.record_error(error.code if isinstance(error, EngineError) else "internal")
        return error_reply(error)

    def _deliver(self, reply: Reply) -> None:
        self.caller.deliver(reply, is_elsewhere=self.queued_ns > 0)

    def _is_arrow(self) -> bool:
        kind = self._head.body_kind
        return kind is BodyKind.ARROW or (
            kind is BodyKind.SNIFF and self._body.startswith(ARROW_STARTS)
        )

    def _decode(self) -> Frame:
        if self._is_arrow():
            return read_arrow(self._body)
        return read_json(self._body, self.pipeline.inputs, is_echoed=self._is_echoed)

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
