"""More requests than the engine can run: refused, timed out, abandoned; and what it counts."""

import numpy as np
import pyarrow as pa
import pytest
from support.arrow import file_bytes
from support.engine import ARROW_FILE, inference_head

pytestmark = [pytest.mark.fault, pytest.mark.slow]

PRIME = b'[{"x": [200000]}]'
LONG = 1_000_000  # steps of the slow model: more than a second


def slow_request(steps, rows=1):
    body = b"[%b]" % b",".join([b'{"x": [%d]}' % steps] * rows)
    return inference_head(len(body), content_type="application/json") + body


@pytest.fixture
def slow_engine(serving):
    """One slot, and a model that has shown that it is slow, so that requests wait in the line."""

    def get(**environ):
        engine = serving("slow", environ=environ)
        engine.show_slowness(PRIME)
        return engine

    return get


def error_count(engine, code):
    return engine.metrics().get(f'sagitta_errors_total{{code="{code}"}}', 0)


def answered_rows(engine):
    return sum(value for name, value in engine.metrics().items() if "request_rows_sum" in name)


def test_a_full_line_is_429_at_once(slow_engine):
    """One runs, one waits, the third is refused while both are unanswered; then all is well."""
    engine = slow_engine(QUEUE_MAX_ROWS="1")
    running, waiting, third = (engine.connect() for _ in range(3))
    running.send(slow_request(LONG))
    engine.until_metric("sagitta_slots_busy", 1)
    waiting.send(slow_request(5))
    engine.until_metric("sagitta_queue_requests", 1)

    third.send(slow_request(7))
    refused = third.receive()

    assert refused.status == 429
    assert refused.headers["retry-after"] == "1"
    assert "QUEUE_MAX_ROWS=1" in refused.error
    assert engine.get("/healthz").status == 200
    assert [wire.receive().status for wire in (running, waiting)] == [200, 200]
    third.send(slow_request(7))
    assert third.receive().json[0]["outputs"][0]["Float"]["data"] == [7.0]
    assert error_count(engine, "overloaded") == 1
    for wire in (running, waiting, third):
        wire.close()


def test_a_late_answer_is_504_and_its_slot_comes_back(slow_engine):
    """Of a request that runs and of one that waits; neither is answered twice."""
    engine = slow_engine(REQUEST_TIMEOUT_S="0.5")
    late, answered = error_count(engine, "deadline_exceeded"), answered_rows(engine)
    with engine.connect() as running, engine.connect() as waiting:
        running.send(slow_request(LONG))
        engine.until_metric("sagitta_slots_busy", 1)
        waiting.send(slow_request(5))

        for wire in (running, waiting):
            reply = wire.receive()
            assert reply.status == 504
            assert "REQUEST_TIMEOUT_S" in reply.error
        engine.until_metric("sagitta_slots_busy", 0)
        for steps in (3, 4):
            running.send(slow_request(steps))
            assert running.receive().json[0]["outputs"][0]["Float"]["data"] == [float(steps)]
    assert error_count(engine, "deadline_exceeded") == late + 2
    assert engine.metrics()["sagitta_cancelled_total"] == 0
    assert answered_rows(engine) == answered + 2  # not the one whose answer came too late
    assert engine.metrics()["sagitta_queue_requests"] == 0


def test_an_answer_that_is_late_once_it_is_written_is_counted_as_late_alone(serving):
    """The run takes 2 ms, and writing its answer as JSON a second: the deadline is in between."""
    engine = serving("identity", environ={"REQUEST_TIMEOUT_S": "0.2"})
    values = pa.array(np.random.default_rng(7).random(1_000_000, np.float32))
    body = file_bytes(pa.table({"x": pa.FixedSizeListArray.from_arrays(values, 2)}))

    reply = engine.post("/infer?dataset[]=*", body, ARROW_FILE)
    engine.until_metric("sagitta_slots_busy", 0)

    assert reply.status == 504
    assert error_count(engine, "deadline_exceeded") == 1
    assert answered_rows(engine) == 0
    assert engine.metrics()["sagitta_cancelled_total"] == 0


def test_hostile_26_a_caller_that_left_the_line_is_not_run(slow_engine):
    """Counted as cancelled; the log stays quiet, the next one is answered."""
    engine = slow_engine()
    lines, cancelled = len(engine.lines), engine.metrics()["sagitta_cancelled_total"]
    running, stays = engine.connect(), engine.connect()
    running.send(slow_request(LONG))
    engine.until_metric("sagitta_slots_busy", 1)
    leaving = [engine.connect() for _ in range(4)]
    for wire in leaving:
        wire.send(slow_request(100_000_000))  # minutes, if they were run
    engine.until_metric("sagitta_queue_requests", 4)
    stays.send(slow_request(9))
    engine.until_metric("sagitta_queue_requests", 5)

    for wire in leaving[:2]:
        wire.close()
    for wire in leaving[2:]:
        wire.reset()
    engine.until_metric("sagitta_queue_requests", 1)  # they give their room back at once
    assert engine.metrics()["sagitta_cancelled_total"] == cancelled + 4

    assert running.receive().status == 200
    assert stays.receive().json[0]["outputs"][0]["Float"]["data"] == [9.0]
    assert engine.metrics()["sagitta_cancelled_total"] == cancelled + 4
    assert engine.lines[lines:] == []
    running.close()
    stays.close()


def test_a_caller_that_leaves_while_it_is_run(slow_engine):
    engine = slow_engine()
    cancelled, answered = engine.metrics()["sagitta_cancelled_total"], answered_rows(engine)
    lines = len(engine.lines)
    with engine.connect() as wire:
        wire.send(slow_request(LONG))
        engine.until_metric("sagitta_slots_busy", 1)

    engine.until_metric("sagitta_cancelled_total", cancelled + 1)  # at once
    engine.until_metric("sagitta_slots_busy", 0)

    assert engine.metrics()["sagitta_cancelled_total"] == cancelled + 1
    assert answered_rows(engine) == answered
    assert engine.post("/infer", PRIME).status == 200
    assert engine.lines[lines:] == []


def test_pipelined_requests_behind_a_slow_one_keep_their_order(slow_engine):
    engine = slow_engine()
    with engine.connect() as wire:
        probe = b"GET /livez HTTP/1.1\r\nHost: edge\r\n\r\n"
        wire.send(slow_request(400_000) + probe + slow_request(2) + slow_request(1, rows=2))

        answers = [wire.receive() for _ in range(4)]

    assert [reply.status for reply in answers] == [200] * 4
    assert answers[0].json[0]["outputs"][0]["Float"]["data"] == [400_000.0]
    assert answers[1].json == {"status": "Alive"}
    assert answers[2].json[0]["outputs"][0]["Float"]["data"] == [2.0]
    assert answers[3].json[0]["outputs"][0]["Float"]["data"] == [1.0, 1.0]


def test_probes_are_answered_while_every_slot_is_busy(slow_engine):
    engine = slow_engine()
    with engine.connect() as wire:
        wire.send(slow_request(LONG))
        engine.until_metric("sagitta_slots_busy", 1)

        assert engine.get("/healthz").status == 200
        assert engine.get("/models").status == 200
        assert engine.post("/infer", b"{}").status == 400  # refused without a slot
        assert engine.metrics()["sagitta_slots_busy"] == 1

        assert wire.receive().status == 200
