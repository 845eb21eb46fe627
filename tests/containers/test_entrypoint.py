"""The entry point and the health check without any container: what they do and leave alone."""

import http.server
import os
import pathlib
import subprocess
import sys
import threading

import pytest
from support.containers import missing

CONTAINERS = pathlib.Path(__file__).parents[2] / "containers"
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")


def run_python(code_or_file, *arguments, env=None):
    return subprocess.run(
        [sys.executable, "-I", *code_or_file, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
        env=env or {},
    )


def give_away(folder):
    code = (
        f"import runpy; runpy.run_path({str(CONTAINERS / 'entrypoint.py')!r})"
        f"['give_away']({str(folder)!r})"
    )
    done = run_python(["-c", code])
    assert done.returncode == 0, done.stderr


@root_only
def test_the_whole_volume_changes_hands(tmp_path):
    (tmp_path / "volume" / "oci" / "blobs").mkdir(parents=True)
    (tmp_path / "volume" / "oci" / "blobs" / "x").write_text("x")

    give_away(tmp_path / "volume")

    owners = {path.lstat().st_uid for path in (tmp_path / "volume").rglob("*")}
    assert owners == {(tmp_path / "volume").stat().st_uid} == {10001}


@root_only
def test_links_out_of_the_volume_are_not_followed(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("x")
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume" / "folder").symlink_to(tmp_path / "outside")
    (tmp_path / "volume" / "file").symlink_to(tmp_path / "outside" / "file")

    give_away(tmp_path / "volume")

    assert (tmp_path / "outside").stat().st_uid == 0
    assert (tmp_path / "outside" / "file").stat().st_uid == 0
    assert (tmp_path / "volume" / "file").lstat().st_uid == 10001


class _Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(self.server.answer if self.path == "/healthz" else 404)
        self.end_headers()

    def log_message(self, *_arguments):
        pass


@pytest.fixture
def engine():
    """A server whose ``/healthz`` answers ``engine.answer``."""
    server = http.server.HTTPServer(("127.0.0.1", 0), _Health)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(("answer", "code"), [(200, 0), (503, 1)])
def test_health_is_the_readiness_of_the_own_port(engine, answer, code):
    engine.answer = answer

    done = run_python(
        [CONTAINERS / "healthcheck.py"], env={"HTTP_PORT": str(engine.server_address[1])}
    )

    assert done.returncode == code
    assert (str(answer) in done.stderr) == (code == 1)


@pytest.mark.parametrize(
    "variables",
    [{"HTTP_PORT": ""}, {"HTTP_PORT": "{port}", "TLS_CLIENT_CA_FILE": "/ca", "BIND_HOST": "::"}],
)
def test_health_is_an_open_port_where_nothing_can_be_asked(engine, variables):
    port = str(engine.server_address[1])
    env = {name: value.replace("{port}", port) for name, value in variables.items()}

    if env["HTTP_PORT"]:  # no such server: nothing listens on that address
        assert run_python([CONTAINERS / "healthcheck.py"], env=env).returncode == 1
        env["BIND_HOST"] = "127.0.0.1"
    else:
        env["FLIGHT_PORT"] = port

    assert run_python([CONTAINERS / "healthcheck.py"], env=env).returncode == 0


def test_health_of_a_stopped_engine_says_why(engine):
    engine.answer = 200
    done = run_python([CONTAINERS / "healthcheck.py"], "http://127.0.0.1:1/healthz")

    assert done.returncode == 1
    assert done.stderr.startswith("http://127.0.0.1:1/healthz: [Errno 111]")


@root_only
def test_a_volume_of_the_same_file_system_is_seen(tmp_path):
    """A bind mount on a plain folder, as Podman's vfs driver and rootless containers have it."""
    if reason := missing("unshare", "mount"):
        pytest.skip(reason)
    for name in ("host", "my data", "plain"):
        (tmp_path / name).mkdir()
    code = (
        f"import runpy; seen = runpy.run_path({str(CONTAINERS / 'entrypoint.py')!r})['is_mounted'];"
        f"print(seen({str(tmp_path / 'my data')!r}), seen({str(tmp_path / 'plain')!r}))"
    )
    done = subprocess.run(
        [
            *("unshare", "-m", "sh", "-c", 'mount --bind "$1" "$2" && exec "$3" -I -c "$4"', "sh"),
            *(tmp_path / "host", tmp_path / "my data", sys.executable, code),
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    if "Operation not permitted" in done.stderr or "ermission denied" in done.stderr:
        pytest.skip("this root may not mount")

    assert done.stdout == "True False\n", done.stderr
