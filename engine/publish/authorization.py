"""Answering a registry's 401: Basic, bearer tokens and anonymous access.

Rules that hold here:
- Credentials go to the registry's own host, and to a token realm of the same host or of a sibling
  under the same parent domain (auth.docker.io for registry-1.docker.io). A realm anywhere else is
  asked anonymously or not at all.
- A realm is https; plain http only where the registry itself is reached over plain http, or both
  are on loopback.
- A token is kept until the registry refuses it; a fresh one that is refused ends the request.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

import orjson

from engine.config.parsers import is_loopback
from engine.publish.artifact import RefusedError
from engine.publish.credentials import Credentials

__all__ = ["Authorizer", "TokenRequest"]

_CLIENT_ID = "sagitta"
_SHORTEST_DOMAIN = 4  # example.co.uk and example.org.uk share no owner, docker.io has one
_PARAMETER = re.compile(r'(\w+)="([^"]*)"')
_TOKEN = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """One request to a token realm.

    Attributes:
        url: The realm, with its query for a GET.
        authorization: Header value, or None; a secret.
        form: Body of a POST, urlencoded; None is a GET. It may hold a secret.
    """

    url: str
    authorization: str | None
    form: bytes | None

    def __repr__(self) -> str:
        return f"<token request to {urlsplit(self.url).netloc}>"


class Authorizer:
    """The ``Authorization`` header for one registry; used by one thread."""

    def __init__(
        self,
        registry_url: str,
        credentials: Credentials | None,
        fetch_token: Callable[[TokenRequest], bytes],
    ) -> None:
        """Start without a header; the first challenge decides its kind.

        Args:
            registry_url: Scheme and host, such as ``https://ghcr.io``.
            credentials: Of this registry; None is anonymous.
            fetch_token: Sends a token request, following no redirect; yields the reply's body.
        """
        self._registry_url = registry_url
        self._credentials = credentials
        self._fetch_token = fetch_token
        self.header: str | None = None

    def answer(self, challenge: str, scope: str | None) -> None:
        """Learn a new header from a challenge.

        Args:
            challenge: ``WWW-Authenticate`` of a 401.
            scope: Asked for when the challenge names none.

        Raises:
            RefusedError: Nothing can be answered, or it must not be sent there.
        """
        kind = challenge.split(" ", maxsplit=1)[0].lower()
        if kind == "basic":
            self.header = self._basic()
        elif kind == "bearer":
            self.header = self._bearer(challenge, scope)
        else:
            raise RefusedError(
                f"{self._host()} asks for {kind or 'no known'} authentication; "
                "known are Basic and Bearer"
            )

    def refused(self, problem: str = "HTTP 401") -> RefusedError:
        """What to raise when the registry or its realm does not take what it asked for."""
        if self._credentials is None:
            return RefusedError(
                f"{self._host()} refused anonymous access ({problem}); set OCI_USERNAME and "
                "OCI_PASSWORD, or log in with docker or podman"
            )
        source = self._credentials.source
        return RefusedError(f"{self._host()} refused the credentials of {source} ({problem})")

    def _basic(self) -> str:
        if self._credentials is None:
            raise RefusedError(
                f"{self._host()} asks for a user and password; set OCI_USERNAME and OCI_PASSWORD, "
                "or log in with docker or podman"
            )
        header = self._credentials.basic()
        if self._credentials.is_identity_token or header == self.header:
            raise self.refused()
        return header

    def _bearer(self, challenge: str, scope: str | None) -> str:
        asked = dict(_PARAMETER.findall(challenge))
        realm = asked.get("realm", "")
        wanted = {"service": asked.get("service"), "scope": asked.get("scope") or scope}
        query = {key: value for key, value in wanted.items() if value}
        self._check_realm(realm)
        reply = self._fetch_token(self._token_request(realm, query))
        try:
            document = orjson.loads(reply)
            token = document.get("token") or document.get("access_token")
        except (orjson.JSONDecodeError, AttributeError):
            token = None
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise RefusedError(f"the token realm of {self._host()} did not answer with a token")
        return f"Bearer {token}"

    def _token_request(self, realm: str, query: dict[str, str]) -> TokenRequest:
        credentials = self._credentials
        if credentials is not None and credentials.is_identity_token:
            form = {
                **query,
                "grant_type": "refresh_token",
                "client_id": _CLIENT_ID,
                "refresh_token": credentials.password.reveal(),
            }
            return TokenRequest(realm, None, urlencode(form).encode())
        mark = "&" if "?" in realm else "?"
        url = f"{realm}{mark}{urlencode(query)}" if query else realm
        return TokenRequest(url, credentials.basic() if credentials else None, None)

    def _check_realm(self, realm: str) -> None:
        registry = urlsplit(self._registry_url)
        try:
            parts = urlsplit(realm)
        except ValueError:  # brackets that hold no address
            parts = urlsplit("")
        host, registry_host = parts.hostname or "", registry.hostname or ""
        if not host or parts.username is not None or parts.scheme not in ("http", "https"):
            raise RefusedError(
                f"{self._host()} names a token realm that is not a URL: {realm[:200]!r}"
            )
        is_plain = parts.scheme == "http"
        both_local = is_loopback(host) and is_loopback(registry_host)
        if is_plain and not both_local and (registry.scheme, registry_host) != ("http", host):
            raise RefusedError(
                f"{self._host()} sends to the token realm {parts.netloc} over plain http; refused"
            )
        if self._credentials is not None and not _is_sibling(host, registry_host):
            raise RefusedError(
                f"{self._host()} asks that credentials be sent to {parts.netloc}, which is another "
                "host; refused"
            )

    def _host(self) -> str:
        return urlsplit(self._registry_url).netloc


def _is_sibling(host: str, registry_host: str) -> bool:
    """Whether a realm's host belongs to who runs the registry."""
    if host == registry_host:
        return True
    parent = registry_host.partition(".")[2]
    if "." not in parent or len(parent.split(".")[0]) < _SHORTEST_DOMAIN:
        return False
    return not parent.replace(".", "").isdecimal() and (
        host == parent or host.endswith(f".{parent}")
    )
