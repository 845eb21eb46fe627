"""Pulled artifacts on disk: an OCI image layout that any tool can read, shared between versions.

Rules that hold here:
- A blob appears under its digest only when every byte of it is there, verified and on the disk;
  until then it is a part file, which a later pull goes on with.
- ``index.json`` names an artifact only when all its blobs are there; its entries are ordered, the
  latest used first. Killed at any moment, the next start finds the old state or the new one.
- Writers hold one lock; readers need none and write nothing.
- Old publishes leave first; never the one just opened, nor one that is in use.
"""

import contextlib
import fcntl
import os
import re
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from engine.errors import StartupError
from engine.publish.artifact import FetchError, Report
from engine.publish.blobfile import BlobFile, WritableLayout
from engine.publish.layout import REF_NAME
from engine.publish.manifest import (
    Descriptor,
    is_index,
    read_index,
    read_manifest,
)
from engine.publish.signature import signature_tag

__all__ = ["ArtifactCache"]

_KEPT_PUBLISHES = 4  # the running one and what to go back to; blobs that they share count once
_LOCK_PAUSE_S = 0.2
_SIGNATURE = re.compile(r":sha256-[0-9a-f]{64}\.sig$")


class ArtifactCache(WritableLayout):
    """The cache below one directory; engines that run one after another may share it."""

    def __init__(self, directory: Path, in_use: Collection[str] = ()) -> None:
        """Look at a cache; nothing is made yet.

        Args:
            directory: ``PERSIST_DIR/oci``.
            in_use: Digests of manifests that must stay, whatever else has to go.
        """
        super().__init__(directory)
        self.in_use = set(in_use)

    def find(self, name: str) -> Descriptor | None:
        """What a complete reference was resolved to when it was last pulled; None is nothing."""
        return next((entry for entry in self.entries() if _name(entry) == name), None)

    @contextlib.contextmanager
    def writing(self, report: Report, wait_s: float) -> Iterator[None]:
        """Hold the writers' lock, after making the directory where it is missing.

        Args:
            report: Told when another process holds the lock.
            wait_s: How long to wait for it.

        Raises:
            FetchError: The directory cannot be written, or another process does not end writing.
        """
        try:
            self.make_folders()
            lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise FetchError(
                f"cannot keep artifacts in {self.directory}: {error.strerror}; PERSIST_DIR must be "
                "writable"
            ) from error
        try:
            self._wait_for(lock, report, wait_s)
            self.mark()
            yield
        finally:
            os.close(lock)

    def receive(self, blob: Descriptor, needed: Collection[str]) -> BlobFile:
        """Open the part file of a blob; it may hold bytes of an earlier pull. The lock is held.

        Args:
            blob: What the manifest says of it.
            needed: Digests of blobs that this pull has brought already.

        Returns:
            The file, to be used as a context manager.

        Raises:
            FetchError: The disk has no room for the blob, even without the old publishes.
        """
        part = self.part(blob)
        missing_bytes = blob.size_bytes - (part.stat().st_size if part.exists() else 0)
        if self._free_bytes() < missing_bytes <= self._free_bytes() + self._held_bytes():
            self._shrink(self.entries(), 0, {*needed, blob.digest})
        if self._free_bytes() < missing_bytes:
            raise FetchError(
                f"blob {blob.digest} needs {missing_bytes} bytes more, {self.directory} has "
                f"{self._free_bytes()} free"
            )
        return self.open_part(blob)

    def keep(self, entries: Mapping[str, Descriptor]) -> None:
        """Name artifacts whose blobs are all there, and let old ones go. The lock is held.

        Args:
            entries: Complete reference to manifest; a publish, and its signature if it has one.
        """
        named = [replace(entry, annotations={REF_NAME: name}) for name, entry in entries.items()]
        others = [item for item in self.entries() if _name(item) not in entries]
        self._shrink([*named, *others], _KEPT_PUBLISHES)

    def _shrink(self, entries: list[Descriptor], count: int, needed: Collection[str] = ()) -> None:
        """Keep the first publishes, those in use, their signatures and blobs; drop the rest."""
        signatures = [item for item in entries if _SIGNATURE.search(_name(item))]
        publishes = [item for item in entries if item not in signatures]
        kept = [
            item
            for place, item in enumerate(publishes)
            if place < count or item.digest in self.in_use
        ]
        tags = {signature_tag(item.digest) for item in kept}
        kept += [item for item in signatures if _name(item).rpartition(":")[2] in tags]
        self.write_index(kept)
        reachable = set(needed)
        for item in kept:
            self._reach(item, reachable)
        for path in (self.directory / "blobs" / "sha256").iterdir():
            if f"sha256:{path.name}" not in reachable:
                _remove(path)
        for path in (self.directory / "ingest").iterdir():
            if f"sha256:{path.stem}" not in needed:
                _remove(path)

    def _reach(self, blob: Descriptor, reachable: set[str]) -> None:
        """Collect what a manifest or index needs; what cannot be read needs nothing."""
        reachable.add(blob.digest)
        try:
            document = self.read(blob)
            if is_index(document):
                for entry in read_index(document):
                    self._reach(entry, reachable)
                return
            manifest = read_manifest(document)
        except StartupError:
            return
        reachable.update(item.digest for item in (manifest.config, *manifest.layers))

    def _free_bytes(self) -> int:
        return shutil.disk_usage(self.directory).free

    def _held_bytes(self) -> int:
        blobs = (self.directory / "blobs" / "sha256").iterdir()
        return sum(path.lstat().st_size for path in blobs)

    def _wait_for(self, lock: int, report: Report, wait_s: float) -> None:
        is_told = False
        ends_s = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not is_told:
                    report(f"Another process writes to {self.directory}; waiting for it")
                is_told = True
                if time.monotonic() >= ends_s:
                    raise FetchError(
                        f"another process writes to {self.directory} and did not end within "
                        f"{wait_s:g} s"
                    ) from None
                time.sleep(_LOCK_PAUSE_S)
            except OSError:
                return  # some network file systems have no locks; then one writer is up to the user
            else:
                return


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # room that cannot be had back stops nothing
        path.unlink()


def _name(entry: Descriptor) -> str:
    return entry.annotations.get(REF_NAME, "")
