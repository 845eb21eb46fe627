"""Hostile and faulty Flight clients: the engine refuses, frees what they held, and stays up."""

import contextlib
import mmap
import os
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.flight as fl
import pytest
from support import models
from support.arrow import vectors
from support.engine import DEADLINE_S, ROOT, Engine
from support.flight import DO_EXCHANGE, INFER, connect, exchange, refusal, wire_messages

from engine.flight.messages import data_pieces

FLIGHT = {"FLIGHT_PORT": "0"}
MUTATIONS = 2_000
MIB = 1 << 20
BATCH = pa.record_batch({"x": vectors([[1, 2, 3, 4], [5, 6, 7, 8]])})
ANSWER = [{"out.y": [40.0, 50.0]}, {"out.y": [88.0, 114.0]}]


def is_well(engine):
    (reply, _), = exchange(connect(engine), [BATCH])  # fmt: skip
    return engine.is_alive() and reply.to_pylist() == ANSWER


def threads_of(engine):
    return len(os.listdir(f"/proc/{engine.pid}/task"))


def until(condition, seconds=10.0):
    """Look again and again, each time over a round trip to the engine."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"


def test_the_well_behaved_case(serving):
    engine = serving("linear", environ=FLIGHT)

    assert is_well(engine)
    assert "experiment" not in engine.output  # a setting that this version of gRPC has not


# 2, 3: damaged bytes


def test_hostile_2_3_2000_damaged_streams_do_not_end_the_process(serving):
    """Seeded mutations of every message of a stream, headers and bodies alike, over raw gRPC."""
    engine = serving("linear", environ=FLIGHT)
    rng = np.random.default_rng(2026)
    text = pa.record_batch({"x": vectors([[1, 2, 3, 4]]), "s": pa.array(["abc"])})
    nested = pa.record_batch({"x": pa.array([[1.0, 2, 3, 4]], pa.list_(pa.float32()))})
    originals = [wire_messages([one]) for one in (BATCH, text, nested)]

    def damaged(seed):
        mutate = np.random.default_rng(seed)
        messages = [bytearray(one) for one in originals[seed % len(originals)]]
        victim = messages[mutate.integers(len(messages))]
        for _ in range(mutate.integers(1, 9)):
            victim[mutate.integers(len(victim))] = mutate.integers(256)
        return [bytes(one) for one in messages]

    codes, leaks = {}, []
    with grpc.insecure_channel(f"127.0.0.1:{engine.flight_port}") as channel:
        call = channel.stream_stream(DO_EXCHANGE)

        def send(seed):
            try:
                replies = list(call(iter(damaged(seed)), timeout=DEADLINE_S))
                return f"{len(replies)} replies"
            except grpc.RpcError as error:
                told = error.details() or ""
                leaks.extend(text for text in ("Traceback", ".py") if text in told)
                return error.code()

        with ThreadPoolExecutor(4) as pool:
            for code in pool.map(send, (rng.integers(1 << 31, size=MUTATIONS)).tolist()):
                codes[code] = codes.get(code, 0) + 1

    assert sum(codes.values()) == MUTATIONS
    assert len(codes) > 1, codes  # some were refused, some harmless
    assert not leaks
    assert is_well(engine)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({7: 9, 28: 36}, "Buffer #1 too small"),
        ({7: 2**40, 28: 2**42}, "more than 1048576 rows"),
    ],
    ids=str,
)
def test_a_batch_that_says_more_than_it_holds_is_refused(serving, said, told):
    """On a stream that has been answered before, where such batches go the shortest way."""
    engine = serving("linear", environ=FLIGHT)
    values = pa.array(np.ones(28, np.float32))
    batch = pa.record_batch({"x": pa.FixedSizeListArray.from_arrays(values, 4)})
    *head, last = wire_messages([batch] * 9)
    for count, claimed in said.items():
        assert count.to_bytes(8, "little") in last
        last = last.replace(count.to_bytes(8, "little"), claimed.to_bytes(8, "little"))

    with grpc.insecure_channel(f"127.0.0.1:{engine.flight_port}") as channel:
        call = channel.stream_stream(DO_EXCHANGE)(iter([*head, last]), timeout=DEADLINE_S)
        replies = [next(call) for _ in range(9)]  # a schema and the answers before it
        with pytest.raises(grpc.RpcError) as refused:
            next(call)

    assert len(replies) == 9
    assert told in refused.value.details()
    assert is_well(engine)


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_compressed_batches_give_the_same_bits(serving, compression):
    client = connect(serving("linear", environ=FLIGHT))
    options = fl.FlightCallOptions(write_options=pa.ipc.IpcWriteOptions(compression=compression))

    (reply, _), = exchange(client, [BATCH], options=options)  # fmt: skip

    assert reply.to_pylist() == ANSWER


def test_compressed_batches_differ_in_more_than_their_numbers(serving):
    """Of two of one size and header one may hold its numbers as they are, the other compressed."""
    engine = serving("linear", environ=FLIGHT)
    rng = np.random.default_rng(0)
    plain = rng.integers(1 << 32, size=1024, dtype=np.uint32).view(np.float32)
    zeros = np.zeros(1024, np.float32)
    batch = pa.record_batch({"x": pa.FixedSizeListArray.from_arrays(pa.array(plain), 4)})
    schema = wire_messages([batch])[0]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(
        sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")
    ) as writer:
        writer.write_batch(batch)
    _, message = pa.ipc.MessageReader.open_stream(sink.getvalue())
    packed_bytes = 8 + len(pa.compress(plain.tobytes(), "zstd"))
    header = message.metadata.to_pybytes()
    assert header.count(packed_bytes.to_bytes(8, "little")) == 1
    header = header.replace(packed_bytes.to_bytes(8, "little"), (8 + 4096).to_bytes(8, "little"))
    packed = pa.compress(zeros.tobytes(), "zstd", asbytes=True)
    skipped = 4096 - len(packed) - 8
    frame = b"\x50\x2a\x4d\x18" + skipped.to_bytes(4, "little") + bytes(skipped)
    rest = bytes(message.body.size - 8 - 4096)
    as_it_is = (-1).to_bytes(8, "little", signed=True) + plain.tobytes() + rest
    compressed = (4096).to_bytes(8, "little") + packed + frame + rest
    messages = [schema] + [
        b"".join(data_pieces(header, b"", body)) for body in (*[as_it_is] * 8, compressed)
    ]

    with grpc.insecure_channel(f"127.0.0.1:{engine.flight_port}") as channel:
        call = channel.stream_stream(DO_EXCHANGE)(iter(messages), timeout=DEADLINE_S)
        bodies = [reply.rpartition(b"\xc2\x3e")[2] for reply in call][1:]

    assert len(bodies) == 9
    assert len({body[-2048:] for body in bodies[:8]}) == 1
    batch = pa.record_batch({"x": pa.FixedSizeListArray.from_arrays(pa.array(zeros), 4)})
    (nothing, _), = exchange(connect(engine), [batch])  # fmt: skip
    assert bodies[8].endswith(nothing["out.y"].chunk(0).values.to_numpy().tobytes())


@pytest.mark.parametrize("what", ["rows", "type", "columns"])
def test_tables_over_a_limit_are_refused(serving, what):
    client = connect(serving("linear", environ=FLIGHT))
    batch = {
        "rows": lambda: pa.record_batch({"x": pa.array(np.zeros((1 << 20) + 1, np.int8))}),
        "type": lambda: pa.record_batch({"x": pa.nulls(3)}),
        "columns": lambda: pa.record_batch({f"c{n}": pa.array([1]) for n in range(1025)}),
    }[what]()

    body, _ = refusal(lambda: exchange(client, [batch]))

    assert body["code"] == (400 if what == "type" else 413)


def test_a_reply_in_many_parts_is_not_held_as_many(serving):
    """Of a reply in 2,048 parts the engine has one at a time; all of them took some 700 B a row."""
    engine = serving("linear", environ=FLIGHT)
    values = pa.array(np.zeros(4 << 20, np.float32))
    batch = pa.record_batch({"x": pa.FixedSizeListArray.from_arrays(values, 4)})
    is_well(engine)
    before = engine.peak_rss_bytes()

    writer, reader = connect(engine).do_exchange(
        fl.FlightDescriptor.for_command(b'{"max_reply_bytes":1}')
    )
    writer.begin(batch.schema)
    writer.write_batch(batch)
    assert reader.read_chunk().data.num_rows == 512
    assert engine.peak_rss_bytes() - before < 128 * MIB
    reader.cancel()


def test_metadata_without_rows_is_passed_over(serving):
    client = connect(serving("linear", environ=FLIGHT))
    writer, reader = client.do_exchange(INFER)
    with writer:
        writer.begin(BATCH.schema)
        writer.write_metadata(b"are you there?")
        writer.write_batch(BATCH)
        assert reader.read_chunk().data.to_pylist() == ANSWER
        writer.done_writing()


def test_a_stream_without_anything_in_it_is_refused_or_ends(serving):
    engine = serving("linear", environ=FLIGHT)
    with grpc.insecure_channel(f"127.0.0.1:{engine.flight_port}") as channel:
        for messages in ([], [b""], [b"\xff" * 100], [wire_messages([BATCH])[0]]):
            with contextlib.suppress(grpc.RpcError):
                list(channel.stream_stream(DO_EXCHANGE)(iter(messages), timeout=DEADLINE_S))

    assert is_well(engine)


# 27, 28: a client that does not read; what a client gets to read of a failure


def test_hostile_27_a_client_that_does_not_read_holds_no_slot(serving):
    """It holds its own call for as long as it likes (the library has no deadline for a write)."""
    engine = serving(models.identity(shape=("N", 1024)), environ={**FLIGHT, "CONFIG_CPUS": "1"})
    values = np.ones(4_096 * 1024, np.float32)
    batch = pa.record_batch({"x": pa.FixedSizeListArray.from_arrays(pa.array(values), 1024)})
    client = connect(engine)
    writer, reader = client.do_exchange(INFER)
    writer.begin(batch.schema)
    writer.write_batch(batch)  # its reply of 16 MiB is more than gRPC takes ahead of a reader
    small = batch.slice(0, 1)
    others = [exchange(connect(engine), [small])[0][0].num_rows for _ in range(20)]

    assert others == [1] * 20
    assert engine.metrics()["sagitta_slots_busy"] == 0
    reader.cancel()
    engine.until_metric("sagitta_flight_calls", 0)


def test_hostile_28_no_failure_shows_the_inside(serving):
    """Every call, with nonsense, and a model that fails: no traceback, no path of a file."""
    client = connect(serving("failing", environ=FLIGHT))
    text = pa.record_batch({"x": pa.array(["a"])})
    nonsense = [
        fl.FlightDescriptor.for_path("..", "..", "etc", "passwd"),
        fl.FlightDescriptor.for_command(b"\xff\x00"),
    ]
    calls = [lambda: exchange(client, [pa.record_batch({"x": vectors([[5, 5]])})])]
    calls += [lambda: exchange(client, [text]), lambda: list(client.do_action("\u2028" * 300))]
    calls += [lambda: client.do_get(fl.Ticket(b"\x12\xff")).read_all()]
    for one in nonsense:
        calls += [
            lambda one=one: exchange(client, [text], one),
            lambda one=one: client.get_flight_info(one),
            lambda one=one: client.get_schema(one),
            lambda one=one: client.do_put(one, text.schema)[1].read(),
        ]

    for call in calls:
        with pytest.raises((fl.FlightError, pa.ArrowException, OSError)) as refused:
            call()
        for private in ("Traceback", "File ", ".py", "site-packages", "engine/"):
            assert private not in str(refused.value)


def test_every_refusal_is_counted(serving, tmp_path):
    """Whichever call it was, and however far the call had come."""
    engine = serving("linear", environ={**FLIGHT, "FLIGHT_MAX_STREAMS": "3"}, name="counted")
    client = connect(engine)
    text = pa.record_batch({"x": pa.array(["a"])})
    strange = pa.record_batch({"x": pa.nulls(1)})
    nowhere = fl.FlightDescriptor.for_path("nowhere")
    calls = {
        "schema_mismatch": [
            lambda: exchange(client, [text]),
            lambda: exchange(client, [strange]),
        ],
        "not_found": [
            lambda: exchange(client, [BATCH], nowhere),
            lambda: client.get_flight_info(nowhere),
            lambda: client.get_schema(nowhere),
            lambda: client.do_get(fl.Ticket(b"\x0a\x01x")).read_all(),
            lambda: list(client.do_action("nothing")),
        ],
        "decode_error": [lambda: client.do_get(fl.Ticket(b"\x12\xff")).read_all()],
    }

    for code, refused in calls.items():
        for call in refused:
            with pytest.raises((fl.FlightError, pa.ArrowException)):
                call()
        assert engine.metrics()[f'sagitta_errors_total{{code="{code}"}}'] == len(refused)


# 29, 30, 31: streams over the limit, and those whose clients die


def open_stream(engine):
    """A stream that has been answered once and stays open."""
    client = connect(engine)
    writer, reader = client.do_exchange(INFER)
    writer.begin(BATCH.schema)
    writer.write_batch(BATCH)
    reader.read_chunk()
    return client, writer, reader


def test_hostile_29_streams_over_the_limit_are_refused_and_slots_come_back(serving):
    """The refusal comes while every stream is open and none does anything: nothing is awaited."""
    engine = serving("linear", environ={**FLIGHT, "FLIGHT_MAX_STREAMS": "4"})
    streams = [open_stream(engine) for _ in range(3)]
    killed = subprocess.Popen(
        [sys.executable, "-c", OPEN_STREAMS, str(engine.flight_port), "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert killed.stdout.readline() == b"open\n"

    for call in (
        lambda: exchange(connect(engine), [BATCH]),
        lambda: list(connect(engine).do_action("ping")),
        lambda: list(connect(engine).list_flights()),
    ):
        body, error = refusal(call)
        assert (body["code"], "FLIGHT_MAX_STREAMS=4" in body["error"]) == (429, True)
        assert isinstance(error, fl.FlightUnavailableError)
    assert engine.metrics()["sagitta_flight_calls"] == 4
    for _, writer, reader in streams:
        writer.write_batch(BATCH)
        assert reader.read_chunk().data.to_pylist() == ANSWER

    killed.kill()
    killed.communicate()
    engine.until_metric("sagitta_flight_calls", 3)
    streams[0][2].cancel()
    engine.until_metric("sagitta_flight_calls", 2)
    streams[1][1].close()
    engine.until_metric("sagitta_flight_calls", 1)
    writer, _ = connect(engine).do_exchange(INFER, fl.FlightCallOptions(timeout=0.2))
    with contextlib.suppress(pa.ArrowException, fl.FlightError):
        writer.begin(BATCH.schema)
    engine.until_metric("sagitta_flight_calls", 1)
    streams[2][1].close()
    engine.until_metric("sagitta_flight_calls", 0)
    assert is_well(engine)


OPEN_STREAMS = textwrap.dedent(
    """
    import sys
    import pyarrow as pa, pyarrow.flight as fl
    batch = pa.record_batch({"x": pa.array([[1, 2, 3, 4]], pa.list_(pa.float32(), 4))})
    client = fl.connect("grpc://127.0.0.1:" + sys.argv[1])
    paths = [fl.FlightDescriptor.for_path("infer")] * int(sys.argv[2])
    streams = [client.do_exchange(path) for path in paths]
    for writer, reader in streams:
        writer.begin(batch.schema)
        writer.write_batch(batch)
        reader.read_chunk()
    print("open", flush=True)
    input()
    """
)


def test_hostile_30_a_killed_client_frees_its_streams_and_threads(serving, tmp_path):
    """Of what it was answered every row is in the log; the end of its streams adds nothing."""
    log = {"LOCAL_INFERENCE_STORAGE": "10m", "PLATEAU_PAGE_SIZE": "10"}
    engine = serving("linear", environ={**FLIGHT, **log, "PERSIST_DIR": str(tmp_path)})
    assert is_well(engine)
    threads = threads_of(engine)
    child = subprocess.Popen(
        [sys.executable, "-c", OPEN_STREAMS, str(engine.flight_port), "20"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdout.readline() == b"open\n"
    engine.until_metric("sagitta_flight_calls", 20)

    child.kill()
    child.communicate()

    engine.until_metric("sagitta_flight_calls", 0)
    assert engine.metrics()["sagitta_log_rows_kept_total"] == 22
    until(lambda: threads_of(engine) <= threads + 4 and is_well(engine))


def test_hostile_31_a_thousand_streams_are_bounded(serving):
    engine = serving("linear", environ=FLIGHT)
    clients = [connect(engine) for _ in range(10)]
    streams = []
    try:
        for number in range(1_000):
            with contextlib.suppress(fl.FlightUnavailableError):
                writer, reader = clients[number % 10].do_exchange(INFER)
                streams.append((writer, reader))
                writer.begin(BATCH.schema)

        assert 1 < engine.metrics()["sagitta_flight_calls"] <= 64
        # gRPC keeps a thread for a refused call a moment longer, on a busy machine many of them
        until(lambda: engine.metrics() and threads_of(engine) < 300)
    finally:
        for _, reader in streams:
            reader.cancel()
    engine.until_metric("sagitta_flight_calls", 0)
    assert is_well(engine)


def test_a_stream_keeps_the_answers_before_its_error(serving):
    client = connect(serving("linear", environ=FLIGHT))
    bad = pa.record_batch({"x": pa.array([[1, 2, 3, 4], None], BATCH.schema.field("x").type)})
    writer, reader = client.do_exchange(INFER)
    writer.begin(BATCH.schema)
    writer.write_batch(BATCH)
    writer.write_batch(bad)

    assert reader.read_chunk().data.to_pylist() == ANSWER
    body, _ = refusal(reader.read_chunk)
    assert (body["code"], "$[1].x[0] is null" in body["error"]) == (400, True)


# 26, 42: callers that do not wait


def hold_the_slot(engine, stack):
    """A run of some seconds, from another thread."""
    values = [[600_000.0]] * 40  # a number of rows that was never run: nobody knows what it takes
    batch = pa.record_batch({"x": pa.array(values, pa.list_(pa.float32(), 1))})
    future = stack.submit(lambda: exchange(connect(engine), [batch]))
    engine.until_metric("sagitta_slots_busy", 1)
    return future


SLOW_BATCH = pa.record_batch({"x": pa.array([[1.0]] * 10, pa.list_(pa.float32(), 1))})


def test_hostile_26_a_caller_whose_deadline_passes_in_the_line_is_not_run(serving):
    engine = serving("slow", environ={**FLIGHT, "DEBUG": "true"})
    with ThreadPoolExecutor(1) as pool:
        long = hold_the_slot(engine, pool)
        options = fl.FlightCallOptions(timeout=0.3)
        with pytest.raises((fl.FlightTimedOutError, fl.FlightCancelledError)):
            exchange(connect(engine), [SLOW_BATCH], options=options)
        engine.until_metric("sagitta_flight_calls", 1)  # the slot's own
        assert engine.metrics()["sagitta_slots_busy"] == 1
        assert long.result()[0][0].num_rows == 40

    assert exchange(connect(engine), [SLOW_BATCH])[0][0].num_rows == 10
    assert engine.metrics()["sagitta_slots_busy"] == 0


def test_hostile_26_a_caller_that_cancels_in_the_line_is_not_run(serving):
    engine = serving("slow", environ=FLIGHT)
    with ThreadPoolExecutor(1) as pool:
        long = hold_the_slot(engine, pool)
        writer, reader = connect(engine).do_exchange(INFER)
        writer.begin(SLOW_BATCH.schema)
        writer.write_batch(SLOW_BATCH)
        engine.until_metric("sagitta_queue_requests", 1)
        cancelled = engine.metrics()["sagitta_cancelled_total"]
        reader.cancel()
        engine.until_metric("sagitta_flight_calls", 1)
        assert long.result()[0][0].num_rows == 40

    engine.until_metric("sagitta_cancelled_total", cancelled + 1)
    assert engine.metrics()["sagitta_slots_busy"] == 0
    assert "Traceback" not in engine.output
    assert exchange(connect(engine), [SLOW_BATCH])[0][0].num_rows == 10


def test_runs_that_have_been_short_and_long_wait_for_a_slot(serving):
    """Tiny runs need no slot; one whose time depends on its values is not tiny."""
    engine = serving("slow", environ={**FLIGHT, "QUEUE_MAX_ROWS": "1"}, name="unsteady")
    short, long = (
        pa.record_batch({"x": pa.array([[count]], pa.list_(pa.float32(), 1))})
        for count in (1.0, 600_000.0)
    )
    exchange(connect(engine), [short] * 50 + [long] + [short] * 50)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(lambda: exchange(connect(engine), [long]))
        engine.until_metric("sagitta_slots_busy", 1)
        second = pool.submit(lambda: exchange(connect(engine), [short]))
        engine.until_metric("sagitta_queue_requests", 1)
        body, error = refusal(lambda: exchange(connect(engine), [short]))
        assert (body["code"], "QUEUE_MAX_ROWS=1" in body["error"]) == (429, True)
        assert isinstance(error, fl.FlightUnavailableError)
        assert first.result()[0][0].num_rows == second.result()[0][0].num_rows == 1


def test_a_batch_that_waits_too_long_is_answered_with_a_deadline(serving):
    engine = serving("slow", environ={**FLIGHT, "REQUEST_TIMEOUT_S": "0.2"})
    with ThreadPoolExecutor(1) as pool:
        long = hold_the_slot(engine, pool)
        refused = [refusal(lambda: exchange(connect(engine), [SLOW_BATCH])), refusal(long.result)]

    for body, error in refused:  # the one that waited, and the one that was run
        assert (body["code"], "REQUEST_TIMEOUT_S" in body["error"]) == (504, True)
        assert isinstance(error, fl.FlightTimedOutError)
    engine.until_metric("sagitta_slots_busy", 0)


def test_hostile_42_10000_deadlines_of_a_millisecond_leak_nothing(serving):
    engine = serving("linear", environ=FLIGHT)
    is_well(engine)
    threads = threads_of(engine)

    def call_often(client):
        options, timed_out = fl.FlightCallOptions(timeout=0.001), 0
        for _ in range(2_500):
            try:
                exchange(client, [BATCH], options=options)
            except fl.FlightTimedOutError:
                timed_out += 1
        return timed_out

    with ThreadPoolExecutor(4) as pool:
        timed_out = sum(pool.map(call_often, [connect(engine) for _ in range(4)]))

    assert timed_out > 1_000
    engine.until_metric("sagitta_flight_calls", 0)
    assert engine.metrics()["sagitta_slots_busy"] == 0
    until(lambda: threads_of(engine) <= threads + 8 and is_well(engine))


def test_hostile_42_a_slot_comes_back_when_its_run_has_ended_and_not_before(serving):
    """The caller has its timeout long before; nobody can stop a model."""
    engine = serving("slow", environ=FLIGHT)
    batch = pa.record_batch({"x": pa.array([[900_000.0]] * 70, pa.list_(pa.float32(), 1))})

    with pytest.raises(fl.FlightTimedOutError):
        exchange(connect(engine), [batch], options=fl.FlightCallOptions(timeout=0.3))

    assert engine.metrics()["sagitta_slots_busy"] == 1
    engine.until_metric("sagitta_slots_busy", 0)
    engine.until_metric("sagitta_flight_calls", 0)
    assert exchange(connect(engine), [SLOW_BATCH])[0][0].num_rows == 10


# 44, in short: nothing grows


def test_memory_threads_and_descriptors_are_flat(serving):
    engine = serving("linear", environ={**FLIGHT, "MAX_BATCH_ROWS": "64"})
    rng = np.random.default_rng(44)
    bad = pa.record_batch({"x": vectors([[1, 2, 3]])})

    def round_of_load():
        for rows in rng.integers(1, 3_000, size=100).tolist():
            values = pa.array(rng.normal(size=rows * 4).astype(np.float32))
            batch = pa.record_batch({"x": pa.FixedSizeListArray.from_arrays(values, 4)})
            assert exchange(connect(engine), [batch, batch])[1][0].num_rows == rows
            with contextlib.suppress(fl.FlightServerError):
                exchange(connect(engine), [bad])
        engine.until_metric("sagitta_flight_calls", 0)

    for _ in range(2):
        round_of_load()
    before = engine.rss_bytes()
    for _ in range(3):
        round_of_load()

    assert engine.rss_bytes() - before < 16 << 20
    until(lambda: threads_of(engine) < 60)
    assert len(os.listdir(f"/proc/{engine.pid}/fd")) < 200


@pytest.mark.parametrize("width", [4, 3], ids=["answered", "refused"])
def test_batches_that_waited_keep_no_memory(serving, width):
    """640 MiB through the line before the only slot, or through an error."""
    engine = serving("linear", environ={**FLIGHT, "CONFIG_CPUS": "1"})
    rows = 4 * MIB // (4 * width)
    values = pa.array(np.zeros(rows * width, np.float32))
    batch = pa.record_batch({"x": pa.FixedSizeListArray.from_arrays(values, width)})

    def load(_client):
        client = connect(engine)
        for _ in range(4):
            if width == 4:
                exchange(client, [batch] * 10)
            else:
                for _ in range(10):
                    refusal(lambda: exchange(client, [batch]))

    is_well(engine)
    before = engine.rss_bytes()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(load, range(4)))

    assert engine.rss_bytes() - before < 400 * MIB  # heaps keep some 100 to 210 for the next ones


# 32: the end


def test_hostile_32_an_idle_stream_does_not_hold_up_the_end(engine_process, tmp_path):
    engine = engine_process(
        PIPELINE_URL=str(models.write_pipeline(tmp_path, models.linear())),
        FLIGHT_PORT="0",
        SHUTDOWN_GRACE_S="8",
    ).ready()
    writer, reader = connect(engine).do_exchange(INFER)
    writer.begin(BATCH.schema)
    writer.write_batch(BATCH)
    reader.read_chunk()

    started = time.monotonic()
    engine.terminate()

    assert engine.wait() == 0
    assert time.monotonic() - started < 8
    assert "Traceback" not in engine.output


def test_what_is_being_answered_when_the_engine_stops_is_answered(engine_process, tmp_path):
    engine = engine_process(
        PIPELINE_URL=str(models.write_pipeline(tmp_path, models.slow())), FLIGHT_PORT="0"
    ).ready()
    with ThreadPoolExecutor(1) as pool:
        long = hold_the_slot(engine, pool)
        engine.terminate()
        (reply, _), = long.result()  # fmt: skip

    assert reply.to_pylist() == [{"out.y": [600_000.0]}] * 40
    assert engine.wait() == 0


def test_a_taken_port_is_told_in_words(tmp_path):
    folder = models.write_pipeline(tmp_path, models.linear())
    first = Engine({"PIPELINE_URL": str(folder), **FLIGHT})
    second = Engine({"PIPELINE_URL": str(folder), "FLIGHT_PORT": str(first.flight_port)})

    assert second.wait() == 3
    assert "choose another port with FLIGHT_PORT" in second.output
    first.ready()
    first.stop()


# 33, 34: size and alignment


def test_hostile_33_300_mib_go_there_and_back(serving):
    content = models.identity(shape=("N", 256))
    client = connect(serving(content, environ=FLIGHT))
    rows = (300 << 20) // (256 * 4)
    values = pa.array(np.arange(rows * 256, dtype=np.float32))
    batch = pa.record_batch({"x": pa.FixedSizeListArray.from_arrays(values, 256)})

    (reply, told), = exchange(client, [batch])  # fmt: skip

    assert told.parts == 100
    assert pa.concat_arrays(reply["out.y"].chunks).flatten().equals(values)


def test_hostile_33_more_than_2_gib_are_a_clear_error_of_the_client(serving):
    """Pages that were never touched stand for the values: nothing is allocated, nothing is sent."""
    engine = serving("linear", environ=FLIGHT)
    with mmap.mmap(-1, (2 << 30) + 16) as memory:
        values = pa.Array.from_buffers(pa.float32(), (1 << 29) + 4, [None, pa.py_buffer(memory)])
        column = pa.FixedSizeListArray.from_arrays(values, 4)
        writer, _ = connect(engine).do_exchange(INFER)
        batch = pa.record_batch([column], ["x"])
        writer.begin(batch.schema)

        with pytest.raises(pa.ArrowInvalid, match="exceed"):
            writer.write_batch(batch)

        with contextlib.suppress(pa.ArrowException, fl.FlightError):
            writer.close()
        del values, column, batch
    assert is_well(engine)


@pytest.mark.parametrize("size", [(2 << 30) + 8, 1 << 40, (1 << 63) - 8, -8])
def test_hostile_33_a_size_that_is_only_announced_is_refused(serving, size):
    """A head that tells of gigabytes before a body of a few bytes."""
    engine = serving("linear", environ=FLIGHT)
    first, second = wire_messages([BATCH])
    announced = BATCH.nbytes.to_bytes(8, "little")
    assert announced in second
    forged = second.replace(announced, size.to_bytes(8, "little", signed=True))
    before = engine.peak_rss_bytes()

    with grpc.insecure_channel(f"127.0.0.1:{engine.flight_port}") as channel:
        call = channel.stream_stream(DO_EXCHANGE)
        with pytest.raises(grpc.RpcError) as refused:
            list(call(iter([first, forged]), timeout=DEADLINE_S))

    assert "Traceback" not in refused.value.details()
    assert engine.peak_rss_bytes() - before < 64 << 20
    assert is_well(engine)


def test_hostile_34_unaligned_values_are_read_right(serving):
    """gRPC puts buffers wherever they fall; a text column of every length shifts them about."""
    client = connect(serving("linear", environ=FLIGHT))
    for length in range(1, 40):
        columns = {"s": pa.array(["x" * length, ""]), "x": BATCH["x"]}
        (reply, _), = exchange(client, [pa.record_batch(columns)])  # fmt: skip
        assert reply.to_pylist() == ANSWER


# 35: tokens and TLS


def every_call(client, options):
    """Each kind of Flight call, by name."""

    def put():
        writer, _ = client.do_put(INFER, BATCH.schema, options)
        writer.write_batch(BATCH)
        writer.close()

    return {
        "DoExchange": lambda: exchange(client, [BATCH], options=options),
        "DoPut": put,
        "DoGet": lambda: client.do_get(fl.Ticket(b"\x0a\x01x"), options).read_all(),
        "DoGet of the log": lambda: client.do_get(fl.Ticket('{"log":{}}'), options).read_all(),
        "GetSchema": lambda: client.get_schema(INFER, options),
        "GetFlightInfo": lambda: client.get_flight_info(INFER, options),
        "ListFlights": lambda: list(client.list_flights(options=options)),
        "DoAction": lambda: list(client.do_action("ping", options)),
        "ListActions": lambda: client.list_actions(options),
    }


def bearing(token):
    return fl.FlightCallOptions(headers=[(b"authorization", b"Bearer " + token)])


@pytest.mark.parametrize("token", [None, b"wrong", b""])
def test_hostile_35_every_call_needs_a_token(serving, tmp_path, token):
    tokens = tmp_path / "tokens"
    tokens.write_text("right\n")
    engine = serving("linear", environ={**FLIGHT, "API_TOKEN_FILE": str(tokens)})
    options = fl.FlightCallOptions() if token is None else bearing(token)

    for name, call in every_call(connect(engine), options).items():
        # closing a DoPut fails with another class, of the same text
        kinds = (fl.FlightUnauthenticatedError, OSError)
        with pytest.raises(kinds, match="bearer token is required") as refused:
            call()
        assert "Unauthenticated" in str(refused.value), name
        assert "Traceback" not in str(refused.value), name
    with pytest.raises(fl.FlightUnauthenticatedError):
        connect(engine).authenticate_basic_token("user", "password")
    accepted = every_call(connect(engine), bearing(b"right"))
    assert accepted["DoExchange"]()[0][0].to_pylist() == ANSWER
    assert accepted["DoAction"]()[0].body.to_pybytes() == b"\n"


def test_a_token_that_is_taken_back_ends_the_streams_that_it_opened(engine_process, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("first\nsecond\n")
    environ = {**FLIGHT, "API_TOKEN_FILE": str(tokens)}
    folder = models.write_pipeline(tmp_path, models.linear())
    engine = engine_process(PIPELINE_URL=str(folder), **environ).ready()
    streams = [connect(engine).do_exchange(INFER, bearing(who)) for who in (b"first", b"second")]
    for writer, _ in streams:
        writer.begin(BATCH.schema)

    def ask(writer, reader):
        writer.write_batch(BATCH)
        return reader.read_chunk().data.to_pylist()

    assert [ask(*stream) for stream in streams] == [ANSWER, ANSWER]
    tokens.write_text("second\n")

    def ask_for_long():
        until(lambda: ask(*streams[0]) != ANSWER)

    body, error = refusal(ask_for_long)
    assert (body["code"], "bearer token is required" in body["error"]) == (401, True)
    assert isinstance(error, fl.FlightUnauthenticatedError)
    assert ask(*streams[1]) == ANSWER


# 36: two gRPC libraries in one process


@pytest.mark.parametrize(
    "order", ["import grpc, pyarrow.flight as fl", "import pyarrow.flight as fl, grpc"]
)
def test_hostile_36_both_import_orders_of_two_grpc_libraries_work(serving, order):
    engine = serving("linear", environ=FLIGHT)
    script = f"""
{order}
import sys
sys.path[:0] = ["tests", "."]
from support.flight import DO_EXCHANGE, exchange, wire_messages
import pyarrow as pa
batch = pa.record_batch({{"x": pa.array([[1, 2, 3, 4]], pa.list_(pa.float32(), 4))}})
class Server(fl.FlightServerBase):
    def do_action(self, context, action):
        return [b"alive"]
server = Server("grpc://127.0.0.1:0")
assert exchange(fl.connect("grpc://127.0.0.1:{engine.flight_port}"), [batch])[0][0].num_rows == 1
with grpc.insecure_channel("127.0.0.1:{engine.flight_port}") as channel:
    assert len(list(channel.stream_stream(DO_EXCHANGE)(iter(wire_messages([batch]))))) == 2
(result,) = fl.connect(f"grpc://127.0.0.1:{{server.port}}").do_action("x")
assert result.body.to_pybytes() == b"alive"
server.shutdown()
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr
