"""A registry on a loopback socket whose answers a test can bend; it records what it is asked."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import socket
import ssl
import struct
import threading
import urllib.parse
from dataclasses import dataclass, field

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"


def digest_of(content):
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@dataclass
class Seen:
    method: str
    path: str
    headers: dict
    body: bytes = b""

    @property
    def authorization(self):
        return self.headers.get("authorization")


@dataclass
class Registry:
    """The state; ``rules`` see each request first and return True when they have answered it."""

    host: str = "127.0.0.1"
    tls: ssl.SSLContext | None = None
    blobs: dict = field(default_factory=dict)
    manifests: dict = field(default_factory=dict)
    rules: list = field(default_factory=list)
    seen: list = field(default_factory=list)
    basic: tuple | None = None  # (user, password)
    challenge: str | None = None  # bearer; tokens are then what is accepted
    tokens: set = field(default_factory=set)

    def __post_init__(self):
        registry = self

        class Handler(_Handler):
            state = registry

        self._server = _Server((self.host, 0), Handler)
        if self.tls is not None:
            self._server.socket = self.tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=10)

    @property
    def address(self):
        return f"{self.host}:{self.port}"

    def url(self, path):
        return f"{'https' if self.tls else 'http'}://{self.address}{path}"

    def add(self, content):
        self.blobs[digest_of(content)] = content
        return {"mediaType": "application/x", "digest": digest_of(content), "size": len(content)}

    def publish(self, definition, models, tag, **layer_changes):
        """Store an artifact; ``layer_changes`` bend its last layer. Returns the manifest digest."""
        layers = [
            self.add(content) | {"annotations": {"name": name}} for name, content in models.items()
        ]
        layers[-1] |= layer_changes
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": self.add(json.dumps(definition).encode()),
            "layers": layers,
        }
        return self.add_manifest(json.dumps(manifest).encode(), tag)

    def add_manifest(self, document, tag):
        self.manifests[tag] = self.manifests[digest_of(document)] = document
        return digest_of(document)

    def paths(self, method="GET"):
        return [seen.path for seen in self.seen if seen.method == method]


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Connections that tests cut are no news."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Registry

    def log_message(self, *_):
        pass

    def handle_one_request(self):
        with contextlib.suppress(OSError):
            super().handle_one_request()

    def any_method(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {key.lower(): value for key, value in self.headers.items()}
        self.request_seen = Seen(self.command, self.path, headers, body)
        self.state.seen.append(self.request_seen)
        if any(rule(self) for rule in self.state.rules):
            return
        if not self.is_refused():
            self.route(body)

    do_GET = do_HEAD = do_POST = do_PUT = any_method

    def is_refused(self):
        state, given = self.state, self.headers.get("Authorization", "")
        if state.basic is not None:
            pair = base64.b64encode(":".join(state.basic).encode()).decode()
            if given != f"Basic {pair}":
                return self.reply(401, headers={"WWW-Authenticate": 'Basic realm="r"'})
        if state.challenge is not None and given.removeprefix("Bearer ") not in state.tokens:
            return self.reply(401, headers={"WWW-Authenticate": state.challenge})
        return False

    def route(self, body):
        path = urllib.parse.urlsplit(self.path).path
        if path == "/v2/":
            return self.reply(200, b"{}")
        if found := re.fullmatch(r"/v2/(.+)/manifests/(.+)", path):
            return self.manifest(found[2], body)
        if found := re.fullmatch(r"/v2/(.+)/blobs/uploads/(.*)", path):
            return self.upload(body)
        if found := re.fullmatch(r"/v2/(.+)/blobs/(.+)", path):
            return self.blob(found[2])
        return self.reply(404)

    def manifest(self, name, body):
        if self.command == "PUT":
            digest = self.state.add_manifest(body, name)
            return self.reply(201, headers={"Docker-Content-Digest": digest})
        document = self.state.manifests.get(name)
        if document is None:
            errors = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}
            return self.reply(404, json.dumps(errors).encode())
        return self.reply(
            200,
            document,
            {"Content-Type": MANIFEST_TYPE, "Docker-Content-Digest": digest_of(document)},
        )

    def blob(self, digest):
        content = self.state.blobs.get(digest)
        if content is None:
            return self.reply(404)
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not start:
            return self.reply(200, content)
        first = int(start[1])
        if first >= len(content):
            return self.reply(416)
        span = f"bytes {first}-{len(content) - 1}/{len(content)}"
        return self.reply(206, content[first:], {"Content-Range": span})

    def upload(self, body):
        if self.command == "POST":
            return self.reply(202, headers={"Location": f"{self.path}one?state=x"})
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        if digest_of(body) != query["digest"][0]:
            return self.reply(400)
        self.state.blobs[digest_of(body)] = body
        return self.reply(201)

    def reply(self, status, body=b"", headers=None):
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        return True

    def cut(self, content, count, *, is_reset=True):
        """Promise all of ``content``, send ``count`` bytes of it, and end the connection."""
        self.send_response(200 if "Range" not in self.headers else 206)
        if "Range" in self.headers:
            first = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1])
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            content = content[first:]
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:count])
        self.wfile.flush()
        if is_reset:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True
        return True
