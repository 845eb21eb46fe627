"""A head is known again only where the parser would have said the same of it."""

import pytest

from engine.rest.inference import CallHead
from engine.rest.known_head import MAX_KNOWN_BYTES, KnownHead
from engine.rest.media import BodyKind

CALL = CallHead(None, BodyKind.JSON, BodyKind.JSON, None)
HEAD = b"POST /infer HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nAccept: */*\r\n\r\n"


def learn(data):
    return KnownHead.learn(data, CALL, b"Bearer t")


def body_of(known, data, before=b""):
    """What is found where other bytes lie before and behind."""
    start = known.find_body(bytearray(before + data + b"56789"), len(before), len(before + data))
    return (before + data)[start:] if start else None


def with_length(text, body):
    return HEAD.replace(b": 5", b": " + text) + body


def test_knows_the_same_head_with_another_length():
    known = learn(HEAD + b"12345")

    assert body_of(known, HEAD + b"abcde") == b"abcde"
    assert body_of(known, with_length(b"12", b"abcdefghijkl")) == b"abcdefghijkl"
    assert body_of(known, with_length(b"0", b"")) == b""
    assert body_of(known, HEAD + b"abcde", before=HEAD) == b"abcde"
    assert (known.call, known.authorization) == (CALL, b"Bearer t")


@pytest.mark.parametrize("spelling", [b"content-length:5", b"CONTENT-LENGTH: 5"])
def test_learns_however_the_length_is_spelled(spelling):
    head = HEAD.replace(b"Content-Length: 5", spelling)

    assert body_of(learn(head + b"12345"), head + b"abcde") == b"abcde"


@pytest.mark.parametrize(
    "data",
    [
        HEAD + b"abcd",
        HEAD + b"abcdef",
        HEAD + b"abcde" + HEAD,
        HEAD[:-1],
        HEAD[:40],
        b"",
        HEAD.replace(b"/infer", b"/inferx") + b"abcde",
        HEAD.replace(b"Host: a", b"Host: b") + b"abcde",
        HEAD.replace(b"*/*", b"*/json") + b"abcde",
        HEAD.replace(b"Accept", b"accept") + b"abcde",
        HEAD.replace(b"\r\n\r\n", b"\r\nA: b\r\n\r\n") + b"abcde",
        with_length(b"+5", b"abcde"),
        with_length(b"-5", b"abcde"),
        with_length(b"5 ", b"abcde"),
        with_length(b"5,5", b"abcde"),
        with_length(b"0x5", b"abcde"),
        with_length(b"", b""),
        with_length(b"5\nX: y", b"abcde"),
        with_length(b"5\r\nContent-Length: 5", b"abcde"),
        with_length(b"0000000005", b"abcde"),
    ],
)
@pytest.mark.parametrize("before", [b"", HEAD])
def test_leaves_everything_else_to_the_parser(data, before):
    assert body_of(learn(HEAD + b"12345"), data, before) is None


@pytest.mark.parametrize(
    "data",
    [
        HEAD,
        HEAD + b"1234",
        HEAD + b"12345" + HEAD + b"12345",
        HEAD.replace(b"Content-Length: 5\r\n", b"") + b"12345",
        HEAD.replace(b"\r\n\r\n", b"\r\nA: " + b"b" * MAX_KNOWN_BYTES + b"\r\n\r\n") + b"12345",
        with_length(b"  5", b"12345"),
    ],
)
def test_learns_only_from_one_whole_request_with_a_plain_length(data):
    assert learn(data) is None
