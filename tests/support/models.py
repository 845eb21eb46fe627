"""Small ONNX models that the tests serve, and pipelines of them in plain directories."""

import itertools
import json

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

DTYPES = {  # suffix of in_… and out_… -> ONNX element type, ONNX Runtime's spelling, legacy name
    "f16": (TensorProto.FLOAT16, "float16", "Half"),
    "f32": (TensorProto.FLOAT, "float", "Float"),
    "f64": (TensorProto.DOUBLE, "double", "Double"),
    "i8": (TensorProto.INT8, "int8", "Int8"),
    "i16": (TensorProto.INT16, "int16", "Int16"),
    "i32": (TensorProto.INT32, "int32", "Int32"),
    "i64": (TensorProto.INT64, "int64", "Int64"),
    "u8": (TensorProto.UINT8, "uint8", "Uint8"),
    "u16": (TensorProto.UINT16, "uint16", "Uint16"),
    "u32": (TensorProto.UINT32, "uint32", "Uint32"),
    "u64": (TensorProto.UINT64, "uint64", "Uint64"),
    "b": (TensorProto.BOOL, "bool", "Bool"),
    "s": (TensorProto.STRING, "string", "String"),
}
WEIGHTS = np.arange(8, dtype=np.float32).reshape(4, 2)


def value(name, shape, element=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, element, shape)


def constant(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def model(nodes, inputs, outputs, constants=()):
    graph = helper.make_graph(nodes, "test", inputs, outputs, initializer=list(constants))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    built = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.checker.check_model(built)
    return built.SerializeToString()


def identity(element=TensorProto.FLOAT, shape=("N", 2)):
    return model(
        [helper.make_node("Identity", ["x"], ["y"])],
        [value("x", shape, element)],
        [value("y", shape, element)],
    )


def every_type():
    """Identity with one input and output of each element type: ``in_f16`` -> ``out_f16``, …."""
    nodes = [helper.make_node("Identity", [f"in_{k}"], [f"out_{k}"]) for k in DTYPES]
    inputs = [value(f"in_{key}", ["N", 2], kind) for key, (kind, _, _) in DTYPES.items()]
    outputs = [value(f"out_{key}", ["N", 2], kind) for key, (kind, _, _) in DTYPES.items()]
    return model(nodes, inputs, outputs)


def linear(rows="N"):
    """``y = x @ [[0, 1], [2, 3], [4, 5], [6, 7]]``."""
    return model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [value("x", [rows, 4])],
        [value("y", [rows, 2])],
        [constant("w", WEIGHTS)],
    )


def dense(width=16, hidden=32):
    """Three layers of weights from a fixed seed: ``tensor`` -> ``score``."""
    rng = np.random.default_rng(16)
    sizes = (width, hidden, hidden, 3)
    nodes, constants, last = [], [], "tensor"
    for index, (before, after) in enumerate(itertools.pairwise(sizes)):
        weights = rng.normal(size=(before, after)).astype(np.float32)
        constants += [constant(f"w{index}", weights), constant(f"b{index}", weights[0])]
        nodes.append(helper.make_node("Gemm", [last, f"w{index}", f"b{index}"], [f"g{index}"]))
        nodes.append(helper.make_node("Tanh", [f"g{index}"], [f"t{index}"]))
        last = f"t{index}"
    nodes.append(helper.make_node("Identity", [last], ["score"]))
    return model(nodes, [value("tensor", ["N", width])], [value("score", ["N", 3])], constants)


def centred():
    """Each value less the mean of its column: what a row gets depends on the rows beside it."""
    return model(
        [
            helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
            helper.make_node("Sub", ["x", "mean"], ["y"]),
        ],
        [value("x", ["N", 2])],
        [value("y", ["N", 2])],
    )


def wide(width):
    """The sum of each row of ``width`` values."""
    return model(
        [helper.make_node("ReduceSum", ["tensor", "axes"], ["total"], keepdims=1)],
        [value("tensor", ["N", width])],
        [value("total", ["N", 1])],
        [constant("axes", np.array([1], np.int64))],
    )


def rowcount_change():
    """All rows added up: one row out, whatever came in."""
    return model(
        [helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=1)],
        [value("x", ["N", 4])],
        [value("y", ["M", 4])],
        [constant("axes", np.array([0], np.int64))],
    )


def pooling():
    """Images of any size from 7 x 7 on, to whose rows input and output give different names."""
    node = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[7, 7])
    return model([node], [value("x", ["N", 3, "H", "W"])], [value("y", ["M", 3, None, None])])


def var_len():
    """The values above 0.5 and where they are: K results, not one per row."""
    return model(
        [
            helper.make_node("Reshape", ["x", "flat"], ["v"]),
            helper.make_node("Greater", ["v", "half"], ["above"]),
            helper.make_node("NonZero", ["above"], ["at"]),
            helper.make_node("Reshape", ["at", "flat"], ["classes"]),
            helper.make_node("Gather", ["v", "classes"], ["scores"]),
        ],
        [value("x", ["N", 8])],
        [value("scores", ["K"]), value("classes", ["K"], TensorProto.INT64)],
        [constant("flat", np.array([-1], np.int64)), constant("half", np.float32(0.5))],
    )


def zip_map(labels=(0, 1, 2)):
    """A classifier's usual end: a label, and a sequence of maps from class to probability."""
    kind = "classlabels_strings" if isinstance(labels[0], str) else "classlabels_int64s"
    key = TensorProto.STRING if isinstance(labels[0], str) else TensorProto.INT64
    node = helper.make_node("ZipMap", ["p"], ["probabilities"], domain="ai.onnx.ml")
    node.attribute.append(helper.make_attribute(kind, list(labels)))
    mapping = helper.make_map_type_proto(key, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    zipped = helper.make_value_info("probabilities", helper.make_sequence_type_proto(mapping))
    return model(
        [
            helper.make_node("Softmax", ["x"], ["p"]),
            node,
            helper.make_node("ArgMax", ["x"], ["label"], axis=1, keepdims=0),
        ],
        [value("x", ["N", len(labels)])],
        [value("label", ["N"], TensorProto.INT64), zipped],
    )


def sequence():
    """A sequence of two tensors: the input, and the input twice."""
    kind = helper.make_sequence_type_proto(
        helper.make_tensor_type_proto(TensorProto.FLOAT, ["N", None])
    )
    return model(
        [
            helper.make_node("Add", ["x", "x"], ["twice"]),
            helper.make_node("SequenceConstruct", ["x", "twice"], ["parts"]),
        ],
        [value("x", ["N", 2])],
        [helper.make_value_info("parts", kind)],
    )


def not_finite():
    """``log(x)``: -inf for 0, NaN below; a model whose results JSON cannot hold."""
    return model(
        [helper.make_node("Log", ["x"], ["y"])], [value("x", ["N", 2])], [value("y", ["N", 2])]
    )


def failing():
    """Fails in the run of a single row that begins with 5: two values cannot have the shape [4]."""
    return model(
        [
            helper.make_node("Slice", ["x", "zero", "one", "zero"], ["first"]),
            helper.make_node("Slice", ["first", "zero", "one", "axis"], ["cell"]),
            helper.make_node("Cast", ["cell"], ["count"], to=TensorProto.INT64),
            helper.make_node("Add", ["count", "size"], ["length"]),
            helper.make_node("Reshape", ["length", "flat"], ["shape"]),
            helper.make_node("Reshape", ["x", "shape"], ["y"]),
        ],
        [value("x", ["N", 2])],
        [value("y", ["M"])],
        [
            constant("zero", np.array([0], np.int64)),
            constant("one", np.array([1], np.int64)),
            constant("axis", np.array([1], np.int64)),
            constant("flat", np.array([-1], np.int64)),
            constant("size", np.array([-1], np.int64)),
        ],
    )


def slow():
    """Counts to the first value of the request in steps of 1, a million in some 3 s: a long run."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["go_on"]),
            helper.make_node("Add", ["count", "step"], ["count_out"]),
        ],
        "body",
        [
            value("index", [], TensorProto.INT64),
            value("going", [], TensorProto.BOOL),
            value("count", []),
        ],
        [value("go_on", [], TensorProto.BOOL), value("count_out", [])],
        [constant("step", np.float32(1))],
    )
    return model(
        [
            helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
            helper.make_node("Cast", ["most"], ["trips"], to=TensorProto.INT64),
            helper.make_node("Loop", ["trips", "", "start"], ["counted"], body=body),
            helper.make_node("Mul", ["x", "nothing"], ["zeros"]),
            helper.make_node("Add", ["zeros", "counted"], ["y"]),
        ],
        [value("x", ["N", 1])],
        [value("y", ["N", 1])],
        [constant("start", np.float32(0)), constant("nothing", np.float32(0))],
    )


def two_in_three_out():
    """Inputs ``b`` and ``a``, outputs ``sum``, ``difference`` and the scalar per row ``first``."""
    return model(
        [
            helper.make_node("Add", ["b", "a"], ["sum"]),
            helper.make_node("Sub", ["b", "a"], ["difference"]),
            helper.make_node("ReduceMax", ["b"], ["first"], axes=[1], keepdims=0),
        ],
        [value("b", ["N", 3]), value("a", ["N", 3])],
        [value("sum", ["N", 3]), value("difference", ["N", 3]), value("first", ["N"])],
    )


def write_pipeline(directory, content, *, name="tested", pipeline="pipe", version=None, **model):
    """Write a plain pipeline directory of one model; extra arguments go into its definition."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.onnx").write_bytes(content)
    definition = {
        "id": pipeline,
        "steps": [{"ModelInference": {"models": [{"name": name}]}}],
        "models": [{"name": name, "runtime": "onnx", **model}],
    }
    if version is not None:
        definition["version"] = version
    (directory / "pipeline.json").write_text(json.dumps(definition))
    return directory
