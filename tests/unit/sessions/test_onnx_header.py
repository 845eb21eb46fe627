import pytest
from support import models

from engine.errors import StartupError
from engine.sessions.onnx_header import OnnxHeader, read_onnx_header


def test_what_a_model_says_of_itself(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(models.linear())

    assert read_onnx_header(path) == OnnxHeader(8, "", {"ai.onnx": 17, "ai.onnx.ml": 3})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08",
        b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x3a\xff\xff\xff\xff\x0f",
        b"\x0f",
        b"PK\x03\x04 a zip file",
        b"\x08\x08",
        b"<!DOCTYPE html>",
        b"\x08\x08\x42\x02\x10",
        b"\x08\x08\x40\x01",
    ],
)
def test_other_files_are_named(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)

    with pytest.raises(StartupError, match=r"model.onnx is not an ONNX file"):
        read_onnx_header(path)


def test_every_cut_of_a_model_ends_in_an_error_or_a_header(tmp_path):
    content = models.linear()
    path = tmp_path / "model.onnx"
    for size_bytes in range(len(content)):
        path.write_bytes(content[:size_bytes])
        try:
            assert read_onnx_header(path).ir_version == 8
        except StartupError:
            continue
