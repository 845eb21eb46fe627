"""An OCI image layout on disk: finding an artifact in it and verifying every byte of it.

Rules that hold here:
- Nothing outside the directory is opened: names come from validated digests alone, and a symbolic
  link in their place is refused.
- No blob is used before its size and SHA-256 are what its descriptor says.
"""

import hashlib
import io
import os
import stat
from pathlib import Path
from typing import Protocol

import orjson

from engine.publish.artifact import FetchError
from engine.publish.manifest import (
    MAX_DOCUMENT_BYTES,
    Descriptor,
    read_index,
    select_platform,
)
from engine.publish.reference import LayoutReference

__all__ = ["REF_NAME", "BlobSource", "OciLayout", "expect_small"]

REF_NAME = "org.opencontainers.image.ref.name"


class BlobSource(Protocol):
    """Where the blobs of an artifact come from; whatever it yields is verified."""

    def manifest(self, entry: Descriptor) -> bytes:
        """The bytes of a manifest or index."""

    def read(self, blob: Descriptor) -> bytes:
        """The bytes of a small blob."""

    def path(self, digest: str) -> Path:
        """Where a blob lies, or will lie once it is fetched."""

    def fetch(self, blob: Descriptor) -> None:
        """Make sure that a blob of any size is there, whole and right."""

    def tagged(self, tag: str) -> Descriptor | None:
        """The manifest that a tag beside the artifact names."""


class OciLayout:
    """The blobs and the index of one layout directory, read only; a ``BlobSource``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def check(self) -> None:
        """Refuse a directory that is not an OCI image layout.

        Raises:
            FetchError: ``oci-layout`` is missing or of another version.
        """
        marker = self._read(self.directory / "oci-layout")
        try:
            version = orjson.loads(marker)["imageLayoutVersion"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            version = None
        if not isinstance(version, str) or not version.startswith("1."):
            raise FetchError(f"{self.directory}/oci-layout: imageLayoutVersion is not 1.x")

    def index(self) -> tuple[Descriptor, ...]:
        """The entries of ``index.json``."""
        return read_index(self._read(self.directory / "index.json"))

    def path(self, digest: str) -> Path:
        """Where the blob of a validated digest lies."""
        return self.directory / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def select(self, reference: LayoutReference) -> Descriptor:
        """The entry of the index that a reference means.

        Args:
            reference: Tag or digest, or neither where the layout holds one artifact.

        Returns:
            The entry.

        Raises:
            FetchError: None fits, or several do.
        """
        entries = self.index()
        found = [
            entry
            for entry in entries
            if reference.digest in (None, entry.digest) and reference.tag in (None, _tag(entry))
        ]
        if len({entry.digest for entry in found}) == 1:
            return found[0]
        if found and all(entry.platform for entry in found):
            return select_platform(found, str(reference))
        held = ", ".join(_tag(entry) or entry.digest for entry in entries) or "nothing"
        raise FetchError(
            f"{reference}: {len(found)} artifacts of the layout fit; it holds {held}; "
            "name one as oci-layout:DIR:TAG"
        )

    def tagged(self, tag: str) -> Descriptor | None:
        """The entry with a tag."""
        return next((entry for entry in self.index() if _tag(entry) == tag), None)

    def manifest(self, entry: Descriptor) -> bytes:
        """The bytes of a manifest or index, verified; see ``read``."""
        return self.read(entry)

    def read(self, blob: Descriptor) -> bytes:
        """The bytes of a small blob (manifest, config), verified.

        Args:
            blob: What its manifest or index says of it.

        Returns:
            Its content.

        Raises:
            FetchError: It is missing, too large, or not what the descriptor says.
        """
        expect_small(blob)
        path = self.path(blob.digest)
        content = self._read(path)
        _expect(blob, len(content), hashlib.sha256(content).hexdigest(), path)
        return content

    def fetch(self, blob: Descriptor) -> None:
        """Verify a blob of any size.

        Args:
            blob: What its manifest says of it.

        Raises:
            FetchError: It is missing or not what the descriptor says.
        """
        path = self.path(blob.digest)
        with self._open(path) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            same_size = size_bytes == blob.size_bytes
            sha = hashlib.file_digest(file, "sha256").hexdigest() if same_size else ""
        _expect(blob, size_bytes, sha, path)

    def _read(self, path: Path) -> bytes:
        with self._open(path) as file:
            content = file.read(MAX_DOCUMENT_BYTES + 1)
        if len(content) > MAX_DOCUMENT_BYTES:
            raise FetchError(f"{path} is larger than {MAX_DOCUMENT_BYTES} bytes")
        return content

    def _open(self, path: Path) -> io.BufferedReader:
        """Open a regular file of the layout, following no symbolic link below its directory."""
        try:
            for folder in path.relative_to(self.directory).parents[:-1]:
                if (self.directory / folder).is_symlink():
                    raise FetchError(f"{self.directory / folder} is a symbolic link; refused")
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            reason = "it is a symbolic link" if path.is_symlink() else error.strerror
            raise FetchError(f"cannot read {path}: {reason}") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise FetchError(f"cannot read {path}: it is not a regular file")
        return os.fdopen(descriptor, "rb")


def expect_small(blob: Descriptor) -> None:
    """Refuse a manifest or config that is too large to be one.

    Raises:
        FetchError: It is larger than 4 MiB.
    """
    if blob.size_bytes > MAX_DOCUMENT_BYTES:
        raise FetchError(
            f"blob {blob.digest}: {blob.size_bytes} bytes is more than the {MAX_DOCUMENT_BYTES} "
            "that a manifest or config may have"
        )


def _tag(entry: Descriptor) -> str | None:
    """The tag of an entry; some tools write the whole reference."""
    name = entry.annotations.get(REF_NAME)
    return name.rpartition(":")[2] if name else None


def _expect(blob: Descriptor, size_bytes: int, sha: str, path: Path) -> None:
    if size_bytes != blob.size_bytes:
        raise FetchError(
            f"{path} has {size_bytes} bytes, its descriptor says {blob.size_bytes}; "
            "the artifact is damaged or was changed"
        )
    if f"sha256:{sha}" != blob.digest:
        raise FetchError(
            f"{path} has the content of sha256:{sha}, its descriptor says {blob.digest}; "
            "the artifact is damaged or was changed"
        )
