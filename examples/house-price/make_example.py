"""Makes everything in this folder: a small model, its published pipeline and two request files.

Run it with the development extras installed (``pip install -e '.[cpu,dev]'``)::

    python examples/house-price/make_example.py

The houses are invented: a formula with noise, seeded, so that every run gives the same data. A
network of one hidden layer is fitted to them with plain numpy, and its normalisation is part of the
ONNX graph: a request holds square feet and years, not scaled numbers.
"""

import hashlib
import json
import pathlib
import uuid

import numpy as np
import onnx
import pyarrow as pa
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Floats = NDArray[np.float64]

HERE = pathlib.Path(__file__).parent
FEATURES = ("bedrooms", "bathrooms", "living_sqft", "lot_sqft", "floors", "view", "grade", "age")
HIDDEN = 16
TRAINING_ROWS = 4000
REQUEST_ROWS = 10
STEPS = 1500
SEED = 20240115
PIPELINE = "house-price"
NAMESPACE = uuid.UUID("6f1f4f0e-2f0b-4d57-9d67-0a9d4a4d8c11")
CONFIG_TYPE = "application/vnd.sagitta.pipeline.config.v1+json"
ARTIFACT_TYPE = "application/vnd.sagitta.pipeline.v1+json"
MODEL_TYPE = "application/vnd.sagitta.model.v1.onnx"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"


def make_houses(rng: np.random.Generator, rows: int) -> tuple[Floats, Floats]:
    """Invent houses and their prices in dollars."""
    houses = np.column_stack(
        [
            rng.integers(1, 7, rows),
            rng.integers(2, 13, rows) / 4,
            rng.integers(60, 500, rows) * 10,
            rng.integers(100, 3000, rows) * 10,
            rng.integers(2, 7, rows) / 2,
            rng.integers(0, 5, rows),
            rng.integers(4, 13, rows),
            rng.integers(0, 110, rows),
        ]
    ).astype(np.float64)
    _, baths, living, lot, _, view, grade, age = houses.T
    price = 40_000 + 120 * living + 2 * lot + 45_000 * (grade - 4) + 30_000 * view
    price += 15_000 * baths - 900 * age + rng.normal(0, 15_000, rows)
    return houses, np.maximum(price, 50_000)


def fit(houses: Floats, prices: Floats, rng: np.random.Generator) -> dict[str, Floats]:
    """Fit one hidden layer by full-batch Adam; returns the arrays of the graph."""
    mean, scale = houses.mean(axis=0), houses.std(axis=0)
    price_mean, price_scale = prices.mean(), prices.std()
    inputs, target = (houses - mean) / scale, ((prices - price_mean) / price_scale)[:, None]
    weights = {
        "w1": rng.normal(0, 0.3, (len(FEATURES), HIDDEN)),
        "b1": np.zeros(HIDDEN),
        "w2": rng.normal(0, 0.3, (HIDDEN, 1)),
        "b2": np.zeros(1),
    }
    first = {name: np.zeros_like(value) for name, value in weights.items()}
    second = {name: np.zeros_like(value) for name, value in weights.items()}
    for step in range(1, STEPS + 1):
        hidden = np.maximum(inputs @ weights["w1"] + weights["b1"], 0)
        error = (hidden @ weights["w2"] + weights["b2"] - target) / len(target)
        back = (error @ weights["w2"].T) * (hidden > 0)
        gradients = {
            "w1": inputs.T @ back,
            "b1": back.sum(axis=0),
            "w2": hidden.T @ error,
            "b2": error.sum(axis=0),
        }
        for name, gradient in gradients.items():
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient**2
            corrected = first[name] / (1 - 0.9**step)
            spread = np.sqrt(second[name] / (1 - 0.999**step)) + 1e-8
            weights[name] = weights[name] - 0.01 * corrected / spread
    return {
        "mean": mean,
        "scale": scale,
        **weights,
        "price_scale": np.array([price_scale]),
        "price_mean": np.array([price_mean]),
    }


def build_model(arrays: dict[str, Floats]) -> onnx.ModelProto:
    """The fitted network as an ONNX graph: float32 [rows, 8] to float32 [rows, 1], in dollars."""
    nodes = [
        helper.make_node("Sub", ["features", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "scale"], ["scaled"]),
        helper.make_node("Gemm", ["scaled", "w1", "b1"], ["linear"]),
        helper.make_node("Relu", ["linear"], ["hidden"]),
        helper.make_node("Gemm", ["hidden", "w2", "b2"], ["relative"]),
        helper.make_node("Mul", ["relative", "price_scale"], ["spread"]),
        helper.make_node("Add", ["spread", "price_mean"], ["price"]),
    ]
    graph = helper.make_graph(
        nodes,
        PIPELINE,
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["rows", len(FEATURES)])],
        [helper.make_tensor_value_info("price", TensorProto.FLOAT, ["rows", 1])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.checker.check_model(model)
    return model


def write_layout(folder: pathlib.Path, model: bytes) -> None:
    """Publish the model as a pipeline of one step into an OCI image layout."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    for old in blobs.iterdir():
        old.unlink()

    def descriptor(content: bytes, media_type: str) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    sha = hashlib.sha256(model).hexdigest()
    version = str(uuid.uuid5(NAMESPACE, sha))
    identity = {"name": PIPELINE, "version": version, "sha": sha}
    definition = {
        "id": PIPELINE,
        "steps": [{"ModelInference": {"models": [identity]}}],
        "models": [{**identity, "runtime": "onnx", "tensor_fields": ["tensor"]}],
    }
    annotations = {
        "filename": sha,
        "name": PIPELINE,
        "runtime": "onnx",
        "sagitta_file_type": "model",
        "version": version,
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "config": descriptor(_json(definition), CONFIG_TYPE),
        "layers": [{**descriptor(model, MODEL_TYPE), "annotations": annotations}],
        "annotations": {"org.opencontainers.image.title": PIPELINE},
    }
    entry = descriptor(_json(manifest), MANIFEST_TYPE)
    tag = {"org.opencontainers.image.ref.name": "v1"}
    index = {"schemaVersion": 2, "manifests": [{**entry, "annotations": tag}]}
    (folder / "index.json").write_bytes(_json(index))
    (folder / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))


def write_requests(folder: pathlib.Path, houses: Floats) -> None:
    """The same rows as an Arrow file and as pandas records."""
    rows = houses.astype(np.float32)
    tensor = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), len(FEATURES))
    metadata = {"tensor_type": json.dumps({"shape": [len(FEATURES)]})}
    schema = pa.schema([pa.field("tensor", tensor.type, metadata=metadata)])
    with pa.ipc.new_file(str(folder / "houses.arrow"), schema) as writer:
        writer.write_batch(pa.record_batch([tensor], schema=schema))
    records = [{"tensor": row} for row in rows.tolist()]
    (folder / "houses.df.json").write_text(json.dumps(records) + "\n")


def main() -> None:
    """Write everything beside this script."""
    write_requests(HERE, make_houses(np.random.default_rng(SEED), REQUEST_ROWS)[0])
    rng = np.random.default_rng(SEED + 1)
    houses, prices = make_houses(rng, TRAINING_ROWS)
    model = build_model(fit(houses, prices, rng)).SerializeToString()
    (HERE / f"{PIPELINE}.onnx").write_bytes(model)
    write_layout(HERE / "pipeline", model)
    print(f"wrote {HERE}: a model of {len(model)} bytes, its layout and two requests")


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()


if __name__ == "__main__":
    main()
