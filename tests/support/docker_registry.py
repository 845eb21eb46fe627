"""Debian's ``docker-registry`` on a free loopback port, with a password, or with TLS and tokens."""

import base64
import datetime
import ipaddress
import json
import shutil
import socket
import subprocess
import time
import urllib.parse

import pytest

from support.engine import DEADLINE_S
from support.registry import Registry

USER, PASSWORD = "edge", "s3cret"


def need(*programs):
    """Skip, saying which program is not installed."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (apt-get install docker-registry skopeo)")


class DockerRegistry:
    """A running registry; ``address`` is its host and port. Several may serve one folder."""

    def __init__(self, folder, auth, tls=None, host="127.0.0.1"):
        need("docker-registry")
        with socket.create_server((host, 0)) as probe:
            self.port = probe.getsockname()[1]
        self.host = host
        self.address = f"{host}:{self.port}"
        self.auth = auth
        self.folder = folder
        config = {
            "version": "0.1",
            "log": {"level": "error", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
            "http": {"addr": self.address, **({"tls": tls} if tls else {})},
            "auth": auth,
        }
        self.config = folder / f"registry-{self.port}.json"
        self.config.write_text(json.dumps(config))  # JSON is YAML
        self.process = None
        self.start()

    def start(self):
        with (self.folder / "registry.log").open("ab") as log:
            self.process = subprocess.Popen(
                ["docker-registry", "serve", self.config], stdout=log, stderr=log
            )
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex((self.host, self.port)) == 0:
                    return
            assert self.process.poll() is None, (self.folder / "registry.log").read_text()
            time.sleep(0.02)
        raise AssertionError("docker-registry does not listen")

    def stop(self):
        self.process.terminate()
        self.process.wait(timeout=DEADLINE_S)


def with_password(folder):
    """A registry that asks for ``USER`` and ``PASSWORD``."""
    need("docker-registry", "htpasswd")
    line = subprocess.run(
        ["htpasswd", "-Bbn", USER, PASSWORD], capture_output=True, check=True, timeout=DEADLINE_S
    )
    (folder / "htpasswd").write_bytes(line.stdout)
    return DockerRegistry(
        folder, {"htpasswd": {"realm": "basic-realm", "path": str(folder / "htpasswd")}}
    )


class TokenRealm(Registry):
    """A realm that gives bearer tokens, signed as docker-registry checks them, to ``USER``."""

    def __init__(self, key, certificate, tls):
        super().__init__(tls=tls)
        self.key = key
        self.certificate = certificate
        self.rules.append(self.answer)

    def answer(self, handler):
        pair = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if handler.headers.get("Authorization") != f"Basic {pair}":
            return handler.reply(401)
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(handler.path).query)
        token = self.token(query.get("scope", []))
        return handler.reply(200, json.dumps({"token": token}).encode())

    def token(self, scopes):
        from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
        from cryptography.hazmat.primitives.asymmetric import padding  # noqa: PLC0415

        access = []
        for scope in scopes:
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        now = int(time.time())
        der = self.certificate.public_bytes(serialization.Encoding.DER)
        head = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
        claims = {
            "iss": "edge-issuer",
            "sub": USER,
            "aud": "edge-registry",
            "exp": now + 300,
            "nbf": now - 5,
            "iat": now,
            "jti": str(now),
            "access": access,
        }
        text = b".".join(_base64url(json.dumps(part).encode()) for part in (head, claims))
        signature = self.key.sign(text, padding.PKCS1v15(), hashes.SHA256())
        return b".".join([text, _base64url(signature)]).decode()


def _base64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def certificate(folder, name):
    """A self-signed certificate for loopback: key, certificate and the files they are in."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import rsa  # noqa: PLC0415

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            ),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    key_file, file = folder / f"{name}.key", folder / f"{name}.crt"
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    file.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    return key, built, key_file, file
