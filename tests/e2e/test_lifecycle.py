"""Start and stop as a container runtime does it: exit codes, the first words, draining."""

import base64
import json
import os
import signal
import socket

import pytest
from support import models
from support.engine import Engine, inference_head

ROW = b'[{"x": [1]}]'
ROW4 = b'[{"x": [1, 2, 3, 4]}]'
LONG = 1_000_000  # steps of the slow model: more than a second


def slow_request(steps=LONG):
    body = b'[{"x": [%d]}]' % steps
    return inference_head(len(body), content_type="application/json") + body


@pytest.fixture
def slow_engine(tmp_path, engine_process):
    """An engine whose model has shown that it is slow, so that it is run off the event loop."""

    def start(**environ):
        folder = models.write_pipeline(tmp_path / "pipeline", models.slow())
        engine = engine_process(PIPELINE_URL=str(folder), **environ).ready()
        engine.show_slowness(b'[{"x": [200000]}]')
        return engine

    return start


@pytest.fixture
def pipeline(tmp_path):
    return models.write_pipeline(tmp_path / "pipeline", models.linear(), pipeline="house-price")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_hostile_43_a_signal_drains(slow_engine, number):
    """Readiness goes first, what runs is answered, what comes meanwhile too; then exit 0."""
    engine = slow_engine()
    running, probe, late = (engine.connect() for _ in range(3))
    running.send(slow_request())
    engine.until_metric("sagitta_slots_busy", 1)

    engine.process.send_signal(number)
    engine.wait_for("^Stopping: ")
    probe.send(b"GET /healthz HTTP/1.1\r\nHost: edge\r\n\r\n")
    late.send(slow_request(10))

    health = probe.receive()
    assert (health.status, health.json) == (503, {"status": "Draining"})
    for wire in (running, late):
        reply = wire.receive()
        assert reply.status == 200
        assert reply.headers["connection"] == "close"
        assert wire.receive() is None
    assert engine.wait() == 0
    assert "Traceback" not in engine.output
    for wire in (running, probe, late):
        wire.close()


@pytest.mark.slow
def test_hostile_43_a_second_signal_ends_at_once(slow_engine):
    engine = slow_engine()
    with engine.connect() as wire:
        wire.send(slow_request(100_000_000))  # minutes
        engine.until_metric("sagitta_slots_busy", 1)

        engine.terminate()
        engine.wait_for("^Stopping: ")
        engine.terminate()

        assert engine.wait() == 0
        assert wire.receive() is None


@pytest.mark.slow
def test_a_run_whose_caller_has_left_ends_in_silence(slow_engine):
    engine = slow_engine()
    with engine.connect() as wire:
        wire.send(slow_request())
        engine.until_metric("sagitta_slots_busy", 1)
    engine.until_connections_are(0)

    engine.terminate()

    assert engine.wait() == 0
    assert "Traceback" not in engine.output


@pytest.mark.slow
def test_a_run_that_does_not_end_cannot_hold_the_stop_up(slow_engine):
    engine = slow_engine(SHUTDOWN_GRACE_S="1")
    with engine.connect() as wire:
        wire.send(slow_request(100_000_000))
        engine.until_metric("sagitta_slots_busy", 1)

        engine.terminate()

        assert engine.wait() == 0
    assert "SHUTDOWN_GRACE_S" in engine.output


@pytest.mark.slow
def test_a_run_that_does_not_end_is_left_before_a_runtime_kills(slow_engine):
    """The grace counts once, from the signal, for connections, threads and log together."""
    engine = slow_engine(SHUTDOWN_GRACE_S="5")
    with engine.connect() as wire:
        wire.send(slow_request(100_000_000))
        engine.until_metric("sagitta_slots_busy", 1)

        engine.terminate()

        assert engine.wait(deadline_s=9) == 0  # twice the grace is over after 10 s


def test_a_short_grace_is_enough_where_nothing_is_open(pipeline, engine_process):
    engine = engine_process(PIPELINE_URL=str(pipeline), SHUTDOWN_GRACE_S="0.3").ready()

    engine.terminate()

    assert engine.wait() == 0
    assert engine.lines[-1] == "Stopped"


def test_stopped_while_loading(tmp_path, pipeline, engine_process):
    (pipeline / "pipeline.json").unlink()
    os.mkfifo(pipeline / "pipeline.json")
    engine = engine_process(PIPELINE_URL=str(pipeline), SHUTDOWN_GRACE_S="1")
    assert engine.get("/healthz").status == 503

    engine.terminate()

    assert engine.wait() == 0
    assert "still being loaded" in engine.lines[-1]


def test_an_idle_connection_does_not_hold_the_stop_up(pipeline, engine_process):
    engine = engine_process(PIPELINE_URL=str(pipeline)).ready()
    with engine.connect() as idle, engine.connect() as half:
        idle.send(b"GET /livez HTTP/1.1\r\nHost: edge\r\n\r\n")
        assert idle.receive().status == 200
        half.send(b"POST /infer HTTP/1.1\r\nHost: edge\r\nContent-Le")

        engine.terminate()

        assert engine.wait() == 0


def test_a_bundle_gives_its_name_and_promises_nothing(pipeline, engine_process):
    lines = ["EDGE_NAME=edge-7", "JOIN_TOKEN=hush", "OPSCENTER_HOST=ops.example.com"]
    bundle = base64.b64encode("\n".join(f"export {line}" for line in lines).encode()).decode()
    engine = engine_process(PIPELINE_URL=str(pipeline), EDGE_BUNDLE=bundle).ready()

    (row,) = engine.post("/infer?dataset[]=metadata.partition", ROW4).json

    assert row["partition"] == "edge-7"
    assert "does not join an operations centre" in engine.output
    assert "hush" not in engine.output
    assert bundle not in engine.output


def test_start_up_words(pipeline, engine_process):
    engine = engine_process(PIPELINE_URL=str(pipeline), CONFIG_CPUS="1.5").ready()
    sha = engine.get("/models").json["models"][0]["sha"]
    documented = [
        "Sagitta Engine - Standalone mode",
        f"Fetching manifest and config for pipeline: {pipeline}",
        "Fetching model layers",
        f"digest: sha256:{sha}",
        "  filename: tested.onnx",
        "  name: tested",
        "  type: model",
        "  runtime: onnx",
        "  Fetched",
        "Starting engine",
    ]

    positions = [engine.lines.index(line) for line in documented]

    assert positions == sorted(positions)
    assert any(line.startswith("Threads: 2 for inference") for line in engine.lines)
    assert engine.lines[-1].startswith("Ready: pipeline house-price version ")


def test_more_cpus_than_there_are_get_one_warning(pipeline, engine_process):
    engine = engine_process(PIPELINE_URL=str(pipeline), CONFIG_CPUS="64").ready()

    assert sum("CONFIG_CPUS=64" in line for line in engine.lines) == 1


@pytest.mark.parametrize("variable", ["HTTP_PORT", "METRICS_PORT"])
def test_a_taken_port_is_exit_3(pipeline, variable):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        engine = Engine({"PIPELINE_URL": str(pipeline), variable: str(port)})

        assert engine.wait() == 3

    assert f"cannot listen on 127.0.0.1:{port}" in engine.output
    assert variable in engine.output
    assert "Traceback" not in engine.output


def test_a_port_may_be_off(pipeline, engine_process):
    engine = engine_process(PIPELINE_URL=str(pipeline), METRICS_PORT="").ready()

    assert not any("METRICS" in line for line in engine.lines)


def test_bad_configuration_is_exit_2():
    engine = Engine({"CONFIG_CPUS": "many", "HTTP_PORT": "99999"})

    assert engine.wait() == 2
    for name in ("PIPELINE_URL", "CONFIG_CPUS", "HTTP_PORT"):
        assert name in engine.output


def change_definition(pipeline, **changes):
    definition = json.loads((pipeline / "pipeline.json").read_text())
    definition["models"][0].update(changes)
    (pipeline / "pipeline.json").write_text(json.dumps(definition))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda p: (p / "pipeline.json").unlink(), "pipeline.json"),
        (lambda p: (p / "pipeline.json").write_text("{"), "pipeline"),
        (lambda p: (p / "tested.onnx").unlink(), "holds no file for model 'tested'"),
        (lambda p: (p / "tested.onnx").write_bytes(b"no model"), "cannot be loaded"),
        (lambda p: change_definition(p, sha="0" * 64), "has the sha"),
        (lambda p: change_definition(p, tensor_fields=["a", "b"]), "tensor_fields"),
        (lambda p: change_definition(p, runtime="python"), "python"),
    ],
)
def test_an_artifact_that_cannot_be_served_is_exit_3(pipeline, damage, said):
    damage(pipeline)
    engine = Engine({"PIPELINE_URL": str(pipeline)})

    assert engine.wait() == 3
    assert said in engine.output
    assert "Traceback" not in engine.output
    assert not any(line.startswith("Ready") for line in engine.lines)


def test_a_missing_directory_is_exit_3(tmp_path):
    engine = Engine({"PIPELINE_URL": str(tmp_path / "nothing")})

    assert engine.wait() == 3
    assert "nothing" in engine.output


def test_hostile_38_a_gpu_that_is_not_there_is_exit_3(pipeline):
    import onnxruntime as ort  # noqa: PLC0415

    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this onnxruntime has a CUDA provider")
    engine = Engine({"PIPELINE_URL": str(pipeline), "ACCELERATOR": "cuda"})

    assert engine.wait() == 3
    assert "ACCELERATOR=cuda" in engine.output
