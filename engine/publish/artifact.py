"""A published pipeline that was found and verified: the records that the other files here share.

Rules that hold here:
- A layer is what its digest says; annotations only help to find it.
- Parts meet as plain values: what a definition says of its models arrives as ``WantedModel``.
"""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from engine.errors import StartupError

__all__ = [
    "Artifact",
    "ArtifactLayer",
    "FetchError",
    "Progress",
    "ReadModels",
    "RefusedError",
    "Report",
    "WantedModel",
    "report_layer",
    "version_of",
]

Report = Callable[[str], None]
"""Takes one line for the log."""

Progress = Callable[[str, int, int], None]
"""Told, often: the digest of the blob on its way, the bytes that are here, and those of all."""


class FetchError(StartupError):
    """Bytes of an artifact could not be had, or are not what their digest says."""


class RefusedError(FetchError):
    """A registry answered, and asking again will not change the answer."""


class WantedModel(Protocol):
    """What a definition says of one model, as far as finding its file goes."""

    @property
    def name(self) -> str:
        """The model's name."""

    @property
    def version(self) -> str | None:
        """Its version, when the definition has one."""

    @property
    def sha(self) -> str | None:
        """SHA-256 of its file, when the definition has it."""

    @property
    def file(self) -> str | None:
        """Its file in a plain directory, when the definition names one."""


ReadModels = Callable[[bytes], Sequence[WantedModel]]
"""Reads the definition and yields its models; raises StartupError when it cannot be run."""


@dataclass(frozen=True, slots=True)
class ArtifactLayer:
    """One model file, verified.

    Attributes:
        digest: ``sha256:`` and 64 hexadecimal digits, of the file's content.
        size_bytes: Of the file.
        filename: As the artifact has it; the sha when it has none.
        name: The model's name.
        file_type: Always ``model``.
        runtime: Always ``onnx``.
        version: The model's version; made from the sha when nothing gives one.
        path: The file. It is opened by path, so that a model never reads outside its folder.
    """

    digest: str
    size_bytes: int
    filename: str
    name: str
    file_type: str
    runtime: str
    version: str
    path: Path

    @property
    def sha(self) -> str:
        """SHA-256 of the file, 64 hexadecimal digits."""
        return self.digest.removeprefix("sha256:")


@dataclass(frozen=True, slots=True)
class Artifact:
    """One published pipeline.

    Attributes:
        url: As ``PIPELINE_URL`` had it.
        version: The tag; None when the reference has none.
        digest: Of what the reference names (manifest or index); None for a plain directory.
        definition: The pipeline definition, JSON.
        layers: One for each model of the definition, in its order.
    """

    url: str
    version: str | None
    digest: str | None
    definition: bytes
    layers: tuple[ArtifactLayer, ...]


def version_of(sha: str) -> str:
    """The version of a model to which nobody gave one: a UUID made from its sha."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"sha256:{sha}"))


def report_layer(layer: ArtifactLayer, report: Report) -> None:
    """The documented start-up lines of one layer; ``  Fetched`` follows when it is verified."""
    report(f"digest: {layer.digest}")
    report(f"  filename: {layer.filename}")
    report(f"  name: {layer.name}")
    report(f"  type: {layer.file_type}")
    report(f"  runtime: {layer.runtime}")
    report(f"  version: {layer.version}")
