"""The grammar of descriptors and tickets.

A descriptor's path is ``["infer"]`` for the pipeline that is served, or ``["pipelines", NAME]``;
with a last element ``"input"`` ``GetSchema`` answers what request batches hold. ``["logs"]`` is the
inference log, ``["logs-failures"]`` what failed. A descriptor's command is a ``Command``, for what
a path cannot say; a ticket is a ``Ticket``: both as protobuf bytes or as JSON. Source of the
messages: ``proto/sagitta/flight/v1``.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa
import pyarrow.flight as fl
from google.protobuf import json_format
from google.protobuf.message import DecodeError as ProtobufError

from engine._proto.sagitta.flight.v1 import flight_pb2
from engine.codecs.arrow_frame import first_line
from engine.errors import DecodeError, NotFoundError
from engine.flight.fields import read_fields

if TYPE_CHECKING:
    from typing import Final

__all__ = [
    "FAILURES_PATH",
    "LOG_PATH",
    "Wanted",
    "parse",
    "read_descriptor",
    "read_infer_descriptor",
    "read_ticket",
    "write_log_ticket",
    "write_ticket",
]

MAX_REPLY_BYTES: Final = 3 << 20  # clients of other languages refuse messages above 4 MiB
LEAST_REPLY_BYTES: Final = 4 << 10  # a part costs as much as a small batch
MAX_COMMAND_BYTES: Final = 1 << 16
EXPECTED: Final = (
    'expected is the path ["infer"], ["pipelines", NAME], ["logs"] or ["logs-failures"], or a '
    "sagitta.flight.v1.Command as command, in protobuf or JSON"
)
EXPECTED_TICKET: Final = (
    'DoPut and GetFlightInfo give tickets, {"log":{}} is one for the inference log, and '
    '{"log":{"failures":true}} for its failures'
)
LOG_PATH: Final = ("logs",)
FAILURES_PATH: Final = ("logs-failures",)  # named as the documented product names such topics
TEXT_FIELDS: Final = {fl.FlightDescriptor: 3, fl.Action: 1}  # a path's elements; an action's type

MessageT = TypeVar("MessageT", fl.FlightDescriptor, fl.Ticket, fl.Action)


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """What a call about a pipeline wants.

    Attributes:
        pipeline: its name; None for the one that is served.
        as_records: whether replies are whole records, not outputs alone.
        max_reply_bytes: a larger reply is sent in parts; 0 = never.
        is_input: whether the schema asked for is that of the request.
    """

    pipeline: str | None = None
    as_records: bool = False
    max_reply_bytes: int = MAX_REPLY_BYTES
    is_input: bool = False


def parse(kind: type[MessageT], content: bytes) -> MessageT:
    """A message of Arrow Flight from its bytes.

    Args:
        kind: what it should be.
        content: as it came.

    Raises:
        DecodeError: it is none.
    """
    try:
        _check_text(kind, content)
        return kind.deserialize(content)
    except (DecodeError, pa.ArrowException) as error:
        expected = f": {EXPECTED}" if kind is fl.FlightDescriptor else ""
        raise DecodeError(
            f"the request holds no {kind.__name__} of Arrow Flight ({first_line(error)}){expected}"
        ) from error


def read_descriptor(descriptor: fl.FlightDescriptor) -> Wanted | flight_pb2.LogQuery:
    """Read what a client names.

    Args:
        descriptor: as it came.

    Returns:
        What it wants of a pipeline, or which rows of the log.

    Raises:
        NotFoundError: a path that names nothing here.
        DecodeError: a command that is none.
    """
    if descriptor.descriptor_type == fl.DescriptorType.PATH:
        return _read_path([_text(part) for part in descriptor.path])
    if descriptor.descriptor_type == fl.DescriptorType.CMD:
        return _read_command(descriptor.command)
    raise DecodeError(f"the descriptor has neither path nor command: {EXPECTED}")


def read_infer_descriptor(descriptor: fl.FlightDescriptor) -> Wanted:
    """Read what a client that sends batches names.

    Raises:
        DecodeError: the log; else as for ``read_descriptor``.
    """
    wanted = read_descriptor(descriptor)
    if isinstance(wanted, Wanted):
        return wanted
    raise DecodeError(
        "the inference log takes no batches: read it with DoGet and the ticket that GetFlightInfo "
        'of the path ["logs"] gives'
    )


def read_ticket(ticket: fl.Ticket) -> bytes | flight_pb2.LogQuery:
    """The key of the answers that a ticket fetches, or which rows of the log.

    Raises:
        DecodeError: it is no ticket.
    """
    message = flight_pb2.Ticket()
    _fill(ticket.ticket, message, "ticket", EXPECTED_TICKET)
    if message.HasField("log"):
        return message.log
    if not message.results:
        raise DecodeError(f"the ticket is none of this engine: {EXPECTED_TICKET}")
    return bytes(message.results)


def write_ticket(key: bytes) -> bytes:
    """The ticket that ``read_ticket`` reads as a key."""
    return bytes(flight_pb2.Ticket(results=key).SerializeToString())


def write_log_ticket(query: flight_pb2.LogQuery) -> bytes:
    """The ticket that ``read_ticket`` reads as a query."""
    return bytes(flight_pb2.Ticket(log=query).SerializeToString())


def _read_path(path: list[str]) -> Wanted | flight_pb2.LogQuery:
    if tuple(path) == LOG_PATH:
        return flight_pb2.LogQuery()
    if tuple(path) == FAILURES_PATH:
        return flight_pb2.LogQuery(failures=True)
    match path:
        case ["infer"]:
            return Wanted()
        case ["infer", "input"]:
            return Wanted(is_input=True)
        case ["pipelines", name]:
            return Wanted(name)
        case ["pipelines", name, "input"]:
            return Wanted(name, is_input=True)
    raise NotFoundError(f"nothing is at the path {[part[:100] for part in path[:4]]}: {EXPECTED}")


def _read_command(command: bytes) -> Wanted | flight_pb2.LogQuery:
    message = flight_pb2.Command()
    _fill(command, message, "command", EXPECTED)
    if message.HasField("log"):
        return message.log
    max_reply_bytes = MAX_REPLY_BYTES
    if message.HasField("max_reply_bytes"):
        wanted = message.max_reply_bytes
        max_reply_bytes = max(wanted, LEAST_REPLY_BYTES) if wanted else 0
    as_records = message.reply == flight_pb2.REPLY_RECORDS
    return Wanted(message.pipeline or None, as_records, max_reply_bytes)


def _fill(
    content: bytes, message: flight_pb2.Command | flight_pb2.Ticket, what: str, expected: str
) -> None:
    """Fill a message from protobuf bytes or JSON."""
    if len(content) > MAX_COMMAND_BYTES:
        raise DecodeError(f"the {what} has {len(content)} bytes: {expected}")
    try:
        if content[:1] == b"{":  # no message begins so: it would be a field of a group
            json_format.Parse(content, message)
        else:
            message.ParseFromString(content)
    except json_format.ParseError as error:
        reason = str(error).partition("\n")[0][:300]
        raise DecodeError(f"the {what} cannot be read ({reason}): {expected}") from error
    except (ProtobufError, UnicodeDecodeError) as error:
        raise DecodeError(f"the {what} cannot be read: {expected}") from error


def _check_text(kind: type[MessageT], content: bytes) -> None:
    """Refuse text that is not UTF-8: of every such message the library writes a line to stderr.

    Raises:
        DecodeError: it has such text.
    """
    number = TEXT_FIELDS.get(kind)
    try:
        for field, _, begin, end in read_fields(content) if number else ():
            if field == number:
                content[begin:end].decode()
    except UnicodeDecodeError:
        raise DecodeError("its text is not UTF-8") from None


def _text(part: bytes | str) -> str:
    return part if isinstance(part, str) else part.decode("utf-8", "replace")
