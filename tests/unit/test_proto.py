"""Generated code is that of its source: regenerated here and compared."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "proto").rglob("*.proto"))


def test_there_are_sources():
    assert SOURCES


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_generated_code_is_current(source, tmp_path):
    protoc = pytest.importorskip("grpc_tools.protoc", reason="grpcio-tools is not installed")
    name = source.relative_to(ROOT / "proto")
    arguments = [f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", str(name)]

    assert protoc.main(["protoc", f"-I{ROOT / 'proto'}", *arguments]) == 0

    made = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert made
    for path in made:
        committed = ROOT / "engine" / "_proto" / path.relative_to(tmp_path)
        assert committed.read_text() == path.read_text(), f"run `make proto` ({committed})"
