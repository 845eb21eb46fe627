"""The table of variables: parsing, precedence, collected problems, and secrets that stay inside."""

import copy
import dataclasses
import pickle
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import (
    Accelerator,
    EdgeBundle,
    EngineConfig,
    InferenceResponse,
    Secret,
    help_table,
    parsers,
    resolve_persist_dir,
)
from engine.config.engine_config import EngineConfig as EngineConfigClass
from engine.config.variable import variables_of
from engine.errors import ConfigError

URL = "ghcr.io/samples/pipelines/p:1ff19772"
HIDDEN = "hunter2-do-not-print"
SECRET_BUNDLE = "SECRET-BUNDLE-TEXT"
MIB = 1 << 20


def no_bundle(text):
    raise AssertionError("no bundle in this test")


def bundle(host="ops.example.com", **variables):
    return EdgeBundle(
        edge_name="edge-1", join_token=Secret(HIDDEN), opscenter_host=host, variables=variables
    )


def config_of(edge=None, /, **environ):
    if edge is None:
        return EngineConfig.from_environ({"PIPELINE_URL": URL} | environ, decode_bundle=no_bundle)
    environ = {"EDGE_BUNDLE": SECRET_BUNDLE} | environ
    return EngineConfig.from_environ(environ, decode_bundle=lambda text: edge)


def problems_of(edge=None, /, **environ):
    with pytest.raises(ConfigError) as caught:
        config_of(edge, **environ)
    head, *lines = str(caught.value).split("\n")
    assert head.startswith(f"{len(lines)} problem")
    return [line.strip() for line in lines]


def test_defaults():
    config = config_of()

    assert config == EngineConfig(pipeline_url=URL, origins={"PIPELINE_URL": "environment"})
    assert (config.http_port, config.flight_port, config.metrics_port) == (8080, 8815, 9000)
    assert (config.max_body_bytes, config.flight_max_streams) == (256 * MIB, 64)
    assert (config.max_batch_delay_us, config.shutdown_grace_s) == (0, 8.0)
    assert (config.cpu_cores, config.edge, config.log_storage_bytes) == (None, None, None)
    assert (config.inference_response, config.accelerator) == ("legacy", "auto")
    assert config.warnings == ()


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("PIPELINE_URL", f" oci://{URL}\r", "pipeline_url", f"oci://{URL}"),
        ("PIPELINE_URL", "oci-layout:/a b:tag", "pipeline_url", "oci-layout:/a b:tag"),
        ("PIPELINE_URL", "h/r:t@sha256:ab", "pipeline_url", "h/r:t@sha256:ab"),
        ("PIPELINE_URL", "./a:b@c/d", "pipeline_url", "./a:b@c/d"),
        ("PIPELINE_URL", "oci-layout:a@b/c", "pipeline_url", "oci-layout:a@b/c"),
        ("PIPELINE_URL", "file:a@b/c", "pipeline_url", "file:a@b/c"),
        ("PIPELINE_URL", "p@sha256:ab", "pipeline_url", "p@sha256:ab"),
        ("OCI_REGISTRY", "ghcr.io", "oci_registry", "ghcr.io"),
        ("OCI_REGISTRY", "https://ghcr.io/samples/", "oci_registry", "ghcr.io"),
        ("OCI_REGISTRY", "127.0.0.1:5000", "oci_registry", "127.0.0.1:5000"),
        ("CONFIG_CPUS", "4", "cpu_cores", 4.0),
        ("CONFIG_CPUS", "1.0", "cpu_cores", 1.0),
        ("CONFIG_CPUS", ".25", "cpu_cores", 0.25),
        ("DEBUG", "true", "debug", True),
        ("DEBUG", "FALSE", "debug", False),
        ("DEBUG", "1", "debug", True),
        ("PERSIST_DIR", "/not/there/yet", "persist_dir", Path("/not/there/yet")),
        ("HTTP_PORT", "0", "http_port", 0),
        ("HTTP_PORT", "", "http_port", None),
        ("FLIGHT_PORT", " ", "flight_port", None),
        ("METRICS_PORT", "", "metrics_port", None),
        ("METRICS_PORT", "65535", "metrics_port", 65535),
        ("BIND_HOST", "::1", "bind_host", "::1"),
        ("BIND_HOST", "", "bind_host", "0.0.0.0"),
        ("ACCELERATOR", "CUDA", "accelerator", Accelerator.CUDA),
        ("INFERENCE_RESPONSE", "records", "inference_response", InferenceResponse.RECORDS),
        ("MAX_BODY_BYTES", "1Mi", "max_body_bytes", MIB),
        ("QUEUE_MAX_ROWS", "1", "queue_max_rows", 1),
        ("QUEUE_MAX_BYTES", "1Gi", "queue_max_bytes", 1024 * MIB),
        ("MAX_BATCH_ROWS", "8", "max_batch_rows", 8),
        ("MAX_BATCH_DELAY_US", "250", "max_batch_delay_us", 250),
        ("FLIGHT_MAX_STREAMS", "2", "flight_max_streams", 2),
        ("REQUEST_TIMEOUT_S", "0.5", "request_timeout_s", 0.5),
        ("SHUTDOWN_GRACE_S", "25", "shutdown_grace_s", 25.0),
        ("OCI_PLAIN_HTTP", "yes", "oci_plain_http", True),
        ("OPSCENTER_PLAINTEXT", "true", "opscenter_plaintext", True),
    ],
)
def test_each_variable_reaches_its_field(name, text, field, value):
    assert getattr(config_of(**{name: text}), field) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("PIPELINE_URL", "a\x07b"),
        ("OCI_REGISTRY", "gh cr.io"),
        ("OCI_REGISTRY", "https:///x"),
        ("CONFIG_CPUS", "0"),
        ("CONFIG_CPUS", "-1"),
        ("CONFIG_CPUS", "nan"),
        ("CONFIG_CPUS", "inf"),
        ("CONFIG_CPUS", "1e3"),
        ("CONFIG_CPUS", "4097"),
        ("CONFIG_CPUS", "500m"),
        ("CONFIG_CPUS", "1_0"),
        ("CONFIG_CPUS", "\u0664"),
        ("DEBUG", "maybe"),
        ("HTTP_PORT", "65536"),
        ("HTTP_PORT", "-1"),
        ("HTTP_PORT", "http"),
        ("BIND_HOST", "0.0.0.0 ::"),
        ("ACCELERATOR", "tpu"),
        ("INFERENCE_RESPONSE", "arrow"),
        ("MAX_BODY_BYTES", "0"),
        ("QUEUE_MAX_ROWS", "0"),
        ("QUEUE_MAX_ROWS", "9" * 5000),
        ("MAX_BATCH_DELAY_US", "-1"),
        ("REQUEST_TIMEOUT_S", "0"),
        ("SHUTDOWN_GRACE_S", "soon"),
        ("OCI_CA_FILE", "/no/such/file"),
        ("VERIFY_KEY_FILE", "/proc"),
        ("API_TOKEN_FILE", "a\0b"),
        ("PERSIST_DIR", "/proc/version"),
    ],
)
def test_a_wrong_value_is_one_line_that_says_what_is_accepted(name, text):
    (line,) = problems_of(**{name: text})

    assert line.startswith(f"{name}=")
    assert "accepted:" in line
    assert line.isprintable()
    assert len(line) < 300


def test_all_problems_come_in_one_message():
    lines = problems_of(
        PIPELINE_URL="", CONFIG_CPUS="x", DEBUG="x", HTTP_PORT="x", TLS_KEY_FILE="x"
    )

    assert [re.split(r"[=:]", line)[0] for line in lines] == [
        "PIPELINE_URL",
        "CONFIG_CPUS",
        "DEBUG",
        "HTTP_PORT",
        "TLS_KEY_FILE",
        "TLS_KEY_FILE is set without TLS_CERT_FILE; accepted",
    ]


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"LOCAL_INFERENCE_STORAGE": "100m"}, ["LOCAL_INFERENCE_STORAGE", "PLATEAU_PAGE_SIZE"]),
        ({"PLATEAU_PAGE_SIZE": "100"}, ["LOCAL_INFERENCE_STORAGE", "PLATEAU_PAGE_SIZE"]),
        (
            {"PLATEAU_PAGE_SIZE": "1", "LOCAL_INFERENCE_STORAGE": ""},
            ["LOCAL_INFERENCE_STORAGE", "PLATEAU_PAGE_SIZE"],
        ),
        ({"TLS_CERT_FILE": __file__}, ["TLS_CERT_FILE", "TLS_KEY_FILE"]),
        ({"TLS_KEY_FILE": __file__}, ["TLS_CERT_FILE", "TLS_KEY_FILE"]),
        ({"TLS_CLIENT_CA_FILE": __file__}, ["TLS_CLIENT_CA_FILE", "TLS_CERT_FILE", "TLS_KEY_FILE"]),
        ({"OCI_USERNAME": "me"}, ["OCI_USERNAME", "OCI_PASSWORD"]),
        ({"OCI_PASSWORD": HIDDEN}, ["OCI_USERNAME", "OCI_PASSWORD"]),
        ({"HTTP_PORT": "", "FLIGHT_PORT": ""}, ["HTTP_PORT", "FLIGHT_PORT"]),
        ({"HTTP_PORT": "9000"}, ["HTTP_PORT", "METRICS_PORT", "9000"]),
    ],
)
def test_variables_that_contradict_each_other_are_both_named(environ, named):
    (line,) = problems_of(**environ)

    assert all(name in line for name in named)
    assert HIDDEN not in line


def test_a_value_that_does_not_parse_is_not_also_compared_as_its_default():
    (line,) = problems_of(HTTP_PORT="x", METRICS_PORT="8080")

    assert line.startswith("HTTP_PORT='x'")


def test_variables_that_belong_together():
    config = config_of(
        LOCAL_INFERENCE_STORAGE="100m",
        PLATEAU_PAGE_SIZE="100",
        OCI_USERNAME="_json_key_base64",
        OCI_PASSWORD=f" {HIDDEN}\n",
        TLS_CERT_FILE=__file__,
        TLS_KEY_FILE=__file__,
        TLS_CLIENT_CA_FILE=__file__,
        HTTP_PORT="0",
        FLIGHT_PORT="0",
    )

    assert (config.log_storage_bytes, config.upload_page_rows) == (100_000_000, 100)
    assert config.oci_password.reveal() == f" {HIDDEN}\n"
    assert config.tls_client_ca_file == Path(__file__)


def test_environment_wins_over_bundle_wins_over_default():
    edge = bundle(PIPELINE_URL=URL, CONFIG_CPUS="4", OCI_REGISTRY="ghcr.io", HTTP_PORT="")

    config = config_of(edge, CONFIG_CPUS="1.0", OCI_REGISTRY="")

    assert config.edge is edge
    assert (config.pipeline_url, config.cpu_cores) == (URL, 1.0)
    assert (config.oci_registry, config.http_port, config.flight_port) == ("ghcr.io", None, 8815)
    assert config.warnings == ()
    assert config.origins == {
        "EDGE_BUNDLE": "environment",
        "PIPELINE_URL": "bundle",
        "OCI_REGISTRY": "bundle",
        "CONFIG_CPUS": "environment",
        "HTTP_PORT": "bundle",
    }


@pytest.mark.parametrize(
    ("url", "bundled", "warnings"),
    [(URL, URL, 0), (f"oci://{URL}", URL, 0), (URL, URL + "x", 1), (URL, "", 0)],
)
def test_another_pipeline_than_the_bundles_is_a_warning(url, bundled, warnings):
    config = config_of(bundle(PIPELINE_URL=bundled), PIPELINE_URL=url)

    assert config.pipeline_url == url
    assert len(config.warnings) == warnings


def test_names_of_the_bundle_are_ignored_elsewhere_with_a_warning():
    config = config_of(bundle(PIPELINE_URL=URL), EDGE_NAME="other", JOIN_TOKEN=HIDDEN)

    assert config.edge.edge_name == "edge-1"
    assert [warning.split()[0] for warning in config.warnings] == ["EDGE_NAME", "JOIN_TOKEN"]
    assert HIDDEN not in "".join(config.warnings)


def test_a_body_that_never_fits_the_queue_is_a_warning():
    (warning,) = config_of(MAX_BODY_BYTES="1Gi").warnings

    assert "QUEUE_MAX_BYTES" in warning


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:7000/edge", "127.0.0.1:7000", "127.9.9.9", "[::1]:7000", "::1"]
)
def test_plaintext_to_an_operations_centre_on_loopback(host):
    edge = bundle(host, PIPELINE_URL=URL)

    assert config_of(edge, OPSCENTER_PLAINTEXT="true").opscenter_plaintext


@pytest.mark.parametrize(
    "host",
    ["ops.example.com", "127.example.com", "127.0.0.x", "10.0.0.1:7000", "127.0.0.1@x"],
)
def test_no_plaintext_across_a_network(host):
    (line,) = problems_of(bundle(host, PIPELINE_URL=URL), OPSCENTER_PLAINTEXT="true")

    assert line.startswith("OPSCENTER_PLAINTEXT=true")


def test_no_problem_prints_a_secret_or_a_text_of_the_bundle():
    edge = bundle(CONFIG_CPUS=HIDDEN, PIPELINE_URL=f"https://me:{HIDDEN}@ghcr.io/p:t")
    lines = problems_of(
        edge, OCI_REGISTRY=f"me:{HIDDEN}@ghcr.io", OCI_PASSWORD=HIDDEN, EDGE_NAME=HIDDEN
    )

    assert [re.split(r"[=:]| is", line)[0] for line in lines] == [
        "PIPELINE_URL in EDGE_BUNDLE",
        "OCI_REGISTRY",
        "CONFIG_CPUS in EDGE_BUNDLE",
        "OCI_PASSWORD",
    ]
    assert HIDDEN not in "".join(lines)
    assert SECRET_BUNDLE not in "".join(lines)


@pytest.mark.parametrize("scheme", ["", "oci://", "https://"])
@pytest.mark.parametrize("credentials", [HIDDEN, f"me:{HIDDEN}"])
def test_credentials_in_the_pipelines_address_are_refused_unprinted(scheme, credentials):
    (line,) = problems_of(PIPELINE_URL=f"{scheme}{credentials}@ghcr.io/p:t")

    assert line.startswith("PIPELINE_URL=<secret>: ")
    assert "OCI_PASSWORD" in line
    assert HIDDEN not in line


def test_a_bundle_that_does_not_decode_is_one_problem_among_the_others():
    def refuse(text):
        raise ConfigError("not base64 of a text")

    with pytest.raises(ConfigError) as caught:
        EngineConfig.from_environ({"EDGE_BUNDLE": "x", "DEBUG": "x"}, decode_bundle=refuse)

    assert "EDGE_BUNDLE: not base64 of a text" in str(caught.value)
    assert "PIPELINE_URL: not set and not in a readable EDGE_BUNDLE" in str(caught.value)
    assert "DEBUG='x'" in str(caught.value)


def test_the_start_log_says_every_value_and_no_secret():
    edge = bundle(PIPELINE_URL=URL, OCI_USERNAME="me", OCI_PASSWORD=HIDDEN, CONFIG_CPUS="2")
    config = config_of(edge, MAX_BODY_BYTES="1000k", FLIGHT_PORT="", DEBUG="true")

    lines = list(config.describe())

    assert [re.match(r"[A-Z_]+", line)[0] for line in lines] == [
        row.name for row in variables_of(EngineConfigClass)
    ]
    for line in [
        f"PIPELINE_URL={URL} (bundle)",
        "OCI_PASSWORD=<secret> (bundle)",
        "EDGE_BUNDLE=<edge 'edge-1' of 'ops.example.com'> (environment)",
        "CONFIG_CPUS=2 (bundle)",
        "MAX_BODY_BYTES=1000000 (environment)",
        "QUEUE_MAX_BYTES=256Mi (default)",
        "FLIGHT_PORT=off (environment)",
        "DEBUG=true (environment)",
        "SHUTDOWN_GRACE_S=8 (default)",
        "OCI_REGISTRY: host of PIPELINE_URL",
    ]:
        assert line in lines
    assert HIDDEN not in "\n".join(lines) + repr(config)


def test_the_help_has_every_variable_with_its_default():
    table = help_table()

    for row in variables_of(EngineConfig):
        assert f"  {row.name} [{row.unit}; default: {row.default_text}]\n" in table
        assert row.help.split()[-1] in table


def test_a_default_text_is_what_a_user_could_write():
    rows = [row for row in variables_of(EngineConfig) if row.default not in (None, "")]

    assert len(rows) > 15
    for row in rows:
        assert row.parse(row.default_text) == row.default, row.name


def test_the_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        config_of().debug = True


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("100m", 100_000_000),
        ("512Mi", 536_870_912),
        ("2Gi", 2 << 30),
        ("1Ti", 1 << 40),
        ("100M", 100_000_000),
        ("100MB", 100_000_000),
        ("100mb", 100_000_000),
        ("1 GiB", 1 << 30),
        ("1gib", 1 << 30),
        ("2048ki", 2 << 20),
        ("2000k", 2_000_000),
        ("2t", 2 * 10**12),
        ("1.5Gi", 3 << 29),
        ("1048576", MIB),
        ("1048576b", MIB),
        ("1.048577m", 1_048_577),
        ("1.048575m", None),
        ("1048575", None),
        ("1023Ki", None),
        ("0", None),
        ("100", None),
        ("-5Mi", None),
        ("Mi", None),
        ("5Zi", None),
        ("5Mi5", None),
        ("5Mii", None),
        ("1e9", None),
        ("0x100000", None),
        ("1,000,000k", None),
        (".5Gi", None),
        ("5.Gi", None),
        ("\u0665Gi", None),
        ("9999999999Ti", None),
        ("9" * 400, None),
    ],
)
def test_sizes_of_the_log(text, size_bytes):
    if size_bytes is None:
        (line,) = problems_of(LOCAL_INFERENCE_STORAGE=text, PLATEAU_PAGE_SIZE="1")
        assert line.startswith("LOCAL_INFERENCE_STORAGE=")
        assert "accepted" in line
    else:
        config = config_of(LOCAL_INFERENCE_STORAGE=text, PLATEAU_PAGE_SIZE="1")
        assert config.log_storage_bytes == size_bytes


@given(
    number=st.integers(1, 8_000_000),
    unit=st.sampled_from(["", "k", "m", "g", "t"]),
    binary=st.booleans(),
    spelling=st.sampled_from(["{}{}", "{} {}", "{}{}b", "{} {}B"]),
    upper=st.booleans(),
)
def test_a_size_is_its_number_times_its_unit(number, unit, binary, spelling, upper):
    prefix = "i" if binary and unit else ""
    text = spelling.format(number, unit + prefix)

    parsed = parsers.size(text.upper() if upper else text)

    assert parsed == number * (1024 if prefix else 1000) ** " kmgt".index(unit or " ")


@given(st.text(max_size=30) | st.from_regex(r"[0-9.]{1,25} ?[kmgtibKMGTIB]{0,4}", fullmatch=True))
def test_a_size_is_whole_bytes_or_a_value_error(text):
    try:
        parsed = parsers.size(text)
    except ValueError:
        return

    assert type(parsed) is int
    assert 1 <= parsed < 1 << 63


def test_a_secret_prints_as_a_word_wherever_it_is_printed():
    secret = Secret(HIDDEN)

    for text in (str(secret), repr(secret), f"{secret}", f"{secret!r:>20}", f"{[secret]}"):
        assert "<secret>" in text
        assert HIDDEN not in text
    assert secret.reveal() == HIDDEN


def test_secrets_compare_and_are_never_copied_out():
    secret = Secret("pässword\udcff")

    assert secret == Secret("pässword\udcff")
    assert secret != Secret("password")
    assert secret != "pässword\udcff"
    for copy_out in (pickle.dumps, copy.copy, copy.deepcopy, hash):
        with pytest.raises(TypeError):
            copy_out(secret)


def test_persist_dir_that_was_asked_for_is_made_private(tmp_path):
    folder, warning = resolve_persist_dir(tmp_path / "a" / "b")

    assert folder == tmp_path / "a" / "b"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert warning is None


def test_persist_dir_that_cannot_be_made_is_a_config_error(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match="PERSIST_DIR="):
        resolve_persist_dir(tmp_path / "file" / "x")
    with pytest.raises(ConfigError, match="not writable"):
        resolve_persist_dir(Path("/proc/self"))


def test_persist_dir_defaults_to_the_documented_volume(tmp_path):
    assert resolve_persist_dir(None, documented=tmp_path) == (tmp_path, None)


@pytest.mark.parametrize("documented", ["/no/such/volume", "/proc/self"])
def test_without_a_volume_a_temporary_folder_and_a_warning(documented):
    folder, warning = resolve_persist_dir(None, documented=Path(documented))

    try:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert str(folder) in warning
        assert documented in warning
    finally:
        folder.rmdir()
