"""From the configuration to a running pipeline: find, verify, load, warm up; and to its log.

Rules that hold here:
- Runs on a thread of its own while the engine already answers health probes.
- Everything that can go wrong is a StartupError whose text says what to do.
"""

from __future__ import annotations

import hashlib
import sys
import threading
from typing import TYPE_CHECKING

from engine.batching.cost import RunCost
from engine.batching.entry import BatchPolicy
from engine.codecs.record_batch import log_batch
from engine.logring import LogRing
from engine.pipeline.compiler import compile_plan
from engine.pipeline.definition import DefinitionDraft, parse_definition
from engine.pipeline.plan import PlanOptions
from engine.pipeline.stages import find_stages
from engine.publish.artifact import version_of
from engine.publish.progress import progress_for
from engine.publish.pull import open_artifact
from engine.running import RunningPipeline, ServedModel
from engine.sessions.opening import ModelOptions
from engine.sessions.providers import check_provider, choose_providers
from engine.sessions.session import ModelSession
from engine.values import ModelIdentity, PipelineIdentity

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from engine.dataplane import DataPlane
    from engine.pipeline.definition import DynamicBatching, ModelDraft
    from engine.pipeline.steps import ModelKey
    from engine.publish.artifact import Artifact
    from engine.publish.pull import PullOptions
    from engine.publish.reference import Reference

__all__ = ["load_pipeline", "open_log"]

_session_lock = threading.Lock()  # ONNX Runtime must not create sessions concurrently


def load_pipeline(
    reference: Reference,
    plane: DataPlane,
    *,
    pull_options: PullOptions,
    threads: int,
    batch: BatchPolicy,
    accelerator: str,
    partition: str,
    report: Callable[[str], None],
    warn: Callable[[str], None],
    observe_shadow: Callable[[str, str, str], None],
) -> RunningPipeline:
    """Load the published pipeline and announce it to the data plane on the way.

    Args:
        reference: What ``PIPELINE_URL`` names.
        plane: Is told what is being loaded; does not serve it yet.
        pull_options: Registry, cache and signature key.
        threads: Intra-op threads of each session.
        batch: How requests are run together, where the model allows it; a published setting wins.
        accelerator: As in ``ACCELERATOR``.
        partition: Name of the edge or host.
        report: Takes the documented start-up lines.
        warn: Takes what the operator should know.
        observe_shadow: Gets a challenger's name, why a request was answered without its result,
            and a sentence about it; called from any thread.

    Returns:
        The pipeline, loaded and warmed up.

    Raises:
        StartupError: it cannot be found, trusted, loaded or run.
    """
    drafts: list[DefinitionDraft] = []

    def read_models(document: bytes) -> Sequence[ModelDraft]:
        draft = parse_definition(document)
        find_stages(draft)  # refuses steps that no model could make run, before anything is fetched
        drafts.append(draft)
        return draft.models

    artifact = open_artifact(
        reference,
        options=pull_options,
        read_models=read_models,
        report=report,
        progress=progress_for(sys.stderr, report),
    )
    definition = drafts[-1].resolve(artifact.layers)
    identity = PipelineIdentity(definition.id, _version(artifact, definition.version))
    served = tuple(
        ServedModel(ModelIdentity(model.name, model.version, model.sha), model.model_version_id)
        for model in definition.models
    )
    plane.announce(identity, served)
    report("Starting engine")
    sessions: dict[ModelKey, ModelSession] = {}
    for key, model in enumerate(definition.models):
        options = ModelOptions(
            tensor_fields=model.tensor_fields,
            single_rows=model.batch_config == "single",
            threads=threads,
            providers=choose_providers(accelerator),
        )
        with _session_lock:
            session = ModelSession(served[key].identity, artifact.layers[key].path, options)
        check_provider(accelerator, session.provider, model.name)
        sessions[key] = session
        report(
            f"Model {model.name}: inputs {_list(session.inputs)}, outputs "
            f"{_list(session.outputs)}, {threads} intra-op thread{'s' if threads > 1 else ''}, "
            f"{session.provider}"
        )
    cost = RunCost()
    for session in sessions.values():
        # one model's runs are what a pipeline of one costs; others learn from their requests
        problem = session.warm_up(cost.learn if len(sessions) == 1 else _learn_nothing)
        if problem is not None:
            warn(f"model {session.identity.name!r} could not be run on generated rows: {problem}")
    plan = compile_plan(definition, sessions, PlanOptions(threads, observe_shadow))
    for warning in plan.warnings:
        warn(warning)
    plan.start()
    pipeline = RunningPipeline(identity, plan, served, partition, cost)
    joint = [key for key, session in sessions.items() if session is plan.joint_model]
    published = definition.models[joint[0]].dynamic_batching if joint else None
    report(f"Batching: {pipeline.allow_batches(_policy(published, batch))}")
    return pipeline


def _learn_nothing(_rows: int, _run_ns: int) -> None:
    """Take no notice of a warm-up run."""


def _policy(published: DynamicBatching | None, default: BatchPolicy) -> BatchPolicy:
    """The published dynamic batching settings, within MAX_BATCH_ROWS; without them the default."""
    if published is None:
        return default
    limit = published.batch_size_limit or default.max_rows
    return BatchPolicy(
        min(limit, default.max_rows),
        target_rows=published.batch_size_target,
        delay_ns=round(published.max_batch_delay_ms * 1_000_000),
    )


def _version(artifact: Artifact, declared: str | None) -> str:
    """The pipeline's version: its tag, what its definition says, or an id made from its content."""
    if artifact.version or declared:
        return artifact.version or str(declared)
    content = hashlib.sha256(artifact.definition)
    for layer in artifact.layers:
        content.update(layer.digest.encode())
    return version_of(content.hexdigest())


def _list(specs: Sequence[object]) -> str:
    return "; ".join(map(str, specs)) or "none declared"


def open_log(storage_bytes: int | None, persist_dir: Path) -> LogRing | None:
    """Open the log of inferences where LOCAL_INFERENCE_STORAGE asks for one.

    Args:
        storage_bytes: How much disk the log may take; None where it is off.
        persist_dir: The resolved ``PERSIST_DIR``.

    Returns:
        The log, not started; None where it is off.
    """
    if storage_bytes is None:
        return None
    return LogRing(persist_dir / "log", storage_bytes, log_batch)
