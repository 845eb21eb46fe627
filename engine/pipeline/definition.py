"""The published pipeline definition: its JSON read into typed records.

Rules that hold here:
- A model is named by its key, its position in ``models``; names live in the records alone.
- ``parse_definition`` yields a draft: ``sha`` and ``version`` of a model may be left out of a
  hand-written document. ``DefinitionDraft.resolve`` completes it from the files that were found.
- Unknown keys are passed over (documents of other releases carry more), unknown step kinds and
  runtimes are refused: to ignore them would change the answer.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from engine.errors import StartupError
from engine.pipeline.document import Node, read_document
from engine.pipeline.steps import ModelKey, Step, read_step

__all__ = [
    "DefinitionDraft",
    "DynamicBatching",
    "ModelDraft",
    "ModelIdentity",
    "ModelVersion",
    "PipelineDefinition",
    "parse_definition",
]

_PIPELINE_ID = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class DynamicBatching:
    """The documented batching settings of one model.

    Attributes:
        max_batch_delay_ms: Longest wait of the first entry, milliseconds.
        batch_size_target: Rows at which a batch is run without further wait.
        batch_size_limit: Rows that a batch never exceeds; None is no limit.
    """

    max_batch_delay_ms: float
    batch_size_target: int
    batch_size_limit: int | None


@dataclass(frozen=True, slots=True)
class ModelDraft:
    """One model as the document has it.

    Attributes:
        name: The model's name.
        version: Its version, normally a UUID; None when the document has none.
        sha: SHA-256 of the model file, 64 hexadecimal digits; None when the document has none.
        runtime: Always ``onnx``.
        tensor_fields: Column names for the model's inputs, by position; None uses its own names.
        batch_config: ``single`` is one row per run; None is any number of rows.
        file: File name beside ``pipeline.json`` in a plain directory.
        dynamic_batching: The documented batching settings, when given.
        model_version_id: The number that ``GET /models`` shows, when given.
    """

    name: str
    version: str | None
    sha: str | None
    runtime: str = "onnx"
    tensor_fields: tuple[str, ...] | None = None
    batch_config: str | None = None
    file: str | None = None
    dynamic_batching: DynamicBatching | None = None
    model_version_id: int | None = None


@dataclass(frozen=True, slots=True)
class ModelVersion(ModelDraft):
    """One model whose file was found: ``version`` and ``sha`` are known."""

    version: str
    sha: str


class ModelIdentity(Protocol):
    """What finding a model's file tells about it."""

    @property
    def sha(self) -> str:
        """SHA-256 of the file, 64 hexadecimal digits."""

    @property
    def version(self) -> str:
        """The model's version."""


@dataclass(frozen=True, slots=True)
class PipelineDefinition:
    """A complete definition: every model's sha and version are known.

    Attributes:
        id: The pipeline's name.
        version: The pipeline's version, when the document has one.
        steps: In the order in which they run.
        models: Every model that the steps name; a ``ModelKey`` is a position in here.
    """

    id: str
    version: str | None
    steps: tuple[Step, ...]
    models: tuple[ModelVersion, ...]


@dataclass(frozen=True, slots=True)
class DefinitionDraft:
    """A definition as its document has it; see ``PipelineDefinition``."""

    id: str
    version: str | None
    steps: tuple[Step, ...]
    models: tuple[ModelDraft, ...]

    def resolve(self, identities: Sequence[ModelIdentity]) -> PipelineDefinition:
        """Complete the definition.

        Args:
            identities: Sha and version of each model's file, in the order of ``models``.

        Returns:
            The same pipeline with every model's sha and version known.
        """
        models = tuple(
            _complete(draft, found) for draft, found in zip(self.models, identities, strict=True)
        )
        return PipelineDefinition(self.id, self.version, self.steps, models)


def parse_definition(document: bytes) -> DefinitionDraft:
    """Read a pipeline definition.

    Args:
        document: The published JSON (``id``, ``steps``, ``models``), UTF-8.

    Returns:
        The definition, with models whose sha or version may still be unknown.

    Raises:
        StartupError: The document is not a definition that this engine runs; the text names the
            JSON path, what was found and what is expected.
    """
    root = read_document(document)
    identifier = root.get("id")
    if not _PIPELINE_ID.fullmatch(identifier.text()):
        raise identifier.error("lower-case letters, digits and inner hyphens")
    models = _Models(root)
    steps = tuple(read_step(node, models.key) for node in root.get("steps").items())
    if not steps:
        raise root.get("steps").error("at least one step")
    return DefinitionDraft(
        identifier.text(), root.get("version").optional_text(), steps, tuple(models.drafts)
    )


class _Models:
    """The models of one document; without ``$.models`` they are those that the steps name."""

    def __init__(self, root: Node) -> None:
        declared = root.get("models")
        self._declared = root.has("models") and declared.value != []
        self.drafts: list[ModelDraft] = []
        if not self._declared:
            return
        for node in declared.items():
            draft = _read_model(node)
            if draft in self.drafts:
                raise node.error("a model that is not listed twice")
            self.drafts.append(draft)

    def key(self, node: Node) -> ModelKey:
        """The key of the model that a step names."""
        named = _read_model(node)
        keys = [key for key, draft in enumerate(self.drafts) if _is_same(named, draft)]
        if len(keys) > 1:
            raise node.error(
                f"a version or sha that tells which {named.name!r} of $.models is meant"
            )
        if not keys and self._declared:
            held = ", ".join(f"{draft.name} {draft.version or ''}".strip() for draft in self.drafts)
            raise node.error(f"one of $.models ({held}); name, version and sha must agree")
        if not keys:
            self.drafts.append(named)
            return len(self.drafts) - 1
        draft = self.drafts[keys[0]]
        self.drafts[keys[0]] = replace(
            draft, version=draft.version or named.version, sha=draft.sha or named.sha
        )
        return keys[0]


def _is_same(named: ModelDraft, draft: ModelDraft) -> bool:
    pairs = ((named.version, draft.version), (named.sha, draft.sha))
    return named.name == draft.name and all(a == b for a, b in pairs if a and b)


def _read_model(node: Node) -> ModelDraft:
    """One model, flat or in the nested shape ``{"model_version": …, "config": …}``."""
    while node.has("data") or node.has("model"):
        node = node.get("data") if node.has("data") else node.get("model")
    nested = node.has("model_version")
    version = node.get("model_version") if nested else node
    file_info = version.get("file_info") if version.has("file_info") else version
    config = node.get("config") if node.has("config") else node
    name = version.get("name").text()
    runtime = config.get("runtime").optional_text() or "onnx"
    if runtime != "onnx":
        raise StartupError(
            f"pipeline definition, {config.get('runtime').path}: runtime {runtime!r} of model "
            f"{name!r} is not supported; this engine runs onnx"
        )
    sha = file_info.get("sha")
    if not sha.is_null and not _SHA256.fullmatch(sha.text()):
        raise sha.error("the SHA-256 of the model file, 64 lower-case hexadecimal digits")
    batch_config, batching = _read_batching(config)
    number = config.get("model_version_id")
    if number.is_null and nested:
        number = version.get("id")
    return ModelDraft(
        name=name,
        version=file_info.get("version").optional_text(),
        sha=sha.optional_text(),
        runtime=runtime,
        tensor_fields=_read_tensor_fields(config.get("tensor_fields")),
        batch_config=batch_config,
        file=node.get("file").optional_text(),
        dynamic_batching=batching,
        model_version_id=None if number.is_null else number.integer(),
    )


def _read_tensor_fields(node: Node) -> tuple[str, ...] | None:
    if node.is_null:
        return None
    names = tuple(item.text() for item in node.items())
    if not names or len(set(names)) < len(names):
        raise node.error("column names, each once")
    return names


def _read_batching(config: Node) -> tuple[str | None, DynamicBatching | None]:
    batch = config.get("batch_config")
    if batch.value not in (None, "single"):
        raise batch.error('"single" or null')
    key = "dynamic_batching_config" if config.has("dynamic_batching_config") else "dynamic_batching"
    node = config.get(key)
    if node.is_null:
        return batch.optional_text(), None
    if not batch.is_null:
        raise StartupError(
            f"pipeline definition, {node.path}: Dynamic batching is not supported with single "
            "batch mode. Please update the model configuration."
        )
    limit = node.get("batch_size_limit")
    delay, target = node.get("max_batch_delay_ms"), node.get("batch_size_target")
    return None, DynamicBatching(
        max_batch_delay_ms=10.0 if delay.is_null else delay.number(),
        batch_size_target=4 if target.is_null else target.integer(minimum=1),
        batch_size_limit=None if limit.is_null else limit.integer(minimum=1),
    )


def _complete(draft: ModelDraft, found: ModelIdentity) -> ModelVersion:
    return ModelVersion(
        name=draft.name,
        version=found.version,
        sha=found.sha,
        runtime=draft.runtime,
        tensor_fields=draft.tensor_fields,
        batch_config=draft.batch_config,
        file=draft.file,
        dynamic_batching=draft.dynamic_batching,
        model_version_id=draft.model_version_id,
    )
