"""Writing an OCI image layout: files appear whole or not at all.

Rules that hold here:
- A file appears under its final name after its bytes are on the disk, by one rename.
- A part file left behind is gone on with; its bytes are hashed again, since a power cut may have
  left anything in it.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import orjson

from engine.publish.artifact import FetchError
from engine.publish.layout import OciLayout
from engine.publish.manifest import INDEX_TYPE, Descriptor

__all__ = ["BlobFile", "WritableLayout"]

_CHUNK_BYTES = 1 << 20
_MARKER = b'{"imageLayoutVersion":"1.0.0"}'


class BlobFile:
    """The part file of one blob, while it is received."""

    def __init__(self, blob: Descriptor, part: Path, final: Path) -> None:
        """Open it.

        Args:
            blob: What the bytes must be in the end.
            part: Where they are collected.
            final: Where they appear when they are complete and verified.

        Raises:
            FetchError: The file cannot be opened.
        """
        self._blob = blob
        self._part = part
        self._final = final
        with self._explained():
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.fdopen(os.open(part, flags, 0o644), "r+b", buffering=0)
        self._hash = hashlib.sha256()
        # Hashing a chunk takes as long as receiving it: done beside the disk and the network, on a
        # thread, a pull is as quick as one that checks nothing. One chunk is ahead, no more.
        self._hasher = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sha256")
        self._hashing: Future[None] | None = None
        self.size_bytes = 0
        with self._explained():
            while chunk := self._file.read(_CHUNK_BYTES):
                self._hash.update(chunk)
                self.size_bytes += len(chunk)
        if self.size_bytes > blob.size_bytes:
            self.restart()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hasher.shutdown()
        self._file.close()

    def write(self, chunk: bytes) -> None:
        """Append.

        Raises:
            FetchError: There are more bytes than the manifest says, or the disk does not take them.
        """
        if self.size_bytes + len(chunk) > self._blob.size_bytes:
            self.restart()
            raise FetchError(
                f"blob {self._blob.digest}: more bytes are sent than the {self._blob.size_bytes} "
                "that its manifest says"
            )
        self._hashed()
        self._hashing = self._hasher.submit(self._hash.update, chunk)
        with self._explained():
            view = memoryview(chunk)
            while view:
                view = view[self._file.write(view) :]
        self.size_bytes += len(chunk)

    def restart(self) -> None:
        """Drop everything that is there."""
        with self._explained():
            self._file.seek(0)
            self._file.truncate()
        self._hashed()
        self._hash = hashlib.sha256()
        self.size_bytes = 0

    def commit(self) -> None:
        """Give the blob its name, now that ``digest`` is what the manifest says."""
        assert self.digest == self._blob.digest, "committed unverified. This is a bug."  # noqa: S101
        with self._explained():
            os.fsync(self._file.fileno())
            self._part.rename(self._final)
            _sync_folder(self._final.parent)

    @property
    def digest(self) -> str:
        """Digest of what is there."""
        self._hashed()
        return f"sha256:{self._hash.hexdigest()}"

    def _hashed(self) -> None:
        """Wait for the hasher."""
        if self._hashing is not None:
            self._hashing.result()
            self._hashing = None

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FetchError(f"cannot write {self._part}: {error.strerror}") from error


class WritableLayout(OciLayout):
    """A layout that blobs and index entries are added to, by one writer at a time."""

    def make_folders(self) -> None:
        """Make the directory and what lies in it, where it is missing."""
        (self.directory / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
        (self.directory / "ingest").mkdir(exist_ok=True)

    def mark(self) -> None:
        """Make the directory a layout, an empty one, where it is none yet."""
        if not (self.directory / "oci-layout").exists():
            self.write_index([])
            _replace_file(self.directory / "oci-layout", _MARKER)

    def part(self, blob: Descriptor) -> Path:
        """Where a blob is collected until it is complete."""
        return self.directory / "ingest" / f"{blob.digest.removeprefix('sha256:')}.part"

    def open_part(self, blob: Descriptor) -> BlobFile:
        """Open the part file of a blob; it may hold bytes of an earlier writer."""
        return BlobFile(blob, self.part(blob), self.path(blob.digest))

    def entries(self) -> list[Descriptor]:
        """The index; one that is absent or damaged has no entries, and is written anew."""
        try:
            return list(self.index())
        except FetchError:
            return []

    def write_index(self, entries: Sequence[Descriptor]) -> None:
        """Replace the index.

        Raises:
            FetchError: The disk does not take it.
        """
        document = {
            "schemaVersion": 2,
            "mediaType": INDEX_TYPE,
            "manifests": [entry.to_json() for entry in entries],
        }
        _replace_file(self.directory / "index.json", orjson.dumps(document))


def _replace_file(path: Path, content: bytes) -> None:
    """Write a small file whole, or leave the old one."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise FetchError(f"cannot write {path}: {error.strerror}") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
