"""The documented endpoints apart from inference, the error body, and the documented curl lines."""

import os
import shutil
import subprocess

import orjson
import pandas as pd
import pyarrow as pa
import pytest
from support import models
from support.engine import ARROW_FILE, RECORDS
from support.shells import Flight

VERSION = "693e19b5-0dc7-4afb-9922-e3f7feefe66d"
ROWS = [{"x": [0.0, 1.0, 2.0, 3.0]}]


@pytest.fixture
def engine(serving):
    return serving(
        "linear",
        name="resnet-50",
        pipeline="edge-cv-retail",
        version="7c702eca-8acf-45e0-bdcd-bbb48a5102e5",
    )


def test_pipelines_body(client, engine):
    assert engine.get("/pipelines").headers["content-type"] == "application/json"
    assert client(engine).told("pipelines") == (
        b'{"pipelines":[{"id":"edge-cv-retail","version":"7c702eca-8acf-45e0-bdcd-bbb48a5102e5",'
        b'"status":"Running"}]}'
    )


def test_models_body(client, serving):
    engine = serving(models.linear(), name="resnet-50", version="p", pipeline="p", **{})
    sha = engine.get("/models").json["models"][0]["sha"]
    content = models.linear()

    with_ids = serving(content, name="m", sha=sha, model_version_id=24)

    assert (
        client(engine)
        .told("models")
        .startswith(
            b'{"models":[{"name":"resnet-50","sha":"%b","status":"Running","version":"'
            % sha.encode()
        )
    )
    (model,) = orjson.loads(client(with_ids).told("models"))["models"]
    assert list(model) == ["name", "sha", "status", "version", "model_version_id"]
    assert model["model_version_id"] == 24


def test_recorded_bodies_have_the_same_keys(client, golden, engine):
    shell = client(engine)
    recorded = orjson.loads((golden / "edge" / "api_bodies.json").read_bytes())
    pipelines = orjson.loads(recorded["GET /pipelines"]["2024.1+"])["pipelines"][0]
    model = orjson.loads(recorded["GET /models"]["2023.3 (seed)"])["models"][0]

    assert list(orjson.loads(shell.told("pipelines"))["pipelines"][0]) == list(pipelines)
    assert list(orjson.loads(shell.told("models"))["models"][0]) == list(model)


def test_health_of_a_running_engine(client, engine):
    assert orjson.loads(client(engine).told("health"))["status"] == "Running"
    assert engine.get("/healthz").status == 200
    assert engine.get("/livez").status == 200


def test_a_pipeline_by_its_name_is_the_one_that_is_served(client, engine):
    shell = client(engine)

    (by_name,), (static,) = shell.records(ROWS, "edge-cv-retail"), shell.records(ROWS)

    assert by_name["out"] == static["out"] == {"y": [28.0, 34.0]}


def test_pipeline_endpoint_is_the_same_as_infer(engine):
    by_name = engine.post("/pipelines/edge-cv-retail", ROWS)
    quoted = engine.post("/pipelines/edge%2Dcv%2Dretail", ROWS)
    absolute = engine.post(f"{engine.base_url}/infer?dataset[]=out", ROWS)
    static = engine.post("/infer", ROWS)

    outputs = [reply.json[0]["outputs"] for reply in (by_name, quoted, static)]
    assert outputs[0] == outputs[1] == outputs[2]
    assert absolute.json == [{"y": [28.0, 34.0]}]


def test_400(client, engine):
    code, text = client(engine).refused([{"x": [1, None, 2, 3]}])

    assert (code, "tensor values may not be null" in text) == (400, True)


def test_404(client, engine):
    unknown = engine.get("/nothing")
    code, text = client(engine).refused(ROWS, "other")

    assert (unknown.status, code) == (404, 404)
    assert "POST /infer" in unknown.error
    assert "'edge-cv-retail'" in text


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD", "OPTIONS"])
@pytest.mark.parametrize("path", ["/infer", "/pipelines/edge-cv-retail", "/logs"])
def test_405(engine, method, path):
    reply = engine.request(method, path)

    assert reply.status == 405
    assert reply.headers["allow"] == "POST"
    if method != "HEAD":
        assert reply.error == f"{method} is not allowed on {path}: use POST"


def test_405_of_what_is_only_read(engine):
    for path in ("/pipelines", "/models", "/healthz", "/livez"):
        reply = engine.request("POST", path, b"{}")
        assert (reply.status, set(reply.headers["allow"].split(", "))) == (405, {"GET", "HEAD"})
        assert reply.error


@pytest.mark.parametrize(
    "path",
    [
        "/infer/openai/v1/completions",
        "/pipelines/edge-cv-retail/openai/v1/chat/completions",
    ],
)
def test_409_for_the_endpoints_of_language_models(engine, path):
    reply = engine.post(path, {"prompt": "hello"}, "application/json")

    assert reply.status == 409
    assert "POST /infer" in reply.error


def test_500_tells_nothing_of_the_inside(client, serving):
    engine = serving("failing")
    shell = client(engine)
    code, text = shell.refused([{"x": [5, 0]}])

    assert code == 500
    assert "the model failed" in text
    request_id = text.rpartition(" ")[2]
    assert "Reshape" not in text
    assert "Reshape" in engine.wait_for(f"request {request_id}.*").group()  # for the operator
    assert len(shell.records([{"x": [0, 1]}])) == 1


def test_503_until_the_pipeline_is_loaded(tmp_path, engine_process):
    """The definition comes through a pipe, so the engine cannot load it before it is written."""
    folder = models.write_pipeline(tmp_path / "pipeline", models.linear(), pipeline="late")
    definition = (folder / "pipeline.json").read_bytes()
    (folder / "pipeline.json").unlink()
    os.mkfifo(folder / "pipeline.json")
    engine = engine_process(PIPELINE_URL=str(folder), FLIGHT_PORT="0")
    flight = Flight(engine)

    health, infer = engine.get("/healthz"), engine.post("/infer", ROWS)
    named = engine.post("/pipelines/late", ROWS)

    assert (health.status, health.json) == (503, {"status": "Loading"})
    assert engine.get("/livez").status == 200
    assert engine.get("/pipelines").json == {"pipelines": []}
    assert engine.get("/models").json == {"models": []}
    assert orjson.loads(flight.told("health")) == {"status": "Loading"}
    assert orjson.loads(flight.told("pipelines")) == {"pipelines": []}
    for name in (None, "late"):
        code, text = flight.refused(ROWS, name)
        assert (code, text) == (503, infer.error)
    for reply in (infer, named):
        assert reply.status == 503
        assert reply.headers["retry-after"] == "1"
        assert "still loading" in reply.error

    (folder / "pipeline.json").write_bytes(definition)

    engine.ready()
    assert engine.get("/healthz").status == 200
    assert engine.post("/pipelines/late", ROWS).status == 200
    assert len(flight.records(ROWS, "late")) == 1


def _curl(engine, folder, line):
    """Run a line of the documentation as typed, but for the port."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    typed = line.replace("localhost:8080", f"127.0.0.1:{engine.port}").replace("curl", "curl -sS")
    return subprocess.run(
        ["sh", "-c", typed], cwd=folder, capture_output=True, timeout=30, check=True
    ).stdout


def test_hostile_25_documented_curl_lines(serving, golden, tmp_path):
    (tmp_path / "data").symlink_to(golden / "inputs")
    content = (golden / "synthetic" / "resnet_like.onnx").read_bytes()
    engine = serving(content, name="resnet-50", tensor_fields=["tensor"])

    assert _curl(engine, tmp_path, "curl localhost:8080/pipelines").startswith(b'{"pipelines":[{')
    assert _curl(engine, tmp_path, "curl localhost:8080/models").startswith(b'{"models":[{"name"')
    image = _curl(
        engine,
        tmp_path,
        'curl -X POST localhost:8080/infer -H "Content-Type: application/vnd.apache.arrow.file"'
        " -H 'Accept: application/json; format=pandas-records'"
        " --data-binary @./data/image_224x224.arrow",
    )
    assert [list(output) for output in orjson.loads(image)[0]["outputs"]] == [["Int64"], ["Float"]]

    written = _curl(
        engine,
        tmp_path,
        "curl -X POST http://localhost:8080/logs \\\n"
        '-H "Content-Type: Content-Type: application/json; format=pandas-records" \\\n'
        "--data {} > ./edge-logs.df.json",
    )
    assert written == b""
    refusal = orjson.loads((tmp_path / "edge-logs.df.json").read_bytes())
    assert refusal["code"] == 404
    assert "LOCAL_INFERENCE_STORAGE" in refusal["error"]
    assert "PLATEAU_PAGE_SIZE" in refusal["error"]


def test_hostile_25_recorded_curl_lines(serving, golden, tmp_path):
    """As the tutorials type them: the doubled header, and a file whose line ends curl drops."""
    (tmp_path / "data").symlink_to(golden / "inputs")
    content = (golden / "models" / "rf_model.onnx").read_bytes()
    engine = serving(content, tensor_fields=["tensor"])
    for header in (
        "Content-Type: Content-Type: application/json; format=pandas-records",
        "Content-Type:application/json; format=pandas-records",
        "Content-Type: application/json",
        "X-Nothing: curl says application/x-www-form-urlencoded",
    ):
        line = (
            f'curl -X POST localhost:8080/infer -H "{header}" --data @./data/xtest-1.df.json '
            "> ./out.json"
        )
        _curl(engine, tmp_path, line)
        (reply,) = orjson.loads((tmp_path / "out.json").read_bytes())
        assert reply["outputs"] == [{"Float": {"data": [718013.6875], "dim": [1, 1], "v": 1}}]


def _replies(serving, rows):
    engine = serving("linear", name="resnet-50", pipeline="edge-cv-retail")
    yield "legacy", engine.post("/infer", rows).body
    yield "records", engine.post("/infer?dataset[]=*", rows).body
    yield "flat", engine.post("/infer?dataset[]=*&dataset.separator=.", rows).body
    yield "arrow", engine.post("/infer", rows, accept=ARROW_FILE).body


def test_pandas_and_pyarrow_read_what_the_model_gave(serving, tmp_path):
    """Each reply in the reader that the documentation names, against the model's own numbers."""
    import numpy as np  # noqa: PLC0415
    import onnxruntime as ort  # noqa: PLC0415

    values = np.linspace(-3, 3, 200, dtype=np.float32).reshape(50, 4) / 7
    (wanted,) = ort.InferenceSession(models.linear()).run(None, {"x": values})
    read = {}
    for kind, body in _replies(serving, [{"x": row} for row in values.tolist()]):
        (tmp_path / kind).write_bytes(body)
        if kind == "legacy":
            frame = pd.read_json(tmp_path / kind, orient="records")
            tensor = frame.loc[0, "outputs"][0]["Float"]
            read[kind] = np.reshape(tensor["data"], tensor["dim"])
        elif kind == "arrow":
            table = pa.ipc.open_file(pa.memory_map(str(tmp_path / kind))).read_all()
            read[kind] = table.column("out").to_pylist()
            read[kind] = [row["y"] for row in read[kind]]
        else:
            frame = pd.read_json(tmp_path / kind, orient="records")
            column = frame["out.y"] if kind == "flat" else frame["out"].map(lambda out: out["y"])
            read[kind] = column.tolist()
    for kind, numbers in read.items():
        assert np.float32(numbers).tobytes() == wanted.tobytes(), kind


def test_inference_response_chooses_the_default_body(serving):
    engine = serving("linear", environ={"INFERENCE_RESPONSE": "records"})

    (record,) = engine.post("/infer", ROWS).json
    (named,) = engine.post("/pipelines/pipe", ROWS).json

    assert list(record) == list(named) == ["time", "in", "out", "anomaly", "metadata"]
    assert engine.post("/infer", ROWS).headers["content-type"] == RECORDS
