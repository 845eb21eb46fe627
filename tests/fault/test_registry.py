"""A registry that lies, breaks, dribbles and asks for secrets: nothing bad may come of it."""

import json
import ssl
import threading
from dataclasses import replace

import pytest
from support.artifacts import definition, open_quietly, sha256
from support.docker_registry import certificate
from support.registry import Registry, digest_of

from engine.config import Secret
from engine.errors import StartupError
from engine.publish.artifact import FetchError
from engine.publish.credentials import Credentials, Limits, RegistryAccess
from engine.publish.reference import parse_reference

pytestmark = pytest.mark.fault

MODEL = bytes(range(256)) * 4096  # 1 MiB
MODELS = {"m": MODEL}
SHA = sha256(MODEL)
BLOB = f"/v2/team/p/blobs/sha256:{SHA}"
PASSWORD = "hunter2"
LIMITS = Limits(slow_bytes=64 << 10, attempts=3)
ANONYMOUS = RegistryAccess(limits=LIMITS)
IMPATIENT = RegistryAccess(limits=replace(LIMITS, document_s=0.5, slow_window_s=0.5, attempts=2))
KNOWN = RegistryAccess(
    credentials=Credentials("edge", Secret(PASSWORD), "OCI_USERNAME"), limits=LIMITS
)


@pytest.fixture
def registry():
    with Registry() as server:
        server.publish(definition(MODELS), MODELS, "1")
        yield server


@pytest.fixture
def elsewhere():
    """Another host, which keeps what it is sent."""
    with Registry(host="127.0.0.2") as server:
        yield server


@pytest.fixture
def pull(registry, tmp_path):
    """Pulls into a cache; whatever happens, nothing appears outside of it."""

    def pull(name=":1", access=ANONYMOUS, report=lambda _line: None, **options):
        reference = parse_reference(f"{registry.address}/team/p{name}")
        cache = tmp_path / "persist" / "oci"
        try:
            return open_quietly(reference, cache, access=access, report=report, **options)
        finally:
            assert [path.name for path in tmp_path.iterdir()] in ([], ["persist"])
            for blob in (cache / "blobs" / "sha256").glob("*"):
                assert sha256(blob.read_bytes()) == blob.name

    return pull


def on(path, answer):
    """A rule: answer requests of a path that starts so."""
    return lambda handler: handler.path.startswith(path) and answer(handler)


def test_a_sound_artifact_is_pulled_once(pull, registry):
    first, second = pull(), pull()

    assert first == second
    assert first.layers[0].path.read_bytes() == MODEL
    assert registry.paths().count(BLOB) == 1


def test_what_a_digest_names_is_not_asked_for_again(pull, registry):
    digest = digest_of(registry.manifests["1"])
    pull(f"@{digest}")
    registry.seen.clear()

    assert pull(f"@{digest}").digest == digest
    assert registry.seen == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (MODEL[:-1] + b"x", "the registry sent the content of"),
        (MODEL[:-1], "the registry sent 1048575 bytes, its manifest says 1048576"),
        (MODEL + b"x", "more bytes are sent than the 1048576"),
        (b"", "the registry sent 0 bytes"),
    ],
    ids=["changed", "short", "long", "empty"],
)
def test_a_blob_that_is_not_what_it_should_be(pull, registry, content, said):
    registry.blobs[f"sha256:{SHA}"] = content

    with pytest.raises(FetchError, match=said):
        pull()


def test_a_damaged_definition(pull, registry):
    config = json.dumps(definition(MODELS)).encode()
    registry.blobs[digest_of(config)] = config.replace(b"house", b"mouse")

    with pytest.raises(FetchError, match="the registry sent the content of"):
        pull()


def test_a_manifest_that_is_not_what_its_digest_says(pull, registry):
    wanted = f"sha256:{'0' * 64}"
    registry.manifests[wanted] = registry.manifests["1"]

    with pytest.raises(FetchError, match=f"the registry calls '{wanted}' a manifest"):
        pull(f"@{wanted}")


def test_a_manifest_that_is_not_what_the_header_says(pull, registry):
    document = registry.manifests["1"]
    headers = {"Docker-Content-Digest": "sha256:../../x"}
    registry.rules.append(on("/v2/team/p/manifests", lambda h: h.reply(200, document, headers)))

    with pytest.raises(FetchError, match="damaged or was changed"):
        pull()


@pytest.mark.parametrize(
    "change",
    [
        {"digest": "sha256:../../../../x"},
        {"annotations": {"org.opencontainers.image.title": "../../x"}},
        {"annotations": {"filename": "/etc/cron.d/x"}},
        {"annotations": {"filename": "a\x00b"}},
        {"annotations": {"org.opencontainers.image.title": "x" * 300}},
        {"size": 1 << 62},
    ],
    ids=str,
)
def test_a_manifest_that_means_harm(pull, registry, change):
    registry.publish(definition(MODELS), MODELS, "1", **change)

    with pytest.raises(FetchError, match=r"layers\[0\]|needs \d+ bytes more"):
        pull()


def test_a_manifest_without_end(pull, registry):
    def endless(handler):
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        while True:
            handler.wfile.write(b" " * 65536)

    registry.rules.append(on("/v2/team/p/manifests", endless))

    with pytest.raises(FetchError, match="sent more than 4194304 bytes"):
        pull()


def test_a_web_page_in_place_of_a_registry(pull, registry):
    registry.rules.append(lambda handler: handler.reply(200, b"<html>Log in to the hotel</html>"))

    with pytest.raises(FetchError, match="manifest is not JSON"):
        pull()


def test_credentials_go_to_the_registry(pull, registry):
    registry.basic = ("edge", PASSWORD)
    lines = []
    pull(access=KNOWN, report=lines.append)

    assert lines[0] == "Login Succeeded"
    assert registry.seen[0].authorization is None  # nothing is sent before it is asked for


def test_credentials_of_another_registry_are_not_sent(pull, registry):
    registry.basic = ("edge", PASSWORD)
    lines = []

    with pytest.raises(FetchError, match="set OCI_USERNAME and OCI_PASSWORD"):
        pull(access=replace(KNOWN, registry="ghcr.io"), report=lines.append)

    assert {seen.authorization for seen in registry.seen} == {None}
    assert lines[0].startswith("OCI_USERNAME is for ghcr.io")


def test_wrong_credentials_end_at_once(pull, registry):
    registry.basic = ("edge", "another")

    with pytest.raises(FetchError, match="refused the credentials of OCI_USERNAME") as caught:
        pull(access=KNOWN)

    assert len(registry.seen) == 2
    assert PASSWORD not in f"{caught.value!r} {caught.value.__cause__!r}"


def test_missing_credentials_are_named(pull, registry):
    registry.basic = ("edge", PASSWORD)

    with pytest.raises(FetchError, match="set OCI_USERNAME and OCI_PASSWORD"):
        pull()


def bearer(server, realm, token="t0"):
    server.challenge = f'Bearer realm="{realm}",service="s",scope="repository:team/p:pull"'
    server.tokens.add(token)


def hands_out(handler_of, *tokens):
    """A token realm that hands out one token after the other."""
    left = list(tokens)

    def answer(handler):
        body = json.dumps({"token": left.pop(0) if len(left) > 1 else left[0]}).encode()
        return handler.reply(200, body)

    handler_of.rules.append(on("/token", answer))


def test_a_token_is_fetched_and_used(pull, registry):
    bearer(registry, registry.url("/token"))
    hands_out(registry, "t0")
    pull(access=KNOWN)

    asked = [seen for seen in registry.seen if seen.path.startswith("/token")]
    assert len(asked) == 1
    assert asked[0].authorization.startswith("Basic ")
    assert asked[0].path == "/token?service=s&scope=repository%3Ateam%2Fp%3Apull"


def test_a_token_that_expires_in_the_middle_is_renewed(pull, registry):
    bearer(registry, registry.url("/token"))
    hands_out(registry, "t0", "t1")

    def expire(handler):
        registry.tokens = {"t1"}

    registry.rules.insert(0, on(BLOB, expire))
    pull(access=KNOWN)

    assert [seen.authorization for seen in registry.seen if seen.path == BLOB] == [
        "Bearer t0",
        "Bearer t1",
    ]


def test_anonymous_tokens(pull, registry):
    bearer(registry, registry.url("/token"))
    hands_out(registry, "t0")
    pull()

    asked = [seen for seen in registry.seen if seen.path.startswith("/token")]
    assert [seen.authorization for seen in asked] == [None]


def test_a_registry_that_refuses_every_token(pull, registry):
    bearer(registry, registry.url("/token"))
    hands_out(registry, "other")

    with pytest.raises(FetchError, match="refused the credentials"):
        pull(access=KNOWN)

    assert len(registry.seen) == 3


@pytest.mark.parametrize(
    "realm",
    [
        "http://127.0.0.2:{port}/token",
        "http://localhost:{port}/token",
        "http://169.254.169.254/latest/meta-data/",
        "http://user:x@127.0.0.1:{port}/token",
        "file:///etc/passwd",
        "",
    ],
)
def test_a_realm_on_another_host_gets_no_credentials(pull, registry, elsewhere, realm):
    bearer(registry, realm.format(port=elsewhere.port))

    with pytest.raises(FetchError, match=r"refused|not a URL") as caught:
        pull(access=KNOWN)

    assert elsewhere.seen == []
    assert PASSWORD not in str(caught.value)


def test_a_realm_that_redirects_gets_no_further(pull, registry, elsewhere):
    bearer(registry, registry.url("/token"))
    headers = {"Location": elsewhere.url("/token")}
    registry.rules.append(on("/token", lambda handler: handler.reply(307, headers=headers)))

    with pytest.raises(FetchError, match="answers HTTP 307"):
        pull(access=KNOWN)

    assert elsewhere.seen == []


def test_a_blob_is_fetched_from_another_host_without_credentials(pull, registry, elsewhere):
    registry.basic = ("edge", PASSWORD)
    elsewhere.add(MODEL)
    headers = {"Location": elsewhere.url(f"{BLOB}?signature=x")}
    registry.rules.append(on(BLOB, lambda handler: handler.reply(307, headers=headers)))
    artifact = pull(access=KNOWN)

    assert artifact.layers[0].path.read_bytes() == MODEL
    assert [seen.authorization for seen in elsewhere.seen] == [None]


def test_another_host_cannot_ask_for_credentials(pull, registry, elsewhere):
    registry.basic = ("edge", PASSWORD)
    elsewhere.basic = ("edge", PASSWORD)
    headers = {"Location": elsewhere.url(BLOB)}
    registry.rules.append(on(BLOB, lambda handler: handler.reply(307, headers=headers)))

    with pytest.raises(FetchError):
        pull(access=KNOWN)

    assert [seen.authorization for seen in elsewhere.seen] == [None]


@pytest.fixture
def secure(tmp_path_factory):
    """A registry behind TLS; ``trusting`` is who trusts it."""
    folder = tmp_path_factory.mktemp("tls")
    _, _, key_file, ca_file = certificate(folder, "server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca_file, key_file)
    with Registry(tls=context) as server:
        server.publish(definition(MODELS), MODELS, "1")
        server.trusting = replace(ANONYMOUS, ca_file=ca_file)
        yield server


def test_https_does_not_become_http(secure, elsewhere, tmp_path):
    elsewhere.add(MODEL)
    headers = {"Location": elsewhere.url(BLOB)}
    secure.rules.append(on(BLOB, lambda handler: handler.reply(307, headers=headers)))
    reference = parse_reference(f"{secure.address}/team/p:1")

    with pytest.raises(FetchError, match="over plain http; refused"):
        open_quietly(reference, tmp_path, access=secure.trusting)
    assert elsewhere.seen == []


def test_a_transfer_over_tls_goes_on_where_it_ended(secure, tmp_path):
    counts = [300_000]
    secure.rules.append(
        on(BLOB, lambda handler: bool(counts) and handler.cut(MODEL, counts.pop(), is_reset=False))
    )
    reference = parse_reference(f"{secure.address}/team/p:1")
    artifact = open_quietly(reference, tmp_path, access=secure.trusting)

    assert artifact.layers[0].path.read_bytes() == MODEL


def test_an_untrusted_certificate_is_named_and_nothing_is_sent(secure, tmp_path):
    reference = parse_reference(f"{secure.address}/team/p:1")

    with pytest.raises(FetchError, match=r"CERTIFICATE_VERIFY_FAILED.*OCI_CA_FILE"):
        open_quietly(reference, tmp_path, access=KNOWN)
    assert secure.seen == []


@pytest.mark.parametrize("location", ["http://[", "http://host:port/", "http://host:99999/"])
def test_a_redirect_to_what_is_no_url_is_refused(pull, registry, location):
    headers = {"Location": location}
    registry.rules.append(on(BLOB, lambda handler: handler.reply(302, headers=headers)))

    with pytest.raises(FetchError, match="which is no URL"):
        pull()


def test_redirects_end(pull, registry):
    headers = {"Location": BLOB}
    registry.rules.append(on(BLOB, lambda handler: handler.reply(302, headers=headers)))

    with pytest.raises(FetchError, match="redirects more than 5 times"):
        pull()


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(pull, registry, status):
    left = [status, status]

    def fail(handler):
        return bool(left) and handler.reply(left.pop(), headers={"Retry-After": "0"})

    registry.rules.append(fail)

    assert pull().layers[0].sha == SHA


@pytest.mark.parametrize("status", [429, 503])
def test_a_registry_that_keeps_failing_is_given_up(pull, registry, status):
    headers = {"Retry-After": "99999"}
    registry.rules.append(lambda handler: handler.reply(status, headers=headers))

    with pytest.raises(FetchError, match=f"HTTP {status}"):
        pull()

    assert len(registry.seen) == 1  # a wait beyond the budget is not begun


@pytest.mark.parametrize("status", [400, 403, 404, 418])
def test_what_will_not_pass_is_not_tried_again(pull, registry, status):
    registry.rules.append(on("/v2/team/p/manifests", lambda handler: handler.reply(status)))

    with pytest.raises(FetchError, match=f"HTTP {status}"):
        pull()

    assert len(registry.seen) == 1


def dribble(count):
    """Send an answer's bytes one at a time, for ever or nearly."""

    def answer(handler):
        stop = threading.Event()
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1048576\r\n"[:count])
        while not stop.wait(0.05):
            handler.wfile.write(b"x")

    return answer


@pytest.mark.parametrize("count", [5, 20, 43], ids=["status", "header", "field"])
@pytest.mark.parametrize("path", ["/v2/team/p/manifests", BLOB], ids=["manifest", "blob"])
def test_an_answer_one_byte_at_a_time_is_given_up(pull, registry, path, count):
    registry.rules.append(on(path, dribble(count)))

    with pytest.raises(FetchError, match=r"timed out|broke off"):
        pull(access=IMPATIENT)


def test_a_blob_one_byte_at_a_time_is_given_up(pull, registry):
    def dribble_body(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(MODEL)))
        handler.end_headers()
        stop = threading.Event()
        for place in range(len(MODEL)):
            handler.wfile.write(MODEL[place : place + 1])
            if stop.wait(0.05):
                break

    registry.rules.append(on(BLOB, dribble_body))

    with pytest.raises(FetchError, match="the transfer broke off after"):
        pull(access=IMPATIENT)


def test_a_broken_transfer_goes_on_where_it_ended(pull, registry):
    registry.rules.append(on(BLOB, lambda handler: handler.cut(MODEL, 300_000)))
    artifact = pull()

    ranges = [seen.headers.get("range") for seen in registry.seen if seen.path == BLOB]
    assert artifact.layers[0].path.read_bytes() == MODEL
    assert ranges[0] is None
    assert len(ranges) >= 4
    assert all(ranges[1:])


def test_a_pull_that_was_given_up_is_gone_on_with(pull, registry):
    counts = [500_000, 10, 10]
    registry.rules.append(
        on(BLOB, lambda handler: handler.cut(MODEL, counts.pop(0), is_reset=False))
    )
    with pytest.raises(FetchError, match="broke off"):
        pull(access=replace(ANONYMOUS, limits=replace(LIMITS, slow_bytes=1 << 20)))
    registry.rules.clear()
    registry.seen.clear()
    pull()

    (seen,) = [seen for seen in registry.seen if seen.path == BLOB]
    assert seen.headers["range"] == "bytes=500020-"


def test_a_damaged_part_is_fetched_anew(pull, registry, tmp_path):
    part = tmp_path / "persist" / "oci" / "ingest" / f"{SHA}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"\x00" * 1000)  # what a power cut leaves
    pull()

    ranges = [seen.headers.get("range") for seen in registry.seen if seen.path == BLOB]
    assert ranges == ["bytes=1000-", None]


@pytest.mark.parametrize("support", ["ignored", "wrong", "refused"])
def test_registries_without_ranges(pull, registry, tmp_path, support):
    part = tmp_path / "persist" / "oci" / "ingest" / f"{SHA}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(MODEL[:1000])

    def answer(handler):
        if "Range" not in handler.headers:
            return False
        if support == "refused":
            return handler.reply(416)
        if support == "wrong":
            return handler.reply(206, MODEL, {"Content-Range": "bytes 0-1048575/1048576"})
        return handler.reply(200, MODEL)

    registry.rules.append(on(BLOB, answer))

    assert pull().layers[0].path.read_bytes() == MODEL


def break_down(handler):
    return handler.reply(500)


BROKEN = {
    "fails": break_down,
    "page": lambda handler: handler.reply(200, b"<html>"),
    "gone": lambda handler: handler.reply(404),
    "denied": lambda handler: handler.reply(403),
    "dribbles": dribble(5),
}


@pytest.mark.parametrize("how", BROKEN)
def test_the_cache_serves_when_the_registry_does_not(pull, registry, how):
    pulled = pull()
    registry.rules.append(BROKEN[how])
    lines = []

    assert pull(access=IMPATIENT, report=lines.append) == pulled
    assert any(
        line.startswith(f"Starting from the cached artifact {pulled.digest}: ") for line in lines
    )


def test_the_cache_serves_when_nothing_answers(tmp_path):
    with Registry() as registry:
        registry.publish(definition(MODELS), MODELS, "1")
        reference = parse_reference(f"{registry.address}/team/p:1")
        pulled = open_quietly(reference, tmp_path, access=ANONYMOUS)
    lines = []

    assert open_quietly(reference, tmp_path, access=ANONYMOUS, report=lines.append) == pulled
    assert "is not in reach (Connection refused)" in lines[0]


def test_the_cache_serves_when_the_new_publish_is_damaged(pull, registry):
    pulled = pull()
    registry.publish(definition({"m": b"new"}), {"m": b"new"}, "1")
    registry.blobs[digest_of(b"new")] = b"old"

    assert pull() == pulled


def test_a_moved_tag_is_followed(pull, registry):
    pulled = pull()
    models = {"m": MODEL, "n": b"new"}
    registry.publish(definition(models), models, "1")
    moved = pull()

    assert moved.digest != pulled.digest
    assert [layer.name for layer in moved.layers] == ["m", "n"]
    assert registry.paths().count(BLOB) == 1  # what both share is not fetched twice


def test_a_definition_that_cannot_run_stops_the_start(pull, registry):
    pull()
    bad = definition({"m": b"new"})
    bad["models"][0]["runtime"] = "flight"
    registry.publish(bad, {"m": b"new"}, "1")

    with pytest.raises(StartupError, match="runtime 'flight' of model 'm' is not supported"):
        pull()

    assert f"/v2/team/p/blobs/{digest_of(b'new')}" not in registry.paths()


@pytest.mark.parametrize("which", ["layer", "config", "manifest"])
def test_a_damaged_cache_is_mended(pull, registry, tmp_path, which):
    pulled = pull()
    digest = {
        "layer": f"sha256:{SHA}",
        "config": digest_of(pulled.definition),
        "manifest": pulled.digest,
    }[which]
    (tmp_path / "persist" / "oci" / "blobs" / "sha256" / digest[7:]).write_bytes(b"rot")

    assert pull() == pulled


def test_a_damaged_cache_is_mended_for_a_pinned_digest(pull, registry, tmp_path):
    digest = digest_of(registry.manifests["1"])
    pulled = pull(f"@{digest}")
    (tmp_path / "persist" / "oci" / "blobs" / "sha256" / SHA).write_bytes(MODEL[:-1])

    assert pull(f"@{digest}") == pulled


@pytest.mark.parametrize("content", [b"", b"{", b'{"manifests": 7}'])
def test_a_damaged_index_is_written_anew(pull, tmp_path, content):
    pulled = pull()
    (tmp_path / "persist" / "oci" / "index.json").write_bytes(content)

    assert pull() == pulled
    assert pull() == pulled


def test_a_cache_that_cannot_be_written_is_named(registry, tmp_path):
    (tmp_path / "oci").write_text("a file")
    reference = parse_reference(f"{registry.address}/team/p:1")

    with pytest.raises(FetchError, match="PERSIST_DIR must be writable"):
        open_quietly(reference, tmp_path / "oci", access=ANONYMOUS)


def test_a_size_that_no_disk_has_drives_nothing_out(pull, registry, tmp_path):
    for tag in "12":
        models = {"m": tag.encode()}
        registry.publish(definition(models), models, tag)
        pull(f":{tag}")
    registry.publish(definition(MODELS), MODELS, "3", size=1 << 62)
    before = sorted((tmp_path / "persist" / "oci" / "blobs" / "sha256").iterdir())

    with pytest.raises(FetchError, match="needs 4611686018427387904 bytes more"):
        pull(":3")
    after = sorted((tmp_path / "persist" / "oci" / "blobs" / "sha256").iterdir())
    assert set(before) <= set(after)


def test_old_publishes_leave_and_the_running_one_stays(pull, registry, tmp_path):
    contents = [b"model %d" % number for number in range(8)]
    pulled = []
    for number, content in enumerate(contents):
        registry.publish(definition({"m": content}), {"m": content}, str(number))
        in_use = [pulled[0].digest] if pulled else []
        pulled.append(pull(f":{number}", in_use=in_use))

    held = {path.name for path in (tmp_path / "persist" / "oci" / "blobs" / "sha256").iterdir()}
    assert [sha256(content) in held for content in contents] == [
        True, False, False, False, True, True, True, True,
    ]  # fmt: skip
