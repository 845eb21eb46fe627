"""``sagitta publish``: from ONNX files to a publish that an edge can start from.

Rule that holds here: whatever would stop an edge stops the publish: every model is loaded alone
and run once, a sample of requests is run where one is given, and the steps are compiled against
the models, before anything is sent.
"""

import argparse
import datetime
import json
import re
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from engine import __version__
from engine.commands.instructions import instructions
from engine.commands.shared import read_config, remark, say
from engine.commands.trial import read_sample, try_model
from engine.config import EngineConfig
from engine.errors import ConfigError
from engine.options import registry_access
from engine.pipeline.checks import publish_check
from engine.pipeline.compiler import compile_plan
from engine.pipeline.definition import DefinitionDraft, PipelineDefinition, parse_definition
from engine.pipeline.stages import find_stages
from engine.pipeline.steps import Check, Step, models_of
from engine.pipeline.writing import draw_steps, write_definition
from engine.publish.artifact import ArtifactLayer
from engine.publish.chart import chart_of, find_chart, pack_chart
from engine.publish.credentials import credential_files
from engine.publish.directory import find_model, read_definition_file
from engine.publish.progress import progress_for
from engine.publish.push import PackedArtifact, pack, pack_signature, write_to_layout
from engine.publish.reference import (
    DirectoryReference,
    LayoutReference,
    RegistryReference,
    parse_reference,
)
from engine.publish.signature import signature_tag

__all__ = ["run"]

Target = RegistryReference | LayoutReference


def run(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run the command.

    Args:
        arguments: Of the command line.
        environ: The environment.

    Returns:
        The exit code.

    Raises:
        StartupError: A model cannot be served, or the registry does not take the publish.
        ConfigError: An argument or a variable is wrong.
    """
    options = _parser().parse_args(arguments)
    annotations = dict(map(_annotation, options.annotation))
    draft, root = _read_source(options)
    find_stages(draft)  # refuses what an edge could not run
    version = draft.version or str(uuid.uuid4())
    target = _target(options.to, options.tag or version) if options.to else None
    if target is None and not options.dry_run:
        raise ConfigError("--to is missing: host/repository or oci-layout:DIR, or --dry-run")
    if options.chart and not isinstance(target, RegistryReference):
        raise ConfigError("--chart needs a registry in --to: a layout keeps no charts")
    config = None if target is None else read_config(environ, str(target))
    layers = [_layer(root, draft, key) for key in range(len(draft.models))]
    definition = replace(draft.resolve(layers), version=version)
    definition = _try_models(definition, layers, options.input_schema)
    document = write_definition(definition)
    packed = pack(document, layers, _annotations(definition) | annotations)
    if options.dry_run or target is None or config is None:
        say(document.decode())
        say(f"Digest: {packed.entry.digest} (dry run: nothing was published)")
        return 0
    tagged = [(packed, target.tag or "")]
    if options.sign_key is not None:  # first, so that no edge ever sees the publish without it
        signature = pack_signature(packed, target, options.sign_key)
        tagged.insert(0, (signature, signature_tag(packed.entry.digest)))
    files = credential_files(environ)
    _send(tagged, target, config, files)
    for line in ("", *instructions(target, packed.entry.digest, options.image)):
        say(line)
    if options.chart and isinstance(target, RegistryReference):
        _send_chart(target, definition, options.image, config, files)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sagitta publish",
        description="Try ONNX models, and publish them as a pipeline that an edge starts from.",
    )
    add = parser.add_argument
    add("source", type=Path, help="an ONNX file, a pipeline definition (JSON), or its folder")
    add("--to", metavar="TARGET", help="host/repository[:tag] or oci-layout:DIR[:tag]")
    add("--name", help="of the pipeline; from the file's name when left out")
    add("--model-name", help="of the model of an ONNX file; as the file when left out")
    add("--tag", help="of the publish; its version, a new UUID, when left out")
    add("--tensor-fields", metavar="A,B", help="request columns for the model's inputs, in order")
    add("--single", action="store_true", help="run one row at a time (batch_config single)")
    add(
        "--input-schema",
        type=Path,
        metavar="FILE",
        help="sample request, Arrow or JSON: it is run, and names the columns",
    )
    add("--annotation", action="append", default=[], metavar="KEY=VALUE", help="of the manifest")
    add("--sign-key", type=Path, metavar="FILE", help="PEM private key, ECDSA on P-256")
    add("--chart", action="store_true", help="also push a Helm chart that installs the publish")
    add("--image", default="sagitta", help="of the engine, in what is printed and in the chart")
    add("--dry-run", action="store_true", help="try the models, show the definition, send nothing")
    return parser


def _read_source(options: argparse.Namespace) -> tuple[DefinitionDraft, Path]:
    """The definition, and the folder of its models."""
    source: Path = options.source
    if source.is_dir() or source.suffix == ".json":
        given = [name for name in ("model_name", "tensor_fields") if getattr(options, name)]
        if given or options.single:
            raise ConfigError(
                "--model-name, --tensor-fields and --single describe an ONNX file; a definition "
                "says these itself"
            )
        reference = DirectoryReference(source)
        if not source.is_dir():
            reference = DirectoryReference(source.parent, source.name)
        draft = parse_definition(read_definition_file(reference))
        return replace(draft, id=options.name or draft.id), reference.directory
    if not source.is_file():
        raise ConfigError(f"{source} is neither an ONNX file, nor a definition, nor a folder")
    stem = re.sub(r"[^a-z0-9]+", "-", source.stem.lower()).strip("-")
    if options.name is None and not stem:
        raise ConfigError(
            f"--name is missing: {source.name} holds no letter that a name could have"
        )
    name = options.model_name or source.stem
    model: dict[str, object] = {"name": name, "file": source.name}
    if options.tensor_fields:
        model["tensor_fields"] = options.tensor_fields.split(",")
    if options.single:
        model["batch_config"] = "single"
    document = {
        "id": options.name or stem,
        "steps": [{"ModelInference": {"models": [{"name": name}]}}],
        "models": [model],
    }
    return parse_definition(json.dumps(document).encode()), source.parent


def _target(text: str, tag: str) -> Target:
    """Where to publish: with the tag that it has, or else with the one given."""
    has_tag = ":" in text.removeprefix("oci://").partition("/")[2]
    is_path = text.startswith(("oci-layout:", "file:", "/", "."))
    try:
        target = parse_reference(text if has_tag or is_path else f"{text}:{tag}")
    except ConfigError as error:
        raise ConfigError(f"--to {error}".replace("PIPELINE_URL", "TARGET", 1)) from None
    if isinstance(target, DirectoryReference) or target.digest is not None:
        raise ConfigError(f"--to {text} is not host/repository[:tag] or oci-layout:DIR[:tag]")
    return replace(target, tag=target.tag or tag)


def _layer(root: Path, draft: DefinitionDraft, key: int) -> ArtifactLayer:
    """The model's file as a layer; a model without a version gets a new one."""
    layer = find_model(root, draft.models[key])
    version = draft.models[key].version or str(uuid.uuid4())
    return replace(layer, version=version, filename=layer.sha)


def _try_models(
    definition: PipelineDefinition, layers: Sequence[ArtifactLayer], sample_path: Path | None
) -> PipelineDefinition:
    """Load and run every model, and put them together as an edge will.

    The sample goes to those that read the request; checks get their published form.
    """
    sample = None if sample_path is None else read_sample(sample_path)
    entrance = models_of(definition.steps[0])
    models, sessions = [], {}
    for key, (model, layer) in enumerate(zip(definition.models, layers, strict=True)):
        found = try_model(model, layer, sample if key in entrance else None)
        for line in found.lines:
            say(line)
        models.append(replace(model, tensor_fields=found.tensor_fields))
        sessions[key] = found.session
    for warning in compile_plan(definition, sessions).warnings:
        remark(warning)
    say()
    say(f"Pipeline {definition.id}, version {definition.version}")
    for line in draw_steps(definition.steps, models):
        say(line)
    steps = tuple(_published(step, index) for index, step in enumerate(definition.steps))
    return replace(definition, models=tuple(models), steps=steps)


def _published(step: Step, index: int) -> Step:
    if not isinstance(step, Check):
        return step
    path = f"$.steps[{index}].Check.tree"
    return Check(tuple(publish_check(one, f"{path}[{n}]") for n, one in enumerate(step.tree)))


def _annotations(definition: PipelineDefinition) -> dict[str, str]:
    now = datetime.datetime.now(datetime.UTC)
    return {
        "org.opencontainers.image.created": now.isoformat(timespec="seconds"),
        "org.opencontainers.image.title": definition.id,
        "org.opencontainers.image.version": definition.version or "",
    }


def _annotation(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ConfigError(f"--annotation {text!r} is not KEY=VALUE")
    return key, value


def _send(
    tagged: Sequence[tuple[PackedArtifact, str]],
    target: Target,
    config: EngineConfig,
    files: tuple[Path, ...],
) -> None:
    """Publish artifacts under their tags, in this order."""
    if isinstance(target, LayoutReference):
        for artifact, tag in tagged:
            write_to_layout(artifact, target.directory, tag)
        return
    # Imported here: writing a layout, or a dry run, needs none of what talks to a registry.
    from engine.publish.registry import RegistryClient  # noqa: PLC0415
    from engine.publish.upload import push_artifact  # noqa: PLC0415

    client = RegistryClient(target, registry_access(config, files))
    if client.credentials is not None:
        client.log_in()
        remark("Login Succeeded")
    for artifact, tag in tagged:
        push_artifact(client, artifact, tag, progress_for(sys.stderr, remark))


def _send_chart(
    target: RegistryReference,
    definition: PipelineDefinition,
    image: str,
    config: EngineConfig,
    files: tuple[Path, ...],
) -> None:
    """Push the chart of the publish, and say how it is installed."""
    version = definition.version or str(target.tag)
    chart = chart_of(target, definition.id, version, image=image, app_version=__version__)
    packed = pack_chart(chart, find_chart())
    _send([(packed, str(chart.target.tag))], chart.target, config, files)
    for line in ("", "Helm:", chart.install_line):
        say(line)
