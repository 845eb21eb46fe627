"""Opening the pipeline that ``PIPELINE_URL`` names, wherever it lies.

Rules that hold here:
- The definition is read before any layer is fetched: what cannot be run costs no download.
- A registry that cannot be reached, or sends what is not right, does not stop an engine whose
  cache holds the reference; the log says so. A bad signature or definition always stops it.
"""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import StartupError
from engine.publish.artifact import Artifact, FetchError, Progress, ReadModels, Report
from engine.publish.cache import ArtifactCache
from engine.publish.contents import fetch_layers, read_documents
from engine.publish.credentials import RegistryAccess
from engine.publish.directory import open_directory
from engine.publish.layout import BlobSource, OciLayout
from engine.publish.manifest import Descriptor
from engine.publish.reference import (
    DirectoryReference,
    LayoutReference,
    Reference,
    RegistryReference,
)
from engine.publish.signature import SignatureError, fetch_signatures, signature_tag

if TYPE_CHECKING:
    from engine.publish.remote import RemoteSource

__all__ = ["Inspection", "PullOptions", "inspect_artifact", "open_artifact"]

_SHORT_WAIT_S = 2.0  # for another writer of the cache, where the artifact is in it


@dataclass(frozen=True, slots=True, kw_only=True)
class PullOptions:
    """What opening an artifact needs beside its reference.

    Attributes:
        access: How registries are reached.
        cache_directory: Where pulled artifacts are kept, ``PERSIST_DIR/oci``.
        verify_key_file: ``VERIFY_KEY_FILE``; only artifacts with a signature of it are opened.
        in_use: Digests of manifests that the cache must not let go: the running publish.
        is_pulled_anew: Do not fall back to the cache when the registry fails.
    """

    access: RegistryAccess
    cache_directory: Path
    verify_key_file: Path | None = None
    in_use: Collection[str] = ()
    is_pulled_anew: bool = False


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a publish holds.

    Attributes:
        url: As it was asked for.
        digest: Of what the reference names; None for a plain directory.
        is_signed: Whether something lies where cosign keeps signatures; not whether it is valid.
        definition: The pipeline definition, JSON.
        annotations: Of the manifest.
        layers: Of the manifest.
    """

    url: str
    digest: str | None
    is_signed: bool
    definition: bytes
    annotations: Mapping[str, str]
    layers: tuple[Descriptor, ...]


def open_artifact(
    reference: Reference,
    *,
    options: PullOptions,
    read_models: ReadModels,
    report: Report,
    progress: Progress | None = None,
) -> Artifact:
    """Find, fetch where needed, and verify a published pipeline.

    Args:
        reference: From ``parse_reference``.
        options: Credentials, cache, signature key.
        read_models: Reads the definition and yields its models; it runs before any layer is
            fetched.
        report: Takes the documented start-up lines (reference page, "Edge Deployment").
        progress: Told how far the download of a layer is.

    Returns:
        The artifact, every byte verified.

    Raises:
        StartupError: It cannot be found, read or trusted.
    """
    opening = _Opening(options, read_models, report, progress or _no_progress)
    match reference:
        case LayoutReference():
            return opening.from_layout(reference)
        case DirectoryReference():
            if options.verify_key_file is not None:
                raise StartupError(
                    f"{reference} is a plain directory, which has no signature; VERIFY_KEY_FILE "
                    "asks for one"
                )
            return open_directory(reference, read_models=read_models, report=report)
        case RegistryReference():
            return opening.from_registry(reference)


def inspect_artifact(
    reference: Reference, *, options: PullOptions, read_models: ReadModels, report: Report
) -> Inspection:
    """Read a publish's manifest and definition, and none of its models.

    Args:
        reference: From ``parse_reference``.
        options: As for ``open_artifact``; the signature is checked where a key is given.
        read_models: Reads the definition.
        report: Takes remarks.

    Returns:
        What the publish holds.

    Raises:
        StartupError: It cannot be found, read or trusted.
    """
    opening = _Opening(options, read_models, report, _no_progress)
    if isinstance(reference, RegistryReference):
        cache = ArtifactCache(options.cache_directory, options.in_use)
        with opening.remote(reference, cache, may_wait=True) as source:
            return opening.inspect(reference, source, source.resolve())
    if isinstance(reference, LayoutReference):
        layout = OciLayout(reference.directory)
        layout.check()
        return opening.inspect(reference, layout, layout.select(reference))
    artifact = open_directory(reference, read_models=read_models, report=lambda _line: None)
    layers = tuple(Descriptor("", layer.digest, layer.size_bytes, {}) for layer in artifact.layers)
    return Inspection(str(reference), None, False, artifact.definition, {}, layers)


@dataclass(frozen=True, slots=True)
class _Opening:
    """One call of ``open_artifact``."""

    options: PullOptions
    read_models: ReadModels
    report: Report
    progress: Progress

    def from_layout(self, reference: LayoutReference) -> Artifact:
        layout = OciLayout(reference.directory)
        layout.check()
        self._announce(reference)
        return self._assemble(reference, layout, layout.select(reference))

    def from_registry(self, reference: RegistryReference) -> Artifact:
        cache = ArtifactCache(self.options.cache_directory, self.options.in_use)
        cached = cache.find(str(reference))
        if cached and reference.digest:  # what a digest names cannot have changed
            try:
                return self._from_cache(reference, cache, cached, "it is pinned by its digest")
            except (FetchError, SignatureError) as error:
                self.report(f"The cached artifact cannot be used: {error}")
        try:
            return self._pull(reference, cache, cached)
        except FetchError as error:
            if cached is None or self.options.is_pulled_anew:
                raise
            return self._from_cache(reference, cache, cached, str(error))

    def _from_cache(
        self, reference: RegistryReference, cache: ArtifactCache, entry: Descriptor, why: str
    ) -> Artifact:
        self.report(f"Starting from the cached artifact {entry.digest}: {why}")
        self._announce(reference)
        return self._assemble(reference, cache, entry)

    def _pull(
        self, reference: RegistryReference, cache: ArtifactCache, cached: Descriptor | None
    ) -> Artifact:
        may_wait = cached is None or self.options.is_pulled_anew
        if cached is not None:
            cache.in_use.add(cached.digest)
        with self.remote(reference, cache, may_wait=may_wait) as source:
            self._announce(reference)
            entry = source.resolve()
            artifact = self._assemble(reference, source, entry)
            if self.options.is_pulled_anew:
                fetch_signatures(source, entry)  # for who checks them later, without a network
            cache.keep({str(reference): entry, **source.signatures})
        return artifact

    @contextlib.contextmanager
    def remote(
        self, reference: RegistryReference, cache: ArtifactCache, *, may_wait: bool
    ) -> "Iterator[RemoteSource]":
        """Reach the registry, and hold the cache's lock."""
        # Imported here: an engine that serves from a directory, a layout or its cache needs none
        # of what talks to a registry, and starts a third of a second earlier.
        from engine.publish.remote import RemoteSource, connect  # noqa: PLC0415

        client = connect(reference, self.options.access, self.report, may_wait=may_wait)
        with cache.writing(self.report, client.left_s() if may_wait else _SHORT_WAIT_S):
            yield RemoteSource(client, cache, reference, self.progress)

    def inspect(self, reference: Reference, source: BlobSource, entry: Descriptor) -> Inspection:
        """Verify and read the documents of an artifact."""
        manifest, definition = read_documents(source, entry, self.options.verify_key_file)
        self.read_models(definition)
        return Inspection(
            str(reference),
            entry.digest,
            source.tagged(signature_tag(entry.digest)) is not None,
            definition,
            manifest.annotations,
            manifest.layers,
        )

    def _assemble(
        self, reference: LayoutReference | RegistryReference, source: BlobSource, entry: Descriptor
    ) -> Artifact:
        manifest, definition = read_documents(source, entry, self.options.verify_key_file)
        layers = fetch_layers(source, manifest, self.read_models(definition), self.report)
        return Artifact(str(reference), reference.tag, entry.digest, definition, layers)

    def _announce(self, reference: Reference) -> None:
        self.report(f"Fetching manifest and config for pipeline: {reference}")


def _no_progress(_digest: str, _done_bytes: int, _size_bytes: int) -> None:
    """Nobody looks."""
