"""ONNX models of the shapes that the workloads need, made by script: small, seeded, repeatable."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

OPSET = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]


def save_dense(path, width=29, hidden=10):
    """``[N, width]`` through one hidden layer to ``[N, 1]``: a run costs a few microseconds."""
    random = np.random.default_rng(1)
    weights = {
        "w0": random.normal(0, 0.2, (width, hidden)),
        "b0": random.normal(0, 0.2, hidden),
        "w1": random.normal(0, 0.2, (hidden, 1)),
        "b1": random.normal(0, 0.2, 1),
    }
    nodes = [
        helper.make_node("MatMul", ["dense_input", "w0"], ["m0"]),
        helper.make_node("Add", ["m0", "b0"], ["a0"]),
        helper.make_node("Relu", ["a0"], ["r0"]),
        helper.make_node("MatMul", ["r0", "w1"], ["m1"]),
        helper.make_node("Add", ["m1", "b1"], ["a1"]),
        helper.make_node("Sigmoid", ["a1"], ["dense_1"]),
    ]
    _save(path, nodes, weights, ("dense_input", ["N", width]), ("dense_1", ["N", 1]))


def save_deep(path, width=16, layers=160):
    """``[N, width]`` through many narrow layers: a run costs what its nodes cost, not its rows."""
    random = np.random.default_rng(5)
    weights, nodes, last = {}, [], "dense_input"
    for layer in range(layers):
        weights[f"w{layer}"] = random.normal(0, 1 / width**0.5, (width, width))
        nodes.append(helper.make_node("MatMul", [last, f"w{layer}"], [f"m{layer}"]))
        nodes.append(helper.make_node("Tanh", [f"m{layer}"], [f"t{layer}"]))
        last = f"t{layer}"
    nodes.append(helper.make_node("Identity", [last], ["dense_1"]))
    _save(path, nodes, weights, ("dense_input", ["N", width]), ("dense_1", ["N", width]))


def save_trees(path, width=18, trees=100, depth=5):
    """``[N, width]`` through a forest of full binary trees to ``[N, 1]``."""
    random = np.random.default_rng(2)
    branches, leaves = 2**depth - 1, 2**depth
    size = branches + leaves
    nodes = trees * size
    in_tree = np.tile(np.arange(size), trees)
    tree = np.repeat(np.arange(trees), size)
    is_leaf = in_tree >= branches
    forest = helper.make_node(
        "TreeEnsembleRegressor",
        ["float_input"],
        ["variable"],
        domain="ai.onnx.ml",
        n_targets=1,
        nodes_treeids=tree,
        nodes_nodeids=in_tree,
        nodes_featureids=np.where(is_leaf, 0, random.integers(0, width, nodes)),
        nodes_values=np.where(is_leaf, 0.0, random.normal(0, 1, nodes)),
        nodes_modes=np.where(is_leaf, "LEAF", "BRANCH_LEQ").tolist(),
        nodes_truenodeids=np.where(is_leaf, 0, 2 * in_tree + 1),
        nodes_falsenodeids=np.where(is_leaf, 0, 2 * in_tree + 2),
        nodes_missing_value_tracks_true=np.zeros(nodes, int),
        nodes_hitrates=np.ones(nodes),
        target_treeids=tree[is_leaf],
        target_nodeids=in_tree[is_leaf],
        target_ids=np.zeros(trees * leaves, int),
        target_weights=random.normal(0, 1, trees * leaves),
    )
    _save(path, [forest], {}, ("float_input", ["N", width]), ("variable", ["N", 1]))


def save_convolution(path, classes=1001):
    """One image ``[N, 3, 224, 224]`` to ``[N, classes]``: a small convolution and a dense layer."""
    random = np.random.default_rng(3)
    weights = {
        "kernel": random.normal(0, 0.1, (32, 3, 7, 7)),
        "head": random.normal(0, 0.1, (32, classes)),
        "bias": random.normal(0, 0.1, classes),
    }
    nodes = [
        helper.make_node("Conv", ["tensor", "kernel"], ["c"], strides=[3, 3], pads=[3, 3, 3, 3]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "head"], ["m"]),
        helper.make_node("Add", ["m", "bias"], ["l"]),
        helper.make_node("Softmax", ["l"], ["scores"]),
    ]
    _save(path, nodes, weights, ("tensor", ["N", 3, 224, 224]), ("scores", ["N", classes]))


def _save(path, nodes, weights, model_input, model_output):
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info(model_input[0], TensorProto.FLOAT, model_input[1])],
        [helper.make_tensor_value_info(model_output[0], TensorProto.FLOAT, model_output[1])],
        [
            numpy_helper.from_array(values.astype(np.float32), name)
            for name, values in weights.items()
        ],
    )
    save(helper.make_model(graph, opset_imports=OPSET, ir_version=8), path)
