"""The one module that talks to a registry, through ``oras`` and what that lacks.

Rules that hold here:
- Every request of ``oras`` goes through ``do_request``, which is ours: deadlines, bounded tries,
  redirects and credentials are decided there (``transport.py``, ``authorization.py``).
- A manifest is what its digest says, the one asked for or the one computed here; blobs are
  verified where they are written (``cache.py``).
- Imported only when a registry is really asked.
"""

import hashlib
import re
import time
from collections.abc import Callable, Mapping
from typing import Protocol
from urllib.parse import urlsplit

import orjson
import requests
from oras.container import Container
from oras.defaults import default_manifest_accepted_media_types
from oras.provider import Registry

from engine.publish.artifact import FetchError
from engine.publish.authorization import Authorizer, TokenRequest
from engine.publish.credentials import DOCKER_HUB, RegistryAccess
from engine.publish.manifest import Descriptor
from engine.publish.reference import RegistryReference, is_digest
from engine.publish.sockets import is_plain_http
from engine.publish.transport import (
    TRANSFER_ERRORS,
    Request,
    Transport,
    explain,
    jittered_s,
    origin,
)

__all__ = ["BlobSink", "RegistryClient", "problem"]

_API_HOSTS = {DOCKER_HUB: "registry-1.docker.io"}
_ACCEPT = ", ".join([*default_manifest_accepted_media_types, "*/*;q=0.1"])
_CHUNK_BYTES = 1 << 20
_RANGE_START = re.compile(r"bytes (\d{1,19})-")


class BlobSink(Protocol):
    """Where the bytes of a blob go; it may hold some from an earlier try."""

    @property
    def size_bytes(self) -> int:
        """Bytes it holds."""

    def write(self, chunk: bytes) -> None:
        """Append; raises FetchError when it does not fit."""

    def restart(self) -> None:
        """Drop everything."""


class RegistryClient(Registry):  # type: ignore[misc]  # oras has no types
    """One repository of one registry; used by one thread."""

    def __init__(self, reference: RegistryReference, access: RegistryAccess) -> None:
        """Prepare; nothing is sent but, on loopback, a look whether the registry speaks TLS.

        Args:
            reference: Names registry and repository.
            access: Credentials, trust, limits and whether plain http may be used.

        Raises:
            FetchError: The CA file or a credential helper cannot be used.
        """
        host = _API_HOSTS.get(reference.registry, reference.registry)
        self.limits = access.limits
        insecure = is_plain_http(host, asked=access.plain_http, timeout_s=self.limits.connect_s)
        super().__init__(hostname=host, insecure=insecure)
        self.credentials = access.credentials_for(reference)
        self._reference = reference
        self._ends_s = time.monotonic() + self.limits.pull_s
        self._container = Container("x", registry=host)
        self._container.repository = reference.repository
        self._transport = Transport(self.session, self.limits, access.ca_file)
        self._url = f"{self.prefix}://{host}"
        self._authorizer = Authorizer(self._url, self.credentials, self._fetch_token)
        self._scope = f"repository:{reference.repository}:pull"

    def log_in(self) -> None:
        """Find out whether the registry takes the credentials.

        Raises:
            FetchError: It refuses them, or is no registry.
        """
        self.begin()
        reply = self.do_request(f"{self._url}/v2/")
        if reply.status_code != 200:
            raise FetchError(f"{self.hostname}/v2/ answers {problem(reply)}; is it a registry?")

    def manifest(self, name: str) -> tuple[Descriptor, bytes] | None:
        """Fetch a manifest or index.

        Args:
            name: A tag or a digest.

        Returns:
            Its descriptor, with the digest computed here, and its bytes; None when there is none.

        Raises:
            FetchError: It cannot be had, or is not what a digest says.
        """
        self.begin()
        reply = self.do_request(self.manifest_url(name), headers={"Accept": _ACCEPT})
        if reply.status_code == 404:
            return None
        if reply.status_code != 200:
            raise FetchError(f"{self.named(name)}: {problem(reply)}")
        digest = f"sha256:{hashlib.sha256(reply.content).hexdigest()}"
        said = name if is_digest(name) else reply.headers.get("Docker-Content-Digest", digest)
        if said != digest:
            raise FetchError(
                f"{self.named(name)}: the registry calls {said[:100]!r} a manifest whose content "
                f"is {digest}; it is damaged or was changed"
            )
        media_type = reply.headers.get("Content-Type", "").partition(";")[0]
        return Descriptor(media_type, digest, len(reply.content), {}), reply.content

    def blob(self, blob: Descriptor, sink: BlobSink, progress: Callable[[int], None]) -> None:
        """Bring a blob into a sink, going on where a broken transfer ended.

        Args:
            blob: What the manifest says of it.
            sink: Takes the bytes and verifies them afterwards.
            progress: Told how many bytes the sink holds, often.

        Raises:
            FetchError: The registry does not send it, or not all of it.
        """
        failures = 0
        while sink.size_bytes < blob.size_bytes:
            before = sink.size_bytes
            try:
                self._stream(blob, sink, progress)
            except TRANSFER_ERRORS as error:
                got_on = sink.size_bytes - before >= self.limits.slow_bytes
                failures = 1 if got_on else failures + 1
                pause_s = jittered_s(failures)
                if failures >= self.limits.attempts or self.left_s() <= pause_s:
                    raise FetchError(
                        f"{self.named(blob.digest)}: the transfer broke off after "
                        f"{sink.size_bytes} of {blob.size_bytes} bytes: {explain(error)}"
                    ) from error
                time.sleep(pause_s)

    def begin(self, seconds: float | None = None) -> None:
        """Start the deadline of the next request; by default that of a small document."""
        self._transport.deadline.start(seconds or self.limits.document_s)

    def do_request(  # noqa: PLR0917  # the signature is that of oras
        self,
        url: str,
        method: str = "GET",
        data: object = None,
        headers: Mapping[str, str] | None = None,
        json: object = None,
        stream: bool = False,
    ) -> requests.Response:
        """Send a request, with credentials where they belong; replaces that of ``oras``.

        Args:
            url: Of this registry, or where it sends an upload to.
            method: HTTP method.
            data: Body: bytes, or a callable that opens a file for each attempt.
            headers: Besides ``Authorization``.
            json: Body, to be encoded.
            stream: Leave the body of the response unread.

        Returns:
            The response, of any status but 401.

        Raises:
            FetchError: The registry cannot be reached or refuses the credentials.
        """
        body = data if json is None else orjson.dumps(json)
        make_body = body if callable(body) or body is None else lambda: body
        is_ours = origin(url) == origin(self._url)
        for is_last in (False, True):
            sent = dict(headers or {})
            if is_ours and self._authorizer.header:
                sent["Authorization"] = self._authorizer.header
            reply = self._transport.send(
                Request(method, url, sent, make_body),
                is_streamed=stream,
                attempts=1 if callable(body) else None,
            )
            if reply.status_code != 401:
                return reply
            challenge = reply.headers.get("WWW-Authenticate", "")
            if is_last or not is_ours or origin(reply.url) != origin(self._url) or not challenge:
                break
            reply.close()
            self._authorizer.answer(challenge, self._scope)
        raise self._authorizer.refused(problem(reply))

    def _stream(self, blob: Descriptor, sink: BlobSink, progress: Callable[[int], None]) -> None:
        deadline = self._transport.deadline
        deadline.start(min(self.limits.document_s, self.left_s()))
        wanted = {"Range": f"bytes={sink.size_bytes}-"} if sink.size_bytes else {}
        with self.do_request(self.blob_url(blob.digest), headers=wanted, stream=True) as reply:
            if reply.status_code in (200, 416) or not _continues(reply, sink.size_bytes):
                sink.restart()
            if reply.status_code == 416 and wanted:
                return
            if reply.status_code not in (200, 206):
                raise FetchError(f"{self.named(blob.digest)}: {problem(reply)}")
            window_bytes = 0
            deadline.start(min(self.limits.slow_window_s, self.left_s()))
            while chunk := reply.raw.read1(_CHUNK_BYTES):
                sink.write(chunk)
                progress(sink.size_bytes)
                window_bytes += len(chunk)
                if window_bytes >= self.limits.slow_bytes:
                    window_bytes = 0
                    deadline.start(min(self.limits.slow_window_s, self.left_s()))
        if sink.size_bytes < blob.size_bytes:
            raise FetchError(
                f"{self.named(blob.digest)}: the registry sent {sink.size_bytes} bytes, its "
                f"manifest says {blob.size_bytes}"
            )

    def _fetch_token(self, asked: TokenRequest) -> bytes:
        headers = {"Authorization": asked.authorization} if asked.authorization else {}
        method, body = "GET", None
        if asked.form is not None:
            method, body = "POST", lambda: asked.form
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        reply = self._transport.send(Request(method, asked.url, headers, body), follow=False)
        if reply.status_code in (400, 401, 403):
            raise self._authorizer.refused(problem(reply))
        if reply.status_code != 200:
            raise FetchError(
                f"the token realm {urlsplit(asked.url).netloc} answers {problem(reply)}"
            )
        return reply.content

    def manifest_url(self, name: str) -> str:
        """Where a tag or digest of this repository is."""
        return f"{self.prefix}://{self._container.manifest_url(name)}"

    def blob_url(self, digest: str) -> str:
        """Where a blob of this repository is."""
        return f"{self.prefix}://{self._container.get_blob_url(digest)}"

    def upload_url(self) -> str:
        """Where an upload begins."""
        return f"{self.prefix}://{self._container.upload_blob_url()}"

    def left_s(self) -> float:
        """Seconds left for the whole pull or push."""
        return max(0.0, self._ends_s - time.monotonic())

    def named(self, name: str) -> str:
        """How a tag or digest of this repository is written, for messages."""
        mark = "@" if is_digest(name) else ":"
        return f"{self._reference.registry}/{self._reference.repository}{mark}{name}"


def _continues(reply: requests.Response, size_bytes: int) -> bool:
    """Whether a partial answer starts where the sink ends."""
    match = _RANGE_START.match(reply.headers.get("Content-Range", ""))
    return match is not None and int(match[1]) == size_bytes


def problem(reply: requests.Response) -> str:
    """Status and the registry's own words, for a message."""
    try:
        errors = orjson.loads(reply.content)["errors"]
        words = "; ".join(f"{item['code']}: {item.get('message', '')}" for item in errors)
    except (*TRANSFER_ERRORS, ValueError, KeyError, TypeError, AttributeError):
        words = ""
    shown = "".join(mark for mark in words if mark.isprintable())[:200]
    return f"HTTP {reply.status_code} {shown}".rstrip()
