"""Engine errors to Flight errors: a gRPC status for the machine, the documented body for both.

Rules that hold here:
- Nothing but what this module makes may leave a handler: any other exception would take its
  traceback, with file paths, to the client.
- A client's fault is a FlightServerError (status UNKNOWN): Flight has no class for invalid
  arguments that carries no traceback. ``extra_info`` has the number that tells.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Protocol, TypeVar

import pyarrow.flight as fl

from engine.errors import DeadlineExceededError, Fault, UnauthorizedError
from engine.refusal import refusal_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Final

    from engine.metrics import Metrics

__all__ = ["CancelledError", "flight_error", "guarded", "guarded_batches", "schema_error"]

_KINDS: Final = {
    Fault.CLIENT: fl.FlightServerError,
    Fault.CAPACITY: fl.FlightUnavailableError,
    Fault.SERVER: fl.FlightInternalError,
}
_KINDS_BY_CODE: Final = {
    UnauthorizedError.code: fl.FlightUnauthenticatedError,
    DeadlineExceededError.code: fl.FlightTimedOutError,
}

_SCHEMA_KINDS: Final = {404: KeyError, 400: ValueError}  # which become NOT_FOUND, INVALID_ARGUMENT

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
ServerT = TypeVar("ServerT", bound="Refusing")


class CancelledError(Exception):
    """The client is gone or has given up: nobody reads what is answered."""


class Refusing(Protocol):
    """What has handlers."""

    metrics: Metrics


def flight_error(error: BaseException, metrics: Metrics) -> fl.FlightError:
    """What a handler raises instead of ``error``; counts it.

    Args:
        error: anything; what is not an EngineError counts as a bug, and is logged as one.
        metrics: counts it by its code.

    Returns:
        The Flight error, with ``extra_info`` ``{"code", "status", "error", "source"}``.
    """
    if isinstance(error, CancelledError):
        return fl.FlightCancelledError("the call was cancelled by the client")
    refusal = refusal_of(error)
    metrics.record_error(refusal.code)
    kind = _KINDS_BY_CODE.get(refusal.code) or _KINDS[refusal.fault]
    return kind(refusal.text, refusal.body)


def guarded(
    handler: Callable[Concatenate[ServerT, Parameters], Result],
) -> Callable[Concatenate[ServerT, Parameters], Result]:
    """Wrap a server's handler so that every exception leaves as ``flight_error`` makes it."""

    @functools.wraps(handler)
    def guard(
        server: ServerT, /, *arguments: Parameters.args, **options: Parameters.kwargs
    ) -> Result:
        try:
            return handler(server, *arguments, **options)
        except Exception as error:  # noqa: BLE001 - see the module's first rule
            raise flight_error(error, server.metrics) from None

    return guard


def guarded_batches(batches: Iterator[Result], metrics: Metrics) -> Iterator[Result]:
    """What ``guarded`` is to a handler, for batches that are made while they are sent."""
    try:
        yield from batches
    except Exception as error:  # noqa: BLE001 - see the module's first rule
        raise flight_error(error, metrics) from None


def schema_error(error: BaseException, metrics: Metrics) -> Exception:
    """What GetSchema raises instead of ``error``: its text under a gRPC status, no ``extra_info``.

    pyarrow takes a Flight error from every handler but this one. From it, it sends any exception
    with its traceback; where the traceback cannot be formatted, with its class's name alone. So it
    gets one that cannot be: ``traceback`` reads ``__cause__`` first.
    """
    refusal = refusal_of(error)
    metrics.record_error(refusal.code)
    kind = _SCHEMA_KINDS.get(refusal.status, Exception)
    members = {"__cause__": property(_no_traceback), "__str__": lambda self: self.args[0]}
    return type("Refused", (kind,), members)(refusal.text)


def _no_traceback(_error: BaseException) -> None:
    raise AttributeError("of no concern to a client")
