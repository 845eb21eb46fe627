"""What a published pipeline holds, read from wherever its blobs lie.

Rules that hold here:
- Signature, manifest, config, layers: each is verified before the next is asked for.
- An index leads to the manifest for this machine.
"""

from collections.abc import Sequence
from pathlib import Path

from engine.publish.artifact import (
    ArtifactLayer,
    FetchError,
    Report,
    WantedModel,
    report_layer,
    version_of,
)
from engine.publish.layout import BlobSource
from engine.publish.manifest import (
    Descriptor,
    Manifest,
    is_index,
    layer_of,
    read_index,
    read_manifest,
    select_platform,
)
from engine.publish.signature import verify_signature

__all__ = ["fetch_layers", "read_documents"]

_MAX_INDEX_DEPTH = 4


def read_documents(
    source: BlobSource, entry: Descriptor, verify_key_file: Path | None
) -> tuple[Manifest, bytes]:
    """Read everything but the models.

    Args:
        source: Where the blobs come from.
        entry: The manifest, or an index that leads to it.
        verify_key_file: Whose signature of the entry there must be; None asks for none.

    Returns:
        The manifest and the pipeline definition, JSON.

    Raises:
        SignatureError: There is no such signature.
        FetchError: They cannot be had, or are not what they should be.
    """
    if verify_key_file is not None:
        verify_signature(source, entry, verify_key_file)
    manifest = read_manifest(_manifest(source, entry))
    return manifest, source.read(manifest.config)


def fetch_layers(
    source: BlobSource, manifest: Manifest, models: Sequence[WantedModel], report: Report
) -> tuple[ArtifactLayer, ...]:
    """Fetch the files of the models.

    Args:
        source: Where the blobs come from.
        manifest: Has the layers.
        models: What the definition says of them.
        report: Takes the documented start-up lines (reference page, "Edge Deployment").

    Returns:
        A layer for each model, in their order, verified.

    Raises:
        FetchError: One cannot be had, or is not what it should be.
    """
    report("Fetching model layers")
    layers = []
    for model in models:
        blob = layer_of(model, manifest)
        layers.append(_layer(model, blob, source.path(blob.digest)))
        report_layer(layers[-1], report)
        source.fetch(blob)
        report("  Fetched")
    return tuple(layers)


def _manifest(source: BlobSource, entry: Descriptor) -> bytes:
    """Follow indexes to the manifest for this machine."""
    for _ in range(_MAX_INDEX_DEPTH):
        document = source.manifest(entry)
        if not is_index(document):
            return document
        entry = select_platform(read_index(document), entry.digest)
    raise FetchError(f"{entry.digest}: indexes are nested more than {_MAX_INDEX_DEPTH} deep")


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
