"""What a pipeline of several models adds to the bare runs of its models, by rows of a request."""

import itertools
import json

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.pipeline.compiler import compile_plan
from engine.pipeline.definition import parse_definition
from engine.sessions.opening import ModelOptions
from engine.sessions.session import ModelSession
from engine.values import ModelIdentity

WIDTH = 128
ROUNDS = {"rounds": 60, "iterations": 5, "warmup_rounds": 5}


def save_dense(path, read, written, seed):
    """``[N, 128]`` to ``[N, 128]``: four dense layers."""
    random = np.random.default_rng(seed)
    names = [read, "a", "b", "c", written]
    nodes, weights = [], []
    for layer, (before, after) in enumerate(itertools.pairwise(names)):
        matrix = random.normal(0, 0.08, (WIDTH, WIDTH)).astype(np.float32)
        weights.append(numpy_helper.from_array(matrix, f"w{layer}"))
        nodes.append(helper.make_node("MatMul", [before, f"w{layer}"], [f"m{layer}"]))
        nodes.append(helper.make_node("Relu", [f"m{layer}"], [after]))
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", WIDTH])]
        for name in (read, written)
    )
    graph = helper.make_graph(nodes, "dense", inputs, outputs, initializer=weights)
    opset = [helper.make_opsetid("", 17)]
    path.write_bytes(
        helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    )


@pytest.fixture(scope="module")
def sessions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    loaded = {}
    for index in range(3):
        path = folder / f"m{index}.onnx"
        save_dense(path, f"x{index}", f"x{index + 1}", index)
        loaded[index] = ModelSession(ModelIdentity(f"m{index}", "1", ""), path, ModelOptions())
    return loaded


@pytest.fixture(scope="module")
def chain(sessions):
    steps = [{"ModelInference": {"models": [{"name": f"m{index}"}]}} for index in sessions]
    document = json.dumps({"id": "chain", "steps": steps}).encode()
    return compile_plan(parse_definition(document), sessions)


def request(rows):
    return np.random.default_rng(9).normal(size=(rows, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The same three models with ONNX Runtime alone, as cheaply as it is called."""
    folder = tmp_path_factory.mktemp("bare")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    runs = []
    for index in range(3):
        path = folder / f"m{index}.onnx"
        save_dense(path, f"x{index}", f"x{index + 1}", index)
        runs.append(ort.InferenceSession(str(path), options).run)

    def run(tensor):
        for index, one in enumerate(runs):
            (tensor,) = one([f"x{index + 1}"], {f"x{index}": tensor})
        return tensor

    return run


@pytest.mark.benchmark(group="chain of three models")
@pytest.mark.parametrize("rows", [1, 100, 1000])
def test_bare_runs(benchmark, bare, rows):
    tensor = request(rows)
    benchmark.extra_info["rows"] = rows
    benchmark.pedantic(bare, (tensor,), **ROUNDS)


@pytest.mark.benchmark(group="chain of three models")
@pytest.mark.parametrize("rows", [1, 100, 1000])
def test_plan(benchmark, chain, bare, rows):
    tensor = request(rows)

    def run():
        return chain.run({"x0": tensor}, rows, lambda _spec: tensor)

    (output,) = run().outputs
    assert (output.values == bare(tensor)).all()
    assert len(run().steps_ns) == 3

    benchmark.extra_info["rows"] = rows
    benchmark.pedantic(run, **ROUNDS)
