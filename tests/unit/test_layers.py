"""The import directions of engine/, as a test: a part may import only parts on rows above it."""

import ast
import pathlib

import pytest

ENGINE = pathlib.Path(__file__).parents[2] / "engine"
LAYERS = [
    {"errors", "__init__"},
    {"values", "budget", "config", "console", "metrics", "process", "refusal", "tokens", "_proto"},
    {"batching", "codecs", "edge", "http2", "listening"}
    | {"logring", "pipeline", "publish", "sessions"},
    {"request"},
    {"running", "turn"},
    {"dataplane"},
    {"flight", "loading", "options", "rest"},
    {"app", "commands", "ops"},
    {"__main__"},
]
RANK = {part: row for row, parts in enumerate(LAYERS) for part in parts}
OWNER = {  # third-party package -> the only parts that may import it
    "starlette": {"rest", "ops"},
    "uvicorn": {"rest", "ops"},
    "pyarrow.flight": {"flight"},
    "hpack": {"http2"},
    "onnxruntime": {"sessions"},
    "lmdb": {"logring"},
    "oras": {"publish"},
    "grpc": {"edge", "ops"},
}


def imported_names(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(
    "path", sorted(ENGINE.rglob("*.py")), ids=lambda path: str(path.relative_to(ENGINE))
)
def test_imports_point_down(path):
    part = path.relative_to(ENGINE).parts[0].removesuffix(".py")
    for name in imported_names(path):
        head, *rest = name.split(".")
        if head == "engine" and rest and rest[0] != part and rest[0] != "__version__":
            assert RANK.get(rest[0], len(LAYERS)) < RANK[part], f"{path} imports {name}"
        for package, owners in OWNER.items():
            if name == package or name.startswith(f"{package}."):
                assert part in owners, f"{package} belongs to {owners}, not {path}"


def test_only_the_command_reads_the_environment():
    readers = {p.name for p in ENGINE.rglob("*.py") if "os.environ" in p.read_text()}

    assert readers <= {"__main__.py"}
