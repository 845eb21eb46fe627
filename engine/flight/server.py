"""The Flight server: one handler per Flight call, nothing but shape around ``InferCall``.

Threads: gRPC makes one per call, without a limit (``admission`` has one), and none of ours is
behind them. The server listens from its construction on; ``serve()`` is never called, since it only
waits, and fights over signals.

Rules that hold here:
- Every handler is ``guarded``: nothing of Python reaches a client.
- Handlers hold no lock while they wait, and keep nothing in thread-locals.
Source: our own design; the documented product has no public Flight endpoint.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING

import orjson
import pyarrow as pa
import pyarrow.flight as fl

from engine._proto.sagitta.flight.v1 import flight_pb2
from engine.codecs.arrow_ipc import row_shapes
from engine.codecs.output_batch import input_schema, output_schema
from engine.codecs.record_batch import record_batch
from engine.errors import NotFoundError, ShuttingDownError, StartupError
from engine.flight.admission import Admission
from engine.flight.call import InferCall
from engine.flight.descriptors import read_descriptor, read_ticket, write_ticket
from engine.flight.errors import CancelledError, guarded
from engine.flight.results import Results
from engine.refusal import refusal_of
from engine.values import Frame

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator
    from typing import Final

    from engine.dataplane import RunningPipeline
    from engine.flight.call import FlightService
    from engine.flight.descriptors import Wanted
    from engine.tokens import TokenFile

__all__ = ["FlightServer"]

ACTIONS: Final = (
    ("ping", "A line feed."),
    ("health", 'JSON, as GET /healthz: {"status": "Running"} once requests are welcome.'),
    ("pipelines", "JSON, as GET /pipelines."),
    ("models", "JSON, as GET /models."),
)
WRITE_ERRORS: Final = (pa.ArrowException, OSError)  # the client has gone
LAST_WAIT_S: Final = 0.5  # for gRPC to end, once nothing is being answered


class FlightServer(fl.FlightServerBase):
    """Arrow Flight around the data plane."""

    def __init__(
        self,
        service: FlightService,
        *,
        host: str,
        port: int,
        max_calls: int,
        max_held_bytes: int,
        tokens: TokenFile | None,
        tls: tuple[pathlib.Path, pathlib.Path, pathlib.Path | None] | None,
    ) -> None:
        """Listen.

        Args:
            service: answers the calls.
            host: address to listen on.
            port: 0 takes any free one.
            max_calls: calls at a time.
            max_held_bytes: of answers that wait for DoGet.
            tokens: accepted bearer tokens; None where everybody is welcome.
            tls: PEM files: certificate, key, and the CA that signed the clients; None for plain.

        Raises:
            StartupError: the port is taken, or a TLS file cannot be used.
        """
        self._service = service
        self._admission = Admission(max_calls, tokens, service.metrics)
        self._results = Results(max_held_bytes, service.request_timeout_s)
        self._calls: set[InferCall] = set()  # changed by single set operations only
        self._is_stopping = False
        _check_port(host, port)
        address = f"[{host}]" if ":" in host else host
        options: dict[str, object] = {}
        try:
            if tls is not None:
                options["tls_certificates"] = [(tls[0].read_bytes(), tls[1].read_bytes())]
                if tls[2] is not None:
                    options["verify_client"] = True
                    options["root_certificates"] = tls[2].read_bytes()
            super().__init__(
                f"grpc{'+tls' if tls else ''}://{address}:{port}",
                middleware={"admission": self._admission},
                **options,
            )
        except (OSError, pa.ArrowException) as error:
            raise StartupError(
                f"Flight cannot listen on {host}:{port}: choose another port with FLIGHT_PORT "
                "(0 = any free one, empty = no Flight) or another address with BIND_HOST, and "
                "check TLS_CERT_FILE and TLS_KEY_FILE where they are set"
            ) from error

    @property
    def open_calls(self) -> int:
        """Calls that go on, idle streams included."""
        return self._service.metrics.flight_calls

    def stop(self, grace_s: float) -> bool:
        """Refuse what comes, let what is being answered end, and stop listening.

        Idle streams cannot be ended from here: gRPC waits for their clients.

        Args:
            grace_s: how long answers may still take.

        Returns:
            Whether every call has ended; if not, threads of gRPC are left behind.
        """
        self._admission.is_closed = self._is_stopping = True
        deadline_s = time.monotonic() + grace_s
        while any(call.is_busy for call in tuple(self._calls)) and time.monotonic() < deadline_s:
            time.sleep(0.01)
        thread = threading.Thread(target=self.shutdown, name="flight-stop", daemon=True)
        thread.start()
        thread.join(timeout=min(max(deadline_s - time.monotonic(), 0.0), LAST_WAIT_S))
        return not thread.is_alive()

    @guarded
    def do_exchange(
        self,
        context: fl.ServerCallContext,
        descriptor: fl.FlightDescriptor,
        reader: fl.MetadataRecordBatchReader,
        writer: fl.MetadataRecordBatchWriter,
    ) -> None:
        """Batches in, their answers out, in order; the stream may stay open for ever."""
        with self._call(context, descriptor, reader) as call:
            is_begun = False
            while (batch := call.next_batch()) is not None:
                parts = self._answer(call, batch)
                try:
                    if not is_begun:
                        writer.begin(call.schema)
                        is_begun = True
                    for part, metadata in parts:
                        writer.write_with_metadata(part, metadata)
                except WRITE_ERRORS:
                    raise CancelledError from None

    @guarded
    def do_put(
        self,
        context: fl.ServerCallContext,
        descriptor: fl.FlightDescriptor,
        reader: fl.MetadataRecordBatchReader,
        writer: fl.FlightMetadataWriter,
    ) -> None:
        """Batches in; for each, once it is answered, a PutReply with the ticket of the answers."""
        with self._call(context, descriptor, reader) as call:
            key, sequence = None, 0
            while (batch := call.next_batch()) is not None:
                parts = self._answer(call, batch)
                key = self._results.add(key, call.schema, parts)
                told = flight_pb2.BatchReply.FromString(parts[0][1])
                reply = flight_pb2.PutReply(
                    sequence=sequence,
                    rows=told.rows,
                    elapsed_ns=told.elapsed_ns,
                    ticket=write_ticket(key),
                )
                try:
                    writer.write(reply.SerializeToString())
                except WRITE_ERRORS:
                    raise CancelledError from None
                sequence += 1

    @guarded
    def do_get(self, _context: fl.ServerCallContext, ticket: fl.Ticket) -> fl.FlightDataStream:
        """The answers of a DoPut, once."""
        schema, parts = self._results.fetch(read_ticket(ticket))
        return fl.GeneratorStream(schema, iter(parts))

    def get_schema(
        self, _context: fl.ServerCallContext, descriptor: fl.FlightDescriptor
    ) -> fl.SchemaResult:
        """The schema of the replies, or of the requests where the path ends in ``input``.

        pyarrow sends a traceback for whatever this one handler raises, Flight errors included. So
        it never raises: a refusal is a schema without fields, with the error body as its metadata.
        """
        try:
            wanted = read_descriptor(descriptor)
            pipeline = self._pipeline(wanted)
            if wanted.is_input:
                return fl.SchemaResult(input_schema(pipeline.inputs))
            return fl.SchemaResult(_reply_schema(pipeline, as_records=wanted.as_records))
        except Exception as error:  # noqa: BLE001 - see above
            return fl.SchemaResult(pa.schema([], metadata={"error": refusal_of(error).body}))

    @guarded
    def get_flight_info(
        self, _context: fl.ServerCallContext, descriptor: fl.FlightDescriptor
    ) -> fl.FlightInfo:
        """What a pipeline takes and gives; there is nothing to fetch without rows of one's own."""
        wanted = read_descriptor(descriptor)
        return self._info(self._pipeline(wanted), descriptor, as_records=wanted.as_records)

    @guarded
    def list_flights(
        self, _context: fl.ServerCallContext, _criteria: bytes
    ) -> Iterator[fl.FlightInfo]:
        """The pipeline that is served; nothing while it is loading."""
        plane = self._service.plane
        if not plane.has_pipeline:
            return iter(())
        running = plane.running
        descriptor = fl.FlightDescriptor.for_path("pipelines", running.identity.id)
        return iter([self._info(running, descriptor, as_records=False)])

    @guarded
    def do_action(self, _context: fl.ServerCallContext, action: fl.Action) -> Iterator[bytes]:
        """Answer an action of ``list_actions``."""
        plane = self._service.plane
        match action.type:
            case "ping":
                reply = b"\n"
            case "health":
                reply = orjson.dumps({"status": plane.state})
            case "pipelines":
                reply = orjson.dumps({"pipelines": plane.pipelines()})
            case "models":
                reply = orjson.dumps({"models": plane.models()})
            case _:
                raise NotFoundError(
                    f"there is no action {action.type[:100]!r}: there are "
                    f"{', '.join(name for name, _ in ACTIONS)}"
                )
        return iter([reply])

    def list_actions(self, _context: fl.ServerCallContext) -> list[tuple[str, str]]:
        """Every action with its description."""
        return list(ACTIONS)

    @contextlib.contextmanager
    def _call(
        self,
        context: fl.ServerCallContext,
        descriptor: fl.FlightDescriptor,
        reader: fl.MetadataRecordBatchReader,
    ) -> Iterator[InferCall]:
        call = InferCall(self._service, context, read_descriptor(descriptor), reader)
        self._calls.add(call)
        try:
            yield call
        finally:
            call.is_busy = False
            self._calls.discard(call)

    def _answer(self, call: InferCall, batch: pa.RecordBatch) -> list[tuple[pa.RecordBatch, bytes]]:
        if self._is_stopping:
            raise ShuttingDownError("the engine is stopping and takes no new batches")
        return call.reply(call.answer(batch))

    def _pipeline(self, wanted: Wanted) -> RunningPipeline:
        plane = self._service.plane
        return plane.running if wanted.pipeline is None else plane.named(wanted.pipeline)

    def _info(
        self, pipeline: RunningPipeline, descriptor: fl.FlightDescriptor, *, as_records: bool
    ) -> fl.FlightInfo:
        told = flight_pb2.PipelineInfo(
            name=pipeline.identity.id,
            version=pipeline.identity.version,
            status=self._service.plane.state,
            input_schema=input_schema(pipeline.inputs).serialize().to_pybytes(),
        )
        return fl.FlightInfo(
            _reply_schema(pipeline, as_records=as_records),
            descriptor,
            [],
            -1,
            -1,
            app_metadata=told.SerializeToString(),
        )


def _reply_schema(pipeline: RunningPipeline, *, as_records: bool) -> pa.Schema:
    if not as_records:
        return output_schema(pipeline.outputs)
    schema = input_schema(pipeline.inputs)
    columns = {field.name: pa.array([], field.type) for field in schema}
    frame = Frame(0, columns, row_shapes=row_shapes(schema))
    return record_batch(pipeline.infer(frame, time.monotonic_ns())).schema


def _check_port(host: str, port: int) -> None:
    """Say that a port is taken before gRPC does, in words that help."""
    if not port:
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StartupError(
                f"cannot listen on {host}:{port}: {error.strerror}; choose another port with "
                "FLIGHT_PORT (0 = any free one, empty = no Flight) or another address with "
                "BIND_HOST"
            ) from error
