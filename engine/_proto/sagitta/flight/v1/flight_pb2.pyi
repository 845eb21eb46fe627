from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Reply(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REPLY_UNSPECIFIED: _ClassVar[Reply]
    REPLY_OUTPUTS: _ClassVar[Reply]
    REPLY_RECORDS: _ClassVar[Reply]
REPLY_UNSPECIFIED: Reply
REPLY_OUTPUTS: Reply
REPLY_RECORDS: Reply

class InferCommand(_message.Message):
    __slots__ = ("pipeline", "reply", "max_reply_bytes")
    PIPELINE_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    MAX_REPLY_BYTES_FIELD_NUMBER: _ClassVar[int]
    pipeline: str
    reply: Reply
    max_reply_bytes: int
    def __init__(self, pipeline: _Optional[str] = ..., reply: _Optional[_Union[Reply, str]] = ..., max_reply_bytes: _Optional[int] = ...) -> None: ...

class BatchReply(_message.Message):
    __slots__ = ("sequence", "rows", "part", "parts", "elapsed_ns")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_NS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    rows: int
    part: int
    parts: int
    elapsed_ns: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, sequence: _Optional[int] = ..., rows: _Optional[int] = ..., part: _Optional[int] = ..., parts: _Optional[int] = ..., elapsed_ns: _Optional[_Iterable[int]] = ...) -> None: ...

class PutReply(_message.Message):
    __slots__ = ("sequence", "rows", "elapsed_ns", "ticket")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_NS_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    rows: int
    elapsed_ns: _containers.RepeatedScalarFieldContainer[int]
    ticket: bytes
    def __init__(self, sequence: _Optional[int] = ..., rows: _Optional[int] = ..., elapsed_ns: _Optional[_Iterable[int]] = ..., ticket: _Optional[bytes] = ...) -> None: ...

class Ticket(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: bytes
    def __init__(self, results: _Optional[bytes] = ...) -> None: ...

class PipelineInfo(_message.Message):
    __slots__ = ("name", "version", "status", "input_schema")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    INPUT_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    status: str
    input_schema: bytes
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., status: _Optional[str] = ..., input_schema: _Optional[bytes] = ...) -> None: ...

class ErrorDetail(_message.Message):
    __slots__ = ("code", "status", "error", "source")
    CODE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    code: int
    status: str
    error: str
    source: str
    def __init__(self, code: _Optional[int] = ..., status: _Optional[str] = ..., error: _Optional[str] = ..., source: _Optional[str] = ...) -> None: ...
