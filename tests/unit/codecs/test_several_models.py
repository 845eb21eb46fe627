"""What replies make of challengers and splits."""

import json

import numpy as np
import pyarrow as pa
import pytest
from support.fakes import spec

from engine.codecs.legacy import write_legacy
from engine.codecs.output_batch import OutputWriter
from engine.codecs.pandas_records import write_records
from engine.codecs.record_batch import record_batch
from engine.errors import ConflictError
from engine.values import (
    CheckResult,
    Frame,
    InferResult,
    ModelIdentity,
    Output,
    PipelineIdentity,
    RowModels,
    Shadow,
)

A, B = ModelIdentity("a", "1", "aa"), ModelIdentity("b", "2", "bb")


def output(name="y", rows=2, values=(1.5, 2.5)):
    return Output(name, np.array(values, np.float32)[:rows, np.newaxis], per_row=True)


def result(**extra):
    frame = Frame(2, {"x": [1.0, 2.0]})
    given = {"outputs": (output(),), **extra}
    return InferResult(
        frame, given.pop("outputs"), 7, (1, 2), A, PipelineIdentity("p", "v"), "edge", **given
    )


def test_a_missing_result_has_no_values_but_its_columns():
    there = result(shadows=(Shadow("b", (output("z"),)), Shadow("c", (output("w"),))))
    gone = result(shadows=(Shadow("b", (output("z", rows=0),), True), Shadow("c", (output("w"),))))

    batch = record_batch(gone)
    rows = json.loads(write_records(gone))

    assert batch.schema == record_batch(there).schema
    assert batch["out_b"].to_pylist() == [{"z": None}, {"z": None}]
    assert batch["out_c"].to_pylist() == [{"w": [1.5]}, {"w": [2.5]}]
    assert [(row["out_b"], row["out_c"]) for row in rows] == [
        ({"z": None}, {"w": [1.5]}),
        ({"z": None}, {"w": [2.5]}),
    ]
    assert list(json.loads(write_legacy(gone))[0]["shadow_data"]) == ["c"]
    assert list(json.loads(write_legacy(there))[0]["shadow_data"]) == ["b", "c"]


def test_checks_and_the_model_of_each_row_are_told():
    odd, low = np.array([True, False]), np.array([True, True])
    found = CheckResult(
        np.array([2, 1], np.uint32),
        {"odd": odd, "low": low},
        (({"True": {"expr": "odd"}}, odd), ({"False": {"expr": "a.outputs[0] > 9"}}, low)),
    )
    both = result(checks=found, row_models=RowModels((A, B), np.array([1, 0])))

    rows = json.loads(write_records(both))
    batch = record_batch(both)
    (legacy,) = json.loads(write_legacy(both))

    assert rows[0]["anomaly"] == {"count": 2, "low": True, "odd": True}
    assert batch["anomaly"].to_pylist() == [row["anomaly"] for row in rows]
    assert [json.loads(row["metadata"]["last_model"])["model_name"] for row in rows] == ["b", "a"]
    assert [row["last_model"] for row in batch["metadata"].to_pylist()] == [
        row["metadata"]["last_model"] for row in rows
    ]
    assert legacy["check_failures"] == [
        {"True": {"expr": "odd"}},
        {"False": {"expr": "a.outputs[0] > 9"}},
        {"False": {"expr": "a.outputs[0] > 9"}},
    ]


def test_the_split_column_is_an_output_but_of_the_legacy_reply():
    told = Output("_model_split", np.array([["m"], ["n"]], dtype=object), per_row=True)
    split = result(outputs=(told, output()))

    rows = json.loads(write_records(split))
    field = record_batch(split).schema.field("out").type.field("_model_split")

    assert [row["out"] for row in rows] == [
        {"_model_split": ["m"], "y": [1.5]},
        {"_model_split": ["n"], "y": [2.5]},
    ]
    assert field.type == pa.list_(pa.field("inner", pa.string(), nullable=False))
    assert not field.nullable
    assert [list(one) for one in json.loads(write_legacy(split))[0]["outputs"]] == [["Float"]]


def test_another_models_columns_are_not_passed_off_as_the_streams():
    writer = OutputWriter([spec("y", shape=(None, 1))])

    def write(told):
        return writer.write(told.outputs, told.frame.rows, told.model)

    assert write(result())["out.y"].to_pylist() == [[1.5], [2.5]]
    with pytest.raises(ConflictError, match=r"model 'a' answered these rows with \['z'\]"):
        write(result(outputs=(output("z"),)))
