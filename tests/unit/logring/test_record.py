"""What is kept reads back as the records reply itself, whatever the columns are."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from support.answers import MODEL, answer

from engine.codecs.record_batch import record_batch
from engine.logring import LogRing, PageQuery
from engine.logring.columns import raw_columns
from engine.logring.decode import copy_piece, read_columns, to_batch
from engine.logring.header import HEADER, PACKED, read_header
from engine.logring.record import LogEncoder
from engine.logring.repeats import TablePattern
from engine.values import CheckResult, ModelIdentity, Output, RowModels, Shadow

CHALLENGER = ModelIdentity("challenger", "v", "a" * 64)
TOO_MANY_TO_PACK = 1 << 20
FLOATS = np.arange(12, dtype=np.float32).reshape(3, 4)


def fixed(values):
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def listed(values):
    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.ravel()))


def outputs(**named):
    return tuple(Output(name, values, per_row=True) for name, values in sorted(named.items()))


CASES = {
    "json floats": answer({"tensor": FLOATS.astype(float).tolist()}, 3),
    "json one row": answer({"tensor": [[0.1, 47.6952018738]]}, 1),
    "json integers": answer({"tensor": [[1, 2], [3, 4]]}, 2),
    "json mixed numbers": answer({"tensor": [[1, 2.5]]}, 1),
    "json scalars": answer({"b": [1.5, 2.5], "a": [1, 2]}, 2),
    "json text": answer({"query": ["hé", "x"], "n": [1, 2]}, 2),
    "json booleans": answer({"flag": [True, False]}, 2),
    "json ragged": answer({"tensor": [[1.0], [2.0, 3.0]]}, 2),
    "json nested": answer({"image": [[[1.0, 2.0]], [[3.0, 4.0]]]}, 2),
    "json too large for int64": answer({"tensor": [[0.5], [float(2**70)]]}, 2),
    "arrow fixed lists": answer({"tensor": fixed(FLOATS)}, 3, row_shapes={"tensor": (4,)}),
    "arrow lists": answer({"tensor": listed(FLOATS)}, 3),
    "arrow slice": answer({"tensor": fixed(FLOATS).slice(1)}, 2),
    "arrow list slice": answer({"tensor": listed(FLOATS).slice(1, 2)}, 2),
    "arrow float16": answer({"tensor": fixed(FLOATS.astype(np.float16))}, 3),
    "arrow bools": answer({"flag": pa.array([True, False, True])}, 3),
    "arrow ragged": answer({"tensor": pa.array([[1.0], [2.0, 3.0]])}, 2),
    "arrow nulls": answer({"note": pa.array(["a", None])}, 2),
    "outputs of all kinds": answer(
        {"tensor": [[1.0]] * 3},
        3,
        outputs=outputs(
            boxes=np.arange(24, dtype=np.float32).reshape(3, 2, 4),
            label=np.array([1, 2, 3]),
            flag=np.array([[True], [False], [True]]),
            half=FLOATS.astype(np.float16),
            small=np.array([[1], [2], [3]], np.uint8),
            transposed=FLOATS.T[:3],
        ),
    ),
    "text output": answer(
        {"tensor": [[1.0]] * 2}, 2, outputs=outputs(text=np.array([["a"], ["é"]], object))
    ),
    "one row, output of any shape": answer(
        {"tensor": [[1.0]]}, 1, outputs=(Output("boxes", FLOATS, per_row=False),)
    ),
    "no finite numbers": answer({"tensor": fixed(np.array([[np.nan, np.inf]]))}, 1),
    "validations": answer(
        {"tensor": [[1.0], [2.0], [3.0]]},
        3,
        checks=CheckResult(
            np.array([0, 2, 1], np.uint32),
            {
                "late": np.array([False, True, True]),
                "early": np.array([False, True, False]),
            },
            (),
        ),
    ),
    "challengers": answer(
        {"tensor": [[1.0], [2.0]]},
        2,
        shadows=(
            Shadow("xgb", outputs(variable=FLOATS[:2, :1])),
            Shadow("gbr", outputs(variable=FLOATS[1:, :1])),
        ),
    ),
    "a challenger that failed": answer(
        {"tensor": [[1.0], [2.0]]},
        2,
        shadows=(
            Shadow("xgb", outputs(variable=FLOATS[:0, :1]), is_missing=True),
            Shadow("gbr", outputs(variable=FLOATS[1:, :1])),
        ),
    ),
    "rows sent to several models": answer(
        {"tensor": [[1.0], [2.0], [3.0]]},
        3,
        outputs=outputs(
            _model_split=np.array([["a"], ["a"], ["b"]], object), y=FLOATS[:, :1].copy()
        ),
        row_models=RowModels((MODEL, CHALLENGER), np.array([0, 0, 1])),
    ),
    "three steps": answer({"tensor": [[1.0]]}, 1, elapsed_ns=(1, 2, 3, 2**63)),
}


@pytest.fixture
def ring(tmp_path):
    ring = LogRing(tmp_path / "log", 4 << 20, record_batch)
    yield ring
    ring.close()


@pytest.mark.parametrize("name", CASES)
def test_a_kept_answer_reads_back_as_its_records_reply(ring, name):
    result = CASES[name]

    assert ring.append([result]) == result.frame.rows
    batch = ring.page(PageQuery()).batch
    batch.validate(full=True)
    assert batch.schema.equals(record_batch(result).schema, check_metadata=True)
    assert str(batch.to_pylist()) == str(record_batch(result).to_pylist())


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].frame.rows > 1])
def test_a_large_answer_is_split_and_reads_back_whole(name):
    result = CASES[name]
    records = LogEncoder(record_batch).encode(result, 1, TOO_MANY_TO_PACK)

    assert [record.rows for record in records] == [1] * result.frame.rows
    pieces = []
    for record in records:
        value, large = record.values(0)
        assert not large
        value, context = memoryview(value), record.context
        header = read_header(value)
        columns = read_columns(None, b"", value, header, context)
        pieces.append(copy_piece(value, header, context, columns, slice(0, 1)))
    assert str(to_batch(pieces).to_pylist()) == str(record_batch(result).to_pylist())


def one_row(columns, **fields):
    return answer(columns, 1, has_literals=fields.pop("has_literals", False), **fields)


FIRST = one_row({"tensor": [[0.5, 1.5]]})
LIKE_OR_NOT = {
    "like it": one_row({"tensor": [[2.5, 3]]}, time_ms=7, elapsed_ns=(1, 2)),
    "an integer first": one_row({"tensor": [[2, 3.5]]}, has_literals=True),
    "true among numbers": one_row({"tensor": [[2.5, True]]}, has_literals=True),
    "text": one_row({"tensor": [["2.5", "3.5"]]}),
    "more values": one_row({"tensor": [[2.5, 3.5, 4.5]]}),
    "no list": one_row({"tensor": [2.5]}),
    "nested": one_row({"tensor": [[[2.5, 3.5]]]}),
    "a column more": one_row({"tensor": [[2.5, 3.5]], "x": [[1.0]]}),
    "another column": one_row({"x": [[2.5, 3.5]]}),
    "two rows": answer({"tensor": [[2.5, 3.5], [4.5, 5.5]]}, 2, has_literals=False),
    "arrow": answer({"tensor": fixed(np.array([[2.5, 3.5]]))}, 1),
    "another step": one_row({"tensor": [[2.5, 3.5]]}, elapsed_ns=(1, 2, 3)),
    "another partition": one_row({"tensor": [[2.5, 3.5]]}, partition="edge-2"),
    "another model": one_row({"tensor": [[2.5, 3.5]]}, model=CHALLENGER),
    "another output": one_row({"tensor": [[2.5, 3.5]]}, outputs=outputs(x=FLOATS[:1])),
    "other output values": one_row(
        {"tensor": [[2.5, 3.5]]}, outputs=outputs(variable=np.array([[1]]))
    ),
    "a check": one_row(
        {"tensor": [[2.5, 3.5]]},
        checks=CheckResult(np.array([1], np.uint32), {"late": np.array([True])}, ()),
    ),
    "a challenger": one_row(
        {"tensor": [[2.5, 3.5]]}, shadows=(Shadow("xgb", outputs(variable=FLOATS[:1, :1])),)
    ),
}


@pytest.mark.parametrize("name", LIKE_OR_NOT)
def test_a_row_after_another_is_kept_as_what_it_is(ring, name):
    results = [FIRST, LIKE_OR_NOT[name], FIRST]

    for result in results:
        assert ring.append([result]) == result.frame.rows

    rows, page = [], ring.page(PageQuery())
    while page.batch is not None:
        rows += page.batch.to_pylist()
        page = ring.page(PageQuery(start_row=page.next_row))
    expected = [row for result in results for row in record_batch(result).to_pylist()]
    assert str(rows) == str(expected)


@pytest.mark.parametrize("name", [name for name in LIKE_OR_NOT if name != "two rows"])
@pytest.mark.parametrize("step_ms", [0, 1, -1, -3_000])
def test_rows_that_are_kept_together_are_kept_as_what_they_are(ring, name, step_ms):
    last = dataclasses.replace(FIRST, time_ms=FIRST.time_ms + step_ms)
    results = [FIRST, LIKE_OR_NOT[name], FIRST, last]
    ring.append([FIRST])

    assert ring.append(results) == 4

    rows, page = [], ring.page(PageQuery(start_row=1))
    while page.batch is not None:
        rows += page.batch.to_pylist()
        page = ring.page(PageQuery(start_row=page.next_row))
    expected = [row for result in results for row in record_batch(result).to_pylist()]
    assert str(rows) == str(expected)


def table(tensor=FLOATS, **fields):
    """An answer to a table whose numbers are known to lie side by side."""
    fields = {"outputs": outputs(variable=tensor[:, :2].copy()), **fields}
    result = answer({"tensor": fixed(tensor)}, len(tensor), **fields)
    return dataclasses.replace(
        result, frame=dataclasses.replace(result.frame, dense={"tensor": tensor})
    )


TABLES_LIKE_OR_NOT = {
    "like it": table(FLOATS + 1, time_ms=7, elapsed_ns=(1, 2)),
    "more rows": table(np.repeat(FLOATS, 2_000, axis=0)),
    "one row": table(FLOATS[:1]),
    "another step": table(elapsed_ns=(1, 2, 3)),
    "wider": table(np.tile(FLOATS, 2)),
    "other numbers": table(FLOATS.astype(np.int32)),
    "another shape of a row": table(row_shapes={"tensor": (2, 2)}),
    "another partition": table(partition="edge-2"),
    "another model": table(model=CHALLENGER),
    "another output": table(outputs=outputs(x=FLOATS[:, :2].copy())),
    "a wider output": table(outputs=outputs(variable=FLOATS)),
    "a flat output": table(outputs=outputs(variable=FLOATS[:, 0].copy())),
    "other output numbers": table(outputs=outputs(variable=FLOATS[:, :2].astype(np.int64))),
    "an output without values": table(outputs=outputs(variable=FLOATS[:, :0].copy())),
    "an output out of order": table(outputs=outputs(variable=np.asfortranarray(FLOATS[:, :2]))),
    "text output": table(outputs=outputs(variable=np.array([["a", "é"]] * 3, object))),
    "no known numbers": answer({"tensor": fixed(FLOATS)}, 3),
    "a check": table(
        checks=CheckResult(np.array([1, 0, 0], np.uint32), {"late": np.array([True] * 3)}, ())
    ),
    "a challenger": table(shadows=(Shadow("xgb", outputs(variable=FLOATS[:, :1].copy())),)),
    "rows sent to several models": table(
        row_models=RowModels((MODEL, CHALLENGER), np.array([0, 0, 1]))
    ),
}


@pytest.mark.parametrize("name", TABLES_LIKE_OR_NOT)
def test_a_table_after_another_is_kept_as_what_it_is(ring, name):
    other = TABLES_LIKE_OR_NOT[name]
    results = [table(), table(), other, other, table()]

    for result in results:
        assert ring.append([result]) == result.frame.rows

    rows, schemas, page = [], [], ring.page(PageQuery(page_rows=10_000))
    while page.batch is not None:
        rows += page.batch.to_pylist()
        schemas += [page.batch.schema] * page.batch.num_rows
        page = ring.page(PageQuery(start_row=page.next_row, page_rows=10_000))
    expected = [row for result in results for row in record_batch(result).to_pylist()]
    is_equal = str(rows) == str(expected)
    assert is_equal, "too long to be compared in words"
    for result, row in zip(
        results, np.cumsum([0] + [r.frame.rows for r in results[:-1]]), strict=True
    ):
        assert schemas[row].equals(record_batch(result).schema, check_metadata=True)


def test_a_packed_record_too_short_for_its_rows_is_damaged():
    value = HEADER.pack(PACKED, 1, 0, 1_000, 0) + bytes(100)

    with pytest.raises(ValueError, match="120 bytes says that it has 1000 rows"):
        read_header(memoryview(value)).times_ms(memoryview(value))


@pytest.mark.parametrize("name", ["like it", "more rows", "one row", "an output out of order"])
def test_the_pattern_of_a_table_makes_what_the_long_way_makes(name):
    first, result = table(), TABLES_LIKE_OR_NOT[name]
    (record,) = LogEncoder(record_batch).encode(first, 1 << 20, first.frame.rows)

    values = TablePattern.of(first, record.context).values(result)

    kinds, wanted = raw_columns(result)
    assert [bytes(value) for value in values] == [bytes(value) for value in wanted]
    assert kinds == raw_columns(first)[0]


@pytest.mark.parametrize("rows", [2_000, 4_096, 20_000])
def test_large_columns_read_back_wherever_a_page_begins(tmp_path, rows):
    values = np.arange(rows * 4, dtype=np.float64).reshape(rows, 4)
    result = answer({"tensor": fixed(values)}, rows, row_shapes={"tensor": (4,)})
    ring = LogRing(tmp_path / "log", 16 << 20, record_batch)
    assert ring.append([result, result]) == 2 * rows
    whole = record_batch(result).to_pylist() * 2

    for start in (0, 1, rows - 1, rows, rows + 7, 2 * rows - 1):
        page = ring.page(PageQuery(start_row=start, page_rows=50)).batch
        assert page.to_pylist() == whole[start : start + 50]
        page = ring.page(PageQuery(start_row=start + 1, page_rows=50, descending=True)).batch
        assert page.to_pylist() == whole[max(0, start - 49) : start + 1][::-1]
    ring.close()


def test_answers_with_other_constants_share_a_page(ring):
    other = ModelIdentity("challenger", "v", "a" * 64)
    kept = [
        answer({"tensor": [[1.0]]}, 1, time_ms=5),
        answer({"tensor": [[2.0], [3.0]]}, 2, model=other, elapsed_ns=(7, 8, 9)),
        answer({"tensor": [[4.0]]}, 1, partition="edge-2", elapsed_ns=(1,)),
    ]
    ring.append(kept)

    page = ring.page(PageQuery())

    rows = [row for result in kept for row in record_batch(result).to_pylist()]
    assert page.batch.to_pylist() == rows
    assert page.status == "All"


def test_a_row_wise_answer_that_has_no_records_is_counted_not_raised(ring):
    result = answer({"tensor": [[1.0], [2.0]]}, 2, outputs=(Output("x", FLOATS, per_row=False),))

    assert ring.append([result]) == 0
    assert ring.stats().rows_not_kept == {"no_record_form": 2}


def test_a_failure_of_the_log_itself_is_counted_not_raised(tmp_path, caplog):
    """Whatever it is: an answer whose rows cannot be kept is an answer all the same."""

    def batch_of(_result):
        raise ZeroDivisionError

    ring = LogRing(tmp_path / "log", 4 << 20, batch_of)
    assert ring.append([answer({"tensor": [[1.0], [2.0]]}, 2)]) == 0
    assert ring.stats().rows_not_kept == {"no_record_form": 2}
    assert "ZeroDivisionError" in caplog.text
    ring.close()


@pytest.mark.parametrize("column", [[["x" * 50]] * 2, [[0.5] * 20] * 2], ids=["arrow", "raw"])
def test_a_column_that_is_too_large_is_dropped_and_named(tmp_path, column):
    ring = LogRing(tmp_path / "log", 4 << 20, record_batch, max_column_bytes=40)
    ring.append([answer({"big": column, "small": [1, 2]}, 2)])

    rows = ring.page(PageQuery()).batch.to_pylist()
    ring.close()

    assert [row["in"] for row in rows] == [{"small": 1}, {"small": 2}]
    assert rows[0]["metadata"]["dropped"] == ["in.big"]


def test_a_lone_column_that_is_too_large_leaves_an_empty_struct(tmp_path):
    ring = LogRing(tmp_path / "log", 4 << 20, record_batch, max_column_bytes=40)
    ring.append([answer({"big": [[0.5] * 20]}, 1), answer({"big": [["x" * 50]]}, 1)])

    first = ring.page(PageQuery())
    second = ring.page(PageQuery(start_row=first.next_row))
    ring.close()

    rows = first.batch.to_pylist() + ([] if second.batch is None else second.batch.to_pylist())
    assert [row["in"] for row in rows] == [{}, {}]


def test_an_answer_without_rows_keeps_nothing(ring):
    assert ring.append([answer({"tensor": []}, 0, outputs=())]) == 0
    assert ring.stats().next_row == 0


def test_an_identity_that_died_is_not_mistaken_for_a_new_one(ring):
    names = [f"model-{n}" for n in range(600)]  # more kinds than the encoder remembers
    for name in names:
        ring.append([answer({"t": [1.0]}, 1, model=ModelIdentity(name, "v", MODEL.sha))])

    rows = ring.page(PageQuery(page_rows=1000)).batch.to_pylist()

    assert [name in row["metadata"]["last_model"] for name, row in zip(names, rows, strict=True)]
