"""``sagitta pull URL``: fetch a publish for a start, here or elsewhere, without a registry."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace

from engine.commands.shared import DefinitionReader, pulling, remark, say, table
from engine.errors import ConfigError
from engine.publish.artifact import Artifact
from engine.publish.cache import ArtifactCache
from engine.publish.progress import format_bytes, progress_for
from engine.publish.pull import open_artifact
from engine.publish.push import copy_to_layout
from engine.publish.reference import LayoutReference, RegistryReference, parse_reference
from engine.publish.signature import signature_tag

__all__ = ["run"]


def run(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run the command.

    Args:
        arguments: Of the command line.
        environ: The environment.

    Returns:
        The exit code.

    Raises:
        StartupError: The publish cannot be fetched, trusted or written.
        ConfigError: An argument or a variable is wrong.
    """
    parser = argparse.ArgumentParser(
        prog="sagitta pull",
        description="Fetch a publish into PERSIST_DIR, where `sagitta serve` finds it, or into an "
        "OCI image layout to carry to a machine without a network.",
    )
    parser.add_argument("url", help="host/repository:tag or host/repository@sha256:…")
    parser.add_argument("--to", metavar="oci-layout:DIR[:tag]", help="copy it into a layout")
    options = parser.parse_args(arguments)
    reference = parse_reference(options.url)
    if not isinstance(reference, RegistryReference):
        raise ConfigError(f"{reference} is no registry's: there is nothing to pull")
    target = _target(options.to, reference) if options.to else None
    with pulling(environ, options.url, keeps=target is None) as pull_options:
        artifact = open_artifact(
            reference,
            options=replace(pull_options, is_pulled_anew=True),
            read_models=DefinitionReader(),
            report=remark,
            progress=progress_for(sys.stderr, remark),
        )
        cache = ArtifactCache(pull_options.cache_directory)
        if target is not None:
            _copy(cache, reference, target)
    _tell(artifact, str(target or reference))
    return 0


def _target(text: str, reference: RegistryReference) -> LayoutReference:
    target = parse_reference(text)
    if not isinstance(target, LayoutReference):
        raise ConfigError(f"--to {text} is not oci-layout:DIR or oci-layout:DIR:tag")
    return replace(target, tag=target.tag or reference.tag or "latest")


def _copy(cache: ArtifactCache, reference: RegistryReference, target: LayoutReference) -> None:
    entry = cache.find(str(reference))
    if entry is None:
        raise AssertionError("an artifact that was pulled is in the cache. This is a bug.")
    copy_to_layout(cache, entry, cache.tagged(signature_tag(entry.digest)), target)


def _tell(artifact: Artifact, url: str) -> None:
    rows = [("MODEL", "VERSION", "SIZE", "SHA256")]
    rows += [
        (layer.name, layer.version, format_bytes(layer.size_bytes), layer.sha)
        for layer in artifact.layers
    ]
    for line in table(rows):
        say(line)
    say()
    say(f"Digest: {artifact.digest}")
    say(f"PIPELINE_URL={url}")
