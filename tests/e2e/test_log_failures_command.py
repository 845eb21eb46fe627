"""``sagitta logs --failures``, of a running engine and of a stopped one's folder."""

import datetime
import signal

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import models

from engine.__main__ import main

LOG = {"LOCAL_INFERENCE_STORAGE": "1Mi", "PLATEAU_PAGE_SIZE": "10"}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "persist"


@pytest.fixture
def engine(engine_process, tmp_path, folder):
    """An engine whose model failed on three requests, and answered one."""
    pipeline = models.write_pipeline(tmp_path / "pipeline", models.failing())
    engine = engine_process(**LOG, PIPELINE_URL=str(pipeline), PERSIST_DIR=str(folder)).ready()
    for value in (5, 0, 5, 5):
        infer(engine, value)
    return engine


def infer(engine, value):
    reply = engine.post("/infer", [{"x": [value, 0]}])
    assert reply.status == (500 if value else 200)


def failures(engine, query=""):
    return engine.post(f"/logs/failures{query}", b"{}").json


@pytest.fixture
def logs(capsysbinary):
    """Run the command: what it prints."""

    def run(*arguments):
        assert main(["logs", "--failures", *map(str, arguments)], {}) == 0
        return capsysbinary.readouterr().out

    return run


def as_lines(rows):
    return b"".join(orjson.dumps(row) + b"\n" for row in rows)


def moment(time):
    return datetime.datetime.fromtimestamp(time / 1000, datetime.UTC).isoformat()


def test_a_table_of_the_newest(logs, engine, monkeypatch):
    """Errors are whole, however narrow the terminal: their end says where the reason is."""
    monkeypatch.setenv("COLUMNS", "40")

    head, *lines = logs(engine.base_url, "-n", 2).decode().splitlines()

    assert head.split() == ["time", "error"]
    newest = failures(engine)[1:]
    assert [line.split(maxsplit=1)[1] for line in lines] == [row["error"] for row in newest]
    assert [line[:10] for line in lines] == [moment(row["time"])[:10] for row in newest]


def test_jsonl_is_what_the_endpoint_answers(logs, engine):
    rows = failures(engine)

    assert len(rows) == 3
    assert logs(engine.base_url, "-f", "jsonl") == as_lines(rows)
    assert logs(engine.base_url, "-f", "jsonl", "-n", 2) == as_lines(rows[:2])


@pytest.mark.parametrize("ending", ["arrow", "parquet"])
def test_files(logs, engine, tmp_path, ending):
    path = tmp_path / f"failures.{ending}"

    logs(engine.base_url, "-o", path)

    table = pq.read_table(path) if ending == "parquet" else pa.ipc.open_file(path).read_all()
    assert table.to_pylist() == failures(engine)


def test_times_choose_failures(logs, engine):
    assert logs(engine.base_url, "-f", "jsonl", "--since", "1h") == as_lines(failures(engine))
    assert logs(engine.base_url, "-f", "jsonl", "--until", "1h") == b""
    assert logs(engine.base_url, "-f", "jsonl", "--since", "2100-01-01") == b""


def test_following_shows_what_comes(logs, engine, monkeypatch):
    """A failure comes at the first wait, Ctrl-C at the second."""
    waits = iter([lambda: infer(engine, 5), lambda: signal.raise_signal(signal.SIGINT)])
    monkeypatch.setattr("time.sleep", lambda _: next(waits)())

    found = logs(engine.base_url, "--follow", "-f", "jsonl", "-n", 1)

    assert found == as_lines(failures(engine)[-2:])


def test_the_folder_of_a_stopped_engine(logs, engine, folder):
    rows = failures(engine)
    engine.stop()

    assert logs(folder, "-f", "jsonl") == as_lines(rows)
    assert len(logs(folder).splitlines()) == 4


def test_the_folder_of_an_engine_that_was_killed_has_what_was_read(logs, engine, folder):
    """Reading writes what waits: a failure that somebody has seen is not lost."""
    rows = failures(engine)
    engine.process.kill()
    engine.process.wait()

    assert logs(folder, "-f", "jsonl") == as_lines(rows)


def test_an_engine_that_keeps_none_is_said_to(capsys, serving):
    assert main(["logs", "--failures", serving("linear").base_url], {}) == 3

    assert "LOCAL_INFERENCE_STORAGE and PLATEAU_PAGE_SIZE" in capsys.readouterr().err


def test_anomalies_are_of_rows(capsys):
    assert main(["logs", "--failures", "--anomalies-only"], {}) == 2

    assert "leave it out with --failures" in capsys.readouterr().err
