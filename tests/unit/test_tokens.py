"""The file of bearer tokens."""

import os

import pytest

from engine import tokens
from engine.errors import UnauthorizedError
from engine.tokens import TokenFile


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "LOOK_AGAIN_S", 0.0)
    path = tmp_path / "tokens"
    path.write_text("# a note\n\n  one  \ntwo\n")
    return path


def accepts(accepted, header):
    try:
        accepted.check(header)
    except UnauthorizedError:
        return False
    return True


@pytest.mark.parametrize(
    "header", [b"Bearer one", b"bearer two", b" BEARER   one ", b"Bearer one "]
)
def test_accepted(file, header):
    assert accepts(TokenFile(file), header)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"Bearer",
        b"Bearer ",
        b"one",
        b"Basic one",
        b"Bearer on",
        b"Bearer onee",
        b"Bearer # a note",
        b"Bearer one two",
        b"Bearer \xff",
        b"Bearer one\ntwo",
    ],
)
def test_refused(file, header):
    assert not accepts(TokenFile(file), header)


def test_an_empty_file_accepts_nobody(file):
    file.write_text("# none\n")

    assert not accepts(TokenFile(file), b"Bearer ")


def test_the_file_is_read_again_when_it_changes(file):
    accepted = TokenFile(file)
    file.write_text("three\n")
    os.utime(file, ns=(1, 1))

    assert accepts(accepted, b"Bearer three")
    assert not accepts(accepted, b"Bearer one")


def test_a_file_that_is_gone_keeps_its_tokens(file):
    accepted = TokenFile(file)
    file.unlink()

    assert accepts(accepted, b"Bearer one")
    assert not accepts(accepted, b"Bearer three")


def test_what_is_wrong_with_the_file_is_said_once(file, caplog):
    accepted = TokenFile(file)
    file.unlink()
    accepts(accepted, b"Bearer one")
    accepts(accepted, b"Bearer one")
    file.write_text("# none\n")
    accepts(accepted, b"Bearer one")
    accepts(accepted, b"Bearer one")

    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "API_TOKEN_FILE cannot be read (No such file or directory)",
        "API_TOKEN_FILE holds no token",
    ]


def test_tokens_are_not_kept_as_text(file):
    accepted = TokenFile(file)

    assert "one" not in repr(vars(accepted)).replace(str(file), "")


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(OSError, match="nothing"):
        TokenFile(tmp_path / "nothing")
