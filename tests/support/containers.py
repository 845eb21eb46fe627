"""Podman and docker as the tests use them: the documented command lines, and what came of them."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

from support.docker_registry import PASSWORD, USER, DockerRegistry, with_password
from support.engine import ROOT

EXAMPLE = ROOT / "examples" / "house-price"
READY_DEADLINE_S = 60


def free_port(host="127.0.0.1"):
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def wait_until(condition, what, deadline_s=READY_DEADLINE_S):
    """Ask until the answer is true; a deadline against hanging, not a measure of speed."""
    end = time.monotonic() + deadline_s
    while not (answer := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline_s} s: {what}")
        time.sleep(0.02)
    return answer


def answers(url):
    """The status that ``url`` answers, or None while nothing listens."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def curl(*arguments):
    """Run the real curl, as the documented lines do; its output as text."""
    done = subprocess.run(
        ["curl", "-sS", *arguments], check=False, capture_output=True, timeout=60, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Registry:
    """A password-protected registry that holds the example; ``address`` is on loopback."""

    def __init__(self, folder):
        self.running = [with_password(folder)]
        self.address = self.running[0].address

    def publish_example(self):
        """As a user does: the command line of this checkout, and its credentials."""
        done = subprocess.run(
            [
                *(sys.executable, "-m", "engine", "publish", EXAMPLE / "house-price.onnx"),
                *("--tensor-fields", "tensor", "--to", f"{self.address}/pipelines/house-price:v1"),
            ],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
            cwd=ROOT,
            env=os.environ | {"OCI_USERNAME": USER, "OCI_PASSWORD": PASSWORD},
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def also_on(self, host):
        """The address of the same registry on another interface of this machine."""
        first = self.running[0]
        self.running.append(DockerRegistry(first.folder, first.auth, host=host))
        return self.running[-1].address

    def close(self):
        for registry in self.running:
            registry.stop()


class Runtime:
    """One of the two commands, with the image of this checkout under ``image``."""

    network = ()  # what a container needs to reach the registry on this machine's loopback

    def __init__(self, command, image, env):
        self.command, self.image, self.env = command, image, os.environ | env
        self.started = []

    def __call__(self, *arguments, check=True, timeout=120):
        done = subprocess.run(
            [*self.command, *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=self.env,
        )
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    def run(self, *flags, command=(), network=None, publish=True):
        """``run -d`` with the flags of a documented line; returns at once."""
        name = f"sagitta-test-{secrets.token_hex(6)}"
        self.started.append(name)
        port, flight_port = free_port(), free_port()
        flags = [*(self.network if network is None else network), *flags]
        if publish:
            flags += ["-p", f"127.0.0.1:{port}:8080", "-p", f"127.0.0.1:{flight_port}:8815"]
        self("run", "-d", "--name", name, *flags, self.image, *command)
        return Container(self, name, f"http://127.0.0.1:{port}", f"grpc://127.0.0.1:{flight_port}")

    def cannot_run(self, *flags):
        """Why not even ``true`` runs with ``flags``, which is the machine's doing; else empty."""
        done = self(
            *("run", "--rm", "--cpus=0.5", "--memory=64m", *flags, "--entrypoint", "true"),
            self.image,
            check=False,
        )
        return done.stderr.strip().splitlines()[-1] if done.returncode else ""

    def close(self):
        for name in self.started:  # one by one: podman removes none where one is missing
            self("rm", "-f", "-v", name, check=False)


class Podman(Runtime):
    name = "podman"
    network = ("--network", "slirp4netns:allow_host_loopback=true")

    def registry_address(self, registry):
        return registry.address.replace("127.0.0.1", "10.0.2.2")


class Docker(Runtime):
    """Docker with a daemon of its own, started and ended here."""

    name = "docker"
    bridge = "10.87.65.1"  # this machine, as the containers see it

    def __init__(self, folder, image):
        socket_path = folder / "docker.sock"
        super().__init__(["docker"], image, {"DOCKER_HOST": f"unix://{socket_path}"})
        self.folder = folder
        with (folder / "dockerd.log").open("w") as log:
            self.daemon = subprocess.Popen(
                [
                    *("dockerd", "--data-root", folder / "data", "--exec-root", folder / "exec"),
                    *("-H", f"unix://{socket_path}", "-p", folder / "docker.pid"),
                    *("--bip", f"{self.bridge}/24"),
                ],
                stdout=log,
                stderr=log,
            )

    def cannot_start(self):
        """Wait until it listens; where it ended instead, its last words; else empty."""

        def listens():
            return self("info", check=False).returncode == 0

        log = self.folder / "dockerd.log"
        wait_until(
            lambda: self.daemon.poll() is not None or listens(), f"dockerd listens; see {log}"
        )
        return "" if self.daemon.poll() is None else log.read_text().strip().splitlines()[-1]

    def registry_address(self, registry):
        return registry.also_on(self.bridge)

    def close(self):
        super().close()
        self.daemon.send_signal(signal.SIGTERM)
        self.daemon.wait(timeout=120)
        for path in (self.folder / "exec" / "netns").glob("*"):
            subprocess.run(["umount", path], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", "docker0"], check=False, capture_output=True)
        shutil.rmtree(self.folder / "data", ignore_errors=True)  # a gigabyte of image layers


class Container:
    """A started container of the engine."""

    def __init__(self, runtime, name, url, flight_url):
        self.runtime, self.name, self.url, self.flight_url = runtime, name, url, flight_url

    def wait_ready(self):
        def ready():
            assert self.inspect("{{.State.Running}}") == "true", self.logs()
            return answers(f"{self.url}/healthz") == 200

        wait_until(ready, f"{self.name} is ready")
        return self

    def inspect(self, template):
        return self.runtime("inspect", self.name, "--format", template).stdout.strip()

    def logs(self):
        done = self.runtime("logs", self.name)
        return done.stdout + done.stderr

    def exec(self, *command, user="0"):
        return self.runtime("exec", "-u", user, self.name, *command).stdout

    def python(self, code, user="0"):
        return self.exec("/opt/sagitta/bin/python", "-I", "-c", code, user=user)

    def process_one(self):
        """Facts on PID 1, from inside: the words behind each name of its status."""
        lines = self.python("print(open('/proc/1/status').read())").splitlines()
        return {name: words.split() for name, _, words in (line.partition(":") for line in lines)}

    def wait_exit(self):
        """Exit code, once it has ended by itself."""
        wait_until(lambda: self.inspect("{{.State.Running}}") == "false", f"{self.name} ends")
        return int(self.inspect("{{.State.ExitCode}}"))

    def stop(self):
        """``stop`` with the 10 s that docker gives; a killed engine would exit 137."""
        self.runtime("stop", "-t", "10", self.name)
        return int(self.inspect("{{.State.ExitCode}}"))


@contextlib.contextmanager
def closing(runtime):
    try:
        yield runtime
    finally:
        runtime.close()


def missing(*programs):
    """Those of ``programs`` that this machine lacks, as a reason to skip; empty when none."""
    absent = [program for program in programs if shutil.which(program) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""
