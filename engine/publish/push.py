"""Publishing: a definition and its models packed as an OCI artifact, and sent to where it belongs.

Rules that hold here:
- Blobs first, the manifest last: a publish that was cut off is no publish.
- The manifest is made once, as bytes; its digest is that of the very bytes that are sent.
"""

import contextlib
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import orjson

from engine.errors import StartupError
from engine.publish.artifact import ArtifactLayer
from engine.publish.blobfile import WritableLayout
from engine.publish.layout import REF_NAME, OciLayout
from engine.publish.manifest import (
    MANIFEST_TYPE,
    Descriptor,
    is_index,
    read_index,
    read_manifest,
)
from engine.publish.reference import LayoutReference, RegistryReference
from engine.publish.signature import PAYLOAD_TYPE, SIGNATURE_ANNOTATION, sign, signature_tag

__all__ = ["PackedArtifact", "copy_to_layout", "pack", "pack_signature", "write_to_layout"]

ARTIFACT_TYPE = "application/vnd.sagitta.pipeline.v1+json"
CONFIG_TYPE = "application/vnd.sagitta.pipeline.config.v1+json"
MODEL_TYPE = "application/vnd.sagitta.model.v1.onnx"
_IMAGE_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class PackedArtifact:
    """A manifest and the blobs that it names.

    Attributes:
        entry: Descriptor of the manifest.
        manifest: Its bytes.
        blobs: Descriptor and content, in memory or in a file, of config and layers.
    """

    entry: Descriptor
    manifest: bytes
    blobs: tuple[tuple[Descriptor, bytes | Path], ...]


def pack(
    definition: bytes, layers: Sequence[ArtifactLayer], annotations: Mapping[str, str]
) -> PackedArtifact:
    """Pack a pipeline as an image manifest v1.1.

    Args:
        definition: The pipeline definition, JSON.
        layers: One for each model.
        annotations: Of the manifest.

    Returns:
        The artifact, not yet sent anywhere.
    """
    models = [
        Descriptor(
            MODEL_TYPE,
            layer.digest,
            layer.size_bytes,
            {
                "filename": layer.filename,
                "name": layer.name,
                "runtime": layer.runtime,
                "version": layer.version,
                "sagitta_file_type": layer.file_type,
                "org.opencontainers.image.title": f"{layer.sha}.onnx",
            },
        )
        for layer in layers
    ]
    files = [(model, layer.path) for model, layer in zip(models, layers, strict=True)]
    return _pack((_blob(CONFIG_TYPE, definition), definition), files, annotations, ARTIFACT_TYPE)


def pack_signature(
    packed: PackedArtifact, target: RegistryReference | LayoutReference, key_file: Path
) -> PackedArtifact:
    """Sign an artifact; see ``signature.py``.

    Args:
        packed: What is signed.
        target: Where it is published.
        key_file: PEM private key.

    Returns:
        The signature's manifest, to be kept under ``signature_tag`` beside the artifact.

    Raises:
        StartupError: The key cannot be used.
    """
    match target:
        case RegistryReference():
            repository = f"{target.registry}/{target.repository}"
        case LayoutReference():
            repository = target.directory.name
    payload, signature = sign(packed.entry.digest, repository, key_file)
    layer = replace(_blob(PAYLOAD_TYPE, payload), annotations={SIGNATURE_ANNOTATION: signature})
    config = orjson.dumps(
        {
            "architecture": "",
            "os": "",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
        }
    )
    return _pack((_blob(_IMAGE_CONFIG_TYPE, config), config), [(layer, payload)], {}, None)


def write_to_layout(packed: PackedArtifact, directory: Path, tag: str) -> None:
    """Write an artifact into an OCI image layout, beside what is there.

    Args:
        packed: The artifact.
        directory: The layout; made where it is missing.
        tag: Names it; another artifact of that tag loses the tag.

    Raises:
        StartupError: The directory cannot be written, or a model file changed meanwhile.
    """
    layout = WritableLayout(directory)
    try:
        layout.make_folders()
    except OSError as error:
        raise StartupError(f"cannot write {directory}: {error.strerror}") from error
    layout.mark()
    layout.check()
    for blob, content in (*packed.blobs, (packed.entry, packed.manifest)):
        _write(layout, blob, content)
    with contextlib.suppress(OSError):  # somebody else's part file
        (directory / "ingest").rmdir()
    others = [entry for entry in layout.index() if entry.annotations.get(REF_NAME) != tag]
    layout.write_index([*others, replace(packed.entry, annotations={REF_NAME: tag})])


def copy_to_layout(
    source: OciLayout, entry: Descriptor, signature: Descriptor | None, target: LayoutReference
) -> None:
    """Copy an artifact, and its signature if it has one, as it is: digests stay the same.

    Args:
        source: The cache, or another layout.
        entry: The artifact's manifest or index.
        signature: The manifest of its signatures.
        target: The layout, and the tag there.

    Raises:
        StartupError: It cannot be read or written.
    """
    named = [(entry, target.tag or "latest")]
    if signature is not None:
        named.append((signature, signature_tag(entry.digest)))
    for manifest, tag in named:
        packed = PackedArtifact(manifest, source.read(manifest), tuple(_contents(source, manifest)))
        write_to_layout(packed, target.directory, tag)


def _contents(source: OciLayout, entry: Descriptor) -> Iterator[tuple[Descriptor, bytes | Path]]:
    """What a manifest names, or those manifests of an index that were pulled name."""
    document = source.read(entry)
    if not is_index(document):
        manifest = read_manifest(document)
        blobs = [manifest.config, *manifest.layers]
    else:
        blobs = list(read_index(document))
    for blob in blobs:
        path = source.path(blob.digest)
        if path.exists():
            if is_index(document):
                yield from _contents(source, blob)
            yield blob, path


def _write(layout: WritableLayout, blob: Descriptor, content: bytes | Path) -> None:
    with layout.open_part(blob) as file, _open(content) as source:
        file.restart()
        while chunk := source.read(_CHUNK_BYTES):
            file.write(chunk)
        if file.digest != blob.digest:
            raise StartupError(f"{content!s} changed while it was published")
        file.commit()


def _open(content: bytes | Path) -> io.BufferedIOBase:
    return io.BytesIO(content) if isinstance(content, bytes) else content.open("rb")


def _pack(
    config: tuple[Descriptor, bytes],
    layers: Sequence[tuple[Descriptor, bytes | Path]],
    annotations: Mapping[str, str],
    artifact_type: str | None,
) -> PackedArtifact:
    manifest: dict[str, object] = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE}
    if artifact_type is not None:
        manifest["artifactType"] = artifact_type
    manifest["config"] = config[0].to_json()
    manifest["layers"] = [layer.to_json() for layer, _ in layers]
    if annotations:
        manifest["annotations"] = dict(annotations)
    document = orjson.dumps(manifest)
    return PackedArtifact(_blob(MANIFEST_TYPE, document), document, (config, *layers))


def _blob(media_type: str, content: bytes) -> Descriptor:
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    return Descriptor(media_type, digest, len(content), {})
