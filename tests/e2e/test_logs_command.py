"""``sagitta logs`` as a person types it, at a running engine and at a stopped one's folder."""

import datetime
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import threading

import orjson
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from support import models
from support.engine import DEADLINE_S, ROOT

from engine.__main__ import main

CHECK = {
    "Alias": [
        {
            "BinaryExpr": {
                "left": {
                    "Function": {
                        "input": [{"Column": "out.y"}, {"Literal": {"Int32": 0}}],
                        "function": {"ListExpr": "Get"},
                        "options": {},
                    }
                },
                "op": "Gt",
                "right": {"Literal": {"Float64": 1e6}},
            }
        },
        "large",
    ]
}


LOG = {"LOCAL_INFERENCE_STORAGE": "1Mi", "PLATEAU_PAGE_SIZE": "10"}


@pytest.fixture(scope="module")
def engine(serving, tmp_path_factory):
    """An engine with a log of five rows in three requests, which tests read only."""
    folder = tmp_path_factory.mktemp("persist")
    return with_five_rows(serving("linear", environ={**LOG, "PERSIST_DIR": str(folder)}))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "persist"


@pytest.fixture
def own_engine(engine_process, tmp_path, folder):
    """An engine with the same log, for a test that adds to it or ends it."""
    pipeline = models.write_pipeline(tmp_path / "pipeline", models.linear())
    variables = {"PIPELINE_URL": str(pipeline), "PERSIST_DIR": str(folder)}
    return with_five_rows(engine_process(**LOG, **variables).ready())


@pytest.fixture
def large_engine(engine_process, tmp_path, folder):
    """An engine whose log holds many rows, and none yet."""
    pipeline = models.write_pipeline(tmp_path / "pipeline", models.linear())
    variables = {"PIPELINE_URL": str(pipeline), "PERSIST_DIR": str(folder)}
    return engine_process(**LOG | {"LOCAL_INFERENCE_STORAGE": "8Mi"}, **variables).ready()


def with_five_rows(engine):
    for rows in (1, 3, 1):
        infer(engine, rows)
    return engine


def infer(engine, rows):
    assert engine.post("/infer", [{"x": [0.5, 1.5, 2.5, 3.5]}] * rows).status == 200


def command(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "engine", "logs", *map(str, arguments)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options,
    )


def logs(*arguments, code=0):
    with command(*arguments) as process:
        output, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == code, errors.decode()
    assert b"Traceback" not in errors
    return output, errors.decode()


def test_a_table_of_the_newest_rows(engine):
    output, _ = logs(engine.base_url, "--rows", 2)

    head, *lines = output.decode().splitlines()
    assert head.split() == ["time", "anomaly", "out", "in"]
    assert len(lines) == 2
    assert "x=[0.5,1.5,2.5,3.5]" in lines[0]


def test_a_table_goes_on_where_the_columns_change(own_engine):
    """A page ends there; the rows asked for do not."""
    assert own_engine.post("/infer", [{"x": [1.0] * 4, "note": "new"}]).status == 200

    output, _ = logs(own_engine.base_url, "--rows", 3)

    lines = output.decode().splitlines()[1:]
    assert ["note=new" in line for line in lines] == [False, False, True]


def test_a_table_shows_no_control_characters(own_engine):
    row = {"x": [1.0] * 4, "note": "\x1b[31mred\nline"}
    assert own_engine.post("/infer", [row]).status == 200

    output, _ = logs(own_engine.base_url, "--rows", 1)

    assert r"note=\x1b[31mred\nline" in output.decode().splitlines()[1]


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_json_is_the_rows_of_the_endpoint(engine, form):
    rows = engine.post("/logs", b"{}").json

    output, _ = logs(engine.base_url, "-f", form)

    found = orjson.loads(output) if form == "json" else list(map(orjson.loads, output.splitlines()))
    assert found == rows
    assert len(rows) == 5


def test_a_row_is_one_line_whatever_is_in_it(own_engine):
    events = [{"time": 1}, {"time": 2}]  # as if a row ended there and the next began
    assert own_engine.post("/infer", [{"x": [0.5] * 4, "events": events}] * 2).status == 200

    lines = logs(own_engine.base_url, "-f", "jsonl")[0].splitlines()

    assert [orjson.loads(line)["in"].get("events") for line in lines] == [None] * 5 + [events] * 2


def test_files_hold_the_rows(engine, tmp_path):
    rows = engine.post("/logs", b"{}").json
    for name in ("out.json", "out.arrow", "out.parquet"):
        _, errors = logs(engine.base_url, "-o", tmp_path / name)
        assert f"5 rows written to {tmp_path / name}" in errors

    assert orjson.loads((tmp_path / "out.json").read_bytes()) == rows
    arrow = pa.ipc.open_file(tmp_path / "out.arrow").read_all().to_pylist()
    assert arrow == pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["time"] for row in arrow] == [row["time"] for row in rows]
    assert not list(tmp_path.glob(".*.part"))


def test_a_change_of_columns_begins_a_next_file(own_engine, tmp_path):
    assert own_engine.post("/infer", [{"x": [1.0] * 4, "note": "new"}]).status == 200

    logs(own_engine.base_url, "-o", tmp_path / "out.parquet")

    assert pq.read_table(tmp_path / "out.parquet").num_rows == 5
    assert pq.read_table(tmp_path / "out-2.parquet").num_rows == 1


@pytest.mark.parametrize("form", ["arrow", "parquet"])
def test_many_pages_are_one_file(large_engine, tmp_path, form):
    """A page is of 10,000 rows at most, and says so beside them."""
    infer(large_engine, 10_005)

    _, errors = logs(large_engine.base_url, "-o", tmp_path / f"out.{form}")

    assert errors == f"10,005 rows written to {tmp_path}/out.{form}\n"
    read = {"arrow": pa.feather.read_table, "parquet": pq.read_table}[form]
    table = read(tmp_path / f"out.{form}")
    assert table.num_rows == 10_005
    assert table.schema.metadata is None


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_many_rows_are_whole_text(large_engine, form):
    """More than are made into text at one time."""
    requests = [[{"x": [float(row), 1.5, 2.5, 3.5]} for row in range(rows)] for rows in (9_000, 1)]
    for request in requests:
        assert large_engine.post("/infer", request).status == 200

    output, _ = logs(large_engine.base_url, "-f", form)

    found = orjson.loads(output) if form == "json" else list(map(orjson.loads, output.splitlines()))
    assert [row["in"] for row in found] == requests[0] + requests[1]


def test_requests_of_two_kinds_are_two_files(own_engine, tmp_path):
    """Whichever of them came in between; each file has row groups that are worth one."""
    for _ in range(5):
        assert own_engine.post("/infer", [{"x": [1.0] * 4, "note": "new"}]).status == 200
        infer(own_engine, 1)

    _, errors = logs(own_engine.base_url, "-o", tmp_path / "out.parquet")

    assert errors == f"15 rows written to {tmp_path}/out.parquet, {tmp_path}/out-2.parquet\n"
    files = [pq.ParquetFile(tmp_path / name) for name in ("out.parquet", "out-2.parquet")]
    assert [file.metadata.num_rows for file in files] == [10, 5]
    assert [file.metadata.num_row_groups for file in files] == [1, 1]
    times = files[0].read()["time"].to_pylist()
    assert times == sorted(times)


def test_times_choose_rows(engine):
    assert len(orjson.loads(logs(engine.base_url, "-f", "json", "--since", "1h")[0])) == 5
    assert logs(engine.base_url, "-f", "json", "--until", "1h")[0] == b"[]\n"
    assert logs(engine.base_url, "-f", "json", "--since", "2100-01-01T00:00:00Z")[0] == b"[]\n"


def test_no_rows_are_no_file(engine, tmp_path):
    _, errors = logs(engine.base_url, "-o", tmp_path / "out.parquet", "--since", "2100-01-01")

    assert errors == "no rows: no file was written\n"
    assert not list(tmp_path.glob("out*"))


def test_a_table_without_rows_says_so(engine):
    assert logs(engine.base_url, "--since", "2100-01-01") == (b"", "no rows\n")


def test_rows_on_a_terminal_are_not_mixed_with_how_far_it_is(own_engine):
    """Where the columns change a page ends, which is when progress would be told."""
    assert own_engine.post("/infer", [{"x": [1.0] * 4, "note": "new"}]).status == 200
    control, terminal = pty.openpty()
    with command(own_engine.base_url, "-f", "jsonl", stdout=terminal, stderr=terminal) as process:
        assert process.wait(DEADLINE_S) == 0
    os.close(terminal)
    with open(control, "rb", buffering=0) as screen:
        lines = screen.read(1 << 16).decode().splitlines()

    assert [line[:8] for line in lines] == ['{"time":'] * 6


def test_a_closed_output_is_said_to_be_closed(engine):
    arguments = [sys.executable, "-m", "engine", "logs", engine.base_url]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        timeout=DEADLINE_S,
        check=False,
    )

    assert done.returncode == 3
    assert done.stderr == b"sagitta: cannot write: standard output is closed\n"


def test_a_device_is_written_to_and_never_replaced(engine, tmp_path):
    pipe = tmp_path / "out.jsonl"
    os.mkfifo(pipe)
    with command(engine.base_url, "-o", pipe) as process:
        with pipe.open("rb") as reader:
            assert len(reader.read().splitlines()) == 5
        process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    assert pipe.is_fifo()
    _, errors = logs(engine.base_url, "-f", "json", "-o", "/dev/full", code=3)
    assert errors == "sagitta: cannot write: [Errno 28] No space left on device\n"
    assert not os.path.isfile("/dev/full")


def test_an_interrupted_export_leaves_no_file(tmp_path):
    """An engine that takes the question and never answers: the export is under way."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with command(url, "-o", tmp_path / "out.json") as process:
            connection, _ = listener.accept()
            assert list(tmp_path.glob(".out.json.part"))
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=DEADLINE_S)
            connection.close()

    assert process.returncode == 130
    assert errors == b""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("answer", ["", "x-iteration-status: {}\r\n", "x-iteration-status: 5\r\n"])
def test_what_is_no_engine_is_said_to_be_none(answer):
    def serve(listener):
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(
                f"HTTP/1.1 200 OK\r\n{answer}Content-Length: 5\r\n\r\nhello".encode()
            )

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=[listener])
        thread.start()
        _, errors = logs(f"http://127.0.0.1:{listener.getsockname()[1]}", code=3)
        thread.join()

    assert "does not answer as an engine does" in errors


def test_following_shows_what_comes(own_engine):
    with command(own_engine.base_url, "--follow", "-f", "jsonl") as process:
        try:
            for _ in range(5):
                process.stdout.readline()
            infer(own_engine, 1)
            row = orjson.loads(process.stdout.readline())
            assert row["in"] == {"x": [0.5, 1.5, 2.5, 3.5]}
        finally:
            process.terminate()


@pytest.fixture
def follow(own_engine, monkeypatch, capsysbinary):
    """Follow the log in this process: a row comes at the first wait, Ctrl-C at the second."""

    def rows(*arguments):
        waits = iter([lambda: infer(own_engine, 1), lambda: signal.raise_signal(signal.SIGINT)])
        with monkeypatch.context() as patch:
            patch.setattr("time.sleep", lambda _: next(waits)())
            assert (
                main(["logs", own_engine.base_url, "--follow", "-f", "jsonl", *arguments], {}) == 0
            )
        return list(map(orjson.loads, capsysbinary.readouterr().out.splitlines()))

    return rows


def test_following_begins_with_the_newest_rows(follow, own_engine):
    found = follow("-n", "2")

    assert found == own_engine.post("/logs", b"{}").json[-3:]


def test_following_from_a_moment_on_shows_no_older_row(follow, own_engine):
    last = own_engine.post("/logs?order=desc", b"{}").json[0]["time"]
    moment = datetime.datetime.fromtimestamp((last + 1) / 1000, datetime.UTC).isoformat()

    found = follow("--since", moment)

    assert found == own_engine.post("/logs", b"{}").json[-1:]


def test_the_folder_of_a_stopped_engine(own_engine, folder):
    rows = own_engine.post("/logs", b"{}").json
    _, errors = logs(folder, code=3)
    assert "belongs to a running engine" in errors
    assert "http://" in errors

    own_engine.stop()

    assert orjson.loads(logs(folder, "-f", "json")[0]) == rows
    assert orjson.loads(logs(folder / "log", "-f", "json", "-n", "2")[0]) == rows[:2]


def test_reading_a_folder_changes_nothing_in_it(own_engine, folder, tmp_path):
    """An engine that died over its first file leaves an empty one; a copy may lack others."""
    own_engine.stop()
    for name in ("empty", "alone"):
        (tmp_path / name).mkdir()
    (tmp_path / "empty" / "data.mdb").touch()
    shutil.copy(folder / "log" / "data.mdb", tmp_path / "alone")

    empty = logs(tmp_path / "empty", code=3)[1]
    alone = logs(tmp_path / "alone", code=3)[1]

    assert empty == f"sagitta: {tmp_path}/empty holds no inference log\n"
    assert alone == f"sagitta: {tmp_path}/alone/owner.lock: No such file or directory\n"
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["data.mdb"]
    assert [path.name for path in (tmp_path / "alone").iterdir()] == ["data.mdb"]


def test_anomalies_only(engine_process, tmp_path):
    pipeline = tmp_path / "checked"
    models.write_pipeline(pipeline, models.linear())
    definition = orjson.loads((pipeline / "pipeline.json").read_bytes())
    definition["steps"].append({"Check": {"tree": [orjson.dumps(CHECK).decode()]}})
    (pipeline / "pipeline.json").write_bytes(orjson.dumps(definition))
    running = engine_process(
        PIPELINE_URL=str(pipeline),
        PERSIST_DIR=str(tmp_path / "persist"),
        **LOG,
    ).ready()
    for value in (1.0, 1e9, 2.0):
        assert running.post("/infer", [{"x": [value] * 4}]).status == 200

    table = logs(running.base_url, "--anomalies-only", "-n", 1)[0].decode().splitlines()
    assert "1 large" in table[1]  # though the newest row has none
    rows = orjson.loads(logs(running.base_url, "-f", "json", "--anomalies-only")[0])

    assert [row["in"]["x"][0] for row in rows] == [1e9]
    assert rows[0]["anomaly"] == {"count": 1, "large": True}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["http://127.0.0.1:1"], 3, "cannot be read"),
        (["/nowhere"], 3, "/nowhere: no such folder"),
        (["/usr"], 3, "/usr/log holds no inference log"),
        (["n" * 300], 3, "File name too long"),
        (["-f", "parquet"], 2, "--output"),
        (["ftp://host"], 2, "http://host:8080"),
        (["http://host:abc"], 2, "http://host:8080"),
        (["http://[::1"], 2, "http://host:8080"),
        (["https://host", "--ca-file", "/nowhere"], 2, "--ca-file /nowhere: No such file"),
        (["https://host", "--ca-file", __file__], 2, "--ca-file"),
        (["http://127.0.0.1:1", "--since", "999999999d"], 3, "cannot be read"),
        (["--since", "9" * 30 + "d"], 2, "15m"),
        (["-o", "/nowhere/out.json"], 3, "cannot write"),
        (["http://127.0.0.1:1", "--token-file", sys.executable], 2, "is no token"),
        (["--since", "yesterday"], 2, "15m"),
        (["/tmp", "--follow"], 2, "URL"),
        (["-n", "0"], 2, "1 or more"),
        (["localhost:8080"], 3, "the URL of an engine begins with http://"),
        (["-o", "out.csv"], 2, ".json, .jsonl, .arrow, .parquet"),
        (["--since", "1h", "--until", "2h"], 2, "--since 1h is later than --until 2h"),
        (["--follow", "--until", "2100-01-01"], 2, "leave --until out"),
        (["--follow", "--since", "1h", "-n", "5"], 2, "not both"),
    ],
)
def test_what_is_wrong_is_said(capsys, arguments, code, words):
    assert main(["logs", *arguments], {}) == code

    errors = capsys.readouterr().err
    assert words in errors
    assert errors.startswith("sagitta: ")
