"""Many clients at once, over both shells: every answer has the bits of its own request alone."""

import threading

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pytest
from support import models
from support.arrow import file_bytes, read_file
from support.engine import ARROW_FILE
from support.flight import connect, exchange

CLIENTS = 64
REQUESTS = 4
LARGEST = {"rf_model": 500, "xgboost_ccfraud": 500, "ccfraud": 500, "image": 3, "dense": 500}
BATCHED = {"FLIGHT_PORT": "0", "FLIGHT_MAX_STREAMS": "64"}
UNBATCHED = {**BATCHED, "MAX_BATCH_ROWS": "1"}


def sample(metrics, name):
    """A sample's value, whatever its labels."""
    return sum(value for key, value in metrics.items() if key.partition("{")[0] == name)


def content_of(model, request):
    """The model's file: golden where there is golden data, else one of the same kind."""
    if model == "dense":
        return models.dense()
    golden = request.getfixturevalue("golden")
    name = "synthetic/resnet_like.onnx" if model == "image" else f"models/{model}.onnx"
    return (golden / name).read_bytes()


def session_of(content, threads):
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def rows_for(session, rows, rng):
    shape = (rows, *session.get_inputs()[0].shape[1:])
    return (rng.normal(size=shape) * 10 ** rng.uniform(-1, 3)).astype(np.float32)


def batch_of(values):
    flat = pa.array(values.reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(flat, int(np.prod(values.shape[1:])))
    return pa.record_batch({"tensor": column})


def flat_of(column):
    values = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
    while hasattr(values.type, "value_type"):
        values = values.flatten()
    return values.to_numpy()


def ask_over_flight(engine, batches):
    replies = exchange(connect(engine), batches)
    return [[flat_of(column) for column in table.columns] for table, _ in replies]


def ask_over_http(engine, batches):
    answers = []
    for batch in batches:
        body = file_bytes(pa.table(batch))
        reply = engine.post("/infer", body, ARROW_FILE, accept=ARROW_FILE)
        assert reply.status == 200, reply.body
        out = read_file(reply.body)["out"].combine_chunks()
        answers.append([flat_of(out.field(index)) for index in range(out.type.num_fields)])
    return answers


@pytest.mark.parametrize(
    ("model", "threads", "is_batched"),
    [
        *[("dense", 1, True), ("ccfraud", 1, True), ("rf_model", 1, True), ("rf_model", 2, True)],
        *[("xgboost_ccfraud", 2, True), ("image", 1, True)],
        *[("dense", 1, False), ("rf_model", 2, False)],
    ],
)
def test_every_answer_is_that_of_its_request_alone(serving, request, model, threads, is_batched):
    content = content_of(model, request)
    session = session_of(content, threads)
    names = sorted(output.name for output in session.get_outputs())
    engine = serving(
        content,
        environ={**(BATCHED if is_batched else UNBATCHED), "CONFIG_CPUS": str(threads)},
        tensor_fields=["tensor"],
    )
    wrong = []

    def client(number):
        rng = np.random.default_rng(number)
        sizes = [
            1 if number % 2 else 1 + int(rng.integers(LARGEST[model])) for _ in range(REQUESTS)
        ]
        asked = [rows_for(session, rows, rng) for rows in sizes]
        ask = ask_over_http if number % 4 == 3 else ask_over_flight
        try:
            answers = ask(engine, list(map(batch_of, asked)))
            for values, answer in zip(asked, answers, strict=True):
                expected = session.run(names, {session.get_inputs()[0].name: values})
                for ours, theirs in zip(answer, expected, strict=True):
                    if ours.tobytes() != theirs.tobytes():
                        wrong.append((number, len(values)))
        except Exception as error:
            wrong.append((number, error))
            raise

    threads_ = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads_:
        thread.start()
    for thread in threads_:
        thread.join()

    assert not wrong
    metrics = engine.metrics()
    assert sample(metrics, "sagitta_request_rows_count") == CLIENTS * REQUESTS
    if is_batched:
        assert metrics["sagitta_batch_max_rows"] > 1
    else:
        assert sample(metrics, "sagitta_batch_requests_count") == 0


def test_requests_that_wait_are_run_together(serving):
    """One long run holds the only slot; what comes meanwhile leaves the line as one batch."""
    content = models.dense(hidden=512)
    engine = serving(content, environ=BATCHED)
    session = session_of(content, 1)
    rng = np.random.default_rng(1)
    long, *short = (rows_for(session, rows, rng) for rows in (50_000, *[1] * 8))
    wrong = []

    def check(ask, values):
        (answer,) = ask(engine, [batch_of(values)])
        if answer[0].tobytes() != session.run(None, {"tensor": values})[0].tobytes():
            wrong.append(len(values))

    first = threading.Thread(target=check, args=(ask_over_flight, long))
    first.start()
    engine.until_metric("sagitta_slots_busy", 1)
    others = [threading.Thread(target=check, args=(ask_over_http, values)) for values in short]
    for other in others:
        other.start()
    for thread in (first, *others):
        thread.join()

    assert not wrong
    metrics = engine.metrics()
    assert sample(metrics, "sagitta_batch_requests_count") >= 1
    assert sample(metrics, "sagitta_batch_rows_sum") >= 2


def test_published_dynamic_batching_is_honoured(serving):
    """Two single rows wait for each other, far less than the published delay of a minute."""
    engine = serving(
        "linear",
        environ=BATCHED,
        dynamic_batching_config={
            "max_batch_delay_ms": 60_000,
            "batch_size_target": 2,
            "batch_size_limit": 3,
        },
    )
    assert engine.metrics()["sagitta_batch_max_rows"] == 3
    batch = pa.record_batch({"x": pa.array([[1, 2, 3, 4]], pa.list_(pa.float32(), 4))})

    def ask_flight():
        assert exchange(connect(engine), [batch])[0][0].num_rows == 1

    def ask_http():
        assert engine.post("/infer", file_bytes(pa.table(batch)), ARROW_FILE).status == 200

    threads = [threading.Thread(target=ask) for ask in (ask_flight, ask_http)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    metrics = engine.metrics()
    assert sample(metrics, "sagitta_batch_requests_count") == 1
    assert sample(metrics, "sagitta_batch_rows_sum") == 2


def test_a_model_whose_rows_see_one_another_is_run_request_by_request(serving):
    engine = serving("centred", environ=BATCHED)

    assert engine.metrics()["sagitta_batch_max_rows"] == 0
    assert "request by request: a run of 2 rows gives other bits" in engine.output
