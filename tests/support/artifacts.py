"""Small pipeline artifacts, written in the OCI image layout by hand: our own writer is not used."""

import hashlib
import json

from engine.pipeline.definition import parse_definition
from engine.publish.credentials import RegistryAccess
from engine.publish.pull import PullOptions, open_artifact

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def definition(models, identifier="house-price"):
    """A one-step definition; ``models`` maps a name to the file's bytes."""
    named = [
        {"name": name, "version": f"{name}-1", "sha": sha256(content)}
        for name, content in models.items()
    ]
    return {
        "id": identifier,
        "steps": [{"ModelInference": {"models": named}}],
        "models": [model | {"runtime": "onnx"} for model in named],
    }


class LayoutWriter:
    """Writes blobs and index entries; ``describe`` may lie about them."""

    def __init__(self, directory):
        self.directory = directory
        (directory / "blobs" / "sha256").mkdir(parents=True)
        (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        self.entries = []
        self.write_index()

    def path(self, digest):
        return self.directory / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def blob(self, content, **extra):
        digest = f"sha256:{sha256(content)}"
        self.path(digest).write_bytes(content)
        return {
            "mediaType": "application/octet-stream",
            "digest": digest,
            "size": len(content),
            **extra,
        }

    def json_blob(self, value, **extra):
        return self.blob(json.dumps(value).encode(), **extra)

    def manifest(self, models, config=None, layers=None):
        """The descriptor of a manifest for ``models`` (name -> bytes)."""
        return self.json_blob(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "config": self.json_blob(config or definition(models)),
                "layers": layers
                or [
                    self.blob(content, annotations={"filename": sha256(content), "name": name})
                    for name, content in models.items()
                ],
            },
            mediaType=MANIFEST_TYPE,
        )

    def tag(self, descriptor, tag=None, **extra):
        named = {"annotations": {"org.opencontainers.image.ref.name": tag}} if tag else {}
        self.entries.append({**descriptor, **named, **extra})
        self.write_index()

    def write_index(self):
        index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": self.entries}
        (self.directory / "index.json").write_text(json.dumps(index))


def open_quietly(reference, cache, *, report=lambda _line: None, access=None, **options):
    """Open an artifact as ``serve`` does."""
    return open_artifact(
        reference,
        options=PullOptions(access=access or RegistryAccess(), cache_directory=cache, **options),
        read_models=lambda document: parse_definition(document).models,
        report=report,
    )
