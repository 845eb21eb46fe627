"""``GET :9000/metrics``: the documented names, and that the counts are true."""

import socket

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.engine import ARROW_FILE

ROWS = [{"x": [0.0, 1.0, 2.0, 3.0]}] * 3
LABELS = {"pipeline_name": "counted", "deploy_id": socket.gethostname()}


@pytest.fixture
def engine(serving):
    return serving("linear", pipeline="counted")


def families(engine):
    reply = engine.request("GET", "/metrics", port=engine.metrics_port)
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {family.name: family for family in text_string_to_metric_families(reply.body.decode())}


def sample(engine, family, name, **labels):
    (value,) = [
        one.value
        for one in families(engine)[family].samples
        if one.name == name and labels.items() <= one.labels.items()
    ]
    return value


def test_documented_names(engine):
    """A latency histogram in ns per request, and a count of rows, with the documented labels."""
    engine.post("/infer", ROWS)

    found = families(engine)

    latency = found["latency_histogram_ns"]
    assert latency.type == "histogram"
    assert {one.name for one in latency.samples} == {
        f"latency_histogram_ns_{part}" for part in ("bucket", "count", "sum")
    }
    assert all(LABELS.items() <= one.labels.items() for one in latency.samples)
    (rows,) = found["tensor_throughput_batch_count"].samples
    assert rows.labels == LABELS


def test_requests_rows_and_errors_are_counted(engine):
    def counts():
        return (
            sample(engine, "latency_histogram_ns", "latency_histogram_ns_count"),
            sample(engine, "tensor_throughput_batch_count", "tensor_throughput_batch_count"),
            engine.metrics().get('sagitta_errors_total{code="schema_mismatch"}', 0),
            engine.metrics().get('sagitta_errors_total{code="decode_error"}', 0),
        )

    requests, rows, mismatches, decode_errors = counts()
    for accept in ("*/*", ARROW_FILE):
        assert engine.post("/infer", ROWS, accept=accept).status == 200
    assert engine.post("/infer", [{"y": [1]}]).status == 400
    assert engine.post("/infer", b"{").status == 400
    assert engine.post("/infer", b"no arrow", ARROW_FILE).status == 400

    assert counts() == (requests + 2, rows + 6, mismatches + 1, decode_errors + 2)


def test_buckets_are_cumulative(engine):
    for count in (1, 2, 7):
        engine.post("/infer", ROWS * count)

    for family in families(engine).values():
        if family.type != "histogram":
            continue
        buckets = [one.value for one in family.samples if one.name.endswith("_bucket")]
        total = next(one.value for one in family.samples if one.name.endswith("_count"))
        assert buckets == sorted(buckets)
        assert buckets[-1] == total


def test_readiness_and_slots(serving):
    engine = serving("linear", environ={"CONFIG_CPUS": "3"})

    samples = engine.metrics()

    assert samples["sagitta_ready"] == 1
    assert samples["sagitta_slots"] == 3
    assert samples["sagitta_slots_busy"] == samples["sagitta_queue_requests"] == 0


def test_nothing_else_is_on_the_metrics_port(engine):
    for method, path, status in (
        ("GET", "/", 404),
        ("GET", "/healthz", 404),
        ("POST", "/metrics", 405),
        ("POST", "/infer", 404),
    ):
        body = b"[]" if method == "POST" else None
        reply = engine.request(method, path, body, port=engine.metrics_port)
        assert reply.status == status, (method, path)
        assert ("there are GET /metrics" in reply.error) == (status == 404)
