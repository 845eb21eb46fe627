import json
import subprocess

import pytest
from support.artifacts import LayoutWriter, definition, open_quietly, sha256
from support.docker_registry import need

from engine.errors import StartupError
from engine.publish.artifact import ArtifactLayer
from engine.publish.layout import OciLayout
from engine.publish.push import copy_to_layout, pack, pack_signature, write_to_layout
from engine.publish.reference import LayoutReference
from engine.publish.signature import SignatureError, signature_tag

MODEL = b"a model"
SHA = sha256(MODEL)


@pytest.fixture
def packed(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(MODEL)
    layer = ArtifactLayer(f"sha256:{SHA}", len(MODEL), SHA, "m", "model", "onnx", "m-1", path)
    return pack(json.dumps(definition({"m": MODEL})).encode(), [layer], {"key": "value"})


def test_the_manifest_is_the_documented_one(packed):
    assert json.loads(packed.manifest) == {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/vnd.sagitta.pipeline.v1+json",
        "config": {
            "mediaType": "application/vnd.sagitta.pipeline.config.v1+json",
            "digest": packed.blobs[0][0].digest,
            "size": len(packed.blobs[0][1]),
        },
        "layers": [
            {
                "mediaType": "application/vnd.sagitta.model.v1.onnx",
                "digest": f"sha256:{SHA}",
                "size": len(MODEL),
                "annotations": {
                    "filename": SHA,
                    "name": "m",
                    "runtime": "onnx",
                    "version": "m-1",
                    "sagitta_file_type": "model",
                    "org.opencontainers.image.title": f"{SHA}.onnx",
                },
            }
        ],
        "annotations": {"key": "value"},
    }


def test_a_layout_that_is_written_can_be_opened(packed, tmp_path):
    write_to_layout(packed, tmp_path / "layout", "1")
    write_to_layout(packed, tmp_path / "layout", "2")
    artifact = open_quietly(LayoutReference(tmp_path / "layout", "2"), tmp_path)

    assert artifact.digest == packed.entry.digest
    assert artifact.layers[0].path.read_bytes() == MODEL
    assert [entry.annotations for entry in OciLayout(tmp_path / "layout").index()] == [
        {"org.opencontainers.image.ref.name": "1"},
        {"org.opencontainers.image.ref.name": "2"},
    ]
    assert not (tmp_path / "layout" / "ingest").exists()


def test_a_tag_moves(packed, tmp_path):
    writer = LayoutWriter(tmp_path / "layout")
    writer.tag(writer.manifest({"old": b"old"}), "1")
    write_to_layout(packed, tmp_path / "layout", "1")

    assert open_quietly(LayoutReference(tmp_path / "layout", "1"), tmp_path).layers[0].name == "m"
    assert len(OciLayout(tmp_path / "layout").index()) == 1


def test_a_model_that_changes_meanwhile_is_noticed(packed, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"another")

    with pytest.raises(StartupError, match="changed while it was published"):
        write_to_layout(packed, tmp_path / "layout", "1")


@pytest.fixture
def keys(tmp_path):
    """Two key pairs, made by OpenSSL."""
    pytest.importorskip("cryptography")
    need("openssl")
    files = []
    for name in ("one", "two"):
        private, public = tmp_path / f"{name}.pem", tmp_path / f"{name}.pub"
        openssl(
            "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", private
        )
        openssl("pkey", "-in", private, "-pubout", "-out", public)
        files.append((private, public))
    return files


def openssl(*arguments):
    done = subprocess.run(["openssl", *arguments], capture_output=True, timeout=60, check=True)
    return done.stdout


def sign(packed, tmp_path, private):
    target = LayoutReference(tmp_path / "layout", "1")
    write_to_layout(packed, target.directory, "1")
    signature = pack_signature(packed, target, private)
    write_to_layout(signature, target.directory, signature_tag(packed.entry.digest))
    return target, signature


def test_a_signature_is_checked(packed, tmp_path, keys):
    (private, public), (_, other) = keys
    target, _ = sign(packed, tmp_path, private)

    assert open_quietly(target, tmp_path, verify_key_file=public).digest == packed.entry.digest
    with pytest.raises(SignatureError, match="none of them is valid"):
        open_quietly(target, tmp_path, verify_key_file=other)


def test_any_of_several_keys_will_do(packed, tmp_path, keys):
    (private, public), (_, other) = keys
    target, _ = sign(packed, tmp_path, private)
    both = tmp_path / "both.pub"
    both.write_bytes(other.read_bytes() + public.read_bytes())

    assert open_quietly(target, tmp_path, verify_key_file=both).digest == packed.entry.digest


def test_openssl_takes_the_signature(packed, tmp_path, keys):
    """The payload and its signature are those of cosign: SHA-256, ECDSA, DER, base64."""
    private, public = keys[0]
    _, signature = sign(packed, tmp_path, private)
    (layer, payload) = signature.blobs[1]
    text = layer.annotations["dev.cosignproject.cosign/signature"]
    (tmp_path / "payload").write_bytes(payload)
    (tmp_path / "base64").write_text(text)
    openssl("base64", "-d", "-A", "-in", tmp_path / "base64", "-out", tmp_path / "der")

    verified = openssl(
        *("dgst", "-sha256", "-verify", public, "-signature", tmp_path / "der"),
        tmp_path / "payload",
    )
    assert verified.strip() == b"Verified OK"
    assert json.loads(payload)["critical"] == {
        "identity": {"docker-reference": "layout"},
        "image": {"docker-manifest-digest": packed.entry.digest},
        "type": "cosign container image signature",
    }


def signed_by_hand(writer, digest, private, payload, tmp_path, ahead=()):
    """A signature manifest as another tool would write it; others may lie ``ahead`` of it."""
    (tmp_path / "payload").write_bytes(payload)
    openssl("dgst", "-sha256", "-sign", private, "-out", tmp_path / "der", tmp_path / "payload")
    text = openssl("base64", "-A", "-in", tmp_path / "der").decode()
    layer = writer.blob(payload, annotations={"dev.cosignproject.cosign/signature": text})
    writer.tag(writer.manifest({}, {}, [*ahead, layer]), signature_tag(digest))


def payload_for(digest, kind="cosign container image signature"):
    critical = {
        "identity": {"docker-reference": "x"},
        "image": {"docker-manifest-digest": digest},
        "type": kind,
    }
    return json.dumps({"critical": critical, "optional": {"creator": "somebody"}}).encode()


def test_a_signature_of_another_tool_is_taken(tmp_path, keys):
    private, public = keys[0]
    writer = LayoutWriter(tmp_path / "layout")
    manifest = writer.manifest({"m": MODEL})
    writer.tag(manifest, "1")
    digest = manifest["digest"]
    nonsense = writer.blob(b"{}", annotations={"dev.cosignproject.cosign/signature": "é"})
    signed_by_hand(writer, digest, private, payload_for(digest), tmp_path, [nonsense])
    reference = LayoutReference(writer.directory, "1")

    assert open_quietly(reference, tmp_path, verify_key_file=public).digest == digest


@pytest.mark.parametrize(
    "payload",
    [
        payload_for(f"sha256:{'0' * 64}"),
        payload_for("{digest}", "another kind of signature"),
        b"{}",
        b"",
        b"[",
    ],
    ids=["other digest", "other kind", "object", "empty", "damaged"],
)
def test_a_signature_of_something_else_is_not(tmp_path, keys, payload):
    private, public = keys[0]
    writer = LayoutWriter(tmp_path / "layout")
    manifest = writer.manifest({"m": MODEL})
    writer.tag(manifest, "1")
    payload = payload.replace(b"{digest}", manifest["digest"].encode())
    signed_by_hand(writer, manifest["digest"], private, payload, tmp_path)

    with pytest.raises(SignatureError, match="none of them is valid"):
        open_quietly(LayoutReference(writer.directory, "1"), tmp_path, verify_key_file=public)


def test_what_is_not_signed_is_refused(packed, tmp_path, keys):
    write_to_layout(packed, tmp_path / "layout", "1")

    with pytest.raises(SignatureError, match="is not signed"):
        open_quietly(
            LayoutReference(tmp_path / "layout", "1"), tmp_path, verify_key_file=keys[0][1]
        )


def test_keys_of_another_kind_are_named(packed, tmp_path, keys):
    openssl("genpkey", "-algorithm", "ED25519", "-out", tmp_path / "ed.pem")
    openssl("pkey", "-in", tmp_path / "ed.pem", "-pubout", "-out", tmp_path / "ed.pub")
    (tmp_path / "none.pub").write_text("hello")
    target, _ = sign(packed, tmp_path, keys[0][0])

    with pytest.raises(StartupError, match="not an ECDSA key on P-256"):
        pack_signature(packed, target, tmp_path / "ed.pem")
    with pytest.raises(StartupError, match="not an ECDSA key on P-256"):
        open_quietly(target, tmp_path, verify_key_file=tmp_path / "ed.pub")
    with pytest.raises(StartupError, match="holds no PEM public key"):
        open_quietly(target, tmp_path, verify_key_file=tmp_path / "none.pub")
    with pytest.raises(StartupError, match="No such file"):
        open_quietly(target, tmp_path, verify_key_file=tmp_path / "absent.pub")


def test_a_copy_keeps_digest_and_signature(packed, tmp_path, keys):
    private, public = keys[0]
    sign(packed, tmp_path, private)
    layout = OciLayout(tmp_path / "layout")
    target = LayoutReference(tmp_path / "copy", "x")
    signature = layout.tagged(signature_tag(packed.entry.digest))
    copy_to_layout(layout, packed.entry, signature, target)

    assert open_quietly(target, tmp_path, verify_key_file=public).digest == packed.entry.digest


def test_a_copy_of_an_index_takes_what_is_there(tmp_path):
    writer = LayoutWriter(tmp_path / "layout")
    here = writer.manifest({"m": MODEL})
    absent = {**here, "digest": f"sha256:{'0' * 64}"}
    platforms = [
        {**entry, "platform": {"os": "linux", "architecture": name}}
        for entry, name in ((here, "amd64"), (absent, "arm64"), (absent, "riscv64"))
    ]
    index = writer.json_blob({"manifests": platforms})
    writer.tag(index, "1")
    layout = OciLayout(writer.directory)
    copy_to_layout(layout, layout.tagged("1"), None, LayoutReference(tmp_path / "copy", "1"))

    copied = {path.name for path in (tmp_path / "copy" / "blobs" / "sha256").iterdir()}
    assert copied == {path.name for path in (writer.directory / "blobs" / "sha256").iterdir()}
