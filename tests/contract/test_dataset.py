"""The ``dataset`` parameters: of ``/infer`` in JSON and in Arrow, and of the log by both shells."""

import urllib.parse

import pyarrow as pa
import pytest
from support.engine import ARROW_FILE
from support.shells import Flight

ROWS = [{"x": [0.0, 1.0, 2.0, 3.0], "id": "a"}, {"x": [4, 5, 6, 7], "id": "b"}]
METADATA = ["last_model", "pipeline_version", "elapsed", "dropped", "partition"]
EVERYTHING = ["time", "in", "out", "anomaly", "metadata"]
FLAT = [
    "time",
    "in.id",
    "in.x",
    "out.y",
    "anomaly.count",
    *(f"metadata.{name}" for name in METADATA),
]
CASES = [  # query -> the keys of a row, nested ones as a list after their name
    ("dataset[]=*", ["time", "in", "out", "anomaly", "metadata"]),
    ("dataset%5B%5D=%2A", EVERYTHING),
    ("dataset=*", EVERYTHING),
    ("dataset=", None),
    ("dataset[]=time&dataset[]=out", ["time", "out"]),
    ("dataset[]=out&dataset[]=time", ["out", "time"]),
    ("dataset[]=*&dataset.exclude[]=metadata", ["time", "in", "out", "anomaly"]),
    ("dataset.exclude[]=metadata", ["time", "in", "out", "anomaly"]),
    ("dataset.exclude=metadata&dataset.exclude=in", ["time", "out", "anomaly"]),
    ("dataset[]=*&dataset.exclude[]=metadata&dataset.separator=.", FLAT[:5]),
    ("dataset%5B%5D=%2A&dataset.exclude%5B%5D=metadata&dataset.separator=.", FLAT[:5]),
    ("dataset.separator=.", FLAT),
    ("dataset.flatten=true", FLAT),
    ("dataset.flatten=True", FLAT),
    ("dataset.flatten=false", EVERYTHING),
    ("dataset.separator=.&dataset.flatten=false", EVERYTHING),
    ("dataset.flatten=true&dataset.separator=/", [key.replace(".", "/", 1) for key in FLAT]),
    ("dataset.separator=__", [key.replace(".", "__", 1) for key in FLAT]),
    ("dataset[]=metadata.elapsed", ["elapsed"]),
    ("dataset[]=metadata", METADATA),  # one struct alone is not nested
    ("dataset[]=out", ["y"]),
    ("dataset[]=in", ["id", "x"]),
    ("dataset[]=time", ["time"]),
    ("dataset[]=in.x&dataset[]=out.y&dataset.separator=.", ["in.x", "out.y"]),
    ("dataset[]=*&dataset.exclude[]=in.id&dataset.separator=.", [k for k in FLAT if k != "in.id"]),
    ("dataset[]=*&dataset.max_bytes=10", EVERYTHING),
    ("unrelated=1&dataset[]=time&dataset[]=in", ["time", "in"]),
]


@pytest.fixture(scope="module")
def engine(serving, tmp_path_factory):
    """An engine with ``ROWS`` as the first rows of its log."""
    log = {"LOCAL_INFERENCE_STORAGE": "10m", "PLATEAU_PAGE_SIZE": "10"}
    engine = serving("linear", environ={**log, "PERSIST_DIR": str(tmp_path_factory.mktemp("log"))})
    assert engine.post("/infer", ROWS).status == 200
    return engine


def post(engine, query, accept="*/*"):
    # http.client refuses nothing here, but a raw "[" or "*" must be sent as it is typed
    return engine.post(f"/infer?{query}", ROWS, accept=accept)


@pytest.mark.parametrize(("query", "keys"), CASES)
def test_columns_in_json(engine, query, keys):
    reply = post(engine, query)
    if keys is None:
        assert reply.status == 400
        assert "invalid path" in reply.error
        return

    assert reply.status == 200, reply.body
    assert [list(row) for row in reply.json] == [keys, keys]


@pytest.mark.parametrize(("query", "keys"), [case for case in CASES if case[1]])
def test_columns_in_arrow(engine, query, keys):
    reply = post(engine, query, ARROW_FILE)

    assert reply.status == 200, reply.body
    table = pa.ipc.open_file(reply.body).read_all()
    assert table.schema.names == keys
    assert table.num_rows == 2


@pytest.mark.parametrize(("query", "keys"), CASES)
def test_columns_of_the_log(client, engine, query, keys):
    parameters = "&".join(part for part in query.split("&") if "max_bytes" not in part)
    if client is Flight:  # a message, in which a name that is not known is an error
        parameters = parameters.removeprefix("unrelated=1&")
    shell = client(engine)
    if keys is None:
        code, text = shell.log_refused(parameters)
        assert (code, "invalid path" in text) == (400, True)
        return

    table, status = shell.log(f"{parameters}&page_size=2")

    assert table.column_names == keys
    assert (table.num_rows, list(status["next"].values())) == (2, [2])


@pytest.mark.parametrize("query", [query for query, keys in CASES if keys])
def test_both_formats_say_the_same(engine, query):
    json_rows = post(engine, query).json
    arrow_rows = pa.ipc.open_file(post(engine, query, ARROW_FILE).body).read_all().to_pylist()

    for row in (*json_rows, *arrow_rows):  # what no two requests share
        for owner, name in ((row, "time"), (row, "elapsed"), (row, "metadata.elapsed")):
            if name in owner:
                owner[name] = None
        for name in ("metadata", "metadata.elapsed", "metadata/elapsed", "metadata__elapsed"):
            if name in row:
                row[name] = None
    assert json_rows == arrow_rows


def test_a_path_asked_for_is_kept_although_its_parent_is_excluded(engine):
    query = "dataset[]=*&dataset[]=metadata.elapsed&dataset.exclude[]=metadata"

    (row, _) = post(engine, query).json

    assert list(row) == EVERYTHING
    assert list(row["metadata"]) == ["elapsed"]


def test_the_default_is_nested_and_whole(engine):
    (row, _) = post(engine, "dataset[]=*").json

    assert row["in"] == {"id": "a", "x": [0.0, 1.0, 2.0, 3.0]}
    assert row["out"] == {"y": [28.0, 34.0]}
    assert row["anomaly"] == {"count": 0}
    assert list(row["metadata"]) == METADATA


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("dataset[]=nothing", "invalid path: key not found: nothing"),
        ("dataset[]=out.nothing", "invalid path: key not found: out.nothing"),
        ("dataset.flatten=perhaps", "dataset.flatten is 'perhaps'"),
        ("dataset.colour=red", "unknown query parameter 'dataset.colour'"),
    ],
)
def test_a_bad_parameter_is_400_and_named(engine, query, said):
    reply = post(engine, query)

    assert reply.status == 400
    assert said in reply.error


def test_other_parameters_do_not_change_the_body(engine):
    reply = post(engine, urllib.parse.urlencode({"trace": "1", "data": "x"}))

    assert next(iter(reply.json[0])) == "check_failures"
