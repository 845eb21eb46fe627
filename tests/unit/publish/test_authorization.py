import json

import pytest

from engine.config import Secret
from engine.publish.artifact import FetchError
from engine.publish.authorization import Authorizer
from engine.publish.credentials import Credentials

KNOWN = Credentials("edge", Secret("hunter2"), "OCI_USERNAME")
TOKEN = Credentials("<token>", Secret("refresh"), "helper")


def authorizer(url="https://registry.example.com", credentials=KNOWN, reply=b'{"token": "t"}'):
    sent = []

    def fetch(request):
        sent.append(request)
        return reply

    made = Authorizer(url, credentials, fetch)
    made.sent = sent
    return made


def test_basic():
    made = authorizer()
    made.answer('Basic realm="x"', None)

    assert made.header == KNOWN.basic()
    with pytest.raises(FetchError, match="refused the credentials of OCI_USERNAME"):
        made.answer('Basic realm="x"', None)


def test_bearer_asks_the_realm_with_service_and_scope():
    made = authorizer()
    made.answer(
        'Bearer realm="https://registry.example.com/t?x=1",service="s p",scope="repository:a:pull"',
        "repository:b:pull",
    )

    (sent,) = made.sent
    assert made.header == "Bearer t"
    assert sent.url == "https://registry.example.com/t?x=1&service=s+p&scope=repository%3Aa%3Apull"
    assert (sent.authorization, sent.form) == (KNOWN.basic(), None)
    assert "hunter2" not in repr(sent)
    assert KNOWN.basic() not in repr(sent)


def test_the_scope_is_ours_where_the_registry_names_none():
    made = authorizer(credentials=None, reply=b'{"access_token": "t"}')
    made.answer('Bearer realm="https://registry.example.com/t"', "repository:b:pull")

    (sent,) = made.sent
    assert sent.url == "https://registry.example.com/t?scope=repository%3Ab%3Apull"
    assert sent.authorization is None


def test_an_identity_token_is_posted():
    made = authorizer(credentials=TOKEN)
    made.answer('Bearer realm="https://registry.example.com/t",service="s"', "x")

    (sent,) = made.sent
    assert sent.form == (
        b"service=s&scope=x&grant_type=refresh_token&client_id=sagitta&refresh_token=refresh"
    )
    assert sent.authorization is None


@pytest.mark.parametrize(
    ("registry", "realm"),
    [
        ("https://registry.example.com", "https://registry.example.com:8443/t"),
        ("https://registry-1.docker.io", "https://auth.docker.io/token"),
        ("https://registry.gitlab.com", "https://gitlab.com/jwt/auth"),
        ("http://registry.example.com:5000", "http://registry.example.com:5001/t"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5001/t"),
        ("https://127.0.0.1:5000", "http://127.0.0.1:5001/t"),
    ],
)
def test_realms_that_may_have_credentials(registry, realm):
    made = authorizer(registry)
    made.answer(f'Bearer realm="{realm}"', None)

    assert made.sent[0].authorization == KNOWN.basic()


@pytest.mark.parametrize(
    ("registry", "realm"),
    [
        ("https://registry.example.com", "https://evil.com/t"),
        ("https://registry.example.com", "https://registry.example.com.evil.com/t"),
        ("https://registry.example.com", "https://registry.example.com@evil.com/t"),
        ("https://registry.example.com", "https://evilexample.com/t"),
        ("https://registry.example.com", "http://registry.example.com/t"),
        ("https://registry.example.com", "http://169.254.169.254/latest"),
        ("https://example.co.uk", "https://evil.co.uk/t"),
        ("https://a.com", "https://evil.com/t"),
        ("https://10.0.0.5", "https://10.0.0.6/t"),
        ("https://10.0.0.5", "https://evil.0.0.5/t"),
        ("http://localhost:5000", "http://127.0.0.1:5001/t"),
        ("http://registry.example.com", "http://auth.example.com/t"),
        ("https://registry.example.com", "ftp://registry.example.com/t"),
        ("https://registry.example.com", "//registry.example.com/t"),
        ("https://registry.example.com", "https://["),
    ],
)
def test_realms_that_may_not(registry, realm):
    made = authorizer(registry)

    with pytest.raises(FetchError, match=r"refused|not a URL"):
        made.answer(f'Bearer realm="{realm}"', None)
    assert made.sent == []


def test_a_foreign_realm_may_be_asked_anonymously():
    made = authorizer(credentials=None)
    made.answer('Bearer realm="https://auth.elsewhere.com/t"', None)

    assert made.sent[0].authorization is None


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"[]",
        b"{}",
        b'{"token": 7}',
        b'{"token": ""}',
        json.dumps({"token": "a\r\nb"}).encode(),
    ],
)
def test_a_realm_that_gives_no_token(reply):
    with pytest.raises(FetchError, match="did not answer with a token"):
        authorizer(reply=reply).answer('Bearer realm="https://registry.example.com/t"', None)


@pytest.mark.parametrize("challenge", ["", "Negotiate", 'Digest realm="x"'])
def test_other_authentication_is_named(challenge):
    with pytest.raises(FetchError, match="known are Basic and Bearer"):
        authorizer().answer(challenge, None)


def test_missing_credentials_are_asked_for():
    with pytest.raises(FetchError, match="set OCI_USERNAME and OCI_PASSWORD"):
        authorizer(credentials=None).answer('Basic realm="x"', None)
