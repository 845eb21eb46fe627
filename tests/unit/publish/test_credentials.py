import base64
import json

import pytest

from engine.config import Secret
from engine.publish.artifact import FetchError
from engine.publish.credentials import (
    Credentials,
    Limits,
    RegistryAccess,
    credential_files,
    find_credentials,
)
from engine.publish.reference import parse_reference

REFERENCE = parse_reference("registry.example.com:5000/team/project/p:1")


def auth(user, password):
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def found(tmp_path, document, reference=REFERENCE):
    path = tmp_path / "config.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    credentials = find_credentials(reference, [tmp_path / "absent.json", path])
    return credentials and (credentials.username, credentials.password.reveal())


@pytest.mark.parametrize(
    ("auths", "expected"),
    [
        ({"registry.example.com:5000": auth("u", "p")}, ("u", "p")),
        ({"https://registry.example.com:5000/v2/": auth("u", "p:q")}, ("u", "p:q")),
        ({"registry.example.com:5000/team": auth("t", "p")}, ("t", "p")),
        (
            {
                "registry.example.com:5000": auth("host", "p"),
                "registry.example.com:5000/team/project": auth("path", "p"),
            },
            ("path", "p"),
        ),
        ({"registry.example.com:5000": {"identitytoken": "t"}}, ("", "t")),
        ({"registry.example.com": auth("u", "p")}, None),
        ({"registry.example.com:5000.evil.com": auth("u", "p")}, None),
        ({"registry.example.com:5000/tea": auth("u", "p")}, None),
        ({"registry.example.com:5000": {"auth": "%%%"}}, None),
        ({"registry.example.com:5000": {"auth": 7}}, None),
        ({"registry.example.com:5000": {"auth": "éééé"}}, None),
        ({"registry.example.com:5000": "x"}, None),
        ([], None),
    ],
)  # fmt: skip
def test_files_of_docker_and_podman(tmp_path, auths, expected):
    assert found(tmp_path, {"auths": auths}) == expected


@pytest.mark.parametrize("text", ["", "{", "[]", "7"])
def test_a_file_that_cannot_be_read_says_nothing(tmp_path, text):
    assert found(tmp_path, text) is None


def test_docker_hub_has_a_key_of_its_own(tmp_path):
    auths = {"https://index.docker.io/v1/": auth("u", "p")}

    assert found(tmp_path, {"auths": auths}, parse_reference("docker.io/team/p:1")) == ("u", "p")


@pytest.fixture
def helper(tmp_path, monkeypatch):
    """Installs a credential helper that runs a shell script."""

    def install(script):
        path = tmp_path / "bin" / "docker-credential-test"
        path.parent.mkdir()
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")

    return install


@pytest.mark.parametrize(
    "document",
    [{"credsStore": "test"}, {"credHelpers": {"registry.example.com:5000": "test"}}],
)
def test_helpers_are_asked(tmp_path, helper, document):
    helper('read host; echo "{\\"Username\\": \\"$1 $host\\", \\"Secret\\": \\"s\\"}"')

    assert found(tmp_path, document) == ("get registry.example.com:5000", "s")


def test_a_helper_that_knows_nothing(tmp_path, helper):
    helper("echo credentials not found in native keychain; exit 1")

    assert found(tmp_path, {"credsStore": "test"}) is None


@pytest.mark.parametrize("script", ["echo hello", "echo '{}'"])
def test_a_helper_that_talks_nonsense(tmp_path, helper, script):
    helper(script)

    with pytest.raises(FetchError, match="docker-credential-test did not answer"):
        found(tmp_path, {"credsStore": "test"})


def test_a_helper_that_is_not_installed(tmp_path):
    with pytest.raises(FetchError, match="docker-credential-absent cannot be used"):
        found(tmp_path, {"credsStore": "absent"})


@pytest.mark.parametrize("name", ["../x", "a b", "x;y", ""])
def test_a_helper_is_only_ever_a_plain_name(tmp_path, name):
    assert found(tmp_path, {"credsStore": name}) is None


def test_explicit_credentials_are_for_their_registry_alone(tmp_path):
    mine = Credentials("u", Secret("p"), "OCI_USERNAME")

    assert RegistryAccess(credentials=mine).credentials_for(REFERENCE) == mine
    here = RegistryAccess(credentials=mine, registry="registry.example.com:5000")
    assert here.credentials_for(REFERENCE) == mine
    https = parse_reference("registry.example.com/p:1")
    same = RegistryAccess(credentials=mine, registry="registry.example.com:443")
    assert same.credentials_for(https) == mine
    other = RegistryAccess(credentials=mine, registry="registry.example.com")
    assert other.credentials_for(REFERENCE) is None


def test_where_files_are_looked_for():
    environ = {"HOME": "/h", "XDG_RUNTIME_DIR": "/r", "REGISTRY_AUTH_FILE": "/a.json"}

    assert [str(path) for path in credential_files(environ)] == [
        "/a.json",
        "/h/.docker/config.json",
        "/r/containers/auth.json",
        "/h/.config/containers/auth.json",
    ]
    assert str(credential_files({"DOCKER_CONFIG": "/d"})[0]) == "/d/config.json"
    assert credential_files({}) == ()


def test_a_password_is_not_printed():
    credentials = Credentials("u", Secret("hunter2"), "OCI_USERNAME")

    assert "hunter2" not in repr(credentials)
    assert credentials.basic() == "Basic " + base64.b64encode(b"u:hunter2").decode()


def test_haste_only_shortens():
    assert Limits().hasty() == Limits(connect_s=2.0, document_s=7.0, attempts=2)
    assert Limits(connect_s=1, document_s=1, attempts=1).hasty().document_s == 1
