"""TLS, mutual TLS and bearer tokens on the HTTP port."""

import os
import shutil
import ssl
import subprocess
import time

import pyarrow.flight as fl
import pytest
from support import models
from support.engine import Engine

ROWS = [{"x": [0, 1, 2, 3]}]
EXTENSIONS = "subjectAltName=DNS:localhost,IP:127.0.0.1"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A CA, a certificate of the server and one of a client; another CA that nobody trusts."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments):
        subprocess.run(
            ["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=30
        )

    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for ca in ("ca", "other-ca"):
        openssl(
            *("req", "-x509", *new_key, "-keyout", f"{ca}.key", "-out", f"{ca}.pem"),
            *("-subj", f"/CN={ca}", "-days", "2"),
        )
    for name, ca in (("server", "ca"), ("client", "ca"), ("stranger", "other-ca")):
        openssl(
            *("req", *new_key, "-keyout", f"{name}.key", "-out", f"{name}.csr"),
            *("-subj", f"/CN={name}", "-addext", EXTENSIONS),
        )
        openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", f"{ca}.pem", "-CAkey", f"{ca}.key"),
            *("-CAcreateserial", "-out", f"{name}.pem", "-days", "2", "-copy_extensions", "copy"),
        )
    return folder


def trusting(certificates, client=None, ca="ca"):
    context = ssl.create_default_context(cafile=certificates / f"{ca}.pem")
    if client:
        context.load_cert_chain(certificates / f"{client}.pem", certificates / f"{client}.key")
    return context


def start(folder, engine_process, **environ):
    pipeline = models.write_pipeline(folder / "pipeline", models.linear())
    return engine_process(PIPELINE_URL=str(pipeline), **environ)


def test_tls(tmp_path, engine_process, certificates):
    engine = start(
        tmp_path,
        engine_process,
        TLS_CERT_FILE=str(certificates / "server.pem"),
        TLS_KEY_FILE=str(certificates / "server.key"),
    ).ready()
    engine.wait_for(r"^Listening: HTTP on .* \(TLS\)$")

    engine.tls = trusting(certificates)
    assert engine.post("/infer", ROWS).status == 200
    assert engine.get("/healthz").status == 200
    large = [{"x": [0, 1, 2, 3]}] * 20_000
    assert engine.post("/infer", large).json[0]["outputs"][0]["Float"]["dim"] == [20_000, 2]
    refused = engine.post("/infer", b"{" * 5000)
    assert refused.status == 400
    engine.tls = trusting(certificates, ca="other-ca")
    with pytest.raises(ssl.SSLCertVerificationError):
        engine.get("/healthz")
    engine.tls = None
    with engine.connect() as plain:
        plain.send(b"GET /healthz HTTP/1.1\r\nHost: edge\r\n\r\n")
        assert plain.receive() is None


def test_mutual_tls(tmp_path, engine_process, certificates):
    engine = start(
        tmp_path,
        engine_process,
        TLS_CERT_FILE=str(certificates / "server.pem"),
        TLS_KEY_FILE=str(certificates / "server.key"),
        TLS_CLIENT_CA_FILE=str(certificates / "ca.pem"),
    ).ready()

    engine.tls = trusting(certificates, client="client")
    assert engine.post("/infer", ROWS).status == 200
    for unknown in (None, "stranger"):
        engine.tls = trusting(certificates, client=unknown)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            engine.post("/infer", ROWS)


def test_tls_files_that_do_not_fit_are_exit_3(tmp_path, certificates):
    engine = start(
        tmp_path,
        lambda **environ: Engine(environ),
        TLS_CERT_FILE=str(certificates / "server.pem"),
        TLS_KEY_FILE=str(certificates / "client.key"),
    )

    assert engine.wait() == 3
    assert "TLS_KEY_FILE" in engine.output
    assert "Traceback" not in engine.output


def test_hostile_35_bearer_tokens(tmp_path, engine_process):
    file = tmp_path / "tokens"
    file.write_text("# of the test\nfirst-token\n\nsecond-token\n")
    engine = start(tmp_path, engine_process, API_TOKEN_FILE=str(file), DEBUG="true").ready()

    def status(path, authorization):
        headers = {} if authorization is None else {"authorization": authorization}
        reply = engine.post(path, ROWS, **headers)
        if reply.status == 401:
            assert reply.headers["www-authenticate"] == "Bearer"
            assert "bearer token is required" in reply.error
        return reply.status

    for token in ("first-token", "second-token"):
        assert status("/infer", f"Bearer {token}") == 200
        assert status("/infer", f"bearer  {token}") == 200
        assert status("/pipelines/pipe", f"Bearer {token}") == 200
        assert status("/logs", f"Bearer {token}") == 404
    for wrong in (
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer first",
        "Basic first-token",
        "first-token",
        "Bearer # of the test",
        "Bearer first-token second-token",
    ):
        for path in ("/infer", "/pipelines/pipe", "/pipelines/other", "/logs", "/nothing"):
            assert status(path, wrong) == 401, (path, wrong)
    for path in ("/pipelines", "/models"):
        assert engine.get(path).status == 401
    assert (engine.get("/healthz").status, engine.get("/livez").status) == (200, 200)
    assert not any("-token" in line for line in engine.lines)


@pytest.mark.slow
def test_tokens_change_with_their_file(tmp_path, engine_process):
    file = tmp_path / "tokens"
    file.write_text("old\n")
    engine = start(tmp_path, engine_process, API_TOKEN_FILE=str(file)).ready()
    assert engine.post("/infer", ROWS, authorization="Bearer old").status == 200

    replacement = tmp_path / "replacement"
    replacement.write_text("new\n")
    os.utime(replacement, ns=(1, 1))  # any other time, be it an older one
    replacement.replace(file)

    deadline = time.monotonic() + 30
    while engine.post("/infer", ROWS, authorization="Bearer new").status != 200:
        assert time.monotonic() < deadline
    assert engine.post("/infer", ROWS, authorization="Bearer old").status == 401
    file.unlink()
    assert engine.post("/infer", ROWS, authorization="Bearer new").status == 200


def test_metrics_port_needs_no_token_and_no_tls(tmp_path, engine_process, certificates):
    file = tmp_path / "tokens"
    file.write_text("token\n")
    engine = start(
        tmp_path,
        engine_process,
        API_TOKEN_FILE=str(file),
        TLS_CERT_FILE=str(certificates / "server.pem"),
        TLS_KEY_FILE=str(certificates / "server.key"),
    ).ready()

    with engine.connect(engine.metrics_port) as wire:
        wire.send(b"GET /metrics HTTP/1.1\r\nHost: edge\r\n\r\n")
        assert b"latency_histogram_ns" in wire.receive().body


def test_flight_has_the_same_tls(tmp_path, engine_process, certificates):
    """TLS and mutual TLS on Flight: a client without an accepted certificate gets nothing."""
    engine = start(
        tmp_path,
        engine_process,
        FLIGHT_PORT="0",
        TLS_CERT_FILE=str(certificates / "server.pem"),
        TLS_KEY_FILE=str(certificates / "server.key"),
        TLS_CLIENT_CA_FILE=str(certificates / "ca.pem"),
    ).ready()

    def health(client=None):
        identity = {}
        if client:
            identity["cert_chain"] = (certificates / f"{client}.pem").read_bytes()
            identity["private_key"] = (certificates / f"{client}.key").read_bytes()
        connection = fl.connect(
            f"grpc+tls://localhost:{engine.flight_port}",
            tls_root_certs=(certificates / "ca.pem").read_bytes(),
            **identity,
        )
        (result,) = connection.do_action("health", fl.FlightCallOptions(timeout=5))
        return result.body.to_pybytes()

    assert health("client") == b'{"status":"Running"}'
    for unwelcome in (None, "stranger"):
        with pytest.raises((fl.FlightUnavailableError, fl.FlightTimedOutError)):
            health(unwelcome)
    assert "Listening: Flight on 127.0.0.1" in engine.output
