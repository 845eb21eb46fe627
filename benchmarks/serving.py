"""Real servers in processes of their own, the load on them, and what it cost them.

The measure is the server's CPU time, user and system, of its whole process tree: it holds on a
busy machine, where requests a second do not.
"""

import contextlib
import dataclasses
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
CPUS = sorted(os.sched_getaffinity(0))


@dataclasses.dataclass(frozen=True)
class Load:
    """What one stretch of load gave: the server's CPU seconds, and the client's view."""

    cpu_s: float
    requests: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float

    def cpu_s_per_million_rows(self, rows):
        return self.cpu_s / (self.requests * rows) * 1e6


class Server:
    """A server that was started, pinned to its CPUs, and says when it is ready."""

    def __init__(self, arguments, threads, **environment):
        self._process = subprocess.Popen(
            [sys.executable, "-m", *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": os.getcwd(), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        os.sched_setaffinity(self._process.pid, CPUS[:threads])
        watchdog = threading.Timer(START_TIMEOUT_S, self._process.kill)
        watchdog.start()
        self.port = self.flight_port = 0
        self.said = []
        for line in self._process.stdout:
            self.said.append(line)
            if match := re.match(r"Listening: HTTP on .*:(\d+)", line):
                self.port = int(match[1])
            if match := re.match(r"Listening: Flight on .*:(\d+)", line):
                self.flight_port = int(match[1])
            if line.startswith("Ready"):
                break
        else:
            self._process.wait()
        watchdog.cancel()
        if self._process.poll() is not None:
            raise RuntimeError("the server did not start:\n" + "".join(self.said))
        self._reader = threading.Thread(target=lambda: self.said.extend(self._process.stdout))
        self._reader.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    @property
    def pid(self):
        return self._process.pid

    def cpu_s(self):
        """User and system time of the server and everything it started, s."""
        return sum(map(_cpu_s, _tree(self.pid)))

    def resident_bytes(self):
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024

    def post(self, workload):
        """One request's reply."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        headers = {"Content-Type": workload.content_type}
        connection.request("POST", "/infer", workload.body, headers)
        reply = connection.getresponse()
        text = reply.read()
        connection.close()
        assert reply.status == 200, text[:500]
        return text

    def stop(self):
        """End the server, which must still be running."""
        died = self._process.poll()
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        self._process.stdout.close()
        if died is not None:
            raise RuntimeError(f"the server ended with {died}:\n{''.join(self.said)}")


@contextlib.contextmanager
def engine(artifact, threads=1, **environment):
    """The engine on an artifact: metrics on, log off, one thread by default."""
    server = Server(
        ["engine", "serve"],
        threads,
        **{
            "PIPELINE_URL": str(artifact),
            "CONFIG_CPUS": str(threads),
            "BIND_HOST": "127.0.0.1",
            "HTTP_PORT": "0",
            "METRICS_PORT": "0",
            "FLIGHT_PORT": "",
            **environment,
        },
    )
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def bare_loop(model, threads=1):
    """The bare ASGI loop on the same model."""
    server = Server(["benchmarks.bare_loop", model, threads], threads)
    try:
        yield server
    finally:
        server.stop()


def drive(server, workload, folder, seconds):
    """Load the server with ``wrk`` for so long, from the CPUs that it does not have."""
    body = folder / "body"
    body.write_bytes(workload.body)
    script = folder / "post.lua"
    script.write_text(
        f'wrk.method = "POST"\n'
        f'wrk.headers["Content-Type"] = "{workload.content_type}"\n'
        f'wrk.body = io.open("{body}", "rb"):read("*a")\n'
    )
    started_s = server.cpu_s()
    finished = subprocess.run(
        [
            *("wrk", "--latency", "--timeout", "30s", "--threads", "1"),
            *("--connections", str(workload.connections), "--duration", f"{seconds}s"),
            *("--script", str(script), f"http://127.0.0.1:{server.port}/infer"),
        ],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, CPUS[-1:]),
    )
    cpu_s = server.cpu_s() - started_s  # fails where the server is gone
    text = finished.stdout
    if "Non-2xx" in text or "Socket errors" in text:
        raise RuntimeError(f"{text}\nthe server said:\n{''.join(server.said)}")
    return Load(
        cpu_s=cpu_s,
        requests=int(re.search(r"(\d+) requests in", text)[1]),
        requests_per_s=float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1]),
        p50_ms=_milliseconds(re.search(r"\n +50% +(\S+)", text)[1]),
        p99_ms=_milliseconds(re.search(r"\n +99% +(\S+)", text)[1]),
    )


def drive_flight(server, workload, folder, seconds):
    """Load the server's Flight port with one stream of the workload's rows for so long."""
    path = folder / "batch"
    path.write_bytes(workload.body)
    command = [sys.executable, "-m", "benchmarks.flight_client", server.flight_port, path, seconds]
    client = subprocess.Popen(
        list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert client.stdout.readline() == "ready\n"
    started_s = server.cpu_s()
    told = json.loads(client.communicate("go\n", timeout=seconds + STOP_TIMEOUT_S)[0])
    trips_ms = [trip / 1000 for trip in told["trips_us"]]
    return Load(
        cpu_s=server.cpu_s() - started_s,
        requests=told["batches"],
        requests_per_s=told["batches"] / told["seconds"],
        p50_ms=trips_ms[len(trips_ms) // 2],
        p99_ms=trips_ms[len(trips_ms) * 99 // 100],
    )


def _milliseconds(text):
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text).groups()
    return float(number) * {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}[unit]


def _cpu_s(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def _tree(pid):
    """A process and its descendants."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has just ended
            for child in (task / "children").read_text().split():
                found.extend(_tree(int(child)))
    return found
