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

import pyarrow as pa
import pyarrow.flight as fl

from engine._proto.sagitta.flight.v1 import flight_pb2
from engine.errors import ShuttingDownError, StartupError
from engine.flight.admission import NAME, Admission, Admitted
from engine.flight.call import InferCall
from engine.flight.catalog import ACTIONS, Catalog
from engine.flight.descriptors import (
    read_descriptor,
    read_infer_descriptor,
    read_ticket,
    write_ticket,
)
from engine.flight.errors import CancelledError, guarded, guarded_batches, schema_error
from engine.flight.results import Results

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator
    from typing import Final

    from engine.flight.call import FlightService
    from engine.flight.reply import Part, Reply
    from engine.tokens import TokenFile


__all__ = ["FlightServer"]

WRITE_ERRORS: Final = (pa.ArrowException, OSError)  # the client has gone
LAST_WAIT_S: Final = 0.5  # for gRPC to end, once nothing is being answered


class FlightServer(fl.FlightServerBase):
    """Arrow Flight around the data plane."""

    def __init__(
        self,
        service: FlightService,
        *,
        partition: str,
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
            partition: the name that cursors of the log go by.
            host: address to listen on.
            port: 0 takes any free one.
            max_calls: calls at a time.
            max_held_bytes: of answers that wait for DoGet.
            tokens: accepted bearer tokens; None where everybody is welcome.
            tls: PEM files: certificate, key, and the CA that signed the clients; None for plain.

        Raises:
            StartupError: the port is taken, or a TLS file cannot be used.
        """
        self.metrics = service.metrics
        self._service = service
        self._catalog = Catalog(service.plane, partition)
        self._admission = Admission(max_calls, tokens, self.metrics)
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
                middleware={NAME: self._admission},
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
        return self.metrics.flight_calls

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
        while self._is_answering() and time.monotonic() < deadline_s:
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
                part = None if self._is_stopping else call.answer_at_once(batch)
                parts = self._answer(call, batch).parts() if part is None else (part,)
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
            key = None
            while (batch := call.next_batch()) is not None:
                reply = self._answer(call, batch)
                key = self._results.add(key, reply)
                told = flight_pb2.PutReply(
                    sequence=reply.told.sequence,
                    rows=reply.told.rows,
                    elapsed_ns=reply.told.elapsed_ns,
                    ticket=write_ticket(key),
                )
                try:
                    writer.write(told.SerializeToString())
                except WRITE_ERRORS:
                    raise CancelledError from None

    @guarded
    def do_get(self, context: fl.ServerCallContext, ticket: fl.Ticket) -> fl.FlightDataStream:
        """The answers of a DoPut, once; or rows of the log."""
        wanted = read_ticket(ticket)
        if isinstance(wanted, bytes):
            return fl.GeneratorStream(*self._results.fetch(wanted))
        log = self._catalog.log_stream(wanted)
        batches = self._while_awaited(context, log.batches())
        return fl.GeneratorStream(log.schema, guarded_batches(batches, self.metrics))

    def get_schema(
        self, _context: fl.ServerCallContext, descriptor: fl.FlightDescriptor
    ) -> fl.SchemaResult:
        """The schema of the replies, of the requests (path ends in ``input``), or of the log."""
        try:
            return fl.SchemaResult(self._catalog.schema(read_descriptor(descriptor)))
        except Exception as error:  # noqa: BLE001 - see the module's first rule
            raise schema_error(error, self.metrics) from None

    @guarded
    def get_flight_info(
        self, _context: fl.ServerCallContext, descriptor: fl.FlightDescriptor
    ) -> fl.FlightInfo:
        """What a pipeline takes and gives, or the rows of the log with their ticket."""
        return self._catalog.info(read_descriptor(descriptor), descriptor)

    @guarded
    def list_flights(
        self, _context: fl.ServerCallContext, _criteria: bytes
    ) -> Iterator[fl.FlightInfo]:
        """The pipeline that is served, and the log; each where there is one."""
        return iter(self._catalog.infos())

    @guarded
    def do_action(self, _context: fl.ServerCallContext, action: fl.Action) -> Iterator[bytes]:
        """Answer an action of ``list_actions``."""
        return iter([self._catalog.act(action.type)])

    def list_actions(self, _context: fl.ServerCallContext) -> list[tuple[str, str]]:
        """Every action with its description."""
        return list(ACTIONS)

    def _while_awaited(
        self, context: fl.ServerCallContext, batches: Iterator[Part]
    ) -> Iterator[Part]:
        """Batches for as long as the client waits and the engine does not stop."""
        admitted = Admitted.of(context)
        for part in batches:
            admitted.check()
            if self._is_stopping:
                raise ShuttingDownError("the engine is stopping: go on later from the last batch")
            if context.is_cancelled():
                raise CancelledError
            yield part

    @contextlib.contextmanager
    def _call(
        self,
        context: fl.ServerCallContext,
        descriptor: fl.FlightDescriptor,
        reader: fl.MetadataRecordBatchReader,
    ) -> Iterator[InferCall]:
        wanted = read_infer_descriptor(descriptor)
        call = InferCall(self._service, context, Admitted.of(context), wanted, reader)
        self._calls.add(call)
        try:
            yield call
        finally:
            call.is_busy = False
            self._calls.discard(call)

    def _is_answering(self) -> bool:
        return self._results.fetching > 0 or any(call.is_busy for call in tuple(self._calls))

    def _answer(self, call: InferCall, batch: pa.RecordBatch) -> Reply:
        if self._is_stopping:
            raise ShuttingDownError("the engine is stopping and takes no new batches")
        return call.answer(batch)


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
