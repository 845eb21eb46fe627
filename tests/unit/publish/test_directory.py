import json

import pytest
from support.artifacts import open_quietly, sha256

from engine.errors import StartupError
from engine.publish.artifact import version_of
from engine.publish.reference import DirectoryReference

CONTENT = b"a model"
SHA = sha256(CONTENT)


def open_directory(root, *models, report=lambda line: None):
    named = [{"name": model["name"]} for model in models]
    config = {"id": "p", "steps": [{"ModelInference": {"models": named}}], "models": models}
    (root / "pipeline.json").write_text(json.dumps(config))
    return open_quietly(DirectoryReference(root), root / "unused", report=report)


@pytest.mark.parametrize(
    ("model", "file"),
    [
        ({"name": "m"}, "m.onnx"),
        ({"name": "m", "sha": SHA}, SHA),
        ({"name": "m", "sha": SHA}, "m.onnx"),
        ({"name": "m", "file": "sub/any name"}, "sub/any name"),
    ],
)
def test_model_files_are_found(tmp_path, model, file):
    (tmp_path / "sub").mkdir()
    (tmp_path / file).write_bytes(CONTENT)
    lines = []
    artifact = open_directory(tmp_path, model, report=lines.append)

    layer = artifact.layers[0]
    assert (layer.path, layer.sha, layer.size_bytes) == (tmp_path / file, SHA, len(CONTENT))
    assert layer.version == version_of(SHA)
    assert (artifact.version, artifact.digest) == (None, None)
    assert lines[0] == f"Fetching manifest and config for pipeline: {tmp_path}"
    assert lines[2] == f"digest: sha256:{SHA}"


def test_a_version_given_is_kept(tmp_path):
    (tmp_path / "m.onnx").write_bytes(CONTENT)

    assert open_directory(tmp_path, {"name": "m", "version": "7"}).layers[0].version == "7"


def test_a_mounted_config_map_is_read(tmp_path):
    """Kubernetes mounts files as links into a dated folder beside them."""
    root = tmp_path / "mount"
    (root / "..2026").mkdir(parents=True)
    (root / "..2026" / "m.onnx").write_bytes(CONTENT)
    (root / "..data").symlink_to("..2026")
    (root / "m.onnx").symlink_to("..data/m.onnx")

    assert open_directory(root, {"name": "m"}).layers[0].sha == SHA


@pytest.mark.parametrize("file", ["../m.onnx", "/etc/passwd", "link.onnx", "sub/../../m.onnx"])
def test_files_outside_the_directory_are_refused(tmp_path, file):
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (tmp_path / "m.onnx").write_bytes(CONTENT)
    (root / "link.onnx").symlink_to(tmp_path / "m.onnx")

    with pytest.raises(StartupError, match="leads out of"):
        open_directory(root, {"name": "m", "file": file})


def test_a_name_that_leads_outside_is_refused(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "m.onnx").write_bytes(CONTENT)

    with pytest.raises(StartupError, match="leads out of"):
        open_directory(root, {"name": "../m"})


def test_another_sha_is_refused(tmp_path):
    (tmp_path / "m.onnx").write_bytes(CONTENT)

    with pytest.raises(StartupError, match=f"has the sha {SHA}"):
        open_directory(tmp_path, {"name": "m", "sha": "0" * 64})


@pytest.mark.parametrize("model", [{"name": "m"}, {"name": "m", "file": "x.onnx"}])
def test_a_missing_file_is_named(tmp_path, model):
    with pytest.raises(StartupError, match=f"looked for {model.get('file', 'm.onnx')}"):
        open_directory(tmp_path, model)


@pytest.mark.parametrize("model", [{"name": "m" * 300}, {"name": "m", "file": "x/" * 3000}])
def test_a_name_that_is_too_long_is_refused(tmp_path, model):
    with pytest.raises(StartupError, match="is no file name: File name too long"):
        open_directory(tmp_path, model)


def test_a_directory_without_definition_is_refused(tmp_path):
    with pytest.raises(StartupError, match=r"pipeline.json: No such file"):
        open_quietly(DirectoryReference(tmp_path), tmp_path / "unused")


def test_a_directory_cannot_be_signed(tmp_path):
    with pytest.raises(StartupError, match="plain directory, which has no signature"):
        open_quietly(
            DirectoryReference(tmp_path), tmp_path / "unused", verify_key_file=tmp_path / "key"
        )
