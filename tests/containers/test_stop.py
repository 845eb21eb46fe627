"""``stop`` of a container: what is open is answered, and the engine exits 0 in time."""

import collections
import concurrent.futures
import http.client
import json
import pathlib
import signal

import pytest
from support import models
from support.containers import EXAMPLE, curl, wait_until

JSON_HEADER = "Content-Type: application/json; format=pandas-records"
ARROW_TYPE = "application/vnd.apache.arrow.file"


def test_stop_while_it_starts(runtime, from_layout):
    """PID 1 ignores a signal that it has no handler for: the entry point has one at once."""
    container = runtime.run(*from_layout)
    status = pathlib.Path("/proc", container.inspect("{{.State.Pid}}"), "status")

    def handles_sigterm():
        caught = status.read_text().partition("SigCgt:")[2].split()[0]
        return int(caught, 16) >> (signal.SIGTERM - 1) & 1

    wait_until(handles_sigterm, "the entry point runs")
    assert container.stop() == 0


def test_stop_under_load_fails_no_request(runtime, from_layout):
    """Every request that was sent is answered, the last one with ``Connection: close``; exit 0."""
    container = runtime.run(*from_layout, "-e", "CONFIG_CPUS=1").wait_ready()
    body = (EXAMPLE / "houses.arrow").read_bytes()
    headers = {"Content-Type": ARROW_TYPE}
    statuses, failures = collections.Counter(), []

    def client():
        connection = http.client.HTTPConnection(container.url.rpartition("/")[2], timeout=30)
        connection.connect()
        for _ in range(20_000):
            try:
                connection.request("POST", "/infer", body, headers)
                response = connection.getresponse()
                response.read()
            except OSError as error:
                return failures.append(repr(error))
            statuses[response.status] += 1
            if response.will_close:
                return connection.close()
        return failures.append("the engine was never stopped")

    with concurrent.futures.ThreadPoolExecutor(8) as clients:
        running = [clients.submit(client) for _ in range(8)]
        wait_until(lambda: statuses[200] > 50, "requests are answered")
        code = container.stop()
        for future in running:
            future.result()

    assert code == 0
    assert failures == []
    assert set(statuses) <= {200, 503}


class SlowEngine:
    """A container whose model counts to the number it is sent: a run as long as one likes."""

    def __init__(self, container):
        self.container = container
        while not self.metric("sagitta_queue_ns_sum"):  # until it has learned that runs are long
            curl(
                "-X",
                "POST",
                f"{container.url}/infer",
                "-H",
                JSON_HEADER,
                "--data",
                '[{"x": [200000]}]',
            )

    def metric(self, name):
        text = self.container.python(
            "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9000/metrics').read().decode())"
        )
        lines = [line.split() for line in text.splitlines() if line.startswith(name)]
        return sum(float(line[-1]) for line in lines)

    def connect(self):
        connection = http.client.HTTPConnection(self.container.url.rpartition("/")[2], timeout=60)
        connection.connect()
        return connection

    def begin_run(self, steps):
        """Send a request that runs long, and return its connection once it runs."""
        connection = self.connect()
        connection.request(
            "POST", "/infer", b'[{"x": [%d]}]' % steps, {"Content-Type": "application/json"}
        )
        wait_until(lambda: self.metric("sagitta_slots_busy") == 1, "the model runs")
        return connection

    def terminate(self):
        self.container.runtime("kill", "-s", "TERM", self.container.name)
        wait_until(lambda: "Stopping: " in self.container.logs(), "the engine has the signal")


@pytest.fixture
def slow_engine(runtime, tmp_path):
    folder = models.write_pipeline(tmp_path / "pipeline", models.slow())
    flags = ["-v", f"{folder}:/pipeline:ro", "-e", "PIPELINE_URL=/pipeline", "-e", "CONFIG_CPUS=1"]
    return SlowEngine(runtime.run(*flags, "-e", "SHUTDOWN_GRACE_S=600").wait_ready())


def test_readiness_goes_first_and_what_runs_is_answered(slow_engine):
    running, probe = slow_engine.begin_run(3_000_000), slow_engine.connect()

    slow_engine.terminate()
    probe.request("GET", "/healthz")

    health = probe.getresponse()
    assert (health.status, json.loads(health.read())) == (503, {"status": "Draining"})
    answer = running.getresponse()
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert slow_engine.container.wait_exit() == 0
    running.close()
    probe.close()


def test_a_second_signal_ends_it_at_once(slow_engine):
    running = slow_engine.begin_run(1_000_000_000)  # an hour

    slow_engine.terminate()
    slow_engine.container.runtime("kill", "-s", "TERM", slow_engine.container.name)

    assert slow_engine.container.wait_exit() == 0
    running.close()
