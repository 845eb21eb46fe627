"""The Helm chart of a publish: this repository's chart with the publish filled in.

Rules that hold here:
- The chart in ``charts/engine`` is the only source; a publish changes its name and version, and the
  defaults that name the publish. Credentials are never among them.
- What is pushed is what ``helm push`` would push, so that ``helm pull`` and ``helm install`` take
  it. The same publish gives the same bytes.
"""

import gzip
import hashlib
import io
import json
import re
import sysconfig
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.errors import StartupError
from engine.publish.manifest import MANIFEST_TYPE, Descriptor
from engine.publish.push import PackedArtifact
from engine.publish.reference import RegistryReference

__all__ = ["PublishedChart", "chart_of", "find_chart", "pack_chart"]

CONFIG_TYPE = "application/vnd.cncf.helm.config.v1+json"
CONTENT_TYPE = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"
_CHECKOUT = Path(__file__).parents[2] / "charts" / "engine"
_INSTALLED = Path(sysconfig.get_path("data")) / "share" / "sagitta" / "charts" / "engine"


@dataclass(frozen=True, slots=True)
class PublishedChart:
    """A publish as a chart.

    Attributes:
        target: Where it is pushed; the tag is the chart's version.
        pipeline_url: The publish that it installs.
        image: The engine's image, ``repository[:tag]``.
        app_version: Version of the engine.
    """

    target: RegistryReference
    pipeline_url: str
    image: str
    app_version: str

    @property
    def name(self) -> str:
        """The chart's name: the last part of its repository, as Helm wants it."""
        return self.target.repository.rpartition("/")[2]

    @property
    def install_line(self) -> str:
        """The documented command that installs it."""
        return (
            f"helm install --atomic $NAME oci://{self.target.registry}/{self.target.repository} "
            f"--namespace $NAMESPACE --version {self.target.tag} "
            "--set ociRegistry.username=$OCI_USERNAME --set ociRegistry.password=$OCI_PASSWORD"
        )


def chart_of(
    publish: RegistryReference, pipeline: str, version: str, *, image: str, app_version: str
) -> PublishedChart:
    """Where the chart of a publish belongs and what it says.

    Args:
        publish: The published pipeline; its digest, where it has one, is what the chart installs.
        pipeline: Name of the pipeline.
        version: Version of the pipeline, in the documented case a UUID.
        image: The engine's image, ``repository[:tag]``.
        app_version: Version of the engine.

    Returns:
        ``charts/{pipeline}`` beside ``pipelines/…``, version ``0.0.1-{version}``.
    """
    folder = publish.repository.rpartition("/")[0]
    folder = folder.removesuffix("pipelines").rstrip("/")
    repository = "/".join(part for part in (folder, "charts", pipeline) if part)
    # A SemVer pre-release: letters, digits and hyphens; a number in it has no leading zero.
    suffix = re.sub(r"[^0-9A-Za-z-]", "-", version)
    suffix = f"v{suffix}" if suffix.isdigit() else suffix
    target = RegistryReference(publish.registry, repository, f"0.0.1-{suffix}", None)
    return PublishedChart(target, str(publish), image, app_version)


def find_chart() -> Path:
    """The folder of the chart: this checkout's, or the one that was installed with the package.

    Raises:
        StartupError: It is in neither place.
    """
    for folder in (_CHECKOUT, _INSTALLED):
        if (folder / "Chart.yaml").is_file():
            return folder
    raise StartupError(f"the chart is missing: neither {_CHECKOUT} nor {_INSTALLED} holds it")


def pack_chart(chart: PublishedChart, folder: Path) -> PackedArtifact:
    """Pack the chart of a publish.

    Args:
        chart: What it says.
        folder: From ``find_chart``.

    Returns:
        The artifact, not yet sent anywhere.
    """
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    metadata = _metadata(chart, files["Chart.yaml"].decode())
    files["Chart.yaml"] = json.dumps(metadata, indent=2).encode()  # JSON is YAML
    files["values.yaml"] = _with_publish(chart, files["values.yaml"].decode()).encode()
    config = json.dumps(metadata).encode()
    content = _archive(chart.name, files)
    blobs = (_blob(CONFIG_TYPE, config), config), (_blob(CONTENT_TYPE, content), content)
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": blobs[0][0].to_json(),
            "layers": [blobs[1][0].to_json()],
            "annotations": {
                "org.opencontainers.image.title": chart.name,
                "org.opencontainers.image.version": chart.target.tag,
            },
        }
    ).encode()
    return PackedArtifact(_blob(MANIFEST_TYPE, manifest), manifest, blobs)


def _metadata(chart: PublishedChart, template: str) -> dict[str, str]:
    """``Chart.yaml`` of a publish; what it shares with the chart itself is read from there."""
    shared = dict(line.split(": ", 1) for line in template.splitlines() if ": " in line)
    return {
        "apiVersion": "v2",
        "name": chart.name,
        "description": f"{chart.pipeline_url}, served by Sagitta",
        "type": "application",
        "version": str(chart.target.tag),
        "appVersion": chart.app_version,
        "kubeVersion": shared["kubeVersion"].strip('"'),
    }


def _with_publish(chart: PublishedChart, values: str) -> str:
    """``values.yaml`` with the defaults that name the publish."""
    repository, _, tag = chart.image.rpartition(":")
    if not repository or "/" in tag:  # no tag, perhaps a port
        repository, tag = chart.image, ""
    for key, value in {
        "registry": chart.target.registry,
        "pipelineUrl": chart.pipeline_url,
        "repository": repository,
        "tag": tag,
    }.items():
        line = re.compile(rf"^(  {key}: )(?:\"\"|[\w-]+)", re.MULTILINE)
        text = json.dumps(value).replace("\\", r"\\")  # no group reference is meant
        values, found = line.subn(rf"\g<1>{text}", values)
        if found != 1:
            raise StartupError(f"values.yaml of the chart has {found} places for {key}")
    return values


def _archive(name: str, files: Mapping[str, bytes]) -> bytes:
    """A tar of ``name/…``, compressed, without anything of the machine that made it."""
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for path in ("Chart.yaml", *sorted(files.keys() - {"Chart.yaml"})):
            entry = tarfile.TarInfo(f"{name}/{path}")
            entry.size = len(files[path])
            archive.addfile(entry, io.BytesIO(files[path]))
    return buffer.getvalue()


def _blob(media_type: str, content: bytes) -> Descriptor:
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    return Descriptor(media_type, digest, len(content), {})
