"""What there is to be found before the first row: schemas, flight infos, and the actions.

Rules that hold here:
- A flight info names no location: its endpoints are fetched over the connection that asked.
- What cannot be had now (no pipeline yet, no readable log) is not listed.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

import orjson
import pyarrow as pa
import pyarrow.flight as fl

from engine._proto.sagitta.flight.v1 import flight_pb2
from engine.codecs.arrow_frame import row_shapes
from engine.codecs.output_batch import input_schema, output_schema
from engine.codecs.record_batch import record_batch
from engine.errors import NotFoundError, NotReadyError
from engine.flight.descriptors import FAILURES_PATH, LOG_PATH, Wanted, write_log_ticket
from engine.flight.log_stream import LogStream
from engine.values import Frame

if TYPE_CHECKING:
    from typing import Final

    from engine.dataplane import DataPlane
    from engine.running import RunningPipeline

__all__ = ["ACTIONS", "Catalog"]

ACTIONS: Final = (
    ("ping", "A line feed."),
    ("health", 'JSON, as GET /healthz: {"status": "Running"} once requests are welcome.'),
    ("pipelines", "JSON, as GET /pipelines."),
    ("models", "JSON, as GET /models."),
)


class Catalog:
    """What a data plane offers, as Flight tells it; any thread."""

    def __init__(self, plane: DataPlane, partition: str) -> None:
        """Describe a data plane.

        Args:
            plane: what is served.
            partition: the name that cursors of the log go by.
        """
        self._plane = plane
        self._partition = partition
        self._log_turn = threading.Lock()

    def log_stream(self, query: flight_pb2.LogQuery) -> LogStream:
        """Begin to read the log.

        Raises:
            EngineError: as for ``LogStream``, or the log is off.
        """
        return LogStream(self._plane.kept_log, query, self._partition, self._log_turn)

    def schema(self, wanted: Wanted | flight_pb2.LogQuery) -> pa.Schema:
        """The schema of the replies, of the requests, or of rows of the log.

        Raises:
            EngineError: there is no such pipeline, or no log.
        """
        if not isinstance(wanted, Wanted):
            return self.log_stream(wanted).schema
        pipeline = self._pipeline(wanted)
        if wanted.is_input:
            return input_schema(pipeline.inputs)
        return _reply_schema(pipeline, as_records=wanted.as_records)

    def info(
        self, wanted: Wanted | flight_pb2.LogQuery, descriptor: fl.FlightDescriptor
    ) -> fl.FlightInfo:
        """What a pipeline takes and gives, or the rows of the log with their ticket.

        Raises:
            EngineError: there is no such pipeline, or no log.
        """
        if not isinstance(wanted, Wanted):
            return self._log_info(wanted, descriptor)
        pipeline = self._pipeline(wanted)
        told = flight_pb2.PipelineInfo(
            name=pipeline.identity.id,
            version=pipeline.identity.version,
            status=self._plane.state,
            input_schema=input_schema(pipeline.inputs).serialize().to_pybytes(),
        )
        # without rows of one's own there is nothing to fetch: no endpoints
        return fl.FlightInfo(
            _reply_schema(pipeline, as_records=wanted.as_records),
            descriptor,
            [],
            -1,
            -1,
            app_metadata=told.SerializeToString(),
        )

    def infos(self) -> list[fl.FlightInfo]:
        """The pipeline that is served, the log and its failures, each where there is one."""
        listed = []
        if self._plane.current is not None:
            wanted = Wanted(self._plane.running.identity.id)
            descriptor = fl.FlightDescriptor.for_path("pipelines", wanted.pipeline)
            listed.append(self.info(wanted, descriptor))
        if self._plane.log is not None:
            with contextlib.suppress(NotReadyError):
                for path, failures in ((LOG_PATH, False), (FAILURES_PATH, True)):
                    query = flight_pb2.LogQuery(failures=failures)
                    listed.append(self._log_info(query, fl.FlightDescriptor.for_path(*path)))
        return listed

    def act(self, action: str) -> bytes:
        """Answer an action of ``ACTIONS``.

        Raises:
            NotFoundError: there is no such action.
        """
        plane = self._plane
        match action:
            case "ping":
                return b"\n"
            case "health":
                return orjson.dumps(plane.health())
            case "pipelines":
                return orjson.dumps({"pipelines": plane.pipelines()})
            case "models":
                return orjson.dumps({"models": plane.models()})
        raise NotFoundError(
            f"there is no action {action[:100]!r}: there are "
            f"{', '.join(name for name, _ in ACTIONS)}"
        )

    def _pipeline(self, wanted: Wanted) -> RunningPipeline:
        plane = self._plane
        return plane.running if wanted.pipeline is None else plane.named(wanted.pipeline)

    def _log_info(
        self, query: flight_pb2.LogQuery, descriptor: fl.FlightDescriptor
    ) -> fl.FlightInfo:
        """Rows and bytes are told for all the rows of the log; else they are not known."""
        schema = self.log_stream(query).schema
        stats = self._plane.kept_log.stats()
        is_whole = query == flight_pb2.LogQuery()
        return fl.FlightInfo(
            schema,
            descriptor,
            [fl.FlightEndpoint(write_log_ticket(query), [])],
            stats.next_row - stats.first_row if is_whole else -1,
            stats.live_bytes if is_whole else -1,
        )


def _reply_schema(pipeline: RunningPipeline, *, as_records: bool) -> pa.Schema:
    if not as_records:
        return output_schema(pipeline.outputs)
    schema = input_schema(pipeline.inputs)
    columns = {field.name: pa.array([], field.type) for field in schema}
    frame = Frame(0, columns, row_shapes=row_shapes(schema))
    return record_batch(pipeline.infer(frame, time.monotonic_ns())).schema
