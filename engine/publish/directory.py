"""A pipeline in a plain directory: ``pipeline.json`` and the model files beside it.

Rules that hold here:
- A file named by the definition stays inside the directory, also through symbolic links.
- Where the definition gives a sha the file must have it; where it gives none it is computed.
"""

import hashlib
from pathlib import Path

from engine.publish.artifact import (
    Artifact,
    ArtifactLayer,
    FetchError,
    ReadModels,
    Report,
    WantedModel,
    report_layer,
    version_of,
)
from engine.publish.manifest import MAX_DOCUMENT_BYTES
from engine.publish.reference import DirectoryReference

__all__ = ["find_model", "open_directory", "read_definition_file"]


def open_directory(
    reference: DirectoryReference, *, read_models: ReadModels, report: Report
) -> Artifact:
    """Find and verify the pipeline of a plain directory.

    Args:
        reference: The directory.
        read_models: Reads the definition.
        report: Takes the documented start-up lines.

    Returns:
        The artifact; it has no version and no digest of its own.

    Raises:
        FetchError: ``pipeline.json`` or a model file is missing, outside, or not what the
            definition says.
    """
    report(f"Fetching manifest and config for pipeline: {reference}")
    root = reference.directory
    definition = read_definition_file(reference)
    models = read_models(definition)
    report("Fetching model layers")
    layers = []
    for model in models:
        layers.append(find_model(root, model))
        report_layer(layers[-1], report)
        report("  Fetched")
    return Artifact(str(reference), None, None, definition, tuple(layers))


def read_definition_file(reference: DirectoryReference) -> bytes:
    """The definition of a plain directory, as it is.

    Raises:
        FetchError: It is missing or too large.
    """
    path = _inside(reference.directory, reference.definition)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as error:
        raise FetchError(f"cannot read {path}: {error.strerror}") from error
    if len(content) > MAX_DOCUMENT_BYTES:
        raise FetchError(f"{path} is larger than {MAX_DOCUMENT_BYTES} bytes")
    return content


def find_model(root: Path, model: WantedModel) -> ArtifactLayer:
    """Find and verify the file of one model.

    Args:
        root: The directory.
        model: What the definition says of it.

    Returns:
        The layer that it would be.

    Raises:
        FetchError: It is missing, outside, or another one.
    """
    path = _find(root, model)
    try:
        with path.open("rb") as file:
            sha = hashlib.file_digest(file, "sha256").hexdigest()
            size_bytes = file.tell()
    except OSError as error:
        raise FetchError(f"cannot read {path}: {error.strerror}") from error
    if model.sha not in (None, sha):
        raise FetchError(
            f"{path} has the sha {sha}, its definition says {model.sha} for model {model.name!r}; "
            "the file is damaged or another one"
        )
    return ArtifactLayer(
        digest=f"sha256:{sha}",
        size_bytes=size_bytes,
        filename=path.name,
        name=model.name,
        file_type="model",
        runtime="onnx",
        version=model.version or version_of(sha),
        path=path,
    )


def _find(root: Path, model: WantedModel) -> Path:
    """The model's file: by ``file``, which then must be there, else by sha, else by name."""
    names = [model.file] if model.file else [model.sha, f"{model.name}.onnx"]
    candidates = [_inside(root, name) for name in names if name]
    for path in candidates:
        try:
            if path.is_file():
                return path
        except OSError as error:  # a name that is too long
            raise FetchError(f"{path.name[:80]!r}… is no file name: {error.strerror}") from error
    looked_for = ", ".join(name for name in names if name)
    raise FetchError(f"{root} holds no file for model {model.name!r}; looked for {looked_for}")


def _inside(root: Path, name: str) -> Path:
    path = root / name
    try:
        if path.resolve().is_relative_to(root.resolve()):
            return path
    except (OSError, RuntimeError, ValueError) as error:  # a link loop, a null byte
        raise FetchError(f"{name!r} is not a file name in {root}") from error
    raise FetchError(f"{name!r} leads out of {root}; model files must lie inside it")
