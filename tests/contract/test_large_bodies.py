"""Bodies that come in many reads, and whose memory the next one gets."""

import json
import threading

import numpy as np
import pyarrow as pa
import pytest
from support.arrow import file_bytes
from support.engine import ARROW_FILE, RECORDS, inference_head

ROWS = 40_000  # 640 KB


def large(start, rows=ROWS):
    values = np.arange(start, start + 4 * rows, dtype=np.float32).reshape(rows, 4)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 4)
    return file_bytes(pa.table({"x": column})), values @ np.arange(8, dtype=np.float32).reshape(
        4, 2
    )


def outputs(reply):
    assert reply.status == 200, reply.body
    (element,) = json.loads(reply.body)
    given = element["outputs"][0]["Float"]
    return np.array(given["data"], np.float32).reshape(given["dim"])


@pytest.fixture
def engine(serving):
    return serving("linear")


@pytest.mark.parametrize("cut", [0, 1, 70_000, 400_000, -65_537, -1])
def test_each_of_them_has_its_own_answer(engine, cut):
    """The same size again, then a smaller and a larger one, in pieces cut somewhere."""
    with engine.connect() as wire:
        for start, rows in ((0, ROWS), (7, ROWS), (9, ROWS), (3, ROWS - 999), (5, ROWS + 999)):
            body, wanted = large(start, rows)
            wire.send(inference_head(len(body)) + body[:cut])
            engine.until_read(wire)
            wire.send(body[cut:])
            assert np.allclose(outputs(wire.receive()), wanted)


def test_several_at_a_time_do_not_mix(engine):
    failures = []

    def client(number):
        with engine.connect() as wire:
            for turn in range(6):
                body, wanted = large(1000 * number + turn)
                wire.send(inference_head(len(body)) + body)
                if not np.allclose(outputs(wire.receive()), wanted):
                    failures.append((number, turn))

    clients = [threading.Thread(target=client, args=[number]) for number in range(5)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()

    assert not failures


def test_one_behind_the_other_and_what_follows_them(engine):
    (first, one), (second, other) = large(1), large(2)
    small = b'[{"x": [1, 2, 3, 4]}]'
    with engine.connect() as wire:
        sender = threading.Thread(
            target=wire.send,
            args=[
                inference_head(len(first))
                + first
                + inference_head(len(second))
                + second
                + b"GET /livez HTTP/1.1\r\nHost: edge\r\n\r\n"
                + inference_head(len(small), content_type=RECORDS)
                + small
            ],
        )
        sender.start()
        assert np.allclose(outputs(wire.receive()), one)
        assert np.allclose(outputs(wire.receive()), other)
        assert wire.receive().status == 200
        assert outputs(wire.receive()).tolist() == [[40.0, 50.0]]
        sender.join()


def test_a_connection_that_is_to_be_closed_is(engine):
    body, wanted = large(4)
    with engine.connect() as wire:
        wire.send(inference_head(len(body), extra="Connection: close\r\n") + body)
        assert np.allclose(outputs(wire.receive()), wanted)
        assert wire.receive() is None


def test_a_large_text_is_read_as_well(engine):
    rows = [{"x": [number, 2, 3, 4]} for number in range(20_000)]
    body = json.dumps(rows).encode()
    for _ in range(2):
        with engine.connect() as wire:
            wire.send(inference_head(len(body), content_type=RECORDS) + body)
            given = outputs(wire.receive())
        assert given[:, 0].tolist() == [40.0] * 20_000
        assert given[5].tolist() == [40.0, 54.0]


def test_one_that_is_too_large_with_the_others_is_refused_on_its_way(serving):
    engine = serving("linear", environ={"QUEUE_MAX_BYTES": "500k"})
    body, _ = large(0)
    with engine.connect() as wire:
        wire.send(inference_head(len(body)) + body[:300_000])
        engine.until_read(wire)
        wire.send(body[300_000:])
        reply = wire.receive()
        assert (reply.status, "QUEUE_MAX_BYTES" in reply.error) == (429, True)
        assert wire.receive() is None
    small, wanted = large(0, 10)
    assert np.allclose(outputs(engine.post("/infer", small, ARROW_FILE)), wanted)
