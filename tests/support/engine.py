"""A real engine process: started on free ports, watched by its output, stopped by SIGTERM."""

import contextlib
import ctypes
import dataclasses
import http.client
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import orjson

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60.0  # of anything that a test waits for; never reached by a test that passes
RECORDS = "application/json; format=pandas-records"
ARROW_FILE = "application/vnd.apache.arrow.file"
ARROW_STREAM = "application/vnd.apache.arrow.stream"
ESTABLISHED = "01"  # as /proc/net/tcp writes it
DEFAULTS = {
    "HTTP_PORT": "0",
    "METRICS_PORT": "0",
    "FLIGHT_PORT": "",
    "BIND_HOST": "127.0.0.1",
    "CONFIG_CPUS": "1",
    "SHUTDOWN_GRACE_S": "20",
}


@dataclasses.dataclass(frozen=True)
class Response:
    """A whole HTTP reply; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        return orjson.loads(self.body)

    @property
    def error(self):
        """The text of an error body, whose documented shape is checked on the way."""
        document = self.json
        assert list(document) == ["code", "status", "error", "source"], document
        assert document["code"] == self.status, document
        assert (document["status"], document["source"]) == ("Error", "engine")
        assert self.headers["content-type"] == "application/json"
        return document["error"]


class Wire:
    """A raw connection: sends bytes as they are, reads replies one by one."""

    def __init__(self, connection):
        self.connection = connection
        self.file = connection.makefile("rb")

    @property
    def ends(self):
        """The addresses of either side."""
        return self.connection.getsockname(), self.connection.getpeername()

    def send(self, data):
        self.connection.sendall(data)

    def receive(self):
        """The next reply, or None where the engine has closed the connection."""
        try:
            start = self.file.readline()
            if not start:
                return None
            status = int(start.split()[1])
            headers = {}
            while (line := self.file.readline()) not in {b"\r\n", b""}:
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.strip().lower()] = value.strip()
            length = int(headers.get("content-length", 0))
            return Response(status, headers, self.file.read(length))
        except ConnectionResetError:
            return None

    def close(self):
        self.file.close()
        self.connection.close()

    def reset(self):
        """Go away at once, with a reset, as a killed client's machine does."""
        linger = (1).to_bytes(4, sys.byteorder) + bytes(4)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Engine:
    """One ``python -m engine serve``."""

    def __init__(self, environ, command=(sys.executable, "-m", "engine", "serve")):
        inherited = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            command,
            env=inherited | DEFAULTS | environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=_die_with_the_tests,  # noqa: PLW1509 - it calls nothing of Python's own
        )
        self.pid = self.process.pid
        self.lines = []
        self._news = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, name="engine-output", daemon=True)
        self._reader.start()
        self.tls = None

    @property
    def output(self):
        return "\n".join(self.lines)

    def wait_for(self, pattern):
        """Block until a line of output matches; the match."""
        compiled = re.compile(pattern)
        deadline = time.monotonic() + DEADLINE_S
        seen = 0
        with self._news:
            while True:
                for line in self.lines[seen:]:
                    if match := compiled.search(line):
                        return match
                seen = len(self.lines)
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    raise AssertionError(f"{pattern!r} never came:\n{self.output}")
                self._news.wait(left)

    def ready(self):
        self.wait_for("^Ready: ")
        return self

    @property
    def port(self):
        return int(self.wait_for(r"^Listening: HTTP on .*?:(\d+)").group(1))

    @property
    def metrics_port(self):
        return int(self.wait_for(r"(?i)^Listening: metrics on .*?:(\d+)").group(1))

    @property
    def flight_port(self):
        return int(self.wait_for(r"^Listening: Flight on .*?:(\d+)").group(1))

    @property
    def base_url(self):
        return f"http://127.0.0.1:{self.port}"

    def connect(self, port=None):
        """A raw connection, with TLS where the engine has it."""
        connection = socket.create_connection(("127.0.0.1", port or self.port), timeout=DEADLINE_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.tls is not None:
            connection = self.tls.wrap_socket(connection, server_hostname="localhost")
        return Wire(connection)

    def request(self, method, path, body=None, headers=None, port=None):
        """One request on a connection of its own."""
        if self.tls is not None:
            client = http.client.HTTPSConnection(
                "localhost", self.port, timeout=DEADLINE_S, context=self.tls
            )
        else:
            client = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=DEADLINE_S)
        with contextlib.closing(client):
            client.request(method, path, body, headers or {})
            reply = client.getresponse()
            names = {name.lower(): value for name, value in reply.getheaders()}
            return Response(reply.status, names, reply.read())

    def get(self, path):
        return self.request("GET", path)

    def post(self, path, body, content_type=RECORDS, **headers):
        """Post a body, as JSON unless it is bytes; ``accept=…`` and the like are headers."""
        if not isinstance(body, bytes | bytearray):
            body = orjson.dumps(body)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if content_type is not None:
            given["Content-Type"] = content_type
        return self.request("POST", path, body, given)

    def metrics(self):
        """Every sample of ``/metrics`` by its name with labels."""
        text = self.request("GET", "/metrics", port=self.metrics_port).body.decode()
        samples = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def until_metric(self, name, wanted):
        """Block until a sample has this value; every look is a round trip, none a sleep."""
        deadline = time.monotonic() + DEADLINE_S
        while (value := self.metrics().get(name)) != wanted:
            assert time.monotonic() < deadline, f"{name} stayed {value}, not {wanted}"

    def until_connections_are(self, wanted):
        """Block until so many TCP connections to the HTTP port are open, the engine's side."""
        deadline = time.monotonic() + DEADLINE_S
        port = f":{self.port:04X}"
        while True:
            rows = self._tcp_table()
            open_ones = [row for row in rows if row[1].endswith(port) and row[3] == ESTABLISHED]
            if len(open_ones) == wanted:
                return
            assert time.monotonic() < deadline, open_ones

    def until_read(self, wire):
        """Block until the engine has read all that was sent on a raw connection."""
        deadline = time.monotonic() + DEADLINE_S
        ends = {f":{end[1]:04X}" for end in wire.ends}
        while True:
            rows = [row for row in self._tcp_table() if {row[1][-5:], row[2][-5:]} == ends]
            unsent_and_unread = [row[4] for row in rows]
            if unsent_and_unread == ["00000000:00000000"] * 2:  # of either side
                return
            assert time.monotonic() < deadline, rows

    def _tcp_table(self):
        rows = Path(f"/proc/{self.pid}/net/tcp").read_text().splitlines()[1:]
        return [row.split() for row in rows]

    def show_slowness(self, request):
        """Send a slow request until the engine has learned to run its like off the event loop."""
        while not any(value for name, value in self.metrics().items() if "queue_ns_sum" in name):
            assert self.post("/infer", request).status in {200, 504}  # slow enough for either

    def rss_bytes(self):
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def anonymous_bytes(self):
        """Resident memory without mapped files, such as the log's."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"RssAnon:\s+(\d+) kB", status).group(1)) * 1024

    def peak_rss_bytes(self):
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) * 1024

    def reset_peak_rss(self):
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def is_alive(self):
        return self.process.poll() is None

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def wait(self, deadline_s=DEADLINE_S):
        """The exit code, once the process has ended and all its output is read."""
        code = self.process.wait(deadline_s)
        self._reader.join(DEADLINE_S)
        return code

    def stop(self):
        """Stop as ``docker stop`` does; whatever happened before, the end must be clean."""
        if self.is_alive():
            self.terminate()
        self.end()

    def end(self):
        """Wait for the end that was asked for, which must be clean."""
        try:
            code = self.wait()
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.wait()
            raise
        assert code == 0, f"exit code {code}\n{self.output}"
        assert "Traceback" not in self.output, self.output

    def _read(self):
        with self.process.stdout as output:
            for line in output:
                with self._news:
                    self.lines.append(line.rstrip("\n"))
                    self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()


def _die_with_the_tests():
    """In the child: ask Linux for a SIGKILL once the test process is gone, however it went."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def stop_all(engines):
    """End every engine that a test has left running; then complain of the first bad end."""
    failures = []
    running = [engine for engine in engines if engine.process.returncode is None]
    for engine in running:
        engine.terminate()  # all of them first: they end side by side
    for engine in running:
        try:
            engine.end()
        except Exception as failure:  # noqa: BLE001 - the other engines must end too
            failures.append(failure)
    if failures:
        raise failures[0]


def has_data(wire, timeout_s):
    """Whether anything arrives on a raw connection in that time."""
    return bool(select.select([wire.connection], [], [], timeout_s)[0])


def inference_head(length, path="/infer", content_type=ARROW_FILE, extra=""):
    """The head of an inference request, as bytes."""
    return (
        f"POST {path} HTTP/1.1\r\nHost: edge\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {length}\r\n{extra}\r\n"
    ).encode()


def impatient_engine(folder, timeouts_s, **environ):
    """The real engine with shorter deadlines than it has, for tests that wait for them.

    Args:
        folder: of its pipeline.
        timeouts_s: seconds, by the constant's name below ``engine``.
        environ: its other settings.
    """
    program = ["import importlib, sys"]
    for name, seconds in timeouts_s.items():
        module, _, constant = f"engine.{name}".rpartition(".")
        program.append(f"setattr(importlib.import_module({module!r}), {constant!r}, {seconds})")
    program.append("sys.exit(importlib.import_module('engine.__main__').main(['serve']))")
    command = [sys.executable, "-c", "\n".join(program)]
    return Engine({"PIPELINE_URL": str(folder), **environ}, command).ready()
