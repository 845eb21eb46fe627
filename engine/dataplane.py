"""The one object that every shell calls: it infers, and it tells what it serves.

Rules that hold here:
- No bytes, no headers, no status codes; a shell decodes and encodes around it.
- A request captures the running pipeline once, so that a swap in between cannot mix two versions.
- Loading, running, failed and draining are states of this object; readiness is told from them.
"""

from __future__ import annotations

import dataclasses
import enum
import time
from typing import TYPE_CHECKING

from engine.codecs.tensors import to_tensor
from engine.errors import NotFoundError, NotReadyError
from engine.values import InferResult

if TYPE_CHECKING:
    from engine.sessions.session import ModelSession
    from engine.values import Frame, ModelIdentity, Output, PipelineIdentity

__all__ = ["DataPlane", "RunningPipeline", "ServedModel", "Status"]


class Status(enum.Enum):
    """The state of a pipeline or model, as the documented endpoints spell it."""

    LOADING = "Loading"
    RUNNING = "Running"
    ERROR = "Error"


@dataclasses.dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as ``GET /models`` lists it."""

    identity: ModelIdentity
    version_id: int | None = None


class RunCost:
    """How long runs take, by the power of two of their rows: an average that follows the present.

    Written without a lock: a lost update costs nothing but a little staleness.
    """

    def __init__(self) -> None:
        self._mean_ns: list[float] = [0.0] * 64

    def learn(self, rows: int, run_ns: int) -> None:
        """Take a measured run into account."""
        size = rows.bit_length()
        mean_ns = self._mean_ns[size]
        self._mean_ns[size] = mean_ns + (run_ns - mean_ns) / 8 if mean_ns else float(run_ns)

    def estimate_ns(self, rows: int) -> float | None:
        """The expected time of a run; scaled up from smaller runs, None where there were none."""
        size = rows.bit_length()
        for known in range(size, -1, -1):
            if self._mean_ns[known]:
                return self._mean_ns[known] * float(1 << (size - known))
        return None


class RunningPipeline:
    """A loaded pipeline: one step with one model."""

    def __init__(
        self,
        identity: PipelineIdentity,
        session: ModelSession,
        models: tuple[ServedModel, ...],
        partition: str,
    ) -> None:
        """Put a loaded model to use.

        Args:
            identity: the pipeline's name and version.
            session: its model, loaded.
            models: as ``GET /models`` lists them.
            partition: name of the edge or host, repeated in every record.
        """
        self.identity = identity
        self.inputs = session.inputs
        self.models = models
        self.cost = RunCost()
        self._session = session
        self._partition = partition

    def warm_up(self) -> str | None:
        """Run generated rows and learn what they cost; returns why that failed, or None."""
        return self._session.warm_up(self.cost.learn)

    def infer(self, frame: Frame, started_ns: int) -> InferResult:
        """Run a request's rows on the calling thread.

        Args:
            frame: the decoded request.
            started_ns: monotonic time when its decoding began.

        Returns:
            The answer; its arrays live as long as it does.

        Raises:
            SchemaMismatchError: the rows do not fit the model.
            InferenceFailedError: the model raised.
        """
        session = self._session
        if not frame.rows:
            return self._result(frame, (), (time.monotonic_ns() - started_ns, 0))
        feeds = [to_tensor(frame, spec) for spec in session.inputs]
        decoded_ns = time.monotonic_ns()
        outputs = session.run(feeds, frame.rows)
        run_ns = time.monotonic_ns() - decoded_ns
        self.cost.learn(frame.rows, run_ns)
        return self._result(frame, outputs, (decoded_ns - started_ns, run_ns))

    def _result(
        self, frame: Frame, outputs: tuple[Output, ...], elapsed_ns: tuple[int, ...]
    ) -> InferResult:
        return InferResult(
            frame=frame,
            outputs=outputs,
            time_ms=time.time_ns() // 1_000_000,
            elapsed_ns=elapsed_ns,
            model=self._session.identity,
            pipeline=self.identity,
            partition=self._partition,
        )


class DataPlane:
    """What the shells serve: the running pipeline and the truth about its state.

    The state changes by replacing one reference; readers need no lock.
    """

    def __init__(self) -> None:
        self._running: RunningPipeline | None = None
        self._identity: PipelineIdentity | None = None
        self._models: tuple[ServedModel, ...] = ()
        self._failure: str | None = None
        self._draining = False

    @property
    def is_ready(self) -> bool:
        """Whether requests are answered and more are welcome."""
        return self._running is not None and not self._draining

    @property
    def is_draining(self) -> bool:
        """Whether the engine was asked to stop: requests are still answered, none are welcome."""
        return self._draining

    @property
    def state(self) -> str:
        """One word for the health endpoint."""
        return "Draining" if self._draining else self._status().value

    @property
    def running(self) -> RunningPipeline:
        """The pipeline that answers requests.

        Raises:
            NotReadyError: there is none yet, or it failed to load.
        """
        if self._running is None:
            if self._failure is not None:
                raise NotReadyError("the pipeline failed to load; the engine's log has the reason")
            raise NotReadyError("the pipeline is still loading: try again shortly")
        return self._running

    def named(self, name: str) -> RunningPipeline:
        """The running pipeline under its own name.

        Raises:
            NotFoundError: the engine serves another one.
            NotReadyError: as ``running``.
        """
        running = self.running
        if name != running.identity.id:
            raise NotFoundError(
                f"no pipeline {name!r} here: this engine serves {running.identity.id!r} "
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
        self._running = pipeline

    def fail(self, reason: str) -> None:
        """Tell that what was being loaded cannot be served."""
        self._failure = reason

    def drain(self) -> None:
        """Answer what comes, but be no longer ready."""
        self._draining = True

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
        return Status.LOADING if self._running is None else Status.RUNNING
