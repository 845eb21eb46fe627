"""What a client names, as it comes."""

import pyarrow.flight as fl
import pytest

from engine.errors import DecodeError
from engine.flight.descriptors import parse


@pytest.mark.parametrize(
    "content",
    [fl.FlightDescriptor.for_path("pipelines", "é"), fl.FlightDescriptor.for_command(b"\xff\xfe")],
    ids=["path", "command"],
)
def test_a_descriptor_is_read(content):
    assert parse(fl.FlightDescriptor, content.serialize()) == content


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (fl.FlightDescriptor, b"\x08\x01\x1a\x02\xff\xfe"),
        (fl.FlightDescriptor, b"\x08\x01\x1a\x01a\x1a\x01\xff"),
        (fl.Action, b"\x0a\x02\xff\xfe"),
    ],
)
def test_text_that_is_none_is_refused_without_a_line_of_the_library(kind, content, capfd):
    with pytest.raises(DecodeError, match="UTF-8"):
        parse(kind, content)

    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("content", [b"\x08\x01\x1a\x05a", b"\xff" * 12])
def test_nonsense_is_refused(content):
    with pytest.raises(DecodeError, match=r"no FlightDescriptor .*: expected is the path"):
        parse(fl.FlightDescriptor, content)
