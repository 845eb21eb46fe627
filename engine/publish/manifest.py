"""Manifests and indexes of the OCI image specification, read strictly from JSON.

Rules that hold here:
- A digest is ``sha256:`` and 64 lower-case hexadecimal digits before it is used for anything.
- Any media type is accepted: what identifies a layer is its annotations and its digest.
"""

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import orjson

from engine.publish.artifact import FetchError, WantedModel
from engine.publish.reference import is_digest

__all__ = [
    "INDEX_TYPE",
    "MANIFEST_TYPE",
    "MAX_DOCUMENT_BYTES",
    "Descriptor",
    "Manifest",
    "is_index",
    "layer_of",
    "read_index",
    "read_manifest",
    "select_platform",
]

INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
MAX_DOCUMENT_BYTES = 4 << 20  # the limit that registries themselves put on a manifest
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_TITLE = "org.opencontainers.image.title"


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a manifest or index says of one blob.

    Attributes:
        media_type: As given; may be empty.
        digest: Validated, ``sha256:…``.
        size_bytes: At least 0.
        annotations: Those whose values are strings.
        platform: ``os/architecture`` of an index entry; None when it has none.
    """

    media_type: str
    digest: str
    size_bytes: int
    annotations: Mapping[str, str]
    platform: str | None = None

    def to_json(self) -> dict[str, object]:
        """The descriptor as an index or manifest holds it."""
        value: dict[str, object] = {
            "mediaType": self.media_type or "application/octet-stream",
            "digest": self.digest,
            "size": self.size_bytes,
        }
        if self.annotations:
            value["annotations"] = dict(self.annotations)
        if self.platform:
            system, _, architecture = self.platform.partition("/")
            value["platform"] = {"os": system, "architecture": architecture}
        return value


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image manifest: the pipeline definition is its config, the models are its layers."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str]


def is_index(document: bytes) -> bool:
    """Whether the document lists manifests rather than being one."""
    return "manifests" in _object(document, "manifest")


def read_index(document: bytes) -> tuple[Descriptor, ...]:
    """The entries of an image index.

    Args:
        document: ``index.json`` or a nested index.

    Returns:
        Its entries, in order.

    Raises:
        FetchError: It is not an index.
    """
    return _descriptors(_object(document, "index"), "manifests", "index")


def read_manifest(document: bytes) -> Manifest:
    """Read an image manifest.

    Args:
        document: The manifest, JSON.

    Returns:
        Its config, layers and annotations.

    Raises:
        FetchError: It is not a manifest, or one of its digests or sizes is not valid.
    """
    manifest = _object(document, "manifest")
    config = _descriptor(manifest.get("config"), "manifest: config")
    layers = _descriptors(manifest, "layers", "manifest")
    return Manifest(config, layers, _printable(_annotations(manifest)))


def select_platform(entries: Sequence[Descriptor], where: str) -> Descriptor:
    """The entry of an index for this machine; its only one, or the one of this architecture.

    Args:
        entries: Of one index.
        where: What the entries are, for the error.

    Returns:
        The entry.

    Raises:
        FetchError: None fits, or several do.
    """
    if len(entries) == 1:
        return entries[0]
    wanted = f"linux/{_ARCHITECTURES.get(platform.machine(), platform.machine())}"
    fitting = [entry for entry in entries if entry.platform == wanted]
    if len(fitting) == 1:
        return fitting[0]
    held = ", ".join(entry.platform or "no platform" for entry in entries) or "none"
    raise FetchError(f"{where}: {len(fitting)} of its manifests are for {wanted} (it has {held})")


def layer_of(model: WantedModel, manifest: Manifest) -> Descriptor:
    """The layer that holds a model: by sha, else by name and version.

    Args:
        model: What the definition says of the model.
        manifest: Of the artifact.

    Returns:
        The layer.

    Raises:
        FetchError: No layer holds it, or more than one might.
    """
    if model.sha is not None:
        found = {layer.digest: layer for layer in manifest.layers if layer.digest[7:] == model.sha}
    else:
        found = {layer.digest: layer for layer in manifest.layers if _is_called(layer, model)}
    if len(found) == 1:
        return next(iter(found.values()))
    what = " ".join(text for text in (model.version, model.sha and f"sha {model.sha}") if text)
    held = ", ".join(f"{_name(layer)} {layer.digest}" for layer in manifest.layers) or "none"
    raise FetchError(
        f"the artifact has {len(found)} layers for model {model.name!r} {what}; it holds {held}"
    )


def _is_called(layer: Descriptor, model: WantedModel) -> bool:
    version = layer.annotations.get("version")
    fits = version is None or model.version is None or version == model.version
    return fits and _name(layer) == model.name


def _name(layer: Descriptor) -> str | None:
    title = layer.annotations.get(_TITLE, "")
    return layer.annotations.get("name") or title.removesuffix(".onnx") or None


def _object(document: bytes, where: str) -> dict[str, object]:
    try:
        value = orjson.loads(document)
    except orjson.JSONDecodeError as error:
        raise FetchError(f"{where} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise FetchError(f"{where} is not a JSON object")
    return value


def _descriptors(value: dict[str, object], key: str, where: str) -> tuple[Descriptor, ...]:
    items = value.get(key)
    if not isinstance(items, list):
        raise FetchError(f"{where}: {key} is not an array")
    return tuple(_descriptor(item, f"{where}: {key}[{place}]") for place, item in enumerate(items))


def _descriptor(value: object, where: str) -> Descriptor:
    if not isinstance(value, dict):
        raise FetchError(f"{where} is not an object")
    digest, size_bytes = value.get("digest"), value.get("size")
    if not isinstance(digest, str) or not is_digest(digest):
        raise FetchError(
            f"{where}: digest {str(digest)[:100]!r} is not sha256: and 64 lower-case hexadecimal "
            "digits"
        )
    if type(size_bytes) is not int or size_bytes < 0:
        raise FetchError(f"{where}: size {str(size_bytes)[:100]!r} is not a number of bytes")
    annotations = _annotations(value)
    for key in ("filename", _TITLE):
        if key in annotations and not _is_file_name(annotations[key]):
            raise FetchError(f"{where}: {key} {annotations[key][:100]!r} is not a file name")
    system = value.get("platform")
    return Descriptor(
        media_type=str(value.get("mediaType") or ""),
        digest=digest,
        size_bytes=size_bytes,
        annotations=_printable(annotations),
        platform=f"{system.get('os')}/{system.get('architecture')}"
        if isinstance(system, dict)
        else None,
    )


def _is_file_name(text: str) -> bool:
    """Whether a name stays where it is put; no file is ever named by it, it is only shown."""
    parts = text.split("/")
    return text.isprintable() and len(text) <= 255 and "" not in parts and ".." not in parts


def _annotations(value: dict[str, object]) -> dict[str, str]:
    found = value.get("annotations")
    items = found.items() if isinstance(found, dict) else ()
    return {key: text for key, text in items if isinstance(text, str)}


def _printable(annotations: dict[str, str]) -> dict[str, str]:
    """They are shown on terminals and in logs, which control characters would steer."""
    return {
        key: _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", annotations[key]) for key in annotations
    }
