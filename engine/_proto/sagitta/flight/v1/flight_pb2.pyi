from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
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

class Command(_message.Message):
    __slots__ = ("pipeline", "reply", "max_reply_bytes", "log")
    PIPELINE_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    MAX_REPLY_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    pipeline: str
    reply: Reply
    max_reply_bytes: int
    log: LogQuery
    def __init__(self, pipeline: _Optional[str] = ..., reply: _Optional[_Union[Reply, str]] = ..., max_reply_bytes: _Optional[int] = ..., log: _Optional[_Union[LogQuery, _Mapping]] = ...) -> None: ...

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
    __slots__ = ("results", "log")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    results: bytes
    log: LogQuery
    def __init__(self, results: _Optional[bytes] = ..., log: _Optional[_Union[LogQuery, _Mapping]] = ...) -> None: ...

class LogQuery(_message.Message):
    __slots__ = ("cursor", "page_size", "order", "time_start", "time_end", "dataset", "dataset_exclude", "dataset_separator", "dataset_flatten", "failures")
    class CursorEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    TIME_START_FIELD_NUMBER: _ClassVar[int]
    TIME_END_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    DATASET_EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    DATASET_SEPARATOR_FIELD_NUMBER: _ClassVar[int]
    DATASET_FLATTEN_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    cursor: _containers.ScalarMap[str, int]
    page_size: int
    order: str
    time_start: str
    time_end: str
    dataset: _containers.RepeatedScalarFieldContainer[str]
    dataset_exclude: _containers.RepeatedScalarFieldContainer[str]
    dataset_separator: str
    dataset_flatten: bool
    failures: bool
    def __init__(self, cursor: _Optional[_Mapping[str, int]] = ..., page_size: _Optional[int] = ..., order: _Optional[str] = ..., time_start: _Optional[str] = ..., time_end: _Optional[str] = ..., dataset: _Optional[_Iterable[str]] = ..., dataset_exclude: _Optional[_Iterable[str]] = ..., dataset_separator: _Optional[str] = ..., dataset_flatten: _Optional[bool] = ..., failures: _Optional[bool] = ...) -> None: ...

class LogStatus(_message.Message):
    __slots__ = ("status", "next")
    class NextEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    STATUS_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    status: str
    next: _containers.ScalarMap[str, int]
    def __init__(self, status: _Optional[str] = ..., next: _Optional[_Mapping[str, int]] = ...) -> None: ...

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
