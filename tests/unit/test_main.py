"""The ``sagitta`` command: exit codes, lazy imports, and secrets kept out of its last words."""

import base64
import importlib.metadata
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import engine
from engine.__main__ import COMMANDS, main
from engine.config import EngineConfig
from engine.errors import ConfigError, StartupError

ROOT = Path(__file__).parents[2]
TOKEN = "3148ada5-285a-4fca-b3b8-b50a48d7511b"
BUNDLE = base64.b64encode(
    f"export EDGE_NAME=e\nexport JOIN_TOKEN={TOKEN}\nexport OPSCENTER_HOST=ops\n"
    "export PIPELINE_URL=h/r:t\nexport OCI_PASSWORD=it's bundled\n".encode()
).decode()
ENVIRON = {"EDGE_BUNDLE": BUNDLE, "OCI_USERNAME": "me", "OCI_PASSWORD": "hunt\\er2"}
SECRETS = (TOKEN, BUNDLE, "hunt\\er2", "hunt\\\\er2", "it's bundled")


@pytest.fixture
def app(monkeypatch):
    """A stand-in for the engine, which is another part: it records the configuration."""
    module = types.ModuleType("engine.app")
    module.configs = []
    module.serve = lambda config, _files: module.configs.append(config) or 0
    monkeypatch.setitem(sys.modules, "engine.app", module)
    return module


def run(*arguments, **environ):
    command = [sys.executable, *arguments]
    inherited = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, env=inherited | environ, capture_output=True, text=True, timeout=60, check=False
    )


def test_bad_configuration_exits_2_with_one_message():
    process = run("-m", "engine", "serve", CONFIG_CPUS="x", OCI_PASSWORD="hunter2", DEBUG="x")

    assert process.returncode == 2
    assert process.stdout == ""
    head, *lines = process.stderr.splitlines()
    assert head == "sagitta: 4 problems in the configuration:"
    assert [line.split(":")[0].split("=")[0].split()[0] for line in lines] == [
        "PIPELINE_URL",
        "CONFIG_CPUS",
        "DEBUG",
        "OCI_PASSWORD",
    ]
    assert "hunter2" not in process.stderr


@pytest.mark.parametrize("arguments", [[], ["fly"], ["serve", "--fly"], ["serve", "now"]])
def test_bad_usage_exits_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments, {})

    assert caught.value.code == 2
    errors = capsys.readouterr().err
    assert "usage: sagitta" in errors
    assert "rest" not in errors


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["serve", "--help"]])
def test_help_needs_no_heavy_library(arguments):
    program = (
        "import sys, engine.__main__\n"
        f"try: engine.__main__.main({arguments!r})\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'pyarrow', 'onnxruntime', 'numpy', 'starlette', 'uvicorn', 'asyncio', 'grpc'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )

    process = run("-c", program)

    assert process.stderr == ""
    assert process.returncode == 0


def test_pandas_is_left_alone_where_it_is_installed():
    """pyarrow looks for it when it makes an array of a list; importing it takes 0.25 s."""
    program = (
        "import sys, engine.__main__\n"
        "try: engine.__main__.main(['--version'])\n"
        "except SystemExit: pass\n"
        "import pyarrow as pa\n"
        "assert pa.array([1.0]).to_pylist() == [1.0]\n"
        "assert 'pandas' not in sys.modules\n"
    )

    process = run("-c", program)

    assert process.stderr == ""
    assert process.returncode == 0


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"], {})

    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed and COMMANDS[name].help in printed for name in COMMANDS)


def test_serve_help_has_the_table(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["serve", "--help"], {})

    assert caught.value.code == 0
    assert "  LOCAL_INFERENCE_STORAGE [size; default: off]" in capsys.readouterr().out


def test_version_is_the_packages(capsys):
    with pytest.raises(SystemExit):
        main(["--version"], {})

    assert capsys.readouterr().out == f"sagitta {engine.__version__}\n"


def test_serve_hands_the_configuration_to_the_engine(app):
    assert main(["serve"], ENVIRON) == 0

    (config,) = app.configs
    assert type(config) is EngineConfig
    assert (config.pipeline_url, config.edge.edge_name) == ("h/r:t", "e")
    assert config.oci_password.reveal() == "hunt\\er2"


@pytest.mark.parametrize(
    ("error", "exit_code", "said"),
    [
        (ConfigError, 2, "sagitta: cannot"),
        (StartupError, 3, "sagitta: cannot"),
        (RuntimeError, 1, "sagitta: Traceback (most recent call last):"),
    ],
)
def test_an_error_ends_with_its_exit_code_and_without_secrets(app, capsys, error, exit_code, said):
    def fail(config, _files):
        shown = [config.edge.join_token.reveal(), config.oci_password.reveal()]
        raise error(f"cannot use {shown} of {' '.join(SECRETS)}: {config}")

    app.serve = fail

    assert main(["serve"], ENVIRON) == exit_code

    printed = capsys.readouterr().err
    assert printed.startswith(said)
    assert "cannot use ['<secret>', '<secret>'] of <secret>" in printed
    assert not any(secret in printed for secret in SECRETS)


def test_installed_command_is_this_main():
    scripts = importlib.metadata.entry_points(group="console_scripts", name="sagitta")
    declared = (ROOT / "pyproject.toml").read_text()

    assert 'sagitta = "engine.__main__:main"' in declared
    assert all(script.value == "engine.__main__:main" for script in scripts)
