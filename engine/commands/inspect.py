"""``sagitta inspect URL``: what a publish holds, without pulling its models."""

import argparse
from collections.abc import Mapping, Sequence

import orjson

from engine.commands.shared import DefinitionReader, pulling, remark, say, table
from engine.pipeline.definition import DefinitionDraft
from engine.pipeline.writing import draw_steps
from engine.publish.progress import format_bytes
from engine.publish.pull import Inspection, inspect_artifact
from engine.publish.reference import parse_reference

__all__ = ["run"]

_SHOWN = ("org.opencontainers.image.title", "org.opencontainers.image.version")


def run(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run the command.

    Args:
        arguments: Of the command line.
        environ: The environment.

    Returns:
        The exit code.

    Raises:
        StartupError: The publish cannot be read.
        ConfigError: The URL or a variable is wrong.
    """
    parser = argparse.ArgumentParser(
        prog="sagitta inspect", description="Show what a publish holds, without its models."
    )
    parser.add_argument("url", help="as PIPELINE_URL: host/repository:tag, oci-layout:DIR, folder")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    reader = DefinitionReader()
    with pulling(environ, options.url) as pull_options:
        found = inspect_artifact(
            parse_reference(options.url), options=pull_options, read_models=reader, report=remark
        )
    if options.json:
        say(orjson.dumps(_document(found), option=orjson.OPT_INDENT_2).decode())
    else:
        for line in _lines(found, reader.draft):
            say(line)
    return 0


def _document(found: Inspection) -> dict[str, object]:
    return {
        "url": found.url,
        "digest": found.digest,
        "signed": found.is_signed,
        "annotations": dict(found.annotations),
        "definition": orjson.loads(found.definition),
        "layers": [layer.to_json() for layer in found.layers],
    }


def _lines(found: Inspection, draft: DefinitionDraft) -> list[str]:
    sizes = {layer.digest: layer.size_bytes for layer in found.layers}
    facts = [("Pipeline", draft.id), ("Version", draft.version or "-"), ("URL", found.url)]
    if found.digest is not None:
        facts += [("Digest", found.digest), ("Signed", "yes" if found.is_signed else "no")]
    facts += [
        (key.removeprefix("org.opencontainers.image.").capitalize(), value)
        for key, value in sorted(found.annotations.items())
        if key not in _SHOWN
    ]
    models = [("MODEL", "VERSION", "RUNTIME", "SIZE", "SHA256")]
    for model in draft.models:
        size_bytes = sizes.get(f"sha256:{model.sha}")
        models.append(
            (
                model.name,
                model.version or "-",
                model.runtime,
                "-" if size_bytes is None else format_bytes(size_bytes),
                model.sha or "-",
            )
        )
    return [
        *table(facts),
        "",
        *table(models),
        "",
        "Steps",
        *draw_steps(draft.steps, draft.models),
    ]
