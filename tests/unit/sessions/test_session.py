"""One model in a session: rows, fixed and single rows, outputs of odd shapes, refusals."""

from array import array

import numpy as np
import pytest
from onnx import TensorProto
from support import models

from engine.errors import InferenceFailedError, SchemaMismatchError, StartupError
from engine.sessions.opening import ModelOptions
from engine.sessions.providers import check_provider, choose_providers
from engine.sessions.session import ModelSession
from engine.values import ModelIdentity

IDENTITY = ModelIdentity("tested", "v", "sha")


@pytest.fixture
def load(tmp_path):
    def load(content, **options):
        path = tmp_path / "model.onnx"
        path.write_bytes(content)
        session = ModelSession(IDENTITY, path, ModelOptions(**options))
        session.problem = session.warm_up(lambda rows, ns: None)
        return session

    return load


def rows(count, width=4):
    return np.arange(count * width, dtype=np.float32).reshape(count, width)


def by_name(outputs):
    return {output.name: output for output in outputs}


def test_a_request_is_one_run(load):
    session = load(models.linear())

    (output,) = session.run([rows(3)], 3)

    assert output.per_row
    assert output.values.tolist() == [[28, 34], [76, 98], [124, 162]]
    assert session.problem is None
    assert session.takes_any_rows
    assert session.provider == "CPUExecutionProvider"


@pytest.mark.parametrize("fixed", [1, 2, 4])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8])
def test_a_fixed_number_of_rows_is_filled_up_and_cut_again(load, fixed, count):
    session = load(models.linear(rows=fixed))

    (output,) = session.run([rows(count)], count)

    assert output.values.tolist() == (rows(count) @ models.WEIGHTS).tolist()
    assert not session.takes_any_rows


def test_single_rows(load):
    session = load(models.linear(), single_rows=True)

    (output,) = session.run([rows(5)], 5)

    assert output.values.tolist() == (rows(5) @ models.WEIGHTS).tolist()
    assert not session.takes_any_rows


def test_rows_of_unequal_outputs_are_ragged(load):
    session = load(models.var_len(), single_rows=True)
    feed = np.array([[1] * 8, [0] * 8, [0, 1] * 4], np.float32)

    outputs = by_name(session.run([feed], 3))

    assert list(outputs) == ["classes", "scores"]
    assert outputs["classes"].ragged
    assert [row.tolist() for row in outputs["classes"].values] == [list(range(8)), [], [1, 3, 5, 7]]
    assert [row.dtype for row in outputs["scores"].values] == [np.float32] * 3


@pytest.mark.parametrize("name", ["var_len", "rowcount_change"])
def test_outputs_that_do_not_follow_the_rows(load, name):
    session = load(getattr(models, name)())

    outputs = session.run([rows(2, 8 if name == "var_len" else 4)], 2)

    assert not any(output.per_row for output in outputs)


def test_several_inputs_and_outputs(load):
    session = load(models.two_in_three_out(), tensor_fields=("left", "right"))

    outputs = by_name(session.run([rows(2, 3), np.ones((2, 3), np.float32)], 2))

    assert [spec.name for spec in session.inputs] == ["left", "right"]
    assert list(outputs) == ["difference", "first", "sum"]
    assert outputs["first"].values.shape == (2,)
    assert outputs["difference"].values.tolist() == (rows(2, 3) - 1).tolist()


@pytest.mark.parametrize("labels", [(0, 1, 2), ("cat", "dog", "ant")])
def test_hostile_46_zip_map_is_one_column_per_class(load, labels):
    session = load(models.zip_map(labels))

    outputs = by_name(session.run([rows(2, 3)], 2))

    assert set(outputs) == {"label", *(f"probabilities_{label}" for label in labels)}
    columns = [outputs[f"probabilities_{label}"] for label in labels]
    assert all(column.per_row and column.values.shape == (2, 1) for column in columns)
    assert sum(column.values for column in columns) == pytest.approx(np.ones((2, 1)))


def test_hostile_46_a_sequence_is_one_output_per_element(load):
    session = load(models.sequence())

    outputs = by_name(session.run([rows(2, 2)], 2))

    assert outputs["parts_0"].values.tolist() == rows(2, 2).tolist()
    assert outputs["parts_1"].values.tolist() == (2 * rows(2, 2)).tolist()


def test_a_run_that_fails(load):
    session = load(models.failing())

    with pytest.raises(InferenceFailedError, match=r"failed: .*reshape"):
        session.run([np.float32([[5, 0]])], 1)
    assert session.run([np.float32([[0, 1]])], 1)


def test_warm_up_finds_a_length_that_the_model_runs_on(load):
    """Its output's rows have another name than its input's: only a run tells that they are rows."""
    session = load(models.pooling())

    (output,) = session.run([np.ones((2, 3, 20, 20), np.float32)], 2)

    assert session.problem is None
    assert output.per_row


def test_shapes_that_onnx_runtime_refuses(load):
    with pytest.raises(
        SchemaMismatchError, match=r"refused the request.s shapes: .*index: 1 Got: "
    ):
        load(models.linear()).run([rows(2, 3)], 2)


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        (b"", {}, "cannot be loaded"),
        (b"nonsense", {}, "cannot be loaded"),
        (models.linear()[:-20], {}, "cannot be loaded"),
        (models.linear(), {"tensor_fields": ("a", "b")}, "tensor_fields"),
        (models.linear(), {"tensor_fields": ()}, "tensor_fields"),
        (models.identity(models.TensorProto.COMPLEX64), {}, "complex64"),
        (models.identity(models.TensorProto.BFLOAT16), {}, "bfloat16"),
    ],
)
def test_models_that_cannot_be_served(load, content, options, said):
    with pytest.raises(StartupError, match=said):
        load(content, **options)


def test_inputs_of_different_fixed_rows(load):
    content = models.model(
        [models.helper.make_node("MatMul", ["a", "b"], ["y"])],
        [models.value("a", [2, 3]), models.value("b", [3, 1])],
        [models.value("y", [2, 1])],
    )

    with pytest.raises(StartupError, match="different fixed row counts"):
        load(content)


def test_providers():
    assert choose_providers("cpu") == ("CPUExecutionProvider",)
    assert choose_providers("auto")[-1] == "CPUExecutionProvider"
    check_provider("auto", "CPUExecutionProvider", "m")
    check_provider("cuda", "CUDAExecutionProvider", "m")
    with pytest.raises(StartupError, match="ACCELERATOR=cuda"):
        check_provider("cuda", "CPUExecutionProvider", "m")


@pytest.mark.parametrize(
    ("content", "element"),
    [
        (models.linear(), "f"),
        (models.linear(rows=1), "f"),
        (models.dense(), "f"),
        (models.centred(), "f"),
        (models.identity(TensorProto.INT64), "q"),
        (models.identity(TensorProto.DOUBLE), "d"),
        (models.not_finite(), "f"),
    ],
)
def test_a_bound_row_gives_the_bits_of_a_run(load, content, element):
    session = load(content)
    row = session.bind_rows(1)
    width = session.inputs[0].row_size

    assert row.name == session.inputs[0].name
    assert row.values.typecode == element
    for first in (1, 3, -7):
        row.values[:] = array(element, range(first, first + width))
        row.run()
        usual = session.run([np.frombuffer(row.values, element).reshape(1, width)], 1)
        assert [output.name for output in row.outputs] == [output.name for output in usual]
        for mine, wanted in zip(row.outputs, usual, strict=True):
            assert mine.values.tobytes() == wanted.values.tobytes()
            assert mine.values.dtype == wanted.values.dtype
            assert mine.values.shape == wanted.values.shape
            assert mine.per_row == wanted.per_row


@pytest.mark.parametrize(
    "content",
    [
        models.linear(rows=2),
        models.two_in_three_out(),
        models.pooling(),
        models.zip_map(),
        models.sequence(),
        models.identity(TensorProto.STRING),
        models.identity(TensorProto.BOOL),
        models.identity(TensorProto.FLOAT16),
        models.identity(shape=("N", None)),
        models.identity(shape=("N", 1 << 20)),
    ],
)
def test_what_is_no_single_row_of_numbers_is_not_bound(load, content):
    assert load(content).bind_rows(1) is None


def test_a_bound_row_whose_result_has_another_shape_fails(load):
    session = load(models.failing())
    row = session.bind_rows(1)
    if row is None:  # the trial met another shape already
        return
    row.values[0] = 5
    with pytest.raises(Exception, match="shape"):
        row.run()
