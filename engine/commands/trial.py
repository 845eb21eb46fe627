"""Trying a model before it is published: is it whole, does it load, does it run.

Rule that holds here: a model is tried alone in an empty folder, as an edge will find it, so that
one that keeps its weights in other files is noticed here and not there.
"""

import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from engine.codecs.arrow_ipc import read_arrow
from engine.codecs.json_body import read_json
from engine.codecs.tensors import to_tensor
from engine.errors import EngineError, StartupError
from engine.pipeline.definition import ModelVersion
from engine.publish.artifact import ArtifactLayer
from engine.publish.progress import format_bytes
from engine.sessions.onnx_header import read_onnx_header
from engine.sessions.opening import ModelOptions
from engine.sessions.session import ModelSession
from engine.values import Frame, ModelIdentity, TensorSpec

__all__ = ["Sample", "Trial", "read_sample", "try_model"]

_ARROW_MAGIC = (b"ARROW1", b"\xff\xff\xff\xff")


@dataclass(frozen=True, slots=True)
class Sample:
    """A request body to try a model with, and what it is called."""

    name: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Trial:
    """What trying a model told.

    Attributes:
        session: The model, loaded and warm; its inputs have the names of the request columns.
        tensor_fields: Request columns for the model's inputs; None where they have its names.
        lines: For people.
    """

    session: ModelSession
    tensor_fields: tuple[str, ...] | None
    lines: tuple[str, ...]


def read_sample(path: Path) -> Sample:
    """Read a sample request.

    Raises:
        StartupError: The file cannot be read.
    """
    try:
        return Sample(path.name, path.read_bytes())
    except OSError as error:
        raise StartupError(f"cannot read {path}: {error.strerror}") from error


def try_model(model: ModelVersion, layer: ArtifactLayer, sample: Sample | None) -> Trial:
    """Load a model and run it once.

    Args:
        model: What the definition says of it.
        layer: Its file.
        sample: Request rows for it; without them rows are generated.

    Returns:
        The columns that it reads, and what to tell.

    Raises:
        StartupError: It cannot be loaded, or the sample does not fit it.
    """
    header = read_onnx_header(layer.path)
    session = _load_alone(model, layer)
    fields, ran = model.tensor_fields, "generated rows"
    inputs = session.inputs
    if sample is not None:
        frame = _decode(sample, inputs)
        fields = fields or _columns(sample, frame, inputs)
        inputs = (
            tuple(replace(spec, name=name) for spec, name in zip(inputs, fields or (), strict=True))
            if fields
            else inputs
        )
        ran = f"{frame.rows} {'row' if frame.rows == 1 else 'rows'} of {sample.name}"
        _run(session, frame, inputs, sample)
    problem = session.warm_up(lambda _rows, _elapsed_ns: None)
    if problem is not None and sample is None:
        ran = f"could not be run on generated rows ({problem}); try --input-schema"
    opsets = ", ".join(f"{domain} {version}" for domain, version in sorted(header.opsets.items()))
    session.inputs = inputs
    return Trial(
        session,
        fields,
        (
            f"Model {model.name}, version {model.version}",
            f"  file    {layer.path.name}, {format_bytes(layer.size_bytes)}, sha256 {layer.sha}",
            f"  opset   {opsets}; written by {header.producer or 'an unnamed program'}",
            *(f"  input   {spec}" for spec in inputs),
            *(f"  output  {spec}" for spec in session.outputs),
            f"  tried   {ran}",
        ),
    )


def _load_alone(model: ModelVersion, layer: ArtifactLayer) -> ModelSession:
    options = ModelOptions(
        tensor_fields=model.tensor_fields, single_rows=model.batch_config == "single"
    )
    identity = ModelIdentity(model.name, model.version, model.sha)
    with tempfile.TemporaryDirectory(prefix="sagitta-") as folder:
        alone = Path(folder) / layer.path.name
        try:
            os.link(layer.path, alone)
        except OSError:  # another file system
            shutil.copyfile(layer.path, alone)
        try:
            return ModelSession(identity, alone, options)
        except StartupError as error:
            if error.__cause__ is None:  # it was loaded, and is refused for what it takes or gives
                raise
            raise StartupError(
                f"{error}; a model is published as one file: if it keeps weights in others, save "
                "it anew with onnx.save_model(model, path, save_as_external_data=False)"
            ) from error


def _decode(sample: Sample, inputs: tuple[TensorSpec, ...]) -> Frame:
    try:
        if sample.body.startswith(_ARROW_MAGIC):
            return read_arrow(sample.body)
        return read_json(sample.body, inputs)
    except EngineError as error:
        raise StartupError(f"{sample.name} is no request: {error}") from error


def _columns(
    sample: Sample, frame: Frame, inputs: tuple[TensorSpec, ...]
) -> tuple[str, ...] | None:
    """The sample's columns for the model's inputs: by name, else by position."""
    if all(spec.name in frame.columns for spec in inputs):
        return None
    if len(frame.columns) == len(inputs):
        return tuple(frame.columns)
    raise StartupError(
        f"{sample.name} has the columns {', '.join(frame.columns)}, the model takes "
        f"{', '.join(spec.name for spec in inputs)}: say with --tensor-fields which is which"
    )


def _run(
    session: ModelSession, frame: Frame, inputs: tuple[TensorSpec, ...], sample: Sample
) -> None:
    try:
        session.run([to_tensor(frame, spec) for spec in inputs], frame.rows)
    except EngineError as error:
        raise StartupError(f"{sample.name} does not fit the model: {error}") from error
