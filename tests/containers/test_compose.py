"""``compose.yaml`` as the documentation uses it: up, curl, down; on docker and on podman."""

import os
import shutil
import subprocess
import sys

import pytest
from support.containers import (
    EXAMPLE,
    answers,
    free_port,
    missing,
    wait_until,
)
from support.docker_registry import PASSWORD, USER
from support.engine import ROOT


class Project:
    """A folder with the compose files, and the command that acts on it."""

    def __init__(self, folder, command, env, variables):
        self.folder, self.command, self.env = folder, command, os.environ | env
        lines = [f"{name}={value}" for name, value in variables.items()]
        (folder / ".env").write_text("\n".join(lines) + "\n")
        for path in ROOT.glob("compose*.yaml"):
            shutil.copy(path, folder)
        shutil.copytree(EXAMPLE, folder / "examples" / "house-price")
        self.url = f"http://127.0.0.1:{variables['EDGE_PORT']}"

    def __call__(self, *arguments):
        done = subprocess.run(
            [*self.command, *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=180,
            env=self.env,
            cwd=self.folder,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def wait_ready(self):
        try:
            wait_until(lambda: answers(f"{self.url}/healthz") == 200, f"{self.url} is ready")
        except AssertionError as error:
            raise AssertionError(self("logs")) from error


def variables_for(image):
    return {
        "SAGITTA_IMAGE": image,
        "EDGE_PORT": free_port(),
        "FLIGHT_PORT": free_port(),
        "CONFIG_CPUS": 4,
    }


def test_docker_compose_up_and_down(docker, registry, check_documented_requests, tmp_path):
    """The folder ``./data`` is docker's, so root's; the engine takes it over all the same."""
    if reason := missing("docker-compose"):
        pytest.skip(reason)
    address = docker.registry_address(registry)
    project = Project(
        tmp_path,
        ["docker-compose"],
        docker.env,
        variables_for(docker.image)
        | {
            "PIPELINE_URL": f"{address}/pipelines/house-price:v1",
            "OCI_REGISTRY": address,
            "OCI_USERNAME": USER,
            "OCI_PASSWORD": PASSWORD,
            "OCI_PLAIN_HTTP": "true",
            "LOCAL_INFERENCE_STORAGE": "100m",
            "PLATEAU_PAGE_SIZE": "100",
        },
    )
    try:
        project("up", "-d")
        project.wait_ready()
        check_documented_requests(project.url)
        assert (tmp_path / "data").stat().st_uid == 10001
        engine = project("ps", "-q", "engine").strip()
        project("stop")
        assert docker("inspect", engine, "--format", "{{.State.ExitCode}}").stdout == "0\n"
    finally:
        project("down")
    assert docker("ps", "-aq", "--filter", f"id={engine}").stdout == ""


def test_podman_compose_up_and_down(podman, check_documented_requests, tmp_path):
    command = [sys.executable, "-m", "podman_compose"]
    pytest.importorskip("podman_compose", reason="podman-compose is not installed")
    if reason := podman.cannot_run("--network", "bridge"):
        pytest.skip(f"podman has no bridge on this machine: {reason}")
    (tmp_path / "data").mkdir()
    (tmp_path / "layout.yaml").write_text(
        f'services: {{engine: {{volumes: ["{EXAMPLE}/pipeline:/pipeline:ro"]}}}}\n'
    )
    project = Project(
        tmp_path,
        [*command, "-f", "compose.yaml", "-f", "layout.yaml"],
        podman.env,
        variables_for(podman.image) | {"PIPELINE_URL": "oci-layout:/pipeline:v1"},
    )
    try:
        project("up", "-d")
        project.wait_ready()
        check_documented_requests(project.url)
        assert (tmp_path / "data").stat().st_uid == 10001
    finally:
        project("down")


REGISTRY_DOCKERFILE = """
FROM {image}
COPY docker-registry config.yml /
ENTRYPOINT ["/docker-registry", "serve", "/config.yml"]
CMD []
"""
REGISTRY_CONFIG = """
version: 0.1
storage: {filesystem: {rootdirectory: /var/lib/registry}}
http: {addr: ":5000"}
"""


@pytest.fixture
def registry_image(docker, tmp_path):
    """This machine's registry in an image, in the place of the public one."""
    if reason := missing("docker-registry"):
        pytest.skip(reason)
    folder = tmp_path / "registry-image"
    folder.mkdir()
    (folder / "Dockerfile").write_text(REGISTRY_DOCKERFILE.format(image=docker.image))
    (folder / "config.yml").write_text(REGISTRY_CONFIG)
    shutil.copy(shutil.which("docker-registry"), folder)
    docker("build", "-q", "-t", "sagitta-test-registry", str(folder))
    return "sagitta-test-registry"


def test_the_demo_publishes_and_serves(docker, registry_image, check_documented_requests, tmp_path):
    if reason := missing("docker-compose"):
        pytest.skip(reason)
    project = Project(
        tmp_path,
        ["docker-compose", "-f", "compose.demo.yaml"],
        docker.env,
        variables_for(docker.image) | {"REGISTRY_IMAGE": registry_image},
    )
    try:
        project("up", "-d")
        project.wait_ready()
        check_documented_requests(project.url)
    finally:
        project("down", "-v")
