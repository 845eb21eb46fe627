"""How registries are reached, and whose password goes where.

Rules that hold here:
- Credentials belong to one registry host; they are never looked up for, or offered to, another.
- A password is a ``Secret`` from the moment it is read; a helper gets the host on its standard
  input and is the only program that is ever run here.
"""

import base64
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import orjson

from engine.config.values import Secret
from engine.publish.artifact import FetchError
from engine.publish.reference import RegistryReference

__all__ = [
    "DOCKER_HUB",
    "Credentials",
    "Limits",
    "RegistryAccess",
    "credential_files",
    "find_credentials",
]

DOCKER_HUB = "docker.io"
_DOCKER_HUB_KEY = "https://index.docker.io/v1/"
_HELPER_NAME = re.compile(r"[A-Za-z0-9._-]+")
_HELPER_TIMEOUT_S = 10
_MAX_FILE_BYTES = 1 << 20
_TOKEN_USER = "<token>"  # noqa: S105  # the word with which helpers mark an identity token


@dataclass(frozen=True, slots=True)
class Credentials:
    """What one registry host is told.

    Attributes:
        username: Empty for an identity token.
        password: The password, or the identity token.
        source: Where they were found, for messages.
    """

    username: str
    password: Secret
    source: str

    @property
    def is_identity_token(self) -> bool:
        """Whether the password is an OAuth refresh token, spent at the token realm only."""
        return self.username in ("", _TOKEN_USER)

    def basic(self) -> str:
        """The value of an ``Authorization`` header; a secret."""
        pair = f"{self.username}:{self.password.reveal()}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a registry is waited for.

    Attributes:
        connect_s: For a TCP connection and its TLS handshake.
        document_s: For one manifest, config, token or upload step, all attempts together.
        pull_s: For a whole pull; large, because a model over a slow link takes hours.
        slow_window_s: A transfer that brings less than ``slow_bytes`` in this time is broken off.
        slow_bytes: See ``slow_window_s``.
        attempts: Tries of one request, and tries in a row of a transfer that gets nowhere.
    """

    connect_s: float = 5.0
    document_s: float = 30.0
    pull_s: float = 12 * 3600.0
    slow_window_s: float = 30.0
    slow_bytes: int = 32 << 10
    attempts: int = 5

    def hasty(self) -> "Limits":
        """The same, for a registry that need not be waited for since there is a cached artifact.

        An edge without a network is then up in under 3 s, and one behind a registry that dribbles
        in under 10 s.
        """
        return replace(
            self,
            connect_s=min(self.connect_s, 2.0),
            document_s=min(self.document_s, 7.0),
            attempts=min(self.attempts, 2),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryAccess:
    """How registries are reached.

    Attributes:
        registry: ``OCI_REGISTRY``: the host, with a port if any, that ``credentials`` are for;
            None is the host of the reference.
        credentials: ``OCI_USERNAME`` and ``OCI_PASSWORD``.
        files: Where else credentials are looked for, from ``credential_files``.
        ca_file: ``OCI_CA_FILE``: PEM certificates trusted beside the usual ones.
        plain_http: ``OCI_PLAIN_HTTP``; loopback needs no asking.
        limits: How long a registry is waited for.
    """

    registry: str | None = None
    credentials: Credentials | None = None
    files: tuple[Path, ...] = ()
    ca_file: Path | None = None
    plain_http: bool = False
    limits: Limits = Limits()

    def credentials_for(self, reference: RegistryReference) -> Credentials | None:
        """The credentials of one registry; those of another one are not offered to it."""
        if self.credentials and not self.is_for_another(reference):
            return self.credentials
        return find_credentials(reference, self.files)

    def is_for_another(self, reference: RegistryReference) -> bool:
        """Whether ``OCI_REGISTRY`` says that the credentials are for another registry."""
        hosts = {host.removesuffix(":443") for host in (self.registry, reference.registry) if host}
        return len(hosts) > 1


def credential_files(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """The files in which Docker and Podman keep credentials, the most specific first.

    Args:
        environ: The environment.

    Returns:
        Paths; they need not exist.
    """
    home = environ.get("HOME")
    runtime = environ.get("XDG_RUNTIME_DIR")
    docker = environ.get("DOCKER_CONFIG") or (f"{home}/.docker" if home else None)
    found = (
        environ.get("REGISTRY_AUTH_FILE"),
        f"{docker}/config.json" if docker else None,
        f"{runtime}/containers/auth.json" if runtime else None,
        f"{home}/.config/containers/auth.json" if home else None,
    )
    return tuple(Path(path) for path in found if path)


def find_credentials(reference: RegistryReference, files: Sequence[Path]) -> Credentials | None:
    """Look up what the files say about a repository.

    Args:
        reference: Its registry and repository.
        files: From ``credential_files``.

    Returns:
        Credentials of the first file that has some; None for anonymous access.

    Raises:
        FetchError: A helper was named for the registry and failed.
    """
    for path in files:
        document = _read(path)
        found = _from_auths(document, reference, path) or _from_helper(document, reference)
        if found is not None:
            return found
    return None


def _read(path: Path) -> Mapping[str, object]:
    """A credential file; one that is absent, unreadable or not JSON says nothing."""
    try:
        with path.open("rb") as file:
            document = orjson.loads(file.read(_MAX_FILE_BYTES))
    except (OSError, orjson.JSONDecodeError):
        return {}
    return document if isinstance(document, dict) else {}


def _from_auths(
    document: Mapping[str, object], reference: RegistryReference, path: Path
) -> Credentials | None:
    entries = _mapping(document, "auths")
    by_name = {_bare(key): value for key, value in entries.items()}
    for name in _names(reference):
        entry = by_name.get(name)
        if not isinstance(entry, dict):
            continue
        token = entry.get("identitytoken")
        if isinstance(token, str) and token:
            return Credentials("", Secret(token), str(path))
        pair = _decode(entry.get("auth"))
        if pair is not None:
            return Credentials(pair[0], Secret(pair[1]), str(path))
    return None


def _from_helper(
    document: Mapping[str, object], reference: RegistryReference
) -> Credentials | None:
    helpers = {_bare(key): value for key, value in _mapping(document, "credHelpers").items()}
    helper = helpers.get(reference.registry, document.get("credsStore"))
    if not isinstance(helper, str) or not _HELPER_NAME.fullmatch(helper):
        return None
    server = _DOCKER_HUB_KEY if reference.registry == DOCKER_HUB else reference.registry
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run(  # noqa: S603  # a name of letters, from the user's own file
            [program, "get"],
            input=server.encode(),
            capture_output=True,
            timeout=_HELPER_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FetchError(f"credential helper {program} cannot be used: {error}") from error
    if done.returncode != 0:
        return None  # helpers end with 1 for "not found"
    try:
        answer = orjson.loads(done.stdout)
        return Credentials(answer["Username"], Secret(answer["Secret"]), program)
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise FetchError(f"credential helper {program} did not answer with credentials") from None


def _names(reference: RegistryReference) -> Iterator[str]:
    """Keys that fit a repository, longest first; Podman writes some with a path."""
    parts = reference.repository.split("/")
    for count in range(len(parts), 0, -1):
        yield "/".join([reference.registry, *parts[:count]])
    yield reference.registry


def _bare(key: str) -> str:
    if key == _DOCKER_HUB_KEY:
        return DOCKER_HUB
    bare = key.removeprefix("https://").removeprefix("http://").rstrip("/")
    host, _, path = bare.partition("/")
    return host.lower() if path in ("", "v1", "v2") else f"{host.lower()}/{path}"


def _mapping(document: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = document.get(key)
    return value if isinstance(value, dict) else {}


def _decode(auth: object) -> tuple[str, str] | None:
    if not isinstance(auth, str) or not auth:
        return None
    try:
        user, colon, password = base64.b64decode(auth).decode().partition(":")
    except ValueError:  # not base64, or not of UTF-8
        return None
    return (user, password.rstrip("\x00")) if colon else None
