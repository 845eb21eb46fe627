"""EDGE_BUNDLE: the reference page's own bundles, tolerant decoding, and nothing evaluated."""

import base64
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import Secret
from engine.edge.bundle import decode_bundle
from engine.errors import ConfigError

# Reference page, Docker Deployment Example: 2023 generation, no padding needed.
PAGE_2023 = (
    "ZXhwb3J0IEJVTkRMRV9WRVJTSU9OPTEKZXhwb3J0IEVER0VfTkFNRT1lZGdlLWNjZnJhdWQtb2JzZXJ2YWJpbGl0eXlh"
    "aWcKZXhwb3J0IEpPSU5fVE9LRU49MjZmYzFjYjgtMjUxMi00YmU3LTk0ZGUtNjQ2NGI1MGQ2MzhiCmV4cG9ydCBPUFND"
    "RU5URVJfSE9TVD1kb2MtdGVzdC5lZGdlLndhbGxhcm9vY29tbXVuaXR5Lm5pbmphCmV4cG9ydCBQSVBFTElORV9VUkw9"
    "Z2hjci5pby93YWxsYXJvb2xhYnMvZG9jLXNhbXBsZXMvcGlwZWxpbmVzL2VkZ2Utb2JzZXJ2YWJpbGl0eS1waXBlbGlu"
    "ZTozYjQ5ZmJhOC05NGQ4LTRmY2EtYWVjYy1jNzUyNTdmZDE2YzYKZXhwb3J0IFdPUktTUEFDRV9JRD03"
)
# Reference page, Podman Deployment Example: 2025 generation.
PAGE_2025 = (
    "ZXhwb3J0IEJVTkRMRV9WRVJTSU9OPTEKZXhwb3J0IENPTkZJR19DUFVTPTQKZXhwb3J0IEVER0VfTkFNRT1ob3VzZXBy"
    "aWNlLWVkZ2UtZGVtb25zdHJhdGlvbi0wMgpleHBvcnQgT1BTQ0VOVEVSX0hPU1Q9ZG9jLXRlc3Qud2FsbGFyb29jb21t"
    "dW5pdHkubmluamEKZXhwb3J0IFBJUEVMSU5FX1VSTD1naGNyLmlvL3dhbGxhcm9vbGFicy9kb2Mtc2FtcGxlcy9waXBl"
    "bGluZXMvYXNzYXktZGVtb25zdHJhdGlvbi10dXRvcmlhbDoxZmYxOTc3Mi1mNDFmLTQyZmItYjBkMS1mODIxMzBiZjU4"
    "MDEKZXhwb3J0IEpPSU5fVE9LRU49YTQ0OGIyZjItNjgwYi00Y2ZiLThiMjItY2ZjNTI5MTk5ZjY5CmV4cG9ydCBPQ0lf"
    "UkVHSVNUUlk9Z2hjci5pbw=="
)
# Reference page, Edge Bundle One Time Token: shown with the terminal's ^D behind it.
PAGE_TERMINAL = (
    "ZXhwb3J0IEJVTkRMRV9WRVJTSU9OPTEKZXhwb3J0IEVER0VfTkFNRT14Z2ItY2NmcmF1ZC1lZGdlLXRlc3QKZXhwb3J0"
    "IEpPSU5fVE9LRU49MzE0OGFkYTUtMjg1YS00ZmNhLWIzYjgtYjUwYTQ4ZDc1MTFiCmV4cG9ydCBPUFNDRU5URVJfSE9T"
    "VD1kb2MtdGVzdC5lZGdlLndhbGxhcm9vY29tbXVuaXR5Lm5pbmphCmV4cG9ydCBQSVBFTElORV9VUkw9Z2hjci5pby93"
    "YWxsYXJvb2xhYnMvZG9jLXNhbXBsZXMvcGlwZWxpbmVzL2VkZ2UtcGlwZWxpbmU6ZjM4OGMxMDktOGQ1Ny00ZWQyLTk4"
    "MDYtYWExM2Y4NTQ1NzZiCmV4cG9ydCBXT1JLU1BBQ0VfSUQ9NQ==^D"
)
TOKEN = "3148ada5-285a-4fca-b3b8-b50a48d7511b"


def encode(text):
    return base64.b64encode(text.encode()).decode()


def bundle_of(**pairs):
    given = {"EDGE_NAME": "e", "JOIN_TOKEN": TOKEN, "OPSCENTER_HOST": "ops"} | pairs
    return "\n".join(f"export {name}={value}" for name, value in given.items())


@pytest.mark.parametrize(
    ("text", "edge_name", "token", "host", "variables"),
    [
        (
            PAGE_2023,
            "edge-ccfraud-observabilityyaig",
            "26fc1cb8-2512-4be7-94de-6464b50d638b",
            "doc-test.edge.wallaroocommunity.ninja",
            {
                "BUNDLE_VERSION": "1",
                "PIPELINE_URL": "ghcr.io/wallaroolabs/doc-samples/pipelines/"
                "edge-observability-pipeline:3b49fba8-94d8-4fca-aecc-c75257fd16c6",
                "WORKSPACE_ID": "7",
            },
        ),
        (
            PAGE_2025,
            "houseprice-edge-demonstration-02",
            "a448b2f2-680b-4cfb-8b22-cfc529199f69",
            "doc-test.wallaroocommunity.ninja",
            {
                "BUNDLE_VERSION": "1",
                "CONFIG_CPUS": "4",
                "PIPELINE_URL": "ghcr.io/wallaroolabs/doc-samples/pipelines/"
                "assay-demonstration-tutorial:1ff19772-f41f-42fb-b0d1-f82130bf5801",
                "OCI_REGISTRY": "ghcr.io",
            },
        ),
        (
            PAGE_TERMINAL,
            "xgb-ccfraud-edge-test",
            TOKEN,
            "doc-test.edge.wallaroocommunity.ninja",
            {
                "BUNDLE_VERSION": "1",
                "PIPELINE_URL": "ghcr.io/wallaroolabs/doc-samples/pipelines/"
                "edge-pipeline:f388c109-8d57-4ed2-9806-aa13f854576b",
                "WORKSPACE_ID": "5",
            },
        ),
    ],
    ids=["2023", "2025", "terminal"],
)
def test_the_bundles_of_the_reference_page(text, edge_name, token, host, variables):
    bundle = decode_bundle(text)

    assert bundle.edge_name == edge_name
    assert bundle.join_token.reveal() == token
    assert bundle.opscenter_host == host
    assert bundle.variables == variables
    assert not bundle.is_replacement


@pytest.mark.parametrize(
    "value",
    [
        "$(touch x)",
        "`touch x`",
        "$HOME",
        "${IFS}",
        "a; touch x",
        "a && b",
        r"a\nb",
        "a\\",
        '"half',
        "it's",
        "a=b==",
        "export X=1",
        "*",
        "~",
    ],
)
def test_shell_text_is_just_text(value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    bundle = decode_bundle(encode(bundle_of(EDGE_NAME=value, PIPELINE_URL=value)))

    assert bundle.edge_name == value
    assert bundle.variables["PIPELINE_URL"] == value
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ('export EDGE_NAME="a b"', "a b"),
        ("export EDGE_NAME='a b'", "a b"),
        ("""export EDGE_NAME='"a"'""", '"a"'),
        ("EDGE_NAME=a", "a"),
        ("  export\tEDGE_NAME=a  \r", "a"),
        ("export EDGE_NAME=a\n\n# comment\nexport EDGE_NAME=b", "b"),
    ],
)
def test_lines_are_read_leniently(line, value):
    text = f"{line}\nexport JOIN_TOKEN=t\r\nexport OPSCENTER_HOST=ops/edge\n"

    bundle = decode_bundle(encode(text))

    assert (bundle.edge_name, bundle.opscenter_host) == (value, "ops/edge")


def test_a_replacement_bundle_is_known_by_its_token():
    assert decode_bundle(encode(bundle_of(JOIN_TOKEN="omitted_for_replace"))).is_replacement


WORD = st.text(st.characters(min_codepoint=33, exclude_categories=["C", "Z"]), min_size=1).filter(
    lambda word: word[0] not in "'\"" and word == word.strip()
)


@given(
    edge_name=WORD,
    spaces=st.lists(st.tuples(st.integers(0, 400), st.sampled_from([" ", "\n", "\r\n", "\t"]))),
    url_safe=st.booleans(),
    padded=st.booleans(),
    tail=st.sampled_from(["", "\n", "^D", "^D\n", "\x04"]),
)
def test_however_it_was_copied_it_decodes_the_same(edge_name, spaces, url_safe, padded, tail):
    raw = bundle_of(EDGE_NAME=edge_name).encode()
    text = (base64.urlsafe_b64encode if url_safe else base64.b64encode)(raw).decode()
    text = text if padded else text.rstrip("=")
    for position, space in spaces:
        text = text[:position] + space + text[position:]

    assert decode_bundle(text + tail).edge_name == edge_name


@given(st.one_of(st.text(), st.text(string.printable), st.binary().map(base64.b64encode)))
def test_anything_else_is_one_kind_of_error(text):
    text = text.decode() if isinstance(text, bytes) else text
    with pytest.raises(ConfigError):
        decode_bundle(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("abc123", "not base64"),
        ("abcdefg", "not base64"),
        (bundle_of(), "not base64"),
        (PAGE_2023[:-1] + "!", "not base64"),
        (encode(bundle_of()) + "=" + encode(bundle_of()), "not base64"),
        (encode("export EDGE_NAME=e"), "lacks JOIN_TOKEN, OPSCENTER_HOST"),
        (encode(bundle_of(EDGE_NAME="")), "lacks EDGE_NAME"),
        (encode(bundle_of() + f"\ntouch {TOKEN}"), "line 4"),
        (encode(bundle_of(JOIN_TOKEN=f'"{TOKEN}\nmore"')), "line 3"),
        (encode(bundle_of(JOIN_TOKEN=f"{TOKEN}\x1b[0m")), "line 2"),
        (encode(bundle_of(BUNDLE_VERSION="2")), "BUNDLE_VERSION is not 1"),
        ("A" * 70_000, "longer than"),
    ],
)
def test_errors_say_where_and_never_what(text, said):
    with pytest.raises(ConfigError, match=said) as caught:
        decode_bundle(text)

    assert TOKEN not in str(caught.value)
    assert text not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_bundle_does_not_print_its_token():
    bundle = decode_bundle(encode(bundle_of(OCI_PASSWORD="hunter2")))

    for text in (repr(bundle), str(bundle), f"{bundle}", f"{bundle!r}"):
        assert TOKEN not in text
        assert "hunter2" not in text
    assert bundle.join_token == Secret(TOKEN)
