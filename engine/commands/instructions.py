"""What to paste next, after a publish."""

import json
import shlex

from engine.publish.reference import LayoutReference, RegistryReference

__all__ = ["instructions"]

_MOUNTED = "/pipeline"


def instructions(target: RegistryReference | LayoutReference, digest: str, image: str) -> list[str]:
    """Lines that start the publish with Docker, Podman and Compose.

    Args:
        target: Where it was published, with its tag.
        digest: Of its manifest.
        image: The engine's.

    Returns:
        Lines, to be pasted as they are where the credentials are in the environment.
    """
    if isinstance(target, LayoutReference):
        url = f"oci-layout:{_MOUNTED}:{target.tag}"
        mount = f"{target.directory.resolve()}:{_MOUNTED}:ro"
        options = [f"-v {shlex.quote(mount)}", f"-e PIPELINE_URL={url}"]
        pinned = f"oci-layout:{_MOUNTED}@{digest}"
        variables = [f"PIPELINE_URL: {url}"]
        volumes = ["./data:/persist", mount]
    else:
        url = str(target)
        options = [
            "-e OCI_USERNAME=$OCI_USERNAME",
            "-e OCI_PASSWORD=$OCI_PASSWORD",
            f"-e PIPELINE_URL={url}",
        ]
        pinned = f"{target.registry}/{target.repository}@{digest}"
        variables = [
            f"PIPELINE_URL: {url}",
            "OCI_USERNAME: ${OCI_USERNAME}",
            "OCI_PASSWORD: ${OCI_PASSWORD}",
        ]
        volumes = ["./data:/persist"]
    run = [
        "-p 8080:8080",
        "-v $PWD/data:/persist",
        *options,
        "-e CONFIG_CPUS=1",
        image,
    ]
    return [
        f"PIPELINE_URL={target}",
        f"Digest: {digest}",
        f"To pin it, whatever becomes of the tag: PIPELINE_URL={pinned}",
        "",
        "Docker:",
        "mkdir -p data",
        *_command("docker run", run),
        "",
        "Podman:",
        "mkdir -p data",
        *_command("podman run", run),
        "",
        "Compose:",
        "services:",
        "  engine:",
        f"    image: {image}",
        "    ports: ['8080:8080']",
        f"    volumes: {json.dumps(volumes)}",
        "    environment:",
        *(f"      {variable}" for variable in variables),
        "      CONFIG_CPUS: 1",
    ]


def _command(program: str, options: list[str]) -> list[str]:
    lines = [program, *(f"    {option}" for option in options)]
    return [f"{line} \\" for line in lines[:-1]] + [lines[-1]]
