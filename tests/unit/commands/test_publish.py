import json
import shlex

import onnx
import pyarrow as pa
import pytest
from support import models
from support.artifacts import open_quietly, sha256

from engine.__main__ import main
from engine.commands.instructions import instructions
from engine.commands.publish import run
from engine.errors import ConfigError, StartupError
from engine.publish.reference import parse_reference

DIGEST = f"sha256:{'0' * 64}"


@pytest.fixture
def sagitta(tmp_path, capsys, monkeypatch):
    """Runs the command in an empty environment; yields exit code, output and remarks."""
    monkeypatch.chdir(tmp_path)

    def sagitta(*arguments):
        code = main([str(argument) for argument in arguments], {})
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return sagitta


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "My Model_v2.onnx"
    path.write_bytes(models.linear())
    return path


def published(tmp_path, tag="1"):
    reference = parse_reference(f"oci-layout:{tmp_path / 'layout'}:{tag}")
    artifact = open_quietly(reference, tmp_path)
    return artifact, json.loads(artifact.definition)


def sample(tmp_path, **columns):
    table = pa.table(
        {name: pa.array(values, pa.list_(pa.float32())) for name, values in columns.items()}
    )
    path = tmp_path / "sample.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return path


def test_an_onnx_file_becomes_a_pipeline(sagitta, model_file, tmp_path):
    code, output, _ = sagitta(
        *("publish", model_file, "--to", "oci-layout:layout:1", "--annotation", "team=blue")
    )
    artifact, definition = published(tmp_path)

    assert code == 0
    assert definition["id"] == "my-model-v2"
    assert definition["models"] == [
        {
            "name": "My Model_v2",
            "version": artifact.layers[0].version,
            "sha": sha256(models.linear()),
            "runtime": "onnx",
        }
    ]
    assert "input   x: float [rows, 4]" in output
    assert "output  y: float [rows, 2]" in output
    assert "tried   generated rows" in output
    assert f"Digest: {artifact.digest}" in output
    shown = json.loads(sagitta("inspect", "oci-layout:layout:1", "--json")[1])
    assert shown["annotations"]["team"] == "blue"


def test_names_and_options_are_published(sagitta, model_file, tmp_path):
    code, _, _ = sagitta(
        *(
            "publish",
            model_file,
            "--to",
            "oci-layout:layout",
            "--tag",
            "1",
            "--name",
            "house-price",
        ),
        *("--model-name", "rf", "--tensor-fields", "tensor", "--single"),
    )
    _, definition = published(tmp_path)

    assert code == 0
    assert definition["id"] == "house-price"
    assert definition["models"][0]["name"] == "rf"
    assert definition["models"][0]["tensor_fields"] == ["tensor"]
    assert definition["models"][0]["batch_config"] == "single"


def test_the_tag_is_the_version_when_none_is_given(sagitta, model_file, tmp_path):
    _, output, _ = sagitta("publish", model_file, "--to", "oci-layout:layout")
    (line,) = [line for line in output.splitlines() if line.startswith("PIPELINE_URL=")]
    tag = line.rpartition(":")[2]

    assert published(tmp_path, tag)[1]["version"] == tag


def test_a_sample_names_the_columns(sagitta, model_file, tmp_path):
    request = sample(tmp_path, tensor=[[1, 2, 3, 4]] * 3)
    code, output, _ = sagitta(
        *("publish", model_file, "--to", "oci-layout:layout:1", "--input-schema", request)
    )

    assert code == 0
    assert "tried   3 rows of sample.arrow" in output
    assert published(tmp_path)[1]["models"][0]["tensor_fields"] == ["tensor"]


def test_a_sample_with_the_models_own_names_changes_nothing(sagitta, model_file, tmp_path):
    request = tmp_path / "sample.json"
    request.write_text(json.dumps([{"x": [1, 2, 3, 4], "comment": "kept"}]))
    sagitta("publish", model_file, "--to", "oci-layout:layout:1", "--input-schema", request)

    assert "tensor_fields" not in published(tmp_path)[1]["models"][0]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"x": [[1, 2, 3]]}, "sample.arrow does not fit the model"),
        ({"a": [[1, 2, 3, 4]], "b": [[1]]}, "say with --tensor-fields which is which"),
    ],
)
def test_a_sample_that_does_not_fit_stops_the_publish(sagitta, model_file, tmp_path, columns, said):
    request = sample(tmp_path, **columns)
    code, _, remarks = sagitta(
        *("publish", model_file, "--to", "oci-layout:layout:1", "--input-schema", request)
    )

    assert code == 3
    assert said in remarks
    assert not (tmp_path / "layout").exists()


def test_a_definition_of_several_models(sagitta, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.onnx").write_bytes(
            models.linear() if name == "a" else models.identity()
        )
    steps = [
        {"ModelInference": {"models": [{"name": "a"}, {"name": "b", "version": "7"}]}},
        {"AuditResults": {"from": 1, "to": None}},
        {"MultiOut": {}},
    ]
    (tmp_path / "two.json").write_text(json.dumps({"id": "two", "steps": steps}))
    code, output, _ = sagitta("publish", "two.json", "--to", "oci-layout:layout:1")
    artifact, definition = published(tmp_path)

    assert code == 0
    assert [layer.name for layer in artifact.layers] == ["a", "b"]
    assert [model["version"] for model in definition["models"]] == [artifact.layers[0].version, "7"]
    assert definition["steps"][0]["ModelInference"]["models"][0]["sha"] == artifact.layers[0].sha
    assert "└─ b (shadow)" in output


def test_a_folder_is_published(sagitta, tmp_path):
    folder = models.write_pipeline(tmp_path / "pipeline", models.linear(), pipeline="mine")
    code, _, _ = sagitta("publish", folder, "--to", "oci-layout:layout:1")

    assert code == 0
    assert published(tmp_path)[1]["id"] == "mine"


def test_a_dry_run_sends_nothing(sagitta, model_file, tmp_path):
    code, output, _ = sagitta("publish", model_file, "--dry-run")

    assert code == 0
    assert '"id": "my-model-v2"' in output
    assert "nothing was published" in output
    assert [path.name for path in tmp_path.iterdir()] == [model_file.name]


def test_weights_in_another_file_are_noticed(sagitta, tmp_path):
    model = onnx.load_from_string(models.linear())
    onnx.save_model(
        model,
        tmp_path / "big.onnx",
        save_as_external_data=True,
        location="big.bin",
        size_threshold=0,
    )
    code, _, remarks = sagitta("publish", "big.onnx", "--to", "oci-layout:layout:1")

    assert code == 3
    assert "a model is published as one file" in remarks


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["absent.onnx", "--dry-run"], 2, "absent.onnx is neither an ONNX file"),
        (["notes.txt", "--dry-run"], 3, "not an ONNX file"),
        (["{model}"], 2, "--to is missing"),
        (["{model}", "--to", "ghcr.io"], 2, "names no host and repository"),
        (["{model}", "--to", f"ghcr.io/p@{DIGEST}"], 2, "tag"),
        (["{model}", "--to", "/somewhere"], 2, "is not host/repository"),
        (["{model}", "--to", "oci-layout:x", "--annotation", "x"], 2, "is not KEY=VALUE"),
        (["{model}", "--to", "oci-layout:x", "--name", "Bad Name"], 3, "$.id"),
        (["{model}", "--to", "oci-layout:x", "--tensor-fields", "a,b"], 3, "tensor_fields"),
        (["{model}", "--to", "oci-layout:x", "--input-schema", "no.arrow"], 3, "no.arrow"),
        (["{model}", "--to", "oci-layout:x", "--input-schema", "notes.txt"], 3, "is no request"),
        (["pipeline.json", "--to", "oci-layout:x", "--single"], 2, "describe an ONNX file"),
        (["pipeline.json", "--to", "oci-layout:x"], 3, "not JSON"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_said_before_anything_is_written(
    sagitta, model_file, arguments, code, said
):
    tmp_path = model_file.parent
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "pipeline.json").write_text("{")
    filled = [argument.format(model=model_file) for argument in arguments]
    ended, _, remarks = sagitta("publish", *filled)

    assert (ended, said in remarks) == (code, True), remarks
    assert not (tmp_path / "x").exists()


def test_inspect_draws_what_a_publish_holds(sagitta, model_file):
    _, output, _ = sagitta("publish", model_file, "--to", "oci-layout:layout:1", "--name", "p")
    digest = output.partition("Digest: ")[2].splitlines()[0]
    _, shown, _ = sagitta("inspect", "oci-layout:layout:1")

    assert "Pipeline  p" in shown
    assert f"Digest    {digest}" in shown
    assert "Signed    no" in shown
    assert "└─ 1. ModelInference\n      └─ My Model_v2" in shown


def test_inspect_reads_a_plain_directory(sagitta, tmp_path):
    folder = models.write_pipeline(tmp_path / "pipeline", models.linear(), pipeline="mine")
    code, shown, _ = sagitta("inspect", folder)

    assert code == 0
    assert "Pipeline  mine" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["oci-layout:x"], "there is nothing to pull"),
        (["ghcr.io/p:1", "--to", "/x"], "is not oci-layout:DIR"),
    ],
)
def test_pull_is_for_registries(sagitta, arguments, said):
    code, _, remarks = sagitta("pull", *arguments)

    assert code == 2
    assert said in remarks


def test_what_is_to_be_pasted_for_a_registry():
    lines = instructions(parse_reference("ghcr.io/team/p:1"), DIGEST, "sagitta")

    assert lines[0] == "PIPELINE_URL=ghcr.io/team/p:1"
    assert lines[2].endswith(f"PIPELINE_URL=ghcr.io/team/p@{DIGEST}")
    start = lines.index("docker run \\")
    assert lines[start : start + 8] == [
        "docker run \\",
        "    -p 8080:8080 \\",
        "    -v $PWD/data:/persist \\",
        "    -e OCI_USERNAME=$OCI_USERNAME \\",
        "    -e OCI_PASSWORD=$OCI_PASSWORD \\",
        "    -e PIPELINE_URL=ghcr.io/team/p:1 \\",
        "    -e CONFIG_CPUS=1 \\",
        "    sagitta",
    ]
    assert lines[lines.index("Compose:") + 1 :] == [
        "services:",
        "  engine:",
        "    image: sagitta",
        "    ports: ['8080:8080']",
        '    volumes: ["./data:/persist"]',
        "    environment:",
        "      PIPELINE_URL: ghcr.io/team/p:1",
        "      OCI_USERNAME: ${OCI_USERNAME}",
        "      OCI_PASSWORD: ${OCI_PASSWORD}",
        "      CONFIG_CPUS: 1",
    ]


def test_what_is_to_be_pasted_for_a_layout():
    lines = instructions(parse_reference("oci-layout:/data/layout:1"), DIGEST, "sagitta")

    assert lines[0] == "PIPELINE_URL=oci-layout:/data/layout:1"
    assert "    -v /data/layout:/pipeline:ro \\" in lines
    assert "    -e PIPELINE_URL=oci-layout:/pipeline:1 \\" in lines
    assert '    volumes: ["./data:/persist", "/data/layout:/pipeline:ro"]' in lines


def test_what_is_to_be_pasted_for_a_folder_with_spaces():
    lines = instructions(parse_reference("oci-layout:/my data/it's:1"), DIGEST, "sagitta")

    mount = next(line for line in lines if "/pipeline:ro" in line).strip(" \\")
    assert shlex.split(mount) == ["-v", "/my data/it's:/pipeline:ro"]


def checked_pipeline(folder, *trees):
    """A pipeline of one model, ``y`` from ``x``, and one step of checks."""
    models.write_pipeline(folder, models.linear())
    definition = json.loads((folder / "pipeline.json").read_text())
    definition["steps"].append({"Check": {"tree": trees}})
    (folder / "pipeline.json").write_text(json.dumps(definition))
    return folder


def test_readable_checks_are_published_as_json_and_drawn_as_written(sagitta, tmp_path):
    folder = checked_pipeline(tmp_path / "checked", "too high: out.y[0] > 9", "never: out.y[2] > 9")

    code, drawn, remarks = sagitta("publish", folder, "--to", "oci-layout:layout:1")
    (high, _) = published(tmp_path)[1]["steps"][1]["Check"]["tree"]
    _, shown, _ = sagitta("inspect", "oci-layout:layout:1")

    assert code == 0
    assert json.loads(high)["Alias"][1] == "too high"
    assert "too high: out.y[0] > 9" in drawn
    assert "too high: out.y[0] > 9" in shown
    assert "each list has 2 elements, so element 2 is always null" in remarks


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ("odd: out.why[0] > 1", "no column 'out.why'; did you mean 'out.y'?"),
        ("odd: out.y > 1", "there is a list in each row: name an element"),
        ("odd: out.y[0] >", "check 'odd', character 11: found the end"),
    ],
)
def test_a_check_that_would_stop_an_edge_stops_the_publish(sagitta, tmp_path, tree, said):
    folder = checked_pipeline(tmp_path / "checked", tree)

    code, _, remarks = sagitta("publish", folder, "--to", "oci-layout:layout:1")

    assert code == 3
    assert "$.steps[1].Check.tree[0]" in remarks
    assert said in remarks
    assert not (tmp_path / "layout").exists()


@pytest.mark.parametrize(
    ("file", "arguments", "said"),
    [
        (None, [], "is neither an ONNX file, nor a definition, nor a folder"),
        ("模.onnx", [], "--name is missing"),
    ],
)
def test_what_is_no_source_is_said_to_be_none(tmp_path, file, arguments, said):
    path = tmp_path / (file or "nothing.onnx")
    if file:
        path.write_bytes(models.linear())

    with pytest.raises(ConfigError, match=said):
        run([str(path), "--dry-run", *arguments], {})


def test_advice_on_external_weights_is_for_what_does_not_load(tmp_path):
    (tmp_path / "m.onnx").write_bytes(models.linear())

    with pytest.raises(StartupError, match=r"one for each input, by position$"):
        run([str(tmp_path / "m.onnx"), "--dry-run", "--tensor-fields", "a,b"], {})


def test_inspecting_a_publish_cannot_steer_the_terminal(sagitta, tmp_path):
    folder = checked_pipeline(tmp_path / "p", "\x1b[31mred: out.y[0] > 1")

    ended, shown, _ = sagitta("inspect", str(folder))

    assert ended == 0
    assert r"\x1b[31mred" in shown
    assert "\x1b" not in shown
