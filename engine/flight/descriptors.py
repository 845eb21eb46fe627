"""The grammar of descriptors and tickets.

A descriptor's path is ``["infer"]`` for the pipeline that is served, or ``["pipelines", NAME]``;
with a last element ``"input"`` ``GetSchema`` answers what request batches hold. A descriptor's
command is an ``InferCommand``, as protobuf bytes or as JSON, for what a path cannot say. A ticket
is a ``Ticket``, opaque to clients. Source of the messages: ``proto/sagitta/flight/v1``.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pyarrow.flight as fl
from google.protobuf import json_format
from google.protobuf.message import DecodeError as ProtobufError

from engine._proto.sagitta.flight.v1 import flight_pb2
from engine.errors import DecodeError, NotFoundError

if TYPE_CHECKING:
    from typing import Final

__all__ = ["Wanted", "read_descriptor", "read_ticket", "write_ticket"]

MAX_REPLY_BYTES: Final = 3 << 20  # clients of other languages refuse messages above 4 MiB
MAX_COMMAND_BYTES: Final = 1 << 16
EXPECTED: Final = (
    'expected is the path ["infer"] or ["pipelines", NAME], or a sagitta.flight.v1.InferCommand '
    "as command, in protobuf or JSON"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """What a call is about.

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


def read_descriptor(descriptor: fl.FlightDescriptor) -> Wanted:
    """Read what a client names.

    Args:
        descriptor: as it came.

    Returns:
        What it says.

    Raises:
        NotFoundError: a path that names nothing here.
        DecodeError: a command that is none.
    """
    if descriptor.descriptor_type == fl.DescriptorType.PATH:
        return _read_path([_text(part) for part in descriptor.path])
    if descriptor.descriptor_type == fl.DescriptorType.CMD:
        return _read_command(descriptor.command)
    raise DecodeError(f"the descriptor has neither path nor command: {EXPECTED}")


def read_ticket(ticket: fl.Ticket) -> bytes:
    """The key of the answers that a ticket fetches.

    Raises:
        DecodeError: this engine has made no such ticket.
    """
    message = flight_pb2.Ticket()
    try:
        message.ParseFromString(ticket.ticket[:MAX_COMMAND_BYTES])
    except ProtobufError:
        message.Clear()
    if not message.results:
        raise DecodeError("the ticket is none of this engine: DoPut gives tickets")
    return bytes(message.results)


def write_ticket(key: bytes) -> bytes:
    """The ticket that ``read_ticket`` reads."""
    return bytes(flight_pb2.Ticket(results=key).SerializeToString())


def _read_path(path: list[str]) -> Wanted:
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


def _read_command(command: bytes) -> Wanted:
    if len(command) > MAX_COMMAND_BYTES:
        raise DecodeError(f"the command has {len(command)} bytes: {EXPECTED}")
    message = flight_pb2.InferCommand()
    try:
        if command[:1] == b"{":  # no InferCommand begins so: it would be a field of a group
            json_format.Parse(command, message)
        else:
            message.ParseFromString(command)
    except (ProtobufError, json_format.ParseError, UnicodeDecodeError) as error:
        raise DecodeError(f"the command cannot be read: {EXPECTED}") from error
    return Wanted(
        message.pipeline or None,
        message.reply == flight_pb2.REPLY_RECORDS,
        message.max_reply_bytes if message.HasField("max_reply_bytes") else MAX_REPLY_BYTES,
    )


def _text(part: bytes | str) -> str:
    return part if isinstance(part, str) else part.decode("utf-8", "replace")
