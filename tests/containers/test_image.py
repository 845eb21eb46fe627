"""What is in the images: sizes, bill of materials, nothing missing, nothing too much."""

import json
import os
import pathlib
import re
import sys
import tomllib

import pytest
from support.containers import Podman, closing

ROOT = pathlib.Path(__file__).parents[2]
SITE_PACKAGES_BYTES = 300_000_000
IMAGE_BYTES = 450_000_000
COMPRESSED_BYTES = 170_000_000

# Every module of the engine, and every file that slimming could have hurt.
IMPORT_ALL = """
import importlib, pkgutil, sys
import engine
names = [m.name for m in pkgutil.walk_packages(engine.__path__, 'engine.')]
for name in names:
    importlib.import_module(name)
import numpy.linalg, numpy.random
import onnxruntime, orjson, uvloop, httptools
import pyarrow.compute, pyarrow.csv, pyarrow.dataset, pyarrow.flight, pyarrow.ipc, pyarrow.parquet
print(len(names))
"""

UNRESOLVED = """
import pathlib, subprocess, sysconfig
root = pathlib.Path(sysconfig.get_path('purelib'))
for path in sorted(root.rglob('*.so*')):
    told = subprocess.run(['ldd', path], capture_output=True, text=True).stdout
    for line in told.splitlines():
        if 'not found' in line:
            print(path.relative_to(root), line.split()[0])
"""

RECORDS = """
import csv, pathlib, sysconfig
root = pathlib.Path(sysconfig.get_path('purelib'))
for record in root.glob('*.dist-info/RECORD'):
    for row in csv.reader(record.open()):
        if not (root / row[0]).exists():
            print(record.parent.name, row[0])
"""

SITE_PACKAGES = """
import json, pathlib, sysconfig
root = pathlib.Path(sysconfig.get_path('purelib'))
sizes = {}
for path in root.rglob('*'):
    if path.is_file() and not path.is_symlink():
        top = path.relative_to(root).parts[0]
        sizes[top] = sizes.get(top, 0) + path.stat().st_size
print(json.dumps(sizes))
"""


@pytest.fixture(scope="session")
def inside(podman):
    """Run Python of the image, past its entry point, as the user that serves."""

    def run(code, image=None, flags=()):
        return podman(
            *("run", "--rm", "--user", "10001", "--network", "none", *flags),
            *("--entrypoint", "/opt/sagitta/bin/python", image or podman.image, "-I", "-c", code),
        ).stdout

    return run


@pytest.fixture(scope="session")
def config(podman):
    return json.loads(podman("image", "inspect", podman.image).stdout)[0]


def test_every_module_of_the_engine_finds_what_it_needs(inside):
    assert int(inside(IMPORT_ALL)) > 20


def test_no_library_misses_another(inside):
    assert inside(UNRESOLVED) == ""


def test_records_tell_what_is_there(inside):
    assert inside(RECORDS) == ""


def test_sizes(inside, config, podman, tmp_path, capsys):
    sizes = json.loads(inside(SITE_PACKAGES))
    podman("push", "-q", podman.image, f"oci:{tmp_path / 'oci'}:1", timeout=300)
    compressed = sum(path.stat().st_size for path in (tmp_path / "oci" / "blobs").rglob("*"))
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:12]
    with capsys.disabled():
        for name, size in [
            *largest,
            ("all of site-packages", sum(sizes.values())),
            ("the whole image", config["Size"]),
            ("the whole image, compressed", compressed),
        ]:
            sys.stdout.write(f"\n{size / 1e6:8.1f} MB  {name}")

    assert sum(sizes.values()) <= SITE_PACKAGES_BYTES
    assert config["Size"] <= IMAGE_BYTES
    assert compressed <= COMPRESSED_BYTES


def test_no_installer_and_no_compiler_is_left(inside):
    tools = "pip", "setuptools", "wheel", "gcc", "git", "curl"
    code = (
        "import importlib.util, shutil;"
        f"print([t for t in {tools} if importlib.util.find_spec(t) or shutil.which(t)])"
    )
    assert inside(code).strip() == "[]"


def test_what_the_image_says_of_itself(config):
    image = config["Config"]

    assert image["Entrypoint"][0].startswith("/")  # exec form: the engine is PID 1, without a shell
    assert image["Cmd"] == ["serve"]
    assert image["StopSignal"] in ("SIGTERM", "15")
    assert set(image["ExposedPorts"]) == {"8080/tcp", "8815/tcp", "9000/tcp"}
    assert list(image["Volumes"]) == ["/persist"]
    assert config["Healthcheck"]["Test"][0] == "CMD"
    labels = image["Labels"]
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.title"] == "sagitta"


def test_version_is_the_same_everywhere(config, inside):
    installed = inside("import importlib.metadata as m; print(m.version('sagitta'))").strip()
    chart = (ROOT / "charts" / "engine" / "Chart.yaml").read_text()

    assert config["Config"]["Labels"]["org.opencontainers.image.version"] == installed
    assert f"\nappVersion: {installed}\n" in chart


def test_bill_of_materials_is_valid_and_whole(inside, podman):
    validation = pytest.importorskip(
        "cyclonedx.validation.json", reason="cyclonedx-python-lib is not installed"
    )
    schema = pytest.importorskip("cyclonedx.schema")
    text = inside("print(open('/opt/sagitta/share/sbom.cdx.json').read())")

    errors = validation.JsonStrictValidator(schema.SchemaVersion.V1_6).validate_str(text)
    assert errors is None, errors

    components = {component["name"] for component in json.loads(text)["components"]}
    locked = {
        line.split("==")[0]
        for line in (ROOT / "containers" / "cpu.lock").read_text().splitlines()
        if "==" in line and "win32" not in line
    }
    assert locked <= components
    assert {"sagitta", "libc6", "ca-certificates"} <= components


def test_lock_files_pin_every_wheel_by_hash():
    for path in (ROOT / "containers").glob("*.lock"):
        text = path.read_text()
        pins = [line for line in text.splitlines() if line and not line.startswith((" ", "#"))]
        assert pins
        assert all("==" in pin and pin.endswith("\\") for pin in pins), path
        assert "://" not in text, "a lock file names no registry"


@pytest.mark.parametrize(
    ("kind", "extra"), [("cpu", "cpu"), ("gpu-cuda13", "gpu"), ("gpu-cuda12", "gpu-cuda12")]
)
def test_lock_files_hold_what_the_project_asks_for(kind, extra):
    requirements = pytest.importorskip("packaging.requirements")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    text = (ROOT / "containers" / f"{kind}.lock").read_text()
    locked = dict(re.findall(r"^([a-z0-9-]+)==([^ ;\\]+)", text, re.MULTILINE))

    for line in project["dependencies"] + extras[extra] + extras["signing"]:
        asked = requirements.Requirement(line)
        assert locked.get(asked.name, "none") in asked.specifier, f"run containers/lock.sh: {line}"


@pytest.fixture(scope="session")
def gpu_image(podman):
    name = os.environ.get("SAGITTA_GPU_IMAGE")
    if not name:
        pytest.skip("no GPU image: .ci/containers builds one unless CONTAINERS_GPU=0")
    return name


def test_gpu_libraries_load_up_to_the_driver(inside, gpu_image):
    code = (
        "import ctypes, onnxruntime; onnxruntime.preload_dlls();"
        "assert 'CUDAExecutionProvider' in onnxruntime.get_available_providers();"
        "[ctypes.CDLL(n) for n in ('libcudart.so.13', 'libcublasLt.so.13', 'libcudnn.so.9')];"
        "print('loaded')"
    )

    assert inside(code, image=gpu_image).strip() == "loaded"


def test_gpu_image_without_a_gpu_says_so_and_ends(podman, gpu_image, from_layout):
    done = podman(
        *("run", "--rm", "--network", "none", "-e", "ACCELERATOR=cuda", *from_layout, gpu_image),
        check=False,
    )

    assert done.returncode == 3, done.stdout + done.stderr
    assert "ACCELERATOR=cuda, but model 'house-price' would run on CPU" in done.stdout + done.stderr
    assert "was the container started with --gpus all?" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_gpu_image_left_to_choose_serves_without_a_gpu_and_says_so(
    podman, gpu_image, from_layout, check_documented_requests
):
    with closing(Podman(podman.command, gpu_image, {})) as runtime:
        container = runtime.run(*from_layout).wait_ready()

        check_documented_requests(container.url)
        assert "CPUExecutionProvider" in container.logs()
        assert container.stop() == 0
