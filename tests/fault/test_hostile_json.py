"""Hostile JSON bodies over HTTP, and results that JSON has no words for."""

import json
import math
import shutil
import subprocess

import numpy as np
import orjson
import pytest
from support.arrow import file_bytes, read_file, vectors
from support.engine import ARROW_FILE
from support.models import DTYPES

pytestmark = pytest.mark.fault


@pytest.fixture
def engine(serving):
    return serving("linear")


def refusal(engine, body, status=400):
    reply = engine.post("/infer", body)
    assert reply.status == status, (reply.status, reply.body)
    return reply.error


@pytest.mark.parametrize(
    ("literal", "said"),
    [
        ("NaN", "$[1].x[2] is NaN: JSON has no such number"),
        ("Infinity", "$[1].x[2] is infinite"),
        ("-Infinity", "$[1].x[2] is infinite"),
        ("1e999", "$[1].x[2] is infinite"),
        ("null", "tensor values may not be null: $[1].x[2] is null"),
        ("1e39", "$[1].x[2] is 1e+39: it does not fit float"),
        ("true", "$[1].x[2] is true or false: the model takes float"),
        ('"2"', "$[1].x[2] is text: the model takes float"),
        ("{}", "$[1].x[2] is an object"),
        ("[2]", "ragged"),
    ],
)
def test_hostile_14_what_is_no_number_is_named_by_its_place(engine, literal, said):
    """In records, in the legacy dict and in one object, which has row 0 alone."""
    records = f'[{{"x": [0, 1, 2, 3]}}, {{"x": [0, 1, {literal}, 3]}}]'
    legacy = f'{{"x": [[0, 1, 2, 3], [0, 1, {literal}, 3]]}}'
    single = f'{{"x": [0, 1, {literal}, 3]}}'

    assert said in refusal(engine, records.encode())
    assert refusal(engine, legacy.encode())
    assert refusal(engine, single.encode())
    place = said.partition(" is ")[0]
    if place.startswith("$") and literal not in {"NaN", "Infinity", "-Infinity", "1e999"}:
        assert place in refusal(engine, legacy.encode())


@pytest.mark.parametrize(
    ("literal", "element", "fits"),
    [
        ("1.5", "i32", False),
        ("2.0", "i32", True),
        ("2147483648", "i32", False),
        ("-1", "u8", False),
        ("256", "u8", False),
        ("18446744073709551615", "u64", True),
        ("18446744073709551616", "u64", False),
        ("9223372036854775808", "i64", False),
        ("70000", "f16", False),
        ("1", "b", False),
        ("true", "b", True),
        ("1", "s", False),
        ('"1"', "s", True),
        ("16777217", "f32", True),  # rounded to the nearest float32, as is every decimal
        ("1e-400", "f64", True),  # rounded to 0
    ],
)
def test_hostile_14_numbers_that_do_not_fit(serving, literal, element, fits):
    engine = serving("every_type")
    row = {f"in_{key}": [False, False] if key == "b" else [0, 0] for key in DTYPES}
    row["in_s"] = ["", ""]
    row[f"in_{element}"] = "here"
    body = orjson.dumps([row]).replace(b'"here"', b"[" + f"{literal}, {literal}".encode() + b"]")

    reply = engine.post("/infer?dataset[]=out", body)

    if fits:
        assert reply.status == 200, reply.body
        if element == "u64":
            assert reply.json[0]["out_u64"] == [2**64 - 1] * 2
    else:
        assert reply.status == 400
        assert f"$[0].in_{element}[0]" in reply.error
        assert DTYPES[element][1] in reply.error


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'[{"x":' + b"[" * 100_000,
        b'{"x":' * 100_000,
        b'[{"x":' + b"[" * 900 + b"]" * 900 + b"}]",
        b'[{"x":' + b"[" * 500 + b"1" + b"]" * 500 + b"}]",
        b'{"x":' + b"[" * 500 + b"1" + b"]" * 500 + b"}",
        b'[{"x":[' + b"[" * 1000 + b"1" + b"]" * 1000 + b",1]}]",
        b'[{"x":' + b"[" * 1000 + b"null" + b"]" * 1000 + b"}]",
        b'[{"x": [0,1,2,3], "deep":' + b"[" * 1200 + b"]" * 1200 + b"}]",
    ],
    ids=lambda body: body[:12].decode(),
)
def test_hostile_15_depth(engine, body):
    assert refusal(engine, body)


def test_hostile_15_depth_of_a_column_that_is_only_repeated(engine):
    """Deep, but not too deep for the reader: the reply repeats it."""
    deep = b"[" * 300 + b"]" * 300
    body = b'[{"x": [0,1,2,3], "deep":' + deep + b"}]"

    legacy = engine.post("/infer", body)
    records = engine.post("/infer?dataset[]=*", body)
    arrow = engine.post("/infer", body, accept=ARROW_FILE)

    assert legacy.status == 200
    assert "nested more than 250 deep" in records.error
    assert "cannot be written as Arrow" in arrow.error
    assert (records.status, arrow.status) == (400, 400)
    shallow = body.replace(deep, b"[" * 200 + b"]" * 200)
    assert b"[" * 200 + b"]" * 200 in engine.post("/infer?dataset[]=*", shallow).body


@pytest.mark.parametrize("values", [[1, "a"], [{"a": 1}, 2], [[1], 2], [2**63, -1]])
def test_mixed_values_of_a_column_that_is_only_repeated(engine, values):
    """JSON repeats what Arrow has no type for."""
    rows = [{"x": [0, 1, 2, 3], "id": value} for value in values]

    records = engine.post("/infer?dataset[]=*", rows)
    arrow = engine.post("/infer", rows, accept=ARROW_FILE)

    assert [record["in"] for record in records.json] == rows
    assert arrow.status == 400
    assert "column 'id' has values of several kinds" in arrow.error


@pytest.mark.parametrize("values", [[None, None], [1, None], ["a", None], [[], None], [None, 1.5]])
def test_nulls_of_a_column_that_is_only_repeated(engine, values):
    rows = [{"x": [0, 1, 2, 3], "id": value} for value in values]

    records = engine.post("/infer?dataset[]=*", rows)
    arrow = read_file(engine.post("/infer", rows, accept=ARROW_FILE).body)

    assert [record["in"]["id"] for record in records.json] == values
    arrow.validate(full=True)
    ids = arrow.column("in").combine_chunks().field("id")
    assert ids.to_pylist() == values
    assert arrow.schema.field("in").type.field("id").nullable


@pytest.mark.slow
def test_hostile_15_fifty_megabytes_of_brackets(engine):
    assert "depth" in refusal(engine, b"[[[[" * (50 << 18))


@pytest.mark.slow
def test_hostile_15_object_of_a_million_keys(engine):
    keys = b",".join(b'"k%d":1' % number for number in range(1_000_000))

    assert "1000000 columns: at most 1024" in refusal(engine, b"{" + keys + b"}")
    assert "1000000 columns: at most 1024" in refusal(engine, b"[{" + keys + b"}]")


ROW = "[0, 1, 2, 3]"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'\xef\xbb\xbf[{"x": [0, 1, 2, 3]}]', "byte order mark"),
        (b'[{"x": [0, 1, 2, 3], "s": "\xff"}]', "not valid UTF-8"),
        (b'[{"x": [0, 1, 2, 3], "s": "\\ud800"}]', "surrogate"),
        (b'[{"x": [0, 1, 2, 3],}]', "not valid JSON"),
        (b'[{"x": [0, 1, 2, 3]},]', "trailing comma"),
        (b'[{"x": [0, 1, 2, 3]}] []', "after document"),
        (b"[{'x': [0, 1, 2, 3]}]", "not valid JSON"),
        (b'[{"x": [0, 01, 2, 3]}]', "leading zero"),
        (b'[{"x": [0, +1, 2, 3]}]', "not valid JSON"),
        (b'[{"x": [0, 0x1, 2, 3]}]', "not valid JSON"),
        (b'[{"x": [0, 1, 2, 3]}', "not valid JSON"),
        (b'// note\n[{"x": [0, 1, 2, 3]}]', "not valid JSON"),
        ('[{"x": [0, 1, 2, 3]}]'.encode("utf-16"), "not valid"),
        (b"", "empty"),
        (b"  \n ", "not valid JSON"),
        (b"null", "bare JSON value"),
        (b"17", "bare JSON value"),
        (b'"x"', "bare JSON value"),
        (b"{}", "empty object"),
        (b"[null]", "$[0] is null"),
        (b"[[0, 1, 2, 3]]", "$[0] is a list"),
        (b"[1, 2]", "$[0] is a number"),
        (b'[{"x": [0, 1, 2, 3]}, 5]', "$[1] is a number"),
        (b'[{"x": [0, 1, 2, 3]}, {"y": [0, 1, 2, 3]}]', "$[1] has the columns ['y']"),
        (b'[{"x": [0, 1, 2, 3]}, {"x": [0, 1, 2, 3], "z": 1}]', "differ in ['z']"),
        (b'{"x": [[0, 1, 2, 3]], "y": [1, 2]}', "$.y has 2 rows"),
        (b'{"x": [[0, 1, 2, 3]], "y": 1}', "$.y is a number"),
        (b'[{"x": {"0": 1}}]', "$[0].x is an object"),
        (b'[{"tensor": [0, 1, 2, 3]}]', "column 'x' is missing"),
        (b"[{}]", "column 'x' is missing: the model takes x: float [rows, 4]"),
        (b'[{"x": [0, 1, 2]}]', "rows of shape [3] (3 values): the model takes x: float [rows, 4]"),
        (b'[{"x": []}]', "rows of shape [0]"),
        (b'[{"x": 1}]', "rows of shape []"),
        (b'[{"x": [0, 1, 2, 3]}, {"x": [0, 1, 2]}]', "$[1].x has shape [3], row 0 has [4]"),
    ],
)
def test_hostile_13_and_16_refused_json(engine, body, said):
    assert said in refusal(engine, body)


def test_hostile_16_of_a_key_that_comes_twice_the_last_one_counts(engine):
    body = b'[{"x": [9, 9, 9, 9], "x": [0, 1, 2, 3]}]'

    (record,) = engine.post("/infer?dataset[]=*", body).json

    assert record["in"] == {"x": [0, 1, 2, 3]}
    assert record["out"]["y"] == [28.0, 34.0]


def test_hostile_16_integers_past_64_bits_are_doubles(engine):
    body = b'[{"x": [18446744073709551617, 0, 0, 0]}]'

    (record,) = engine.post("/infer?dataset[]=*", body).json

    assert record["in"] == {"x": [2.0**64, 0, 0, 0]}
    assert np.float32(record["out"]["y"]).tolist() == [0.0, 2.0**64]


def test_hostile_12_zero_rows(engine):
    for body in (b"[]", b" [ ] ", b'{"x": []}'):
        for path in ("/infer", "/infer?dataset[]=*"):
            reply = engine.post(path, body)
            assert (reply.status, reply.body) == (200, b"[]")
        assert read_file(engine.post("/infer", body, accept=ARROW_FILE).body).num_rows == 0


def strictly(text):
    def refuse(constant):
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


def test_hostile_17_nan_and_infinity_of_the_model(serving, tmp_path):
    """null in JSON, in every body; themselves in Arrow."""
    engine = serving("not_finite")
    rows = [[1.0, -1.0], [0.0, 1.0]]
    bodies = [
        engine.post(path, [{"x": row} for row in rows]).body
        for path in ("/infer", "/infer?dataset[]=*", "/infer?dataset.flatten=true")
    ]
    arrow = engine.post("/infer", file_bytes({"x": vectors(rows)}), ARROW_FILE, accept=ARROW_FILE)

    legacy, records, flat = map(strictly, bodies)
    assert legacy[0]["outputs"][0]["Float"]["data"] == [0.0, None, None, 0.0]
    assert [record["out"]["y"] for record in records] == [[0.0, None], [None, 0.0]]
    assert [record["out.y"] for record in flat] == [[0.0, None], [None, 0.0]]
    values = read_file(arrow.body).column("out").combine_chunks().field("y").flatten().to_pylist()
    assert math.isnan(values[1])
    assert values[2] == -math.inf
    for tool, program in (("jq", ["-e", "."]), ("node", ["-e", NODE])):
        if shutil.which(tool):
            for body in bodies:
                done = subprocess.run(
                    [tool, *program], input=body, capture_output=True, timeout=30, check=False
                )
                assert done.returncode == 0, done.stderr


NODE = "JSON.parse(require('fs').readFileSync(0, 'utf8'))"


def test_hostile_17_nan_of_every_float_type(serving):
    engine = serving("every_type")
    columns = {f"in_{key}": [[False, False]] for key in DTYPES} | {"in_s": [["", ""]]}
    columns |= {f"in_{key}": [[0, 0]] for key in DTYPES if key not in "bs"}
    columns |= {f"in_{key}": np.array([[1.5, np.nan]]).tolist() for key in ("f16", "f32", "f64")}

    reply = engine.post("/infer", file_bytes(columns), ARROW_FILE)
    records = engine.post("/infer?dataset[]=*", file_bytes(columns), ARROW_FILE)

    floats = {
        kind: tensor["data"]
        for output in strictly(reply.body)[0]["outputs"]
        for kind, tensor in output.items()
    }
    assert floats["Half"] == floats["Float"] == floats["Double"] == [1.5, None]
    (record,) = strictly(records.body)
    for key in ("f16", "f32", "f64"):
        assert record["out"][f"out_{key}"] == record["in"][f"in_{key}"] == [1.5, None]


def test_hostile_18_float_text(serving):
    """Legacy prints the double that a float32 widens to, records its shortest decimal."""
    engine = serving("identity")
    rng = np.random.default_rng(18)
    bits = rng.integers(0, 1 << 32, 4000, dtype=np.uint32)
    known = np.float32(
        [0.1, 1.0094895362854004, 9.498586587142199e-05, 1.388995e-27, 1e-45, 3.4028235e38]
    )
    values = np.concatenate([known, bits.view(np.float32)[np.isfinite(bits.view(np.float32))]])
    values = values[: len(values) // 2 * 2].reshape(-1, 2)
    body = file_bytes({"x": vectors(values.tolist(), 2)})

    legacy = engine.post("/infer", body, ARROW_FILE).json[0]["outputs"][0]["Float"]["data"]
    text = engine.post("/infer?dataset[]=out.y", body, ARROW_FILE).body
    records = [record["y"] for record in orjson.loads(text)]

    assert legacy == values.astype(np.float64).ravel().tolist()
    assert np.float32(records).tobytes() == values.tobytes()
    assert records[0] == [0.1, 1.0094895]
    assert legacy[:3] == [0.10000000149011612, 1.0094895362854004, 0.00009498586587142199]
    shortest = [[float(str(value)) for value in row] for row in values]
    assert sum(map(len, map(str, records))) == sum(map(len, map(str, shortest)))
