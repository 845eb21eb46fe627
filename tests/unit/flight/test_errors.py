"""How a call ends in an error: the trailers that a client of Arrow makes its own error of."""

import orjson
import pytest

from engine import errors
from engine.flight.errors import (
    finish_schema_with,
    finish_unimplemented,
    finish_with,
)
from engine.metrics import Metrics
from engine.refusal import STATUS

NAMED = {1: "Cancelled", 2: "Failed", 4: "TimedOut", 13: "Internal", 14: "Unavailable"} | {
    16: "Unauthenticated"
}
FAULTS = {errors.Fault.CLIENT: 2, errors.Fault.CAPACITY: 14, errors.Fault.SERVER: 13}


class Ended:
    """A call that keeps how it was ended."""

    def finish(self, status=0, text="", trailers=()):
        self.status, self.text = status, text
        self.trailers = dict(trailers)
        assert len(self.trailers) == len(trailers)


def kinds(base=errors.EngineError):
    for kind in base.__subclasses__():
        yield kind
        yield from kinds(kind)


@pytest.mark.parametrize("kind", list(kinds()), ids=lambda kind: kind.__name__)
def test_every_error_has_its_end(kind):
    call, metrics = Ended(), Metrics()

    finish_with(call, kind("said é"), metrics)

    own = {"unauthorized": 16, "deadline_exceeded": 4}.get(kind.code)
    assert call.status == (own or FAULTS[kind.fault])
    message = call.trailers[b"x-arrow-status-message-bin"].decode()
    assert call.text == f"{message}. Detail: {NAMED[call.status]}"
    assert call.trailers[b"x-arrow-status-detail-bin"].decode() == NAMED[call.status]
    assert call.trailers[b"x-arrow-status"] == b"5"
    document = orjson.loads(call.trailers[b"grpc-status-details-bin"])
    assert document == {
        "code": STATUS[kind.code],
        "status": "Error",
        "error": message,
        "source": "engine",
    }
    assert (message == "said é") == (kind.fault is not errors.Fault.SERVER)
    assert metrics.errors[kind.code] == 1


@pytest.mark.parametrize(
    ("kind", "status", "arrow"),
    [
        (errors.NotFoundError, 5, b"2"),
        (errors.DecodeError, 3, b"4"),
        (errors.SchemaMismatchError, 3, b"4"),
        (errors.NotReadyError, 2, b"9"),
        (errors.InternalError, 2, b"9"),
    ],
)
def test_a_schema_that_is_not_there(kind, status, arrow):
    call, metrics = Ended(), Metrics()

    finish_schema_with(call, kind("said"), metrics)

    assert call.status == status
    assert call.text == call.trailers[b"x-arrow-status-message-bin"].decode()
    assert call.trailers[b"x-arrow-status"] == arrow
    assert orjson.loads(call.trailers[b"grpc-status-details-bin"])["code"] == STATUS[kind.code]
    assert metrics.errors == {kind.code: 1}


def test_a_bug_tells_nothing():
    call, metrics = Ended(), Metrics()

    finish_with(call, ValueError("a secret"), metrics)

    assert call.status == 13
    assert "a secret" not in f"{call.text}{call.trailers}"
    assert metrics.errors["internal"] == 1


def test_what_is_not_there():
    call = Ended()

    finish_unimplemented(call, "no such method")

    assert (call.status, call.text) == (12, "no such method")
    assert call.trailers == {
        b"x-arrow-status": b"10",
        b"x-arrow-status-message-bin": b"no such method",
    }
