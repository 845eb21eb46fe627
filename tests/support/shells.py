"""The two shells, asked for the same things in the same words: what a contract case is written in.

A request is a list of rows (dicts), a table, or a file of requests (``.arrow``, ``.df.json``). HTTP
gets rows as JSON and tables as Arrow; Flight, which knows Arrow alone, gets both as Arrow.
"""

import json
import urllib.parse
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.flight as fl

from support.arrow import file_bytes, read_file
from support.engine import ARROW_FILE, RECORDS
from support.flight import INFER, RECORDS_COMMAND, connect, exchange, refusal

LEGACY_TYPES = {"Float": "float32", "Half": "float16", "Double": "float64", "String": "object"}


class Rest:
    """An engine over HTTP."""

    def __init__(self, engine):
        self.engine = engine

    def records(self, request, pipeline=None):
        """The whole records, as Python's own values."""
        reply = self._infer(request, pipeline, "?dataset[]=*")
        assert reply.status == 200, reply.body
        return reply.json

    def table(self, request):
        """The whole records, as a table."""
        reply = self._infer(request, None, "", accept=ARROW_FILE)
        assert reply.status == 200, reply.body
        return read_file(reply.body)

    def outputs(self, request):
        """The outputs alone, each an array with the request's rows first."""
        reply = self._infer(request, None, "")
        assert reply.status == 200, reply.body
        arrays = []
        for output in reply.json[0]["outputs"]:
            ((kind, tensor),) = output.items()
            dtype = LEGACY_TYPES.get(kind, kind.lower())
            arrays.append(np.array(tensor["data"], dtype).reshape(tensor["dim"]))
        return arrays

    def refused(self, request, pipeline=None, *, as_records=False):
        """Code and text of a request that must fail."""
        reply = self._infer(request, pipeline, "?dataset[]=*" if as_records else "")
        return reply.status, reply.error

    def told(self, what):
        """``pipelines``, ``models`` or ``health``, as the engine spells it."""
        return self.engine.get({"health": "/healthz"}.get(what, f"/{what}")).body

    def log(self, parameters="", cursor=None, *, failures=False):
        """A page of the log, or of its failures: its table and its status."""
        body, path = orjson.dumps(cursor or {}), "/logs/failures" if failures else "/logs"
        reply = self.engine.post(f"{path}?{parameters}", body, accept=ARROW_FILE)
        assert reply.status == 200, reply.body
        return read_file(reply.body), orjson.loads(reply.headers["x-iteration-status"])

    def log_refused(self, parameters="", *, failures=False):
        """Code and text of a page that must not be answered."""
        path = "/logs/failures" if failures else "/logs"
        reply = self.engine.post(f"{path}?{parameters}", b"{}")
        return reply.status, reply.error

    def _infer(self, request, pipeline, query, **headers):
        path = "/infer" if pipeline is None else f"/pipelines/{pipeline}"
        kind = RECORDS
        if isinstance(request, Path):
            kind = ARROW_FILE if request.suffix == ".arrow" else RECORDS
            request = request.read_bytes()
        elif isinstance(request, pa.Table):
            kind, request = ARROW_FILE, file_bytes(request)
        return self.engine.post(path + query, request, kind, **headers)


class Flight:
    """An engine over Arrow Flight."""

    def __init__(self, engine):
        self.client = connect(engine)

    def records(self, request, pipeline=None):
        """The whole records, as Python's own values."""
        return self._exchange(request, pipeline, as_records=True).to_pylist()

    def table(self, request):
        """The whole records, as a table."""
        return self._exchange(request, None, as_records=True)

    def outputs(self, request):
        """The outputs alone, each an array with the request's rows first."""
        table = self._exchange(request, None, as_records=False)
        return [_array(column.combine_chunks()) for column in table.columns]

    def refused(self, request, pipeline=None, *, as_records=False):
        """Code and text of a request that must fail."""
        body, _ = refusal(lambda: self._exchange(request, pipeline, as_records=as_records))
        return body["code"], body["error"]

    def told(self, what):
        """``pipelines``, ``models`` or ``health``, as the engine spells it."""
        (result,) = self.client.do_action(what)
        return result.body.to_pybytes()

    def log(self, parameters="", cursor=None, *, failures=False):
        """A page of the log, or of its failures: its table and its status."""
        chunks = list(self.client.do_get(_log_ticket(parameters, cursor, failures)))
        status = orjson.loads(chunks[-1].app_metadata.to_pybytes())
        return pa.Table.from_batches([chunk.data for chunk in chunks]), status

    def log_refused(self, parameters="", *, failures=False):
        """Code and text of a page that must not be answered."""
        body, _ = refusal(lambda: self.log(parameters, failures=failures))
        return body["code"], body["error"]

    def _exchange(self, request, pipeline, *, as_records):
        if isinstance(request, Path) and request.suffix == ".arrow":
            request = read_file(request.read_bytes())
        elif isinstance(request, Path):
            request = orjson.loads(request.read_bytes())
        if not isinstance(request, pa.Table):
            request = pa.Table.from_pylist(request)
        descriptor = (
            INFER if pipeline is None else fl.FlightDescriptor.for_path("pipelines", pipeline)
        )
        if as_records:
            command = {**json.loads(RECORDS_COMMAND), "pipeline": pipeline or ""}
            descriptor = fl.FlightDescriptor.for_command(json.dumps(command))
        no_rows = pa.RecordBatch.from_pylist([], schema=request.schema)
        batches = request.combine_chunks().to_batches() or [no_rows]
        ((reply, _),) = exchange(self.client, batches, descriptor)
        return reply


def _log_ticket(parameters, cursor, failures):
    """The ticket that says what the query string of ``POST /logs`` says."""
    query = {"cursor": cursor or {}, "failures": failures}
    for name, value in urllib.parse.parse_qsl(parameters, keep_blank_values=True):
        field = name.removesuffix("[]").replace(".", "_")
        if field in {"dataset", "dataset_exclude"}:
            query.setdefault(field, []).append(value)
        elif field == "dataset_flatten" and value.lower() in {"true", "false"}:
            query[field] = value.lower() == "true"
        else:
            query[field] = value
    return fl.Ticket(json.dumps({"log": query}))


def _array(column):
    """An Arrow column of equal rows, as the tensor that it was."""
    shape = [len(column)]
    while hasattr(column.type, "value_type"):
        width = len(column[0]) if len(column) else 0
        shape.append(width)
        column = column.flatten()
    return column.to_numpy(zero_copy_only=False).reshape(shape)
