"""What a caller is told of an error."""

import orjson
import pytest

from engine.errors import DecodeError, InferenceFailedError
from engine.refusal import refusal_of


def test_a_text_that_is_long_for_a_header_is_cut():
    refusal = refusal_of(DecodeError("€" * 10_000))

    assert refusal.text == "€" * 666 + "…"
    assert orjson.loads(refusal.body)["error"] == refusal.text


def test_a_text_that_is_no_unicode_is_told_all_the_same():
    refusal = refusal_of(DecodeError("column '\ud800'"))

    assert orjson.loads(refusal.body)["error"] == "column '?'"


@pytest.mark.parametrize(
    "error", [InferenceFailedError("/secret/path"), ValueError("/secret/path")]
)
def test_a_server_fault_is_told_in_the_log_alone(error, caplog):
    refusal = refusal_of(error)

    assert "secret" not in refusal.text
    assert refusal.status == 500
    request_id = refusal.text.rpartition(" ")[2]
    assert request_id in caplog.text
    assert "/secret/path" in caplog.text


def test_an_error_is_told_in_the_same_words_again_and_logged_once(caplog):
    error = InferenceFailedError("no such shape")

    assert refusal_of(error) == refusal_of(error)
    assert len(caplog.records) == 1
