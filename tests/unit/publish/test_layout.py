import json
import os
import subprocess
import sys

import pytest
from support.artifacts import LayoutWriter, definition, open_quietly, sha256

from engine.errors import StartupError
from engine.publish.reference import LayoutReference

MODELS = {"a": b"model a", "b": b"model b" * 1000}


def open_layout(directory, tag=None, digest=None, report=lambda line: None):
    reference = LayoutReference(directory, tag, digest)
    return open_quietly(reference, directory / "unused", report=report)


@pytest.fixture
def writer(tmp_path):
    return LayoutWriter(tmp_path / "layout")


def test_an_artifact_is_found_by_tag_and_reported(writer):
    manifest = writer.manifest(MODELS)
    writer.tag(writer.manifest({"c": b"other"}), "v0")
    writer.tag(manifest, "v1")
    lines = []
    artifact = open_layout(writer.directory, "v1", report=lines.append)

    sha = sha256(b"model a")
    assert (artifact.version, artifact.digest) == ("v1", manifest["digest"])
    assert json.loads(artifact.definition)["id"] == "house-price"
    assert [layer.path.read_bytes() for layer in artifact.layers] == list(MODELS.values())
    assert lines[:9] == [
        f"Fetching manifest and config for pipeline: oci-layout:{writer.directory}:v1",
        "Fetching model layers",
        f"digest: sha256:{sha}",
        f"  filename: {sha}",
        "  name: a",
        "  type: model",
        "  runtime: onnx",
        "  version: a-1",
        "  Fetched",
    ]


@pytest.mark.parametrize("name", ["v1", "ghcr.io/team/p:v1"])
def test_the_only_artifact_needs_no_tag(writer, name):
    writer.tag(writer.manifest(MODELS), name)

    assert open_layout(writer.directory).layers[0].name == "a"
    assert open_layout(writer.directory, "v1").layers[0].name == "a"


def test_an_artifact_is_found_by_digest(writer):
    wanted = writer.manifest(MODELS)
    writer.tag(writer.manifest({"c": b"other"}))
    writer.tag(wanted)

    assert open_layout(writer.directory, digest=wanted["digest"]).digest == wanted["digest"]
    with pytest.raises(StartupError, match="0 artifacts of the layout fit"):
        open_layout(writer.directory, digest=f"sha256:{'0' * 64}")


def test_nested_indexes_are_followed_by_platform(writer, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    wanted = writer.manifest(MODELS)
    inner = writer.json_blob(
        {
            "manifests": [
                {
                    **writer.manifest({"c": b"x"}),
                    "platform": {"os": "linux", "architecture": "amd64"},
                },
                {**wanted, "platform": {"os": "linux", "architecture": "arm64"}},
            ]
        }
    )
    writer.tag(writer.json_blob({"manifests": [inner]}), "v1")

    assert [layer.name for layer in open_layout(writer.directory, "v1").layers] == ["a", "b"]


def test_an_index_that_holds_itself_ends(writer):
    entry = writer.json_blob({"manifests": []})
    for _ in range(6):
        entry = writer.json_blob({"manifests": [entry]})
    writer.tag(entry, "v1")

    with pytest.raises(StartupError, match="nested"):
        open_layout(writer.directory, "v1")


def test_layers_are_found_by_name_when_the_definition_has_no_sha(writer):
    config = {"id": "p", "steps": [{"ModelInference": {"models": [{"name": "a"}]}}]}
    layer = writer.blob(
        b"model a", annotations={"name": "a", "version": "7", "wallaroo_file_type": "model"}
    )
    other = writer.blob(b"other", annotations={"org.opencontainers.image.title": "b.onnx"})
    writer.tag(writer.manifest({}, config, [other, layer]), "v1")
    found = open_layout(writer.directory, "v1").layers[0]

    assert (found.sha, found.version) == (sha256(b"model a"), "7")


def test_annotations_cannot_steer_a_terminal(writer):
    annotations = {"name": "a", "version": "1\x1b[31m\n2", "wallaroo_file_type": "model"}
    config = {"id": "p", "steps": [{"ModelInference": {"models": [{"name": "a"}]}}]}
    layer = writer.blob(b"model a", annotations=annotations)
    writer.tag(writer.manifest({}, config, [layer]), "v1")

    assert open_layout(writer.directory, "v1").layers[0].version == "1\ufffd[31m\ufffd2"


def damage(writer, digest, content):
    writer.path(digest).write_bytes(content)


@pytest.mark.parametrize("which", ["manifest", "config", "layer"])
@pytest.mark.parametrize("how", ["short", "long", "changed", "missing", "link", "folder"])
def test_every_blob_is_verified(writer, tmp_path, which, how):
    config = writer.json_blob(definition(MODELS))
    manifest = writer.manifest(MODELS)
    digest = {
        "manifest": manifest["digest"],
        "config": config["digest"],
        "layer": f"sha256:{sha256(MODELS['b'])}",
    }[which]
    writer.tag(manifest, "v1")
    path = writer.path(digest)
    content = path.read_bytes()
    path.unlink()
    match how:
        case "short":
            path.write_bytes(content[:-1])
        case "long":
            path.write_bytes(content + b" ")
        case "changed":
            path.write_bytes(content[:-1] + b"\x00")
        case "link":
            (tmp_path / "outside").write_bytes(content)
            path.symlink_to(tmp_path / "outside")
        case "folder":
            path.mkdir()

    with pytest.raises(StartupError, match=digest.removeprefix("sha256:")[:20]):
        open_layout(writer.directory, "v1")


def test_a_linked_blob_folder_is_refused(writer):
    writer.tag(writer.manifest(MODELS), "v1")
    blobs = writer.directory / "blobs"
    blobs.rename(writer.directory.parent / "elsewhere")
    blobs.symlink_to(writer.directory.parent / "elsewhere")

    with pytest.raises(StartupError, match="symbolic link"):
        open_layout(writer.directory, "v1")


def test_a_pipe_in_place_of_the_index_does_not_hang(writer):
    (writer.directory / "index.json").unlink()
    os.mkfifo(writer.directory / "index.json")

    with pytest.raises(StartupError, match="not a regular file"):
        open_layout(writer.directory)


BAD_DESCRIPTORS = [
    {"digest": "sha256:../../etc/passwd"},
    {"digest": f"sha256:{'A' * 64}"},
    {"digest": f"sha512:{'0' * 128}"},
    {"digest": 7},
    {"size": -1},
    {"size": True},
    {"size": "9"},
    {"annotations": {"filename": "../../x"}},
    {"annotations": {"filename": "/etc/passwd"}},
    {"annotations": {"org.opencontainers.image.title": "a\x00b"}},
    {"annotations": {"org.opencontainers.image.title": "x" * 300}},
]


@pytest.mark.parametrize("change", BAD_DESCRIPTORS, ids=str)
def test_descriptors_that_mean_harm_are_refused(writer, change):
    layer = {**writer.blob(b"model a"), **change}
    writer.tag(writer.manifest({"a": b"model a"}, layers=[layer]), "v1")

    with pytest.raises(StartupError, match=r"layers\[0\]"):
        open_layout(writer.directory, "v1")


def test_a_model_without_a_layer_is_named(writer):
    layer = writer.blob(b"other", annotations={"name": "other"})
    writer.tag(writer.manifest(MODELS, layers=[layer]), "v1")

    with pytest.raises(StartupError, match="0 layers for model 'a' a-1 sha"):
        open_layout(writer.directory, "v1")


def test_several_artifacts_need_a_tag(writer):
    writer.tag(writer.manifest(MODELS), "v1")
    writer.tag(writer.manifest({"c": b"other"}), "v2")

    with pytest.raises(StartupError, match="it holds v1, v2"):
        open_layout(writer.directory)


@pytest.mark.parametrize("marker", ["{}", "[]", "x", '{"imageLayoutVersion": "2.0"}'])
def test_other_directories_are_not_layouts(writer, marker):
    (writer.directory / "oci-layout").write_text(marker)

    with pytest.raises(StartupError, match="imageLayoutVersion"):
        open_layout(writer.directory)


def test_serving_without_a_registry_loads_nothing_that_talks_to_one():
    heavy = "{'oras', 'requests', 'urllib3', 'cryptography'}"
    code = f"import sys, engine.app; print(*{heavy} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )

    assert done.stdout.split() == []
