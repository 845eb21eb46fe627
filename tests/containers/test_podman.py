"""What only Podman does: containers of an ordinary user, and units that systemd boots."""

import contextlib
import json
import os
import pathlib
import pwd
import shlex
import shutil
import signal
import subprocess
import tempfile

import pytest
from support.containers import (
    EXAMPLE,
    answers,
    curl,
    free_port,
    missing,
    wait_until,
)
from support.docker_registry import PASSWORD, USER
from support.engine import ROOT

ACCOUNT = "sagitta-rootless"
ROOTLESS_CONF = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""


@pytest.fixture
def account():
    """A fresh ordinary user with a home and subordinate ids of its own."""
    if reason := missing("useradd", "newuidmap"):
        pytest.skip(reason)
    if os.geteuid() != 0:
        pytest.skip("only root can make the user")
    with contextlib.suppress(KeyError):  # of a run that was killed
        pwd.getpwnam(ACCOUNT)
        wait_until(lambda: remove_account(ACCOUNT), f"no process of {ACCOUNT} is left")
    home = pathlib.Path(tempfile.mkdtemp(prefix="rootless-", dir="/var/tmp"))
    subprocess.run(["useradd", "-M", "-d", home, ACCOUNT], check=True)
    entry = pwd.getpwnam(ACCOUNT)
    os.chown(home, entry.pw_uid, entry.pw_gid)
    try:
        yield entry
    finally:
        wait_until(lambda: remove_account(ACCOUNT), f"no process of {ACCOUNT} is left")
        shutil.rmtree(home)


def remove_account(name):
    """End what rootless podman keeps running for the user, and remove it; whether that worked."""
    uid = pwd.getpwnam(name).pw_uid
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if process.stat().st_uid == uid:
                os.kill(int(process.name), signal.SIGTERM)
    return subprocess.run(["userdel", name], check=False, capture_output=True).returncode == 0


def test_rootless(podman, account, expected):
    """``-v ./data:/persist`` of an ordinary user: root in there is that user, outside nobody."""
    home = pathlib.Path(account.pw_dir)
    podman("save", "-q", "--format", "docker-archive", "-o", f"{home}/image.tar", podman.image)
    (home / "image.tar").chmod(0o644)
    (home / "containers.conf").write_text(ROOTLESS_CONF)
    shutil.copytree(EXAMPLE / "pipeline", home / "pipeline")
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "XDG_RUNTIME_DIR": str(home / "run"),
        "CONTAINERS_CONF": str(home / "containers.conf"),
    }
    ids = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": [], "cwd": home}

    def rootless(*command):
        return subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=300, env=env, **ids
        )

    port = free_port()
    rootless("mkdir", "-m", "700", "run")
    try:
        rootless("podman", "unshare", "true")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"ordinary users have no containers on this machine: {error.stderr.strip()}")
    rootless("mkdir", "data")
    try:
        rootless("podman", "load", "-q", "-i", "image.tar")
        with (home / "log").open("w") as log:
            # The host's network: /dev/net/tun, which the others need, is not everywhere a user's.
            engine = subprocess.Popen(
                [
                    *("podman", "run", "--rm", "--network", "host", "-v", f"{home}/data:/persist"),
                    *("-v", f"{home}/pipeline:/pipeline:ro", "-e", f"HTTP_PORT={port}"),
                    *("-e", "BIND_HOST=127.0.0.1", "-e", "FLIGHT_PORT=0", "-e", "METRICS_PORT=0"),
                    *("-e", "PIPELINE_URL=oci-layout:/pipeline:v1", podman.image),
                ],
                stdout=log,
                stderr=log,
                env=env,
                **ids,
            )
        url = f"http://127.0.0.1:{port}"
        wait_until(
            lambda: engine.poll() is not None or answers(f"{url}/healthz") == 200, "it is ready"
        )
        assert engine.poll() is None, (home / "log").read_text()
        answer = curl(
            *("-X", "POST", f"{url}/infer", "--data-binary", f"@{EXAMPLE}/houses.arrow"),
            *("-H", "Content-Type: application/vnd.apache.arrow.file"),
        )
        data = json.loads(answer)[0]["outputs"][0]["Float"]["data"]
        assert data == pytest.approx(expected, rel=1e-6)
        assert (home / "data").stat().st_uid not in (0, 10001, account.pw_uid)
        assert "not writable" not in (home / "log").read_text()
        engine.send_signal(signal.SIGTERM)
        assert engine.wait(timeout=30) == 0
    finally:
        rootless("podman", "unshare", "rm", "-rf", "data", ".local")


QUADLET = {  # key of a [Container] section -> the flag that Quadlet makes of it
    "ContainerName": "--name={}",
    "EnvironmentFile": "--env-file={}",
    "PublishPort": "-p={}",
    "Volume": "-v={}",
    "User": "--user={}",
    "ReadOnly": "--read-only={}",
    "DropCapability": "--cap-drop={}",
    "NoNewPrivileges": "--security-opt=no-new-privileges",
}


def test_the_quadlet_unit_serves(podman, registry, tmp_path):
    """The unit's own settings, as the flags that Podman's generator makes of them."""
    address = podman.registry_address(registry)
    (tmp_path / "edge.env").write_text(
        f"PIPELINE_URL={address}/pipelines/house-price:v1\nOCI_USERNAME={USER}\n"
        f"OCI_PASSWORD={PASSWORD}\nOCI_PLAIN_HTTP=true\nCONFIG_CPUS=1\n"
    )
    text = (ROOT / "docs" / "sagitta.container").read_text()
    section = text.partition("[Container]\n")[2].partition("\n[")[0]
    pairs = [line.split("=", 1) for line in section.splitlines() if line and line[0] != "#"]
    port = free_port()
    flags = []
    for key, value in pairs:
        if key == "PodmanArgs":
            flags += shlex.split(value)
        elif key == "PublishPort":
            if value.endswith("8080:8080"):
                flags.append(f"-p=127.0.0.1:{port}:8080")
        elif key == "EnvironmentFile":
            flags.append(f"--env-file={tmp_path / 'edge.env'}")
        elif key != "Image":
            flags.append(QUADLET[key].format(value))
    podman.started.append("sagitta")
    try:
        podman("run", "-d", *podman.network, *flags, podman.image)
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/healthz") == 200, "the unit serves")
        assert "not writable" not in podman("logs", "sagitta").stderr
        podman("stop", "-t", "10", "sagitta")
        assert podman("inspect", "sagitta", "--format", "{{.State.ExitCode}}").stdout == "0\n"
    finally:
        podman("rm", "-f", "-t", "0", "sagitta", check=False)
        podman("volume", "rm", "-f", "sagitta-data", check=False)
