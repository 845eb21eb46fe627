"""Arrow Flight beside HTTP: the same tables get the same records, bits and refusals by both."""

import numpy as np
import onnxruntime as ort
import orjson
import pyarrow as pa
import pyarrow.flight as fl
import pytest
from support import models
from support.arrow import file_bytes, read_file, vectors
from support.engine import ARROW_FILE
from support.flight import INFER, RECORDS, connect, exchange, refusal

from engine._proto.sagitta.flight.v1 import flight_pb2

FLIGHT = {"FLIGHT_PORT": "0"}
FLOATS = vectors([[1.5, -2.0], [0.25, 1e10], [3.0, 0.0]])
CASES = {
    "linear": {"x": vectors([[1, 2, 3, 4], [0.1, 0.2, 0.3, 0.4]])},
    "two_in_three_out": {"a": vectors([[1, 2, 3]] * 4), "b": vectors([[4, 5, 6.5]] * 4)},
    "not_finite": {"x": FLOATS},
    "zip_map": {"x": vectors([[0.1, 0.2, 0.7], [3, 2, 1]])},
    "sequence": {"x": vectors([[1, 2]])},
    "var_len": {"x": vectors([[0.1, 0.9, 0.6, 0.2, 0.7, 0.1, 0.1, 0.1]])},
    "rowcount_change": {"x": vectors([[1, 2, 3, 4]])},
    "every_type": {
        f"in_{key}": pa.array(
            [["a", "é"]] if key == "s" else [[True, False]] if key == "b" else [[1, 2]],
            pa.list_(
                pa.string() if key == "s" else pa.bool_() if key == "b" else pa.float32()
                if key == "f16" else getattr(pa, _kind)(), 2
            ),
        )
        for key, _kind in (
            *(("f16", "float32"), ("f32", "float32"), ("f64", "float64")),
            *((f"i{bits}", f"int{bits}") for bits in (8, 16, 32, 64)),
            *((f"u{bits}", f"uint{bits}") for bits in (8, 16, 32, 64)),
            *(("b", "bool_"), ("s", "string")),
        )
    },
}  # fmt: skip


def batch_of(columns):
    return pa.table(columns).to_batches()[0]


def without_the_moment(table):
    """A record table's rows without what no two answers share."""
    rows = table.to_pylist()
    for row in rows:
        assert type(row.pop("time")) is int
        assert len(row["metadata"].pop("elapsed")) == 2
    return rows


@pytest.mark.parametrize("model", CASES)
def test_the_same_records_by_both_shells(serving, model):
    engine = serving(model, environ=FLIGHT)
    batch = batch_of(CASES[model])

    reply = engine.post("/infer", file_bytes(pa.table(batch)), ARROW_FILE, accept=ARROW_FILE)
    assert reply.status == 200, reply.body
    (ours, told), = exchange(connect(engine), [batch], RECORDS)  # fmt: skip

    theirs = read_file(reply.body)
    assert ours.schema.equals(theirs.schema, check_metadata=True)
    assert orjson.dumps(without_the_moment(ours)) == orjson.dumps(without_the_moment(theirs))
    assert told.rows == batch.num_rows
    assert len(told.elapsed_ns) == 2


@pytest.mark.parametrize("model", CASES)
def test_outputs_alone_are_those_of_the_record(serving, model):
    engine = serving(model, environ=FLIGHT)
    client, batch = connect(engine), batch_of(CASES[model])
    promised = client.get_schema(INFER).schema

    (outputs, _), = exchange(client, [batch])  # fmt: skip
    (record, _), = exchange(client, [batch], RECORDS)  # fmt: skip

    assert outputs.schema.equals(promised, check_metadata=True)
    outputs.validate(full=True)
    out = record["out"].combine_chunks()
    assert [f"out.{field.name}" for field in out.type] == outputs.column_names
    for index, name in enumerate(outputs.column_names):
        assert repr(outputs[name].to_pylist()) == repr(out.field(index).to_pylist())


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [
        (pa.string(), "a", None),
        (pa.string(), None, "a"),
        (pa.list_(pa.float32(), 2), [1, 2], None),
        (pa.list_(pa.float32(), 2), None, [1, 2]),
        (pa.list_(pa.list_(pa.int8(), 1), 2), [[1], [2]], [[1], None]),
    ],
    ids=str,
)
def test_nulls_may_come_and_go_in_columns_that_no_model_reads(serving, kind, first, second):
    client = connect(serving("linear", environ=FLIGHT))
    batches = [
        batch_of({"x": vectors([[1, 2, 3, 4]]), "note": pa.array([note], kind)})
        for note in (first, second)
    ]

    replies = [reply for reply, _ in exchange(client, batches, RECORDS)]

    assert [reply["in"][0].as_py()["note"] for reply in replies] == [first, second]
    assert replies[0].schema.equals(replies[1].schema, check_metadata=True)
    for reply in replies:
        reply.validate(full=True)


@pytest.mark.parametrize("rows", [0, 1, 3, 1000])
def test_bits_are_those_of_the_model_alone(serving, rows):
    content = models.linear()
    values = np.random.default_rng(rows).normal(size=(rows, 4)).astype(np.float32)
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    engine = serving(content, environ=FLIGHT)
    batch = pa.record_batch({"x": pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 4)})

    (reply, _), = exchange(connect(engine), [batch])  # fmt: skip

    flat = reply["out.y"].combine_chunks().flatten().to_numpy()
    (expected,) = session.run(None, {"x": values}) if rows else (np.empty((0, 2), np.float32),)
    assert flat.tobytes() == expected.tobytes()


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_every_batch_of_a_stream_is_answered_alike(serving, rows):
    """The first ones of a size go another way through the engine than those after them."""
    content = models.linear()
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    engine = serving(content, environ=FLIGHT)
    values = np.random.default_rng(rows).normal(size=(200, rows, 4)).astype(np.float32)
    batches = [
        pa.record_batch({"x": pa.FixedSizeListArray.from_arrays(pa.array(one.ravel()), 4)})
        for one in values
    ]

    def rows_answered():
        (count,) = [v for k, v in engine.metrics().items() if k.startswith("tensor_throughput")]
        return count

    before = rows_answered()

    replies = exchange(connect(engine), batches)

    for number, (one, (reply, told)) in enumerate(zip(values, replies, strict=True)):
        (expected,) = session.run(None, {"x": one})
        flat = reply["out.y"].combine_chunks().flatten().to_numpy()
        assert flat.tobytes() == expected.tobytes()
        assert reply.schema.equals(replies[0][0].schema, check_metadata=True)
        assert (told.sequence, told.rows, len(told.elapsed_ns)) == (number, rows, 2)
        assert min(told.elapsed_ns) > 0
    assert rows_answered() - before == 200 * rows


BAD = {
    "missing column": {"z": vectors([[1, 2, 3, 4]])},
    "wrong width": {"x": vectors([[1, 2, 3]])},
    "null row": {"x": pa.array([[1, 2, 3, 4], None], pa.list_(pa.float32(), 4))},
    "null value": {"x": pa.array([[1, 2, None, 4]], pa.list_(pa.float32(), 4))},
    "ragged": {"x": pa.array([[1, 2, 3, 4], [1]], pa.list_(pa.float32()))},
    "text": {"x": pa.array([["a", "b", "c", "d"]])},
    "does not fit": {"x": pa.array([[1e300, 0, 0, 0]], pa.list_(pa.float64(), 4))},
    "dictionary": {"x": pa.array(["a"]).dictionary_encode()},
    "null column": {"x": pa.nulls(3)},
}


@pytest.mark.parametrize("case", BAD)
def test_the_same_refusal_by_both_shells(serving, case):
    engine = serving("linear", environ=FLIGHT)
    table = pa.table(BAD[case])

    reply = engine.post("/infer", file_bytes(table), ARROW_FILE)
    body, error = refusal(lambda: exchange(connect(engine), table.to_batches()))

    assert (reply.status, reply.error) == (body["code"], body["error"])
    assert body["code"] == 400
    assert isinstance(error, fl.FlightServerError)


def test_a_model_that_fails_tells_no_internals(serving):
    engine = serving("failing", environ=FLIGHT)

    body, error = refusal(lambda: exchange(connect(engine), [batch_of({"x": vectors([[5, 5]])})]))

    assert body["code"] == 500
    assert "under request" in body["error"]
    assert isinstance(error, fl.FlightInternalError)


@pytest.mark.parametrize(
    "recorded",
    [
        ("rf_model", "xtest-1.arrow", 4),
        ("xgboost_ccfraud", "cc_data_1k.arrow", 1),
        ("ccfraud", "cc_data_1k.arrow", 1),
    ],
    ids=str,
)
def test_golden_answers(serving, golden, recorded):
    """What the documented engine answered, bit for bit, over Flight as over HTTP."""
    model, file, cpus = recorded
    content = (golden / "models" / f"{model}.onnx").read_bytes()
    engine = serving(
        content, environ={**FLIGHT, "CONFIG_CPUS": str(cpus)}, tensor_fields=["tensor"]
    )
    body = (golden / "inputs" / file).read_bytes()
    with pa.ipc.open_file(body) as reader:
        table = reader.read_all()

    reply = engine.post("/infer", body, ARROW_FILE, accept=ARROW_FILE)
    batches = table.combine_chunks().to_batches()
    (ours, _), = exchange(connect(engine), batches, RECORDS)  # fmt: skip

    theirs = read_file(reply.body)
    assert ours["out"].combine_chunks().equals(theirs["out"].combine_chunks())
    assert ours["in"].combine_chunks().equals(theirs["in"].combine_chunks())


def test_what_is_there_can_be_discovered_before_the_first_row(serving):
    engine = serving("two_in_three_out", environ=FLIGHT)
    client = connect(engine)

    (info,) = client.list_flights()
    told = flight_pb2.PipelineInfo.FromString(info.app_metadata)
    wanted = pa.ipc.read_schema(pa.py_buffer(told.input_schema))
    assert (told.name, told.status) == ("pipe", "Running")
    assert info.descriptor.path == [b"pipelines", b"pipe"]
    assert info.schema.names == ["out.difference", "out.first", "out.sum"]
    assert wanted.names == ["b", "a"]
    assert str(wanted.field("a").type).endswith("[3]")
    by_path = client.get_schema(fl.FlightDescriptor.for_path("infer", "input")).schema
    assert by_path.equals(wanted, check_metadata=True)
    (described,) = [client.get_flight_info(info.descriptor)]
    assert described.schema.equals(info.schema)
    assert described.endpoints == []
    batch = wanted.empty_table().combine_chunks().to_batches() or [
        pa.record_batch([pa.array([], field.type) for field in wanted], schema=wanted)
    ]
    (record, _), = exchange(client, batch, RECORDS)  # fmt: skip
    promised = client.get_schema(RECORDS).schema
    assert record.schema.equals(promised, check_metadata=True)


def test_actions(serving, tmp_path_factory):
    log = {
        "LOCAL_INFERENCE_STORAGE": "1Mi",
        "PLATEAU_PAGE_SIZE": "10",
        "PERSIST_DIR": str(tmp_path_factory.mktemp("persist")),
    }
    engine = serving("linear", environ=FLIGHT | log)
    client = connect(engine)

    def act(name):
        (result,) = client.do_action(name)
        return result.body.to_pybytes()

    assert act("ping") == b"\n"
    assert orjson.loads(act("health")) == engine.get("/healthz").json
    assert orjson.loads(act("pipelines")) == engine.get("/pipelines").json
    assert orjson.loads(act("models")) == engine.get("/models").json
    assert {action.type for action in client.list_actions()} == {
        *("ping", "health", "pipelines", "models")
    }
    assert refusal(lambda: list(client.do_action("shutdown")))[0]["code"] == 404


@pytest.mark.parametrize(
    ("descriptor", "code"),
    [
        (fl.FlightDescriptor.for_path("pipelines", "pipe"), None),
        (fl.FlightDescriptor.for_path("pipelines", "other"), 404),
        (fl.FlightDescriptor.for_path("nowhere"), 404),
        (fl.FlightDescriptor.for_path(), 404),
        (fl.FlightDescriptor.for_path("pipelines", "..", "..", "etc"), 404),
        (fl.FlightDescriptor.for_command(b"{}"), None),
        (fl.FlightDescriptor.for_command(b""), None),
        (fl.FlightDescriptor.for_command(b'{"pipeline":"pipe"}'), None),
        (fl.FlightDescriptor.for_command(b'{"pipeline":"other"}'), 404),
        (fl.FlightDescriptor.for_command(b'{"nonsense":1}'), 400),
        (fl.FlightDescriptor.for_command(b'{"reply":'), 400),
        (fl.FlightDescriptor.for_command(b"\xff\xff\xff"), 400),
        (fl.FlightDescriptor.for_command(b"x" * 100_000), 400),
    ],
    ids=str,
)
def test_descriptors(serving, descriptor, code):
    client = connect(serving("linear", environ=FLIGHT))
    batch = batch_of({"x": vectors([[1, 2, 3, 4]])})

    if code is None:
        (reply, _), = exchange(client, [batch], descriptor)  # fmt: skip
        assert reply.num_rows == 1
    else:
        assert refusal(lambda: exchange(client, [batch], descriptor))[0]["code"] == code
        body, _ = refusal(lambda: client.get_flight_info(descriptor))
        assert body["code"] == code
        with pytest.raises(pa.ArrowKeyError if code == 404 else pa.ArrowInvalid) as refused:
            client.get_schema(descriptor)
        assert body["error"] in str(refused.value)
        for private in ("Traceback", ".py", "site-packages"):
            assert private not in str(refused.value)


def test_put_then_get(serving):
    client = connect(serving("linear", environ=FLIGHT))
    batch = batch_of({"x": vectors([[1, 2, 3, 4], [5, 6, 7, 8]])})
    (expected, _), = exchange(client, [batch])  # fmt: skip

    writer, reader = client.do_put(INFER, batch.schema)
    tickets = []
    for sequence in range(3):
        writer.write_batch(batch)
        told = flight_pb2.PutReply.FromString(reader.read().to_pybytes())
        assert (told.sequence, told.rows, len(told.elapsed_ns)) == (sequence, 2, 2)
        tickets.append(told.ticket)
    writer.close()

    assert len(set(tickets)) == 1
    fetched = client.do_get(fl.Ticket(tickets[0])).read_all()
    assert fetched.equals(pa.concat_tables([expected] * 3))
    again, _ = refusal(lambda: client.do_get(fl.Ticket(tickets[0])).read_all())
    assert again["code"] == 404
    for made_up in (b"", b"x", b"\x0a\x10" + bytes(16)):
        assert refusal(lambda t=made_up: client.do_get(fl.Ticket(t)).read_all())[0]["code"] in {
            *(400, 404)
        }


def test_put_records_keep_what_they_came_in(engine_process, tmp_path):
    """A record views the request's columns; what else is in their message stays with them.

    Each batch is counted once, also the one whose answer found no room.
    """
    models.write_pipeline(tmp_path, models.linear())
    environ = {**FLIGHT, "QUEUE_MAX_BYTES": "1Mi"}
    engine = engine_process(PIPELINE_URL=str(tmp_path), **environ).ready()
    batch = batch_of(CASES["linear"])
    tickets = []

    def put(descriptor):
        writer, told = connect(engine).do_put(descriptor, batch.schema)
        for _ in range(3):
            writer.write_with_metadata(batch, bytes(500 << 10))
            if (ticket := told.read()) is not None:
                tickets.append(ticket)
        writer.close()

    put(INFER)
    assert refusal(lambda: put(RECORDS))[0]["code"] == 429
    counted = engine.metrics()
    answered = [value for name, value in counted.items() if "request_rows_count" in name]
    assert answered == [len(tickets)]
    assert counted['sagitta_errors_total{code="overloaded"}'] == 1


def test_large_replies_come_in_numbered_parts(serving):
    client = connect(serving("linear", environ=FLIGHT))
    values = np.arange(4 * 10_000, dtype=np.float32)
    batch = pa.record_batch({"x": pa.FixedSizeListArray.from_arrays(pa.array(values), 4)})
    (whole, told), = exchange(client, [batch])  # fmt: skip

    def within(limit):
        command = flight_pb2.Command(max_reply_bytes=limit).SerializeToString()
        return exchange(client, [batch], fl.FlightDescriptor.for_command(command))[0]

    divided, parts = within(20_000)
    undivided, one = within(0)
    smallest, most = within(1)  # a part for each row would cost more than its rows
    assert (told.parts, parts.parts, one.parts, most.parts) == (1, 4, 1, 20)
    assert divided.equals(whole)
    assert smallest.equals(whole)
    assert undivided.equals(whole)


def test_parts_of_records_stay_below_the_limit(serving):
    client = connect(serving("linear", environ=FLIGHT))
    values = np.zeros(4 * 300_000, dtype=np.float32)
    batch = pa.record_batch({"x": pa.FixedSizeListArray.from_arrays(pa.array(values), 4)})

    writer, reader = client.do_exchange(RECORDS)
    with writer:
        writer.begin(batch.schema)
        writer.write_batch(batch)
        writer.done_writing()
        sizes = [pa.ipc.get_record_batch_size(chunk.data) for chunk in reader]

    assert len(sizes) > 1
    assert max(sizes) < 4 << 20
