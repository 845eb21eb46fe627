"""The chart of a publish: where it goes, what it says, and that nothing else differs."""

import io
import json
import tarfile

import pytest

from engine.publish.chart import chart_of, find_chart, pack_chart
from engine.publish.reference import RegistryReference

UUID = "3b49fba8-94d8-4fca-aecc-c75257fd16c6"


def published(repository="team/pipelines/house-price", tag=UUID, image="registry.example/sagitta"):
    reference = RegistryReference("registry.example:5000", repository, tag, None)
    return chart_of(reference, "house-price", tag, image=image, app_version="0.1.0")


def unpacked(chart):
    packed = pack_chart(chart, find_chart())
    content = packed.blobs[1][1]
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return packed, {entry.name: archive.extractfile(entry).read() for entry in archive}


@pytest.mark.parametrize(
    ("repository", "target"),
    [
        ("team/pipelines/house-price", "team/charts/house-price"),
        ("pipelines/house-price", "charts/house-price"),
        ("house-price", "charts/house-price"),
        ("team/models/other", "team/models/charts/house-price"),
    ],
)
def test_charts_lie_beside_pipelines(repository, target):
    assert published(repository).target.repository == target


@pytest.mark.parametrize(
    ("version", "chart_version"),
    [(UUID, f"0.0.1-{UUID}"), ("v1_2", "0.0.1-v1-2"), ("007", "0.0.1-v007")],
)
def test_the_version_is_one_that_helm_takes(version, chart_version):
    assert published(tag=version).target.tag == chart_version


def test_the_documented_line_installs_it():
    assert published().install_line == (
        "helm install --atomic $NAME oci://registry.example:5000/team/charts/house-price "
        f"--namespace $NAMESPACE --version 0.0.1-{UUID} "
        "--set ociRegistry.username=$OCI_USERNAME --set ociRegistry.password=$OCI_PASSWORD"
    )


def test_a_publish_changes_its_own_lines_alone():
    packed, files = unpacked(published())
    source = find_chart()

    lines = files["house-price/values.yaml"].decode().splitlines()
    originals = (source / "values.yaml").read_text().splitlines()
    changed = [line for line, original in zip(lines, originals, strict=True) if line != original]
    assert changed == [
        '  registry: "registry.example:5000"',
        f'  pipelineUrl: "registry.example:5000/team/pipelines/house-price:{UUID}"',
        '  repository: "registry.example/sagitta"',
    ]
    metadata = json.loads(files["house-price/Chart.yaml"])
    assert (metadata["name"], metadata["version"]) == ("house-price", f"0.0.1-{UUID}")
    assert metadata == json.loads(packed.blobs[0][1])
    for path in source.rglob("*.tpl"):
        assert files[f"house-price/{path.relative_to(source)}"] == path.read_bytes()


@pytest.mark.parametrize(
    ("image", "repository", "tag"),
    [
        ("sagitta", "sagitta", ""),
        ("host:5000/sagitta", "host:5000/sagitta", ""),
        ("host:5000/sagitta:gpu", "host:5000/sagitta", "gpu"),
    ],
)
def test_an_image_has_a_tag_or_the_charts_own(image, repository, tag):
    values = unpacked(published(image=image))[1]["house-price/values.yaml"].decode()

    assert f'\n  repository: "{repository}"\n' in values
    assert f'\n  tag: "{tag}"' in values


def test_the_same_publish_gives_the_same_bytes():
    assert unpacked(published())[0] == unpacked(published())[0]


def test_the_first_file_is_the_one_helm_looks_for():
    content = pack_chart(published(), find_chart()).blobs[1][1]
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        assert archive.getnames()[0] == "house-price/Chart.yaml"
        assert {entry.mtime for entry in archive} == {0}
