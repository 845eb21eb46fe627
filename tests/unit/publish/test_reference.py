from pathlib import Path

import pytest

from engine.errors import ConfigError
from engine.publish.reference import (
    DirectoryReference,
    LayoutReference,
    RegistryReference,
    parse_reference,
    parse_registry,
)

DIGEST = "sha256:" + "0123456789abcdef" * 4
UUID_TAG = "825dff59-148b-4828-a360-e758d20b0a4d"

READ = [
    (f"ghcr.io/team/pipelines/p:{UUID_TAG}", ("ghcr.io", "team/pipelines/p", UUID_TAG, None)),
    ("oci://Registry.Example.com:5000/p:1", ("registry.example.com:5000", "p", "1", None)),
    (f"localhost:5001/a/b@{DIGEST}", ("localhost:5001", "a/b", None, DIGEST)),
    (f"[::1]:5001/a__b/c-d.e:v1@{DIGEST}", ("[::1]:5001", "a__b/c-d.e", "v1", DIGEST)),
]


@pytest.mark.parametrize(("url", "fields"), READ)
def test_registry_urls(url, fields):
    reference = parse_reference(url)

    assert reference == RegistryReference(*fields)
    assert parse_reference(str(reference)) == reference


PATHS = [
    ("oci-layout:/data/x", LayoutReference(Path("/data/x"), None)),
    ("oci-layout:/data/x:v1", LayoutReference(Path("/data/x"), "v1")),
    ("oci-layout:rel/x:v1", LayoutReference(Path("rel/x"), "v1")),
    ("oci-layout:/data:2/x", LayoutReference(Path("/data:2/x"), None)),
    (f"oci-layout:/x@{DIGEST}", LayoutReference(Path("/x"), None, DIGEST)),
    ("/data/models", DirectoryReference(Path("/data/models"))),
    ("./models", DirectoryReference(Path("models"))),
    ("file:/data/models", DirectoryReference(Path("/data/models"))),
    ("file:///data/models", DirectoryReference(Path("/data/models"))),
]


@pytest.mark.parametrize(("url", "expected"), PATHS)
def test_paths(url, expected):
    assert parse_reference(url) == expected


REFUSED = [
    "",
    " ghcr.io/p:1",
    "ghcr.io/p:1\n",
    "ghcr.io",
    "ghcr.io/p",
    "ghcr.io/p:",
    "ghcr.io/P:1",
    "ghcr.io//p:1",
    "ghcr.io/../p:1",
    "ghcr.io/a/../p:1",
    "ghcr.io/p:1:2",
    "ghcr.io/p:../../x",
    f"ghcr.io/p:{'x' * 129}",
    f"ghcr.io/{'x/' * 200}p:1",
    "ghcr.io/p@sha256:../../x",
    f"ghcr.io/p@sha256:{'A' * 64}",
    f"ghcr.io/p@{DIGEST}\x00",
    f"ghcr.io/p@sha512:{'0' * 128}",
    "ghcr.io:0/p:1",
    "ghcr.io:99999/p:1",
    "ghcr.io:80x/p:1",
    "-bad-.io/p:1",
    "host%2f/p:1",
    "https://ghcr.io/p:1",
    "oci-layout:",
    "oci-layout:/x:bad tag",
]


@pytest.mark.parametrize("url", REFUSED, ids=lambda url: ascii(url)[:40])
def test_anything_else_is_refused(url):
    with pytest.raises(ConfigError, match="PIPELINE_URL"):
        parse_reference(url)


@pytest.mark.parametrize(
    "url", ["user:hunter2@ghcr.io/p:1", "oci://u:hunter2@h/p:1", "https://u:hunter2@h/p:1"]
)
def test_a_password_in_the_url_is_not_shown(url):
    with pytest.raises(ConfigError) as caught:
        parse_reference(url)

    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("ghcr.io", "ghcr.io"),
        ("https://Registry.Example.com:443/team", "registry.example.com:443"),
        ("ghcr.io/team/x", "ghcr.io"),
    ],
)
def test_registry_host(text, host):
    assert parse_registry(text) == host
