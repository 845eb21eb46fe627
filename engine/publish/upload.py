"""Sending a packed artifact to a registry."""

import io
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from engine.publish.artifact import FetchError, Progress, RefusedError
from engine.publish.manifest import MANIFEST_TYPE, Descriptor
from engine.publish.push import PackedArtifact
from engine.publish.registry import RegistryClient, problem
from engine.publish.transport import jittered_s, join_url

__all__ = ["push_artifact"]


def push_artifact(
    client: RegistryClient, packed: PackedArtifact, tag: str, progress: Progress
) -> None:
    """Upload the blobs that the repository lacks, then the manifest.

    Args:
        client: Of the repository.
        packed: The artifact.
        tag: Names it.
        progress: Told how far the upload of a blob is.

    Raises:
        FetchError: The registry does not take it, or has something else afterwards.
    """
    for blob, content in packed.blobs:
        _push_blob(client, blob, content, progress)
    client.begin()
    reply = client.do_request(
        client.manifest_url(tag), "PUT", packed.manifest, {"Content-Type": MANIFEST_TYPE}
    )
    if reply.status_code != 201:
        raise FetchError(f"{client.named(tag)}: cannot be pushed: {problem(reply)}")
    there = client.manifest(tag)
    if there is None or there[0].digest != packed.entry.digest:
        raise FetchError(
            f"{client.named(tag)}: the registry took the manifest and has another one now; "
            "does somebody else publish under this tag?"
        )


def _push_blob(
    client: RegistryClient, blob: Descriptor, content: bytes | Path, progress: Progress
) -> None:
    client.begin()
    if client.do_request(client.blob_url(blob.digest), "HEAD").status_code == 200:
        progress(blob.digest, blob.size_bytes, blob.size_bytes)
        return
    make_body: Callable[[], io.IOBase]
    if isinstance(content, bytes):
        make_body = partial(io.BytesIO, content)
    else:
        make_body = partial(_CountedFile, content, blob, progress)
    for attempt in range(1, client.limits.attempts + 1):
        try:
            _upload(client, blob, make_body)
        except RefusedError:
            raise
        except FetchError:
            pause_s = jittered_s(attempt)
            if attempt == client.limits.attempts or client.left_s() < pause_s:
                raise
            time.sleep(pause_s)
        else:
            return


def _upload(client: RegistryClient, blob: Descriptor, make_body: Callable[[], io.IOBase]) -> None:
    """Upload in one piece: ask where to, then stream the file there."""
    client.begin()
    reply = client.do_request(client.upload_url(), "POST")
    location = reply.headers.get("Location", "")
    if reply.status_code == 202 and location:
        url = join_url(reply.url, location)
        url = f"{url}{'&' if '?' in url else '?'}digest={blob.digest}"
        client.begin(client.left_s())
        headers = {"Content-Type": "application/octet-stream"}
        reply = client.do_request(url, "PUT", make_body, headers)
    if reply.status_code != 201:
        raise RefusedError(f"{client.named(blob.digest)}: cannot be pushed: {problem(reply)}")


class _CountedFile(io.FileIO):
    """A file that tells how much of it was read."""

    def __init__(self, path: Path, blob: Descriptor, progress: Progress) -> None:
        super().__init__(path, "rb")
        self._blob = blob
        self._progress = progress

    def read(self, size: int | None = -1) -> bytes:
        """Read as a file does."""
        chunk = super().read(-1 if size is None else size) or b""
        self._progress(self._blob.digest, self.tell(), self._blob.size_bytes)
        return chunk
