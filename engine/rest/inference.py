"""The inference endpoints' language: what a request's head says, its body to rows, rows to a Reply.

Rules that hold here:
- Everything that can be refused from the head alone is refused before the body arrives.
- Callable on any thread; nothing is kept but the layouts of Arrow bodies, by whoever passes them.
Source: reference page, Edge Inference Endpoints; recorded requests and replies.
"""

from __future__ import annotations

import dataclasses
import functools
import urllib.parse
from typing import TYPE_CHECKING

from engine.codecs.arrow_ipc import write_arrow_file, write_arrow_stream
from engine.codecs.dataset import EVERYTHING, parse_dataset
from engine.codecs.json_body import read_json
from engine.codecs.legacy import write_legacy
from engine.codecs.pandas_records import write_records
from engine.codecs.record_batch import record_batch
from engine.errors import UnsupportedMediaTypeError
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
    from collections.abc import Mapping, Sequence
    from typing import Final

    from engine.codecs.dataset import Dataset
    from engine.codecs.known_tables import KnownTables
    from engine.values import Frame, InferResult, TensorSpec

__all__ = ["CallHead", "is_arrow", "read_body", "read_head", "write_result"]

ARROW_STARTS: Final = (b"ARRO", b"\xff\xff\xff\xff")  # of a file, of a stream


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


def is_arrow(head: CallHead, data: bytes | bytearray, start: int = 0) -> bool:
    """Whether the body from ``start`` on is Arrow data, by its head or else its first bytes."""
    kind = head.body_kind
    return kind is BodyKind.ARROW or (
        kind is BodyKind.SNIFF and data.startswith(ARROW_STARTS, start)
    )


def read_body(
    head: CallHead,
    body: bytes | bytearray,
    inputs: Sequence[TensorSpec],
    tables: KnownTables,
    *,
    is_echoed: bool,
) -> Frame:
    """Decode a request.

    Args:
        head: what its head says.
        body: its whole body.
        inputs: what the pipeline takes.
        tables: the layouts of Arrow bodies that were read before.
        is_echoed: whether values are wanted as they were sent, whatever the reply holds.

    Returns:
        Its rows; views into the body where that is Arrow data.

    Raises:
        EngineError: it cannot be decoded.
    """
    if head.body_kind is not BodyKind.JSON and is_arrow(head, body):
        return tables.read(body)
    is_plain = head.dataset is None and head.reply_kind is BodyKind.JSON
    return read_json(body, inputs, is_echoed=is_echoed or not is_plain)


def write_result(head: CallHead, result: InferResult, records_by_default: bool) -> Reply:
    """Encode an answer as the head wants it.

    Args:
        head: what the request's head says.
        result: the answer.
        records_by_default: whether JSON is records where the head does not say.

    Returns:
        The reply.

    Raises:
        EngineError: the answer cannot be written so.
    """
    kind, dataset = head.reply_kind, head.dataset
    if kind is BodyKind.JSON:
        if dataset is None and not records_by_default:
            return Reply(200, RECORDS, write_legacy(result))
        return Reply(200, RECORDS, write_records(result, dataset or EVERYTHING))
    batch = record_batch(result, dataset or EVERYTHING)
    write, media_type = (
        (write_arrow_file, ARROW_FILE)
        if kind is BodyKind.ARROW
        else (write_arrow_stream, ARROW_STREAM)
    )
    return Reply(200, media_type.encode(), memoryview(write(batch.schema, [batch])))
