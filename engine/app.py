"""The composition root of ``sagitta serve``: builds every part, starts them, stops them.

Start order: sockets, so that a taken port ends the start at once; HTTP, so that probes are
answered; then the pipeline, on a thread of its own. Stop order: readiness, listeners, connections
and Flight calls, the line of waiting requests, the slot threads, the log. All of it has
SHUTDOWN_GRACE_S together, counted from the signal: a runtime that kills does so soon after.

Threads: the main thread runs the event loop; ``loader`` loads the pipeline; ``slot-N`` run models;
``log-sync`` makes the log durable; a ``flight-call`` answers a Flight call that asks once.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING

import pyarrow as pa
import uvloop

from engine.batching.entry import BatchPolicy
from engine.batching.line import Line
from engine.budget import ByteBudget
from engine.codecs.ipc_guard import IpcLimits
from engine.console import flush, log_to_stdout
from engine.dataplane import DataPlane
from engine.errors import StartupError
from engine.listening import listen, tls_context, tls_files
from engine.loading import load_pipeline, open_log
from engine.metrics import Metrics
from engine.options import PersistFolder, pull_options, read_tokens, unmet_settings
from engine.publish.reference import parse_reference
from engine.rest.app import metrics_app, rest_app
from engine.rest.connection import sweep
from engine.rest.server import HttpServer
from engine.rest.service import Service
from engine.sessions.cpus import available_cpus, intra_op_threads
from engine.turn import Turn

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Final

    from engine.config import EngineConfig
    from engine.flight.server import FlightServer
    from engine.listening import TlsFiles
    from engine.request import InferRequest

__all__ = ["serve"]

DRAIN_S: Final = 1.0  # how long open connections are still served after readiness has gone
LAST_S: Final = 0.3
SWEEP_S: Final = 1.0
GC_THRESHOLD: Final = (20_000, 50, 50)  # full collections pause for 100 ms in a process this size

log = logging.getLogger("sagitta")


def serve(config: EngineConfig, credential_files: tuple[Path, ...] = ()) -> int:
    """Run the engine until it is told to stop.

    Args:
        config: The whole configuration.
        credential_files: Where Docker and Podman keep registry credentials.

    Returns:
        The exit code: 0.

    Raises:
        StartupError: A port is taken, or the pipeline cannot be served.
    """
    log_to_stdout(debug=config.debug)
    engine = _Engine(config, credential_files)
    uvloop.run(engine.run())
    engine.close()
    if engine.failure is not None:
        raise engine.failure
    log.info("Stopped")
    return 0


class _Engine:
    """All parts of one running engine."""

    def __init__(self, config: EngineConfig, credential_files: tuple[Path, ...]) -> None:
        self.config = config
        self.failure: StartupError | None = None
        log.info("Sagitta Engine - Standalone mode")
        for line in config.describe():
            log.debug(line)
        for warning in (*config.warnings, *unmet_settings(config)):
            log.warning(warning)
        self.reference = parse_reference(config.pipeline_url)
        self.persist = PersistFolder(config, log.warning)
        self.pull_options = pull_options(config, self.persist.path, credential_files)
        available, how = available_cpus()
        self.threads, warning_text = intra_op_threads(config.cpu_cores, available)
        if warning_text:
            log.warning(warning_text)
        pa.set_cpu_count(self.threads)
        pa.set_io_thread_count(1)
        log.info("Threads: %d for inference; %g CPUs available (%s)", self.threads, available, how)
        log.info("Accelerator: %s", config.accelerator)
        self.partition = config.edge.edge_name if config.edge else socket.gethostname()
        metrics = Metrics()
        self.log = open_log(config.log_storage_bytes, self.persist.path)
        self.plane = DataPlane(metrics, self.log)
        self.line: Line[InferRequest] = Line(
            self.threads,
            self.plane.answer,
            max_rows=config.queue_max_rows,
            max_bytes=config.queue_max_bytes,
        )
        self.service = Service(
            plane=self.plane,
            turn=Turn(self.plane.answer, self.line),
            metrics=metrics,
            budget=ByteBudget(config.queue_max_bytes),
            max_body_bytes=config.max_body_bytes,
            request_timeout_s=config.request_timeout_s,
            records_by_default=config.inference_response == "records",
            tokens=read_tokens(config),
        )
        self._servers: list[HttpServer] = []
        self._loader = threading.Thread(target=self._load, name="loader")
        self._flight: FlightServer | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leave = asyncio.Event()  # set on the event loop only
        self._ends_at = self._drained_at = math.inf  # monotonic seconds; set when stopping begins

    async def run(self) -> None:
        """Serve until stopped; the event loop's only task."""
        loop = self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        tls = tls_files(self.config)
        listeners = []
        metrics = metrics_app(self.service, self.line, self.partition)
        for name, port, app, files in (
            ("HTTP", self.config.http_port, rest_app(self.service, self.partition), tls),
            ("METRICS", self.config.metrics_port, metrics, None),
        ):
            if port is None:
                continue
            listener = listen(name, self.config.bind_host, port)
            server = HttpServer(app, self.service, answers_inference=name == "HTTP", tls=files)
            self._servers.append(server)
            listeners.append(listener)
            host, bound = listener.getsockname()[:2]
            log.info("Listening: %s on %s:%d%s", name, host, bound, " (TLS)" if files else "")
        await self._listen_flight(tls)
        self.line.start()
        if self.log is not None:
            self.log.start()
        self._loader.start()
        loop.call_later(SWEEP_S, self._sweep)
        runs = [server.serve([one]) for server, one in zip(self._servers, listeners, strict=True)]
        await asyncio.gather(*runs, self._end_flight())

    def close(self) -> None:
        """Join the threads; no model can hold the process up."""
        for number in (signal.SIGTERM, signal.SIGINT):  # the event loop, which had them, is closed
            signal.signal(number, self._leave_now)
        ended = self.line.close(self._left_s()) and self.plane.close(self._left_s())
        self._loader.join(timeout=self._left_s())
        if self.log is not None:
            self.log.close(timeout_s=self._left_s())
        self.persist.close()
        if not ended:
            log.warning("a model was still running after SHUTDOWN_GRACE_S: leaving it behind")
        elif self._loader.is_alive():
            log.warning("the pipeline was still being loaded after SHUTDOWN_GRACE_S: leaving it")
        else:
            return
        self._leave_now()

    def _left_s(self) -> float:
        """What is left of SHUTDOWN_GRACE_S; at least what a thread without work takes to end."""
        return max(self._ends_at - time.monotonic(), LAST_S)

    def _leave_now(self, *_signal: object) -> None:
        if self.failure is not None:
            log.error("%s", self.failure)
        flush()
        os._exit(0 if self.failure is None else 3)

    async def _listen_flight(self, tls: TlsFiles | None) -> None:
        config, service = self.config, self.service
        if config.flight_port is None:
            return
        from engine.flight.server import FlightServer  # noqa: PLC0415
        from engine.flight.service import FlightService  # noqa: PLC0415 - only where it is on

        shared = self.plane, service.turn, service.metrics, IpcLimits()
        self._flight = FlightServer(
            FlightService(*shared, ByteBudget(config.queue_max_bytes), config.request_timeout_s),
            partition=self.partition,
            max_calls=config.flight_max_streams,
            max_held_bytes=config.queue_max_bytes,
            tokens=service.tokens,
        )
        listener = listen("FLIGHT", config.bind_host, config.flight_port)
        await self._flight.serve(listener, tls_context(tls, "h2") if tls else None)
        log.info("Listening: Flight on %s:%d%s", *listener.getsockname()[:2], " (TLS)" * bool(tls))

    async def _end_flight(self) -> None:
        """Let Flight calls that are being answered end, once the engine is to leave."""
        await self._leave.wait()
        if self._flight is not None:
            await self._flight.stop(self._left_s())

    def _load(self) -> None:
        """The loader thread: load, serve, or end the process with the reason."""
        started = time.monotonic()
        try:
            pipeline = load_pipeline(
                self.reference,
                self.plane,
                pull_options=self.pull_options,
                threads=self.threads,
                batch=BatchPolicy(
                    self.config.max_batch_rows,
                    target_rows=self.config.max_batch_rows,
                    delay_ns=self.config.max_batch_delay_us * 1000,
                ),
                accelerator=self.config.accelerator,
                partition=self.partition,
                report=log.info,
                warn=log.warning,
                observe_shadow=self._observe_shadow,
            )
        except StartupError as error:
            self._fail(error)
            return
        except Exception as error:
            log.error("unexpected error while loading", exc_info=error)
            self._fail(StartupError(f"loading failed: {type(error).__name__}"))
            return
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLD)
        self.plane.serve(pipeline)
        log.info(
            "Ready: pipeline %s version %s, loaded in %.2f s",
            pipeline.identity.id,
            pipeline.identity.version,
            time.monotonic() - started,
        )

    def _observe_shadow(self, model: str, reason: str, text: str) -> None:
        """Count a challenger's missing result; the 1st, 10th, 100th, … of a kind is logged too."""
        count = self.service.metrics.record_shadow(model, reason)
        if count == 10 ** (len(str(count)) - 1):
            log.warning("challenger %r %s (%d so far): %s", model, reason, count, text)

    def _fail(self, error: StartupError) -> None:
        self.failure = error
        self._ends_at = time.monotonic() + self.config.shutdown_grace_s
        self.plane.fail(str(error))
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._exit)

    def _stop(self) -> None:
        """A signal: the first drains, the second leaves at once."""
        if self.plane.is_draining:
            self._leave_now()
        log.info("Stopping: no longer ready, answering what is open")
        self.plane.drain()
        self._ends_at = time.monotonic() + self.config.shutdown_grace_s
        self._drained_at = time.monotonic() + min(DRAIN_S, self.config.shutdown_grace_s / 4)
        self._drain()

    def _drain(self) -> None:
        """Go on once no connection is open, or when open ones have had their time."""
        is_open = self.service.metrics.flight_calls or any(
            server.server_state.connections for server in self._servers
        )
        if is_open and time.monotonic() < self._drained_at and self._loop is not None:
            self._loop.call_later(0.05, self._drain)
        else:
            self._exit()

    def _exit(self) -> None:
        self._leave.set()
        for server in self._servers:
            server.stop(self._left_s())

    def _sweep(self) -> None:
        asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)
        for server in self._servers:
            sweep(server.server_state.connections)
        self.service.spares.sweep()
        if self._flight is not None:
            self._flight.sweep()
