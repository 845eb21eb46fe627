"""What a plan does to a request, with models that only count and add."""

import json
import random
import threading

import numpy as np
import pyarrow as pa
import pytest
from support.fakes import FakeModel, spec

from engine.errors import InferenceFailedError, SchemaMismatchError
from engine.pipeline.compiler import compile_plan
from engine.pipeline.definition import parse_definition
from engine.pipeline.plan import PlanOptions

X = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], np.float32)


def named(*names):
    return [{"name": name} for name in names]


def infer(*names):
    return {"ModelInference": {"models": named(*names)}}


def check(name, text):
    return {"Check": {"tree": [f"{name}: {text}"]}}


def plan_of(steps, models, **options):
    document = json.dumps({"id": "pipe", "steps": steps, "models": named(*models)}).encode()
    loaded = dict(enumerate(models.values()))
    plan = compile_plan(parse_definition(document), loaded, PlanOptions(**options))
    plan.start()
    return plan


def run(plan, rows=3, **columns):
    columns = {"x": X[:rows], **columns}
    return plan.run(columns, rows, lambda wanted: columns[wanted.name])


def values(answer):
    return {output.name: output.values.tolist() for output in answer.outputs}


def add(amount):
    return lambda x: x + np.float32(amount)


def texts(*names):
    return [
        json.dumps({"name": n, "version": f"{n}-version", "sha": f"{n}-sha"}, separators=(",", ":"))
        for n in names
    ]


def test_one_model_is_one_call():
    model = FakeModel("a", add(1))
    plan = plan_of([infer("a")], {"a": model})

    answer = run(plan)

    assert values(answer) == {"y": (X + 1).tolist()}
    assert answer.model == model.identity
    assert len(answer.steps_ns) == 1
    assert (answer.checks, answer.shadows, answer.row_models) == (None, (), None)
    (feeds, rows) = model.fed[0]
    assert np.shares_memory(feeds[0], X)
    assert rows == 3
    assert plan.inputs == model.inputs


def test_a_chain_feeds_each_model_from_the_one_before():
    first = FakeModel("a", lambda x: (x + 1, x * 2), outputs=[spec("m"), spec("other")])
    second = FakeModel("b", add(10), inputs=[spec("m")], outputs=[spec("z")])
    third = FakeModel(
        "c", lambda z: z.reshape(-1, 2, 1), inputs=[spec("z", shape=(None, 1, 2))],
        outputs=[spec("last", shape=(None, 2, 1))],
    )  # fmt: skip
    plan = plan_of([infer("a"), infer("b"), infer("c")], {"a": first, "b": second, "c": third})

    answer = run(plan)

    assert values(answer) == {"last": (X + 11).reshape(-1, 2, 1).tolist()}
    assert answer.model == third.identity
    assert len(answer.steps_ns) == 3
    assert third.fed[0][0][0].shape == (3, 1, 2)
    assert plan.inputs == first.inputs


def test_between_models_nothing_is_copied():
    given = X * 2
    second = FakeModel("b", inputs=[spec("y")])
    plan = plan_of([infer("a"), infer("b")], {"a": FakeModel("a", lambda _: given), "b": second})

    run(plan)

    assert second.fed[0][0][0] is given


def test_values_of_another_shape_than_declared_are_the_requests_fault():
    first = FakeModel("a", lambda x: x[:, :1], outputs=[spec("y", shape=(None, None))])
    second = FakeModel("b", inputs=[spec("y")])
    plan = plan_of([infer("a"), infer("b")], {"a": first, "b": second})

    with pytest.raises(SchemaMismatchError, match=r"'y' came with the shape \[3, 1\]: the next"):
        run(plan)


def split(weights, hash_key=None):
    arms = [{"model": {"name": name}, "weight": weight} for name, weight in weights.items()]
    return {"RandomSplit": {"hash_key": hash_key, "weights": arms}}


def test_a_random_split_draws_once_per_request_by_weight():
    models = {"a": FakeModel("a", add(1)), "b": FakeModel("b", add(2))}
    plan = plan_of([split({"a": 2, "b": 1})], models, draw=random.Random(5).random)

    answers = [run(plan) for _ in range(600)]

    chosen = [answer.model.name for answer in answers]
    assert 370 < chosen.count("a") < 430
    for answer in answers[:20]:
        name = answer.model.name
        amount = 1 if name == "a" else 2
        assert values(answer) == {
            "_model_split": [texts(name)] * 3,
            "y": (X + amount).tolist(),
        }
        assert answer.row_models is None


def test_shares_lie_side_by_side_and_an_arm_of_no_weight_is_never_chosen():
    models = {name: FakeModel(name) for name in "abc"}
    chosen = []
    for draw in (0.0, 0.2499, 0.25, 0.999, 1.0):
        plan = plan_of([split({"a": 1, "b": 3, "c": 0})], models, draw=lambda draw=draw: draw)
        chosen.append(run(plan).model.name)

    assert chosen == ["a", "a", "b", "b", "b"]


@pytest.mark.parametrize("arrow", [False, True])
def test_a_hash_key_chooses_row_by_row(arrow):
    models = {"a": FakeModel("a", add(1)), "b": FakeModel("b", add(2))}
    plan = plan_of([split({"a": 1, "b": 1}, "session")], models)
    keys = [0.9, 0.1, 0.5]

    answer = run(plan, session=pa.array(keys) if arrow else keys)

    assert values(answer) == {
        "_model_split": [[text] for text in texts("b", "a", "b")],
        "y": (X + np.array([[2], [1], [2]], np.float32)).tolist(),
    }
    assert answer.model.name == "b"
    assert [answer.row_models.models[row].name for row in answer.row_models.rows] == ["b", "a", "b"]
    assert [rows for _, rows in models["a"].fed] == [1]
    assert [rows for _, rows in models["b"].fed] == [2]


def test_a_hash_key_that_is_absent_is_drawn_instead():
    models = {"a": FakeModel("a"), "b": FakeModel("b")}
    plan = plan_of([split({"a": 1, "b": 1}, "session")], models, draw=lambda: 0.7)

    assert run(plan).model.name == "b"


@pytest.mark.parametrize("key", [1.1, -0.1, None, "0.5", True, float("nan")])
def test_a_hash_key_is_a_number_from_0_to_1(key):
    plan = plan_of([split({"a": 1, "b": 1}, "session")], {n: FakeModel(n) for n in "ab"})

    with pytest.raises(SchemaMismatchError, match=r"\$\[1\]\.session is .* from 0\.0 to 1\.0"):
        run(plan, session=[0.5, key, 0.1])


def key_split(routes, control="control", key="card"):
    arms = {value: {"name": name} for value, name in routes.items()}
    return {"MetaValueSplit": {"split_key": key, "control": {"name": control}, "routes": arms}}


KEYS = [
    (["gold", "gold", "gold"], ["g", "g", "g"]),
    (["gold", "tin", "1"], ["g", "control", "one"]),
    ([None, "gold", None], ["control", "g", "control"]),
    ([1, 1.0, 2.5], ["one", "one", "half"]),
    ([True, False, True], ["yes", "control", "yes"]),
    ([["gold"], ["tin"], ["gold"]], ["g", "control", "g"]),
]


@pytest.mark.parametrize(("keys", "expected"), KEYS)
def test_a_key_split_sends_each_row_where_its_value_says(keys, expected):
    routes = {"gold": "g", "1": "one", "2.5": "half", "true": "yes"}
    names = ["control", *routes.values()]
    models = {name: FakeModel(name, add(index)) for index, name in enumerate(names)}
    plan = plan_of([key_split(routes)], models)

    answer = run(plan, card=keys)

    assert values(answer)["_model_split"] == [[text] for text in texts(*expected)]
    added = np.array([[names.index(name)] for name in expected], np.float32)
    assert values(answer)["y"] == (X + added).tolist()


def test_a_key_split_without_its_column_is_the_controls():
    models = {"control": FakeModel("control"), "g": FakeModel("g")}

    assert run(plan_of([key_split({"gold": "g"})], models)).model.name == "control"


def test_rows_for_models_of_other_outputs_cannot_stand_in_one_reply():
    models = {"control": FakeModel("control"), "g": FakeModel("g", outputs=[spec("z")])}
    plan = plan_of([key_split({"gold": "g"})], models)

    assert list(values(run(plan, card=["gold"] * 3))) == ["_model_split", "z"]
    with pytest.raises(SchemaMismatchError, match=r"models control, g, whose outputs cannot"):
        run(plan, card=["gold", "tin", "gold"])


def test_after_a_split_a_chain_goes_on():
    models = {"a": FakeModel("a", add(1)), "b": FakeModel("b", add(2))}
    last = FakeModel("last", add(10), inputs=[spec("y")], outputs=[spec("z")])
    steps = [split({"a": 1, "b": 1}, "session"), infer("last"), check("high", "out.z[0] > 14")]

    answer = run(plan_of(steps, {**models, "last": last}), session=[0.1, 0.9, 0.1])

    assert values(answer) == {"z": (X + np.array([[11], [12], [11]], np.float32)).tolist()}
    assert answer.model.name == "last"
    assert answer.row_models is None
    assert len(answer.steps_ns) == 2
    assert answer.checks.flags["high"].tolist() == [False, True, True]


SHADOW = [infer("a", "b", "c"), {"AuditResults": {"from": 1, "to": None}}, {"MultiOut": {}}]


class Missing(list):
    """Collects what ``observe_shadow`` is told."""

    def __call__(self, name, reason, text):
        self.append((name, reason, text))


def shadows(answer):
    return {
        shadow.model_name: {output.name: output.values.tolist() for output in shadow.outputs}
        for shadow in answer.shadows
        if not shadow.is_missing
    }


def test_challengers_stand_beside_the_champions_answer():
    models = {"a": FakeModel("a", add(1)), "b": FakeModel("b", add(2)), "c": FakeModel("c", add(3))}
    missing = Missing()
    plan = plan_of([*SHADOW, check("high", "out.y[0] > 3")], models, observe_shadow=missing)

    answer = run(plan)

    assert plan.close(10)
    assert values(answer) == {"y": (X + 1).tolist()}
    assert shadows(answer) == {"b": {"y": (X + 2).tolist()}, "c": {"y": (X + 3).tolist()}}
    assert answer.model.name == "a"
    assert len(answer.steps_ns) == 1
    assert answer.checks.count.tolist() == [0, 1, 1]
    assert missing == []


def failing(_):
    raise InferenceFailedError("no such shape")


def test_a_challenger_that_fails_fails_nothing_else():
    models = {
        "a": FakeModel("a", add(1)),
        "b": FakeModel("b", failing),
        "c": FakeModel("c", add(3)),
    }
    missing = Missing()
    plan = plan_of(SHADOW, models, observe_shadow=missing)

    answer = run(plan)

    assert plan.close(10)
    assert values(answer) == {"y": (X + 1).tolist()}
    assert list(shadows(answer)) == ["c"]
    assert [(s.model_name, s.is_missing) for s in answer.shadows] == [("b", True), ("c", False)]
    assert answer.shadows[0].outputs[0].values.shape == (0, 2)
    assert missing == [("b", "failed", "InferenceFailedError: no such shape")]


@pytest.mark.parametrize("shape", [(1, 2), (2, 2), (3,)])
def test_a_challenger_whose_outputs_cannot_stand_in_a_reply_fails_nothing_else(shape):
    other = FakeModel("b", lambda _: np.zeros(shape, np.float32))
    models = {"a": FakeModel("a", add(1)), "b": other, "c": FakeModel("c", add(3))}
    missing = Missing()
    plan = plan_of(SHADOW, models, observe_shadow=missing)

    answer = run(plan, rows=2)

    assert plan.close(10)
    assert list(shadows(answer)) == (["b", "c"] if shape == (2, 2) else ["c"])
    assert all("not one value per row" in text for _, _, text in missing)


def test_a_challenger_that_lacks_its_column_fails_nothing_else():
    other = FakeModel("b", inputs=[spec("elsewhere")])
    models = {"a": FakeModel("a", add(1)), "b": other, "c": FakeModel("c", add(3))}
    missing = Missing()
    plan = plan_of(SHADOW, models, observe_shadow=missing)

    def read(wanted):
        if wanted.name == "elsewhere":
            raise SchemaMismatchError("column 'elsewhere' is missing")
        return X

    answer = plan.run({"x": X}, 3, read)

    assert plan.close(10)
    assert list(shadows(answer)) == ["c"]
    assert missing == [("b", "failed", "column 'elsewhere' is missing")]


def test_a_challenger_that_hangs_is_left_behind_and_not_waited_for_again():
    gate = threading.Event()

    def hang(x):
        assert gate.wait(60)
        return x

    models = {"a": FakeModel("a", add(1)), "b": FakeModel("b", hang), "c": FakeModel("c", add(3))}
    missing = Missing()
    plan = plan_of(SHADOW, models, observe_shadow=missing)

    answers = [run(plan) for _ in range(6)]
    gate.set()

    assert plan.close(60)
    for answer in answers:
        assert values(answer) == {"y": (X + 1).tolist()}
        assert list(shadows(answer)) == ["c"]
    # three fit before it (one running, two waiting), the others are not even kept
    assert [reason for _, reason, _ in missing] == ["late"] * 3 + ["skipped"] * 3
    assert {name for name, _, _ in missing} == {"b"}
    assert len(models["b"].fed) == 3


def test_a_champion_that_fails_is_a_failure():
    models = {"a": FakeModel("a", failing), "b": FakeModel("b"), "c": FakeModel("c")}
    plan = plan_of(SHADOW, models)

    with pytest.raises(InferenceFailedError):
        run(plan)
    assert plan.close(10)
    assert models["b"].fed == []


def test_nth_answers_with_one_and_keeps_what_is_audited():
    models = {"a": FakeModel("a", add(1)), "b": FakeModel("b", add(2)), "c": FakeModel("c", add(3))}
    audit = {"AuditResults": {"from": 0, "to": 1}}
    plan = plan_of([infer("a", "b", "c"), audit, {"Nth": {"index": 1}}], models)

    answer = run(plan)

    assert plan.close(10)
    assert values(answer) == {"y": (X + 2).tolist()}
    assert list(shadows(answer)) == ["a"]
    assert models["c"].fed == []


def test_average_is_the_mean_in_the_outputs_own_type():
    models = {"a": FakeModel("a", add(1)), "b": FakeModel("b", add(2)), "c": FakeModel("c", add(6))}
    answer = run(plan_of([infer("a", "b", "c"), {"Average": {}}], models))

    assert values(answer) == {"y": (X + 3).tolist()}
    assert answer.outputs[0].values.dtype == np.float32
    assert len(answer.steps_ns) == 1


def test_columns_are_selected_before_a_model_and_between_models():
    first = FakeModel("a", add(1))
    second = FakeModel(
        "b", inputs=[spec("y", shape=(None, 3))], outputs=[spec("z", shape=(None, 3))]
    )
    steps = [
        {"ColumnsSelect": {"columns": [2, 0]}},
        infer("a"),
        {"ColumnsSelect": {"columns": [1, 1, 0]}},
        infer("b"),
    ]
    plan = plan_of(steps, {"a": first, "b": second})
    wide = np.arange(9, dtype=np.float32).reshape(3, 3)

    answer = plan.run({"x": wide}, 3, lambda _: wide)

    assert values(answer) == {"z": (wide[:, [0, 0, 2]] + 1).tolist()}
    assert [str(one) for one in plan.inputs] == ["x: float [rows, ?]"]
    with pytest.raises(SchemaMismatchError, match=r"rows of 2 values: .* selects number 2"):
        run(plan)


def test_columns_become_rows_and_each_row_has_its_model():
    x, y = spec("x", shape=(None, 1)), spec("y", shape=(None, 1))
    models = {
        name: FakeModel(name, add(10 * index), inputs=[x], outputs=[y])
        for index, name in enumerate("ab")
    }
    rows = [{"row_index": 1, "model": {"name": "b"}}, {"row_index": 0, "model": {"name": "a"}}]
    plan = plan_of([{"ColumnsToRows": {}}, {"RowsToModels": {"rows_to_models": rows}}], models)

    answer = run(plan, rows=1)

    assert values(answer) == {"y": [[1.0], [12.0]]}
    assert not answer.outputs[0].per_row
    with pytest.raises(SchemaMismatchError, match=r"each of 2 rows .* exactly so many, not 6"):
        run(plan, rows=3)


def test_checks_see_the_request_and_the_last_model_before_them():
    first = FakeModel("a", add(1))
    second = FakeModel("b", add(10), inputs=[spec("y")], outputs=[spec("z")])
    steps = [
        check("early", "in.x[0] > 2"),
        infer("a"),
        check("middle", "out.y[0] > 5"),
        check("early", "out.y[0] > 1"),
        infer("b"),
        check("late", "in.x[1] == 4 and out.z[1] == 15"),
    ]

    answer = run(plan_of(steps, {"a": first, "b": second}))

    assert answer.checks.count.tolist() == [1, 3, 3]
    assert {name: flag.tolist() for name, flag in answer.checks.flags.items()} == {
        "early": [True, True, True],
        "middle": [False, False, True],
        "late": [False, True, False],
    }
    assert len(answer.steps_ns) == 2


def test_a_check_may_look_at_the_column_that_splits():
    models = {"control": FakeModel("control"), "g": FakeModel("g")}
    steps = [key_split({"gold": "g"}), check("gold", "in.card == 'gold'")]

    answer = run(plan_of(steps, models), card=["gold", "tin", None])

    assert answer.checks.count.tolist() == [1, 0, 0]


@pytest.mark.parametrize("columns", [{}, {"card": [None] * 3}, {"card": [[[1]]] * 3}])
def test_a_request_without_the_column_that_splits_is_checked_all_the_same(columns):
    models = {"control": FakeModel("control"), "g": FakeModel("g")}
    steps = [key_split({"gold": "g"}), check("none", "is_null(in.card)")]

    answer = run(plan_of(steps, models), **columns)

    assert answer.checks.count.tolist() == [0 if columns.get("card", [None])[0] else 1] * 3


def test_a_check_refuses_a_column_of_lists_without_end():
    value = 1
    for _ in range(1000):
        value = [value]
    models = {"control": FakeModel("control"), "g": FakeModel("g")}
    plan = plan_of([key_split({"gold": "g"}), check("none", "is_null(in.card)")], models)

    with pytest.raises(SchemaMismatchError, match=r"column 'in\.card': its lists are nested too"):
        run(plan, card=[value] * 3)


def test_older_checks_find_their_columns_by_position():
    root = {
        "node": "binop",
        "op": "<",
        "left": {
            "node": "variable",
            "variant_id": {"name": "a"},
            "position": "output",
            "key": [0, 1],
        },
        "right": {"node": "literal", "float": 6.0},
    }
    tree = json.dumps({"values": {"low": {"root": root}}, "gauges": [], "validations": ["low"]})
    plan = plan_of([infer("a"), {"Check": {"tree": [tree]}}], {"a": FakeModel("a", add(1))})

    answer = run(plan)

    assert answer.checks.flags["low"].tolist() == [False, False, True]
    assert answer.checks.verdicts[0][0] == {"False": {"expr": "a.outputs[0][1] < 6"}}


def test_a_request_without_rows_runs_nothing():
    models = {"a": FakeModel("a"), "b": FakeModel("b", inputs=[spec("y")])}
    plan = plan_of([infer("a"), infer("b"), check("x", "out.y[0] > 1")], models)

    answer = plan.run({}, 0, None)

    assert values(answer) == {"y": []}
    assert answer.steps_ns == (0, 0)
    assert answer.checks.count.tolist() == []
    assert list(answer.checks.flags) == ["x"]
    assert models["a"].fed == []


def test_a_request_without_rows_has_every_column():
    models = {"a": FakeModel("a"), "b": FakeModel("b"), "c": FakeModel("c", outputs=[spec("z")])}
    plan = plan_of(SHADOW, models)

    answer = plan.run({}, 0, None)

    assert plan.close(10)
    assert shadows(answer) == {"b": {"y": []}, "c": {"z": []}}
    assert answer.outputs[0].values.shape == (0, 2)
    assert answer.outputs[0].values.dtype == np.float32


def test_what_the_operator_should_know_is_told():
    steps = [infer("a"), check("count", "true"), check("never", "out.y[9] > 1")]

    warnings = plan_of(steps, {"a": FakeModel("a")}).warnings

    assert "$.steps[1].Check.tree[0]: the check named 'count' is dropped" in warnings[0]
    assert "$.steps[2].Check.tree[0].Alias[0].BinaryExpr.left.Function" in warnings[1]
    assert len(warnings) == 2
