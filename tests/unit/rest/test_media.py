"""Content-Type and Accept, and errors as HTTP replies."""

import orjson
import pytest

from engine import errors
from engine.errors import EngineError, Fault
from engine.refusal import STATUS
from engine.rest.errors import error_reply
from engine.rest.media import BodyKind, body_kind, reply_kind


def subclasses(kind):
    return [kind, *(sub for one in kind.__subclasses__() for sub in subclasses(one))]


EVERY_ERROR = subclasses(EngineError)


def test_content_types():
    for value, kind in (
        (b"application/vnd.apache.arrow.file", BodyKind.ARROW),
        (b"application/vnd.apache.arrow.stream; x=1", BodyKind.ARROW),
        (b"Content-Type: Content-Type:application/json", BodyKind.JSON),
        (b"", BodyKind.SNIFF),
        (b"*/*", BodyKind.SNIFF),
    ):
        assert body_kind(value) is kind
    for value in (b"text/plain", b"application/jsonp", b"multipart/form-data", b"\xff"):
        with pytest.raises(errors.UnsupportedMediaTypeError, match="Content-Type"):
            body_kind(value)


def test_accept():
    for value, kind in (
        (b"", BodyKind.JSON),
        (b"application/vnd.apache.arrow.stream", BodyKind.ARROW_STREAM),
        (b"text/html;q=1, */*;q=0.1", BodyKind.JSON),
        (b"*/*;q=0.1, application/vnd.apache.arrow.file;q=0.2", BodyKind.ARROW),
        (b"application/json;q=x", BodyKind.JSON),
    ):
        assert reply_kind(value) is kind
    for value in (b"text/html", b"*/*;q=0", b"application/json;q=0"):
        with pytest.raises(errors.NotAcceptableError, match="Accept"):
            reply_kind(value)


@pytest.mark.parametrize("kind", EVERY_ERROR, ids=lambda kind: kind.__name__)
def test_every_error_has_its_status(kind):
    """A table of its own for every class of the tree, whatever is added to it."""
    reply = error_reply(kind("what was wrong"))

    document = orjson.loads(reply.body)
    assert reply.status == document["code"] == STATUS[kind.code]
    assert list(document) == ["code", "status", "error", "source"]
    expected = {
        Fault.CLIENT: range(400, 429),
        Fault.CAPACITY: (429, 503, 504),
        Fault.SERVER: (500,),
    }
    assert reply.status in expected[kind.fault]
    if kind.fault is Fault.SERVER:
        assert "what was wrong" not in document["error"]
    else:
        assert document["error"] == "what was wrong"
    assert (b"retry-after", b"1") in reply.headers or reply.status not in {429, 503}


def test_no_status_without_its_error():
    assert {kind.code for kind in EVERY_ERROR} == set(STATUS)


def test_a_token_is_asked_for():
    assert error_reply(errors.UnauthorizedError("x")).headers == ((b"www-authenticate", b"Bearer"),)
