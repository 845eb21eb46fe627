"""Every error that the engine raises on purpose, in one tree.

Rules that hold here:
- An error knows *what* went wrong (``code``) and *whose* fault it was (``fault``), never a status
  of HTTP or gRPC: ``refusal`` has the documented numbers, and each shell says them in its own way.
- The text of a client or capacity error is meant for the caller: it says what was wrong, where,
  and what to do. The text of a server error is not: the shell sends a fixed sentence and logs it.
- ``ConfigError`` and ``StartupError`` only ever end the process, with the exit codes 2 and 3.
"""

import enum
from typing import ClassVar

__all__ = [
    "CapacityError",
    "ClientError",
    "ConfigError",
    "ConflictError",
    "DeadlineExceededError",
    "DecodeError",
    "EngineError",
    "Fault",
    "InferenceFailedError",
    "InternalError",
    "NotAcceptableError",
    "NotFoundError",
    "NotReadyError",
    "OverloadedError",
    "PayloadTooLargeError",
    "SchemaMismatchError",
    "ServerError",
    "ShuttingDownError",
    "StartupError",
    "UnauthorizedError",
    "UnsupportedMediaTypeError",
]


class Fault(enum.Enum):
    """Whose fault an error is; it decides who gets to read its text."""

    CLIENT = "client"
    CAPACITY = "capacity"
    SERVER = "server"


class EngineError(Exception):
    """Base of every error that answers a request."""

    code: ClassVar[str] = "internal"
    fault: ClassVar[Fault] = Fault.SERVER


class ClientError(EngineError):
    """The caller can mend it by sending something else."""

    code = "bad_request"
    fault = Fault.CLIENT


class DecodeError(ClientError):
    """The bytes are not what their media type says, or are unsafe to read."""

    code = "decode_error"


class SchemaMismatchError(ClientError):
    """The bytes decode, but do not fit the model's inputs or the asked-for reply."""

    code = "schema_mismatch"


class UnsupportedMediaTypeError(ClientError):
    """No codec reads this Content-Type or Content-Encoding."""

    code = "unsupported_media_type"


class NotAcceptableError(ClientError):
    """No codec writes what Accept asks for."""

    code = "not_acceptable"


class PayloadTooLargeError(ClientError):
    """The request is, or would decode to, more than a limit allows."""

    code = "payload_too_large"


class NotFoundError(ClientError):
    """The named path, pipeline or feature is not here."""

    code = "not_found"


class ConflictError(ClientError):
    """The endpoint exists but not for this kind of pipeline."""

    code = "conflict"


class UnauthorizedError(ClientError):
    """A bearer token is required and none, or a wrong one, was sent."""

    code = "unauthorized"


class CapacityError(EngineError):
    """The request is fine; the engine cannot take it now."""

    code = "capacity"
    fault = Fault.CAPACITY


class OverloadedError(CapacityError):
    """The queue is full; try again after a short wait."""

    code = "overloaded"


class NotReadyError(CapacityError):
    """The models are not loaded, or failed to load."""

    code = "not_ready"


class ShuttingDownError(CapacityError):
    """The engine is draining and takes no new work."""

    code = "shutting_down"


class DeadlineExceededError(CapacityError):
    """The answer was not ready before the request's deadline."""

    code = "deadline_exceeded"


class ServerError(EngineError):
    """The engine or the model failed; the details belong in the log only."""


class InferenceFailedError(ServerError):
    """The model raised while it ran."""

    code = "inference_failed"


class InternalError(ServerError):
    """A bug in the engine."""

    code = "internal"


class ConfigError(Exception):
    """The configuration cannot be used; its text lists every problem. Exit code 2."""


class StartupError(Exception):
    """The artifact, a model or a port stops the engine from starting. Exit code 3."""
