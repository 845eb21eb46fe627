"""Signatures of a publish, as cosign makes them with a key pair; checked without any network.

Rules that hold here:
- What is signed is a small JSON payload that names the manifest's digest; the digest in turn binds
  config and layers. Payload and signature lie in the same repository, under a tag made from the
  digest, and are cached with the artifact.
- The key is ECDSA on P-256 with SHA-256, cosign's own. There is no other algorithm to choose.
- ``cryptography`` is imported only where a signature is made or checked.
"""

import base64
import re
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from engine.errors import StartupError
from engine.publish.layout import BlobSource
from engine.publish.manifest import Descriptor, read_manifest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

__all__ = [
    "PAYLOAD_TYPE",
    "SIGNATURE_ANNOTATION",
    "SignatureError",
    "fetch_signatures",
    "sign",
    "signature_tag",
    "verify_signature",
]

SIGNATURE_ANNOTATION = "dev.cosignproject.cosign/signature"
PAYLOAD_TYPE = "application/vnd.dev.cosign.simplesigning.v1+json"
_SIGNATURE_TYPE = "cosign container image signature"
_MAX_SIGNATURES = 32
_PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.DOTALL)


class SignatureError(StartupError):
    """A publish is not signed, or not by the key that is asked for."""


def signature_tag(digest: str) -> str:
    """The tag under which the signatures of a manifest are kept."""
    return f"{digest.replace(':', '-')}.sig"


def verify_signature(source: BlobSource, entry: Descriptor, key_file: Path) -> None:
    """Make sure that a manifest was signed by one of the keys.

    Args:
        source: Has the signature beside the manifest.
        entry: The manifest.
        key_file: PEM public keys; one of them must have signed.

    Raises:
        SignatureError: There is no signature, or none of the keys made one.
        FetchError: The signature cannot be fetched.
        StartupError: The key file holds no usable key.
    """
    keys = _public_keys(key_file)
    signatures = fetch_signatures(source, entry)
    if not signatures:
        raise SignatureError(
            f"{entry.digest} is not signed; VERIFY_KEY_FILE={key_file} asks for a signature "
            f"(looked for the tag {signature_tag(entry.digest)})"
        )
    if not any(
        _signed_digest(payload) == entry.digest and _is_signed(payload, signature, keys)
        for payload, signature in signatures
    ):
        raise SignatureError(
            f"{entry.digest} has {len(signatures)} signatures and none of them is valid under the "
            f"key of VERIFY_KEY_FILE={key_file}"
        )


def fetch_signatures(source: BlobSource, entry: Descriptor) -> list[tuple[bytes, bytes]]:
    """Fetch what lies where cosign keeps the signatures of a manifest.

    Args:
        source: Has them beside the manifest.
        entry: The manifest.

    Returns:
        Payloads and signatures, unchecked; none where there are none.

    Raises:
        FetchError: They cannot be fetched.
    """
    found = source.tagged(signature_tag(entry.digest))
    if found is None:
        return []
    layers = read_manifest(source.manifest(found)).layers[:_MAX_SIGNATURES]
    return [
        (source.read(layer), _decode(layer.annotations.get(SIGNATURE_ANNOTATION, "")))
        for layer in layers
    ]


def sign(digest: str, repository: str, key_file: Path) -> tuple[bytes, str]:
    """Sign a manifest.

    Args:
        digest: Of the manifest.
        repository: ``host/repository``, for the reader of the payload; nothing depends on it.
        key_file: PEM private key, not encrypted.

    Returns:
        The payload, and the signature in base64.

    Raises:
        StartupError: The key file holds no usable key.
    """
    _require_cryptography()
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    try:
        key = serialization.load_pem_private_key(_read(key_file), password=None)
    except (ValueError, TypeError) as error:
        raise StartupError(
            f"{key_file} holds no private key that can be read without a password; make one with "
            "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
        raise StartupError(f"{key_file} is not an ECDSA key on P-256")
    payload = orjson.dumps(
        {
            "critical": {
                "identity": {"docker-reference": repository},
                "image": {"docker-manifest-digest": digest},
                "type": _SIGNATURE_TYPE,
            },
            "optional": None,
        }
    )
    signature = key.sign(payload, ec.ECDSA(hashes.SHA256()))
    return payload, base64.b64encode(signature).decode()


def _signed_digest(payload: bytes) -> str | None:
    try:
        critical = orjson.loads(payload)["critical"]
        if critical["type"] != _SIGNATURE_TYPE:
            return None
        digest = critical["image"]["docker-manifest-digest"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
    return digest if isinstance(digest, str) else None


def _is_signed(payload: bytes, signature: bytes, keys: "list[EllipticCurvePublicKey]") -> bool:
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    for key in keys:
        try:
            key.verify(signature, payload, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            continue
        return True
    return False


def _public_keys(key_file: Path) -> "list[EllipticCurvePublicKey]":
    _require_cryptography()
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    keys = []
    for pem in _PEM.findall(_read(key_file)):
        try:
            key = serialization.load_pem_public_key(pem)
        except ValueError as error:
            raise StartupError(f"VERIFY_KEY_FILE={key_file}: {error}") from error
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
            raise StartupError(f"VERIFY_KEY_FILE={key_file} is not an ECDSA key on P-256")
        keys.append(key)
    if not keys:
        raise StartupError(f"VERIFY_KEY_FILE={key_file} holds no PEM public key")
    return keys


def _read(key_file: Path) -> bytes:
    try:
        return key_file.read_bytes()
    except OSError as error:
        raise StartupError(f"cannot read {key_file}: {error.strerror}") from error


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:  # an annotation may hold anything
        return b""


def _require_cryptography() -> None:
    try:
        import cryptography  # noqa: F401, PLC0415
    except ImportError as error:
        raise StartupError(
            "signatures need the cryptography package: pip install cryptography"
        ) from error
