"""The one object that every shell calls: it infers, and it tells what it serves.

Rules that hold here:
- No bytes, no headers, no status codes; a shell decodes and encodes around it.
- Every request of every shell is run by ``DataPlane.answer``, alone or with others of its kind.
- A request captures the running pipeline once, so that a swap in between cannot mix two versions.
- Loading, running, failed and draining are states of this object; readiness is told from them.
"""

from __future__ import annotations

import enum
from functools import partial
from typing import TYPE_CHECKING

from engine.errors import NotFoundError, NotReadyError
from engine.request import answer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine.logring import LogRing
    from engine.metrics import Metrics
    from engine.request import InferRequest
    from engine.running import RunningPipeline, ServedModel
    from engine.values import PipelineIdentity

__all__ = ["DataPlane", "Status"]


class Status(enum.Enum):
    """The state of a pipeline or model, as the documented endpoints spell it."""

    LOADING = "Loading"
    RUNNING = "Running"
    ERROR = "Error"


class DataPlane:
    """What the shells serve: the running pipeline and the truth about its state.

    The state changes by replacing one reference; readers need no lock.

    Attributes:
        log: keeps the answers; None where it is off.
        current: the pipeline that answers requests; None while there is none.
        is_draining: the engine was asked to stop: requests are still answered, none are welcome.
        answer: runs requests of one key on the calling thread, which holds a slot; answers them.
    """

    def __init__(self, metrics: Metrics, log: LogRing | None = None) -> None:
        """Serve nothing yet; ``metrics`` counts the runs, ``log`` keeps the answers."""
        self.log = log
        self.current: RunningPipeline | None = None
        self._identity: PipelineIdentity | None = None
        self._models: tuple[ServedModel, ...] = ()
        self._failure: str | None = None
        self.is_draining = False
        self.answer: Callable[[Sequence[InferRequest]], None] = partial(
            answer, metrics=metrics, log=log
        )

    @property
    def is_ready(self) -> bool:
        """Whether requests are answered and more are welcome."""
        return self.current is not None and not self.is_draining

    @property
    def state(self) -> str:
        """One word for the health endpoint."""
        return "Draining" if self.is_draining else self._status().value

    def health(self) -> dict[str, object]:
        """What ``GET /healthz`` says: whether requests are welcome, and how the log does."""
        if self.log is None:
            return {"status": self.state}
        stats = self.log.stats()
        log = {
            "status": stats.closed or stats.failing or "Keeping",
            "rows_kept": stats.rows_kept,
            "rows_not_kept": sum(stats.rows_not_kept.values()),
            "rows_evicted_before_upload": stats.rows_evicted_before_upload,
        }
        return {"status": self.state, "log": log}

    @property
    def batch_max_rows(self) -> int:
        """Most rows that requests are run together with; 0 = request by request."""
        running = self.current
        return running.policy.max_rows if running is not None and running.policy else 0

    @property
    def running(self) -> RunningPipeline:
        """The pipeline that answers requests.

        Raises:
            NotReadyError: there is none yet, or it failed to load.
        """
        if self.current is None:
            if self._failure is not None:
                raise NotReadyError("the pipeline failed to load; the engine's log has the reason")
            raise NotReadyError("the pipeline is still loading: try again shortly")
        return self.current

    @property
    def kept_log(self) -> LogRing:
        """The inference log, for those who read it.

        Raises:
            NotFoundError: it is off.
        """
        if self.log is None:
            raise NotFoundError(
                "the inference log is off: start the engine with LOCAL_INFERENCE_STORAGE and "
                "PLATEAU_PAGE_SIZE to keep one"
            )
        return self.log

    def named(self, name: str) -> RunningPipeline:
        """The running pipeline under its own name.

        Raises:
            NotFoundError: the engine serves another one.
            NotReadyError: as ``running``.
        """
        running = self.running
        if name != running.identity.id:
            raise NotFoundError(
                f"no pipeline {name[:200]!r} here: this engine serves {running.identity.id!r} "
                "(and POST /infer always reaches the pipeline that is served)"
            )
        return running

    def announce(self, identity: PipelineIdentity, models: tuple[ServedModel, ...]) -> None:
        """Tell what is being loaded."""
        self._identity, self._models = identity, models

    def serve(self, pipeline: RunningPipeline) -> None:
        """Answer requests with this pipeline from now on."""
        self.announce(pipeline.identity, pipeline.models)
        self._failure = None
        self.current = pipeline

    def fail(self, reason: str) -> None:
        """Tell that what was being loaded cannot be served."""
        self._failure = reason

    def close(self, timeout_s: float) -> bool:
        """End the threads of the running pipeline; whether they ended in time."""
        return self.current is None or self.current.close(timeout_s)

    def drain(self) -> None:
        """Answer what comes, but be no longer ready."""
        self.is_draining = True

    def pipelines(self) -> list[dict[str, object]]:
        """The pipelines as ``GET /pipelines`` lists them (reference page, List Pipelines)."""
        if self._identity is None:
            return []
        status = self._status().value
        return [{"id": self._identity.id, "version": self._identity.version, "status": status}]

    def models(self) -> list[dict[str, object]]:
        """The models as ``GET /models`` lists them (reference page, List Models)."""
        listed: list[dict[str, object]] = []
        for model in self._models:
            entry: dict[str, object] = {
                "name": model.identity.name,
                "sha": model.identity.sha,
                "status": self._status().value,
                "version": model.identity.version,
            }
            if model.version_id is not None:
                entry["model_version_id"] = model.version_id
            listed.append(entry)
        return listed

    def _status(self) -> Status:
        if self._failure is not None:
            return Status.ERROR
        return Status.LOADING if self.current is None else Status.RUNNING
