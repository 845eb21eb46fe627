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

import orjson

from engine.errors import StartupError
from engine.publish.artifact import (
    Artifact,
    ArtifactLayer,
    ReadModels,
    Report,
    WantedModel,
    report_layer,
    version_of,
)
from engine.publish.manifest import (
    MAX_DOCUMENT_BYTES,
    Descriptor,
    is_index,
    layer_of,
    read_index,
    read_manifest,
    select_platform,
)
from engine.publish.reference import LayoutReference

__all__ = ["REF_NAME", "OciLayout", "open_layout"]

REF_NAME = "org.opencontainers.image.ref.name"
_MAX_INDEX_DEPTH = 4


class OciLayout:
    """The blobs and the index of one layout directory, read only."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def check(self) -> None:
        """Refuse a directory that is not an OCI image layout.

        Raises:
            StartupError: ``oci-layout`` is missing or of another version.
        """
        marker = self._read(self.directory / "oci-layout")
        try:
            version = orjson.loads(marker)["imageLayoutVersion"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            version = None
        if not isinstance(version, str) or not version.startswith("1."):
            raise StartupError(f"{self.directory}/oci-layout: imageLayoutVersion is not 1.x")

    def index(self) -> tuple[Descriptor, ...]:
        """The entries of ``index.json``."""
        return read_index(self._read(self.directory / "index.json"))

    def path(self, digest: str) -> Path:
        """Where the blob of a validated digest lies."""
        return self.directory / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def read(self, blob: Descriptor) -> bytes:
        """The bytes of a small blob (manifest, config), verified.

        Args:
            blob: What its manifest or index says of it.

        Returns:
            Its content.

        Raises:
            StartupError: It is missing, too large, or not what the descriptor says.
        """
        if blob.size_bytes > MAX_DOCUMENT_BYTES:
            raise StartupError(
                f"blob {blob.digest}: {blob.size_bytes} bytes is more than the "
                f"{MAX_DOCUMENT_BYTES} that a manifest or config may have"
            )
        path = self.path(blob.digest)
        content = self._read(path)
        _expect(blob, len(content), hashlib.sha256(content).hexdigest(), path)
        return content

    def verify(self, blob: Descriptor) -> Path:
        """Verify a blob of any size.

        Args:
            blob: What its manifest says of it.

        Returns:
            Its path.

        Raises:
            StartupError: It is missing or not what the descriptor says.
        """
        path = self.path(blob.digest)
        with self._open(path) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            same_size = size_bytes == blob.size_bytes
            sha = hashlib.file_digest(file, "sha256").hexdigest() if same_size else ""
        _expect(blob, size_bytes, sha, path)
        return path

    def _read(self, path: Path) -> bytes:
        with self._open(path) as file:
            content = file.read(MAX_DOCUMENT_BYTES + 1)
        if len(content) > MAX_DOCUMENT_BYTES:
            raise StartupError(f"{path} is larger than {MAX_DOCUMENT_BYTES} bytes")
        return content

    def _open(self, path: Path) -> io.BufferedReader:
        """Open a regular file of the layout, following no symbolic link below its directory."""
        try:
            for folder in path.relative_to(self.directory).parents[:-1]:
                if (self.directory / folder).is_symlink():
                    raise StartupError(f"{self.directory / folder} is a symbolic link; refused")
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            reason = "it is a symbolic link" if path.is_symlink() else error.strerror
            raise StartupError(f"cannot read {path}: {reason}") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise StartupError(f"cannot read {path}: it is not a regular file")
        return os.fdopen(descriptor, "rb")


def open_layout(reference: LayoutReference, *, read_models: ReadModels, report: Report) -> Artifact:
    """Find and verify an artifact in a layout.

    Args:
        reference: Directory, and tag or digest.
        read_models: Reads the definition before any layer is looked at.
        report: Takes the documented start-up lines.

    Returns:
        The artifact; its layers lie in the layout.

    Raises:
        StartupError: It is not there, or not what its descriptors say.
    """
    report(f"Fetching manifest and config for pipeline: {reference}")
    layout = OciLayout(reference.directory)
    layout.check()
    entry, document = _manifest(layout, _select(layout.index(), reference))
    return open_manifest(
        layout,
        str(reference),
        reference.tag,
        entry,
        document,
        read_models=read_models,
        report=report,
    )


def open_manifest(
    layout: OciLayout,
    url: str,
    version: str | None,
    entry: Descriptor,
    document: bytes,
    *,
    read_models: ReadModels,
    report: Report,
) -> Artifact:
    """Verify the config and the model layers of a manifest whose blobs lie in a layout.

    Args:
        layout: Holds the blobs.
        url: What the artifact is called.
        version: The tag, when there is one.
        entry: Of the manifest.
        document: The manifest, verified.
        read_models: Reads the definition before any layer is looked at.
        report: Takes the documented start-up lines.

    Returns:
        The artifact.

    Raises:
        StartupError: A blob is missing or not what its descriptor says.
    """
    manifest = read_manifest(document)
    definition = layout.read(manifest.config)
    models = read_models(definition)
    report("Fetching model layers")
    layers = []
    for model in models:
        blob = layer_of(model, manifest)
        layers.append(_layer(model, blob, layout.verify(blob)))
        report_layer(layers[-1], report)
    return Artifact(url, version, entry.digest, definition, tuple(layers))


def _layer(model: WantedModel, blob: Descriptor, path: Path) -> ArtifactLayer:
    sha = blob.digest.removeprefix("sha256:")
    return ArtifactLayer(
        digest=blob.digest,
        size_bytes=blob.size_bytes,
        filename=blob.annotations.get("filename") or sha,
        name=model.name,
        file_type="model",
        runtime="onnx",
        version=model.version or blob.annotations.get("version") or version_of(sha),
        path=path,
    )


def _select(entries: tuple[Descriptor, ...], reference: LayoutReference) -> Descriptor:
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
    raise StartupError(
        f"{reference}: {len(found)} artifacts of the layout fit; it holds {held}; "
        "name one as oci-layout:DIR:TAG"
    )


def _tag(entry: Descriptor) -> str | None:
    """The tag of an entry; some tools write the whole reference."""
    name = entry.annotations.get(REF_NAME)
    return name.rpartition(":")[2] if name else None


def _manifest(layout: OciLayout, entry: Descriptor) -> tuple[Descriptor, bytes]:
    """Follow nested indexes to the manifest for this machine."""
    for _ in range(_MAX_INDEX_DEPTH):
        document = layout.read(entry)
        if not is_index(document):
            return entry, document
        entry = select_platform(read_index(document), entry.digest)
    raise StartupError(f"{layout.directory}: indexes are nested more than {_MAX_INDEX_DEPTH} deep")


def _expect(blob: Descriptor, size_bytes: int, sha: str, path: Path) -> None:
    if size_bytes != blob.size_bytes:
        raise StartupError(
            f"{path} has {size_bytes} bytes, its descriptor says {blob.size_bytes}; "
            "the artifact is damaged or was changed"
        )
    if f"sha256:{sha}" != blob.digest:
        raise StartupError(
            f"{path} has the content of sha256:{sha}, its descriptor says {blob.digest}; "
            "the artifact is damaged or was changed"
        )
