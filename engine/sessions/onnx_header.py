"""What an ONNX file says of itself, read without loading it.

Rule that holds here: only the few fields around the graph are read; the graph, which may be
gigabytes, is stepped over. ONNX Runtime does not tell the opsets, and the ``onnx`` package is no
dependency of the engine.
"""

import dataclasses
import mmap
from pathlib import Path

from engine.errors import StartupError

__all__ = ["OnnxHeader", "read_onnx_header"]

_IR_VERSION, _PRODUCER, _OPSET = 1, 2, 8  # field numbers of ModelProto
_DOMAIN, _VERSION = 1, 2  # of OperatorSetIdProto
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10


@dataclasses.dataclass(frozen=True, slots=True)
class OnnxHeader:
    """The frame of a model.

    Attributes:
        ir_version: Version of the file format.
        producer: The program that wrote it; may be empty.
        opsets: Operator domain to version; the default domain is ``ai.onnx``.
    """

    ir_version: int
    producer: str
    opsets: dict[str, int]


def read_onnx_header(path: Path) -> OnnxHeader:
    """Read format version, producer and opsets.

    Args:
        path: An ONNX file.

    Returns:
        What it says.

    Raises:
        StartupError: It is not an ONNX file.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            fields = _fields(data, 0, len(data), wanted={_IR_VERSION, _PRODUCER, _OPSET})
            opsets = dict(_opset(value) for number, value in fields if number == _OPSET)
    except (OSError, ValueError, TypeError) as error:
        raise StartupError(f"{path} is not an ONNX file: {error}") from error
    first = dict(reversed(fields))
    ir_version, producer = first.get(_IR_VERSION), first.get(_PRODUCER, b"")
    if not isinstance(ir_version, int) or not opsets:
        raise StartupError(f"{path} is not an ONNX file: it names no format version or no opset")
    name = producer.decode(errors="replace") if isinstance(producer, bytes) else ""
    return OnnxHeader(ir_version, name, opsets)


def _opset(value: int | bytes) -> tuple[str, int]:
    if not isinstance(value, bytes):
        raise TypeError("an opset is not a message")
    fields = dict(_fields(value, 0, len(value), wanted={_DOMAIN, _VERSION}))
    domain, version = fields.get(_DOMAIN, b""), fields.get(_VERSION, 0)
    if not isinstance(domain, bytes) or not isinstance(version, int):
        raise TypeError("an opset has no version")
    return domain.decode() or "ai.onnx", version


def _fields(
    data: bytes | mmap.mmap, position: int, end: int, wanted: set[int]
) -> list[tuple[int, int | bytes]]:
    """The wanted fields of a protobuf message; all others are stepped over."""
    found: list[tuple[int, int | bytes]] = []
    while position < end:
        tag, position = _varint(data, position)
        number, kind = tag >> 3, tag & 7
        value: int | bytes
        if kind == _VARINT:
            value, position = _varint(data, position)
        elif kind == _BYTES:
            size_bytes, position = _varint(data, position)
            if size_bytes > end - position:
                raise ValueError("a field is longer than the file")
            value = data[position : position + size_bytes] if number in wanted else b""
            position += size_bytes
        elif kind in (_FIXED64, _FIXED32):
            value, position = 0, position + (8 if kind == _FIXED64 else 4)
        else:
            raise ValueError(f"field kind {kind} does not exist")
        if number in wanted:
            found.append((number, value))
    return found


def _varint(data: bytes | mmap.mmap, position: int) -> tuple[int, int]:
    value = 0
    for count in range(_MAX_VARINT_BYTES):
        if position >= len(data):
            raise ValueError("it ends in the middle of a field")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value, position
    raise ValueError("a number has no end")
