"""The table of variables: ``EngineConfig``, one field a row.

Rules that hold here:
- A field is a line of the help, of README and of the start log; nothing is said twice.
- Every limit has a default, and its help says why it is that one.
"""

import dataclasses
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Self

from engine.config import parsers
from engine.config.reading import read
from engine.config.values import Accelerator, EdgeBundle, InferenceResponse, Secret
from engine.config.variable import show, variable, variables_of

__all__ = ["EngineConfig", "help_table"]

LARGEST_LIMIT = (1 << 31) - 1
HOUR_S = 3600.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Everything that ``sagitta serve`` was told, parsed once at start and never changed.

    The sources "reference page" are sections of the documentation that this engine re-creates.
    ``help_table`` prints what each field means; only the two last ones are not variables.
    """

    # One row, one shape: name, parser, default, unit, help.
    # fmt: off
    pipeline_url: str = variable(
        "PIPELINE_URL", parsers.pipeline_url, "", "address",
        "The published pipeline: [oci://]host[:port]/repository:tag or @sha256:digest, "
        "oci-layout:DIR[:tag], or a folder with pipeline.json and its models. "
        "(reference page, Docker Deployment)",
        required=True, default_text="required, here or in EDGE_BUNDLE")
    oci_registry: str | None = variable(
        "OCI_REGISTRY", parsers.registry_host, None, "host",
        "Registry to log in to; a URL is cut to its host. (reference page, Docker Deployment)",
        default_text="host of PIPELINE_URL")
    oci_username: str | None = variable(
        "OCI_USERNAME", parsers.single_word, None, "text",
        "Registry user; together with OCI_PASSWORD. (reference page, Docker Deployment)",
        default_text="Docker or Podman credential file, else anonymous")
    oci_password: Secret | None = variable(
        "OCI_PASSWORD", Secret, None, "secret",
        "Registry password or token, used exactly as given. (reference page, Docker Deployment)",
        default_text="as OCI_USERNAME")
    oci_ca_file: Path | None = variable(
        "OCI_CA_FILE", parsers.existing_file, None, "file",
        "PEM certificates of a private registry's CA, trusted beside the system's.")
    oci_plain_http: bool = variable(
        "OCI_PLAIN_HTTP", parsers.boolean, False, "true or false",
        "Talk plain http to the registry; false because credentials would cross the network "
        "readable. A registry on loopback gets plain http without asking.")
    verify_key_file: Path | None = variable(
        "VERIFY_KEY_FILE", parsers.existing_file, None, "file",
        "Public key; when set, only publishes signed by its private key are run.")
    cpu_cores: float | None = variable(
        "CONFIG_CPUS", parsers.cores, None, "CPUs",
        "CPUs for inference, rounded up to whole threads exactly as said: results of tree models "
        "depend on the thread count. (reference page, Docker Deployment)",
        default_text="CPUs this container may use")
    accelerator: Accelerator = variable(
        "ACCELERATOR", parsers.choice(Accelerator), Accelerator.AUTO, "auto, cpu, cuda",
        "Hardware for the models; auto takes a GPU when one works, cuda refuses to start "
        "without one.")
    inference_response: InferenceResponse = variable(
        "INFERENCE_RESPONSE", parsers.choice(InferenceResponse), InferenceResponse.LEGACY,
        "legacy, records",
        "What /infer answers when the request does not say; legacy, one element a request, is the "
        "documented body. (reference page, Edge Inference Endpoints)")
    debug: bool = variable(
        "DEBUG", parsers.boolean, False, "true or false",
        "Write debug lines to the log. (reference page, Docker Deployment)")
    edge: EdgeBundle | None = variable(
        "EDGE_BUNDLE", None, None, "secret",
        "Base64 text that names this edge and its operations centre and may hold any variable of "
        "this table; read as text, never run. This version does not join the centre. (reference "
        "page, Edge Bundle One Time Token)")
    log_storage_bytes: int | None = variable(
        "LOCAL_INFERENCE_STORAGE", parsers.storage_size, None, "size",
        "Disk space of the inference log, at least 1Mi: k, m, g, t are powers of 1000 and Ki, Mi, "
        "Gi, Ti powers of 1024. Only with PLATEAU_PAGE_SIZE. (reference page, Log Retrieval from "
        "Edge Locations)")
    upload_page_rows: int | None = variable(
        "PLATEAU_PAGE_SIZE", parsers.integer(1, LARGEST_LIMIT), None, "rows",
        "Log rows in one upload to the operations centre; this version uploads none. Only with "
        "LOCAL_INFERENCE_STORAGE. (reference page, Log Retrieval from Edge Locations)")
    persist_dir: Path | None = variable(
        "PERSIST_DIR", parsers.folder, None, "folder",
        "Keeps credentials, inference log and fetched models; the documented commands mount a "
        "volume at /persist. (reference page, Docker Deployment)",
        default_text="/persist if writable, else a temporary folder")
    bind_host: str = variable(
        "BIND_HOST", parsers.single_word, "0.0.0.0", "address",
        "Address to listen on; all of them, because a published container port needs it.")
    http_port: int | None = variable(
        "HTTP_PORT", parsers.port, 8080, "port",
        "HTTP; 0 is any free port, empty is off. 8080 is the documented port. (reference page, "
        "Docker Deployment)",
        empty_is_value=True)
    flight_port: int | None = variable(
        "FLIGHT_PORT", parsers.port, 8815, "port",
        "Arrow Flight; 0 is any free port, empty is off. 8815 is the port of Arrow's own examples.",
        empty_is_value=True)
    metrics_port: int | None = variable(
        "METRICS_PORT", parsers.port, 9000, "port",
        "Prometheus metrics; 0 is any free port, empty is off. 9000 is the port that the published "
        "charts annotate.",
        empty_is_value=True)
    max_body_bytes: int = variable(
        "MAX_BODY_BYTES", parsers.size, 256 << 20, "size",
        "Largest request body; more is answered 413. 256Mi is 17 times the largest request known "
        "of the documented engine, 15 MB of JSON.")
    queue_max_rows: int = variable(
        "QUEUE_MAX_ROWS", parsers.integer(1, LARGEST_LIMIT), 1 << 20, "rows",
        "Rows that may wait; more are answered 429 at once. About as many as fit QUEUE_MAX_BYTES "
        "at 64 float32 a row.")
    queue_max_bytes: int = variable(
        "QUEUE_MAX_BYTES", parsers.size, 256 << 20, "size",
        "Bytes of decoded requests that may wait; more are answered 429 at once. As "
        "MAX_BODY_BYTES, so that the largest request fits an empty queue.")
    max_batch_rows: int = variable(
        "MAX_BATCH_ROWS", parsers.integer(1, LARGEST_LIMIT), 1024, "rows",
        "Most rows that waiting requests are joined to; a larger request runs alone, whole. A run "
        "costs about 9 µs to start: over 1024 rows that is 9 ns each, and more would only wait.")
    max_batch_delay_us: int = variable(
        "MAX_BATCH_DELAY_US", parsers.integer(0, 60_000_000), 0, "µs",
        "How long the first waiting request may be held for company. 0, because requests already "
        "gather while a model is busy, and waiting slows models that are cheap.")
    flight_max_streams: int = variable(
        "FLIGHT_MAX_STREAMS", parsers.integer(1, 65_535), 64, "streams",
        "Flight calls at one time, open streams included; one more is refused as unavailable.")
    request_timeout_s: float = variable(
        "REQUEST_TIMEOUT_S", parsers.seconds(24 * HOUR_S), 60.0, "s",
        "A request not answered by then gets 504, and leaves the queue if it still waits. Four "
        "times the 15 s after which the documented client gives up.")
    shutdown_grace_s: float = variable(
        "SHUTDOWN_GRACE_S", parsers.seconds(HOUR_S), 8.0, "s",
        "Time for running requests to finish after SIGTERM. 8, because docker stop kills after 10.")
    tls_cert_file: Path | None = variable(
        "TLS_CERT_FILE", parsers.existing_file, None, "file",
        "PEM certificate chain of this server, for HTTP and Flight. Only with TLS_KEY_FILE.")
    tls_key_file: Path | None = variable(
        "TLS_KEY_FILE", parsers.existing_file, None, "file", "PEM private key of TLS_CERT_FILE."
    )
    tls_client_ca_file: Path | None = variable(
        "TLS_CLIENT_CA_FILE", parsers.existing_file, None, "file",
        "PEM CA; when set, a client must show a certificate that it signed. Only with "
        "TLS_CERT_FILE.")
    api_token_file: Path | None = variable(
        "API_TOKEN_FILE", parsers.existing_file, None, "file",
        "Bearer tokens, one a line, for HTTP and Flight; read again when the file changes. Off, "
        "because the documented edge port asks for none.")
    opscenter_ca_file: Path | None = variable(
        "OPSCENTER_CA_FILE", parsers.existing_file, None, "file",
        "PEM certificates of the operations centre's private CA. Not used by this version.")
    opscenter_plaintext: bool = variable(
        "OPSCENTER_PLAINTEXT", parsers.boolean, False, "true or false",
        "Reach the operations centre without TLS; only where it is on loopback. Not used by this "
        "version.")
    # fmt: on
    warnings: tuple[str, ...] = ()
    origins: Mapping[str, str] = dataclasses.field(default_factory=dict)  # name -> where it was set

    @classmethod
    def from_environ(
        cls, environ: Mapping[str, str], *, decode_bundle: Callable[[str], EdgeBundle]
    ) -> Self:
        """Parse the whole environment, or say everything that is wrong with it.

        Args:
            environ: The environment; read during the call only.
            decode_bundle: Decoder of ``EDGE_BUNDLE``; raises ``ConfigError`` without the content.

        Returns:
            The configuration, with warnings for the start log.

        Raises:
            ConfigError: One text with one line per problem; no secret is in it.
        """
        reading = read(variables_of(cls), environ, decode_bundle)
        return cls(**reading.values, warnings=tuple(reading.warnings), origins=reading.origins)

    def describe(self) -> Iterator[str]:
        """Yield the effective configuration, one ``NAME=value (where it was set)`` a line."""
        for row in variables_of(type(self)):
            value = getattr(self, row.field)
            origin = self.origins.get(row.name, "default")
            if value is None and origin == "default":
                yield f"{row.name}: {row.default_text}"
            else:
                yield f"{row.name}={show(value, row.unit)} ({origin})"


def help_table() -> str:
    """Return every variable with its default and meaning, for ``sagitta serve --help``."""
    lines = []
    for row in variables_of(EngineConfig):
        lines.append(f"  {row.name} [{row.unit}; default: {row.default_text}]")
        lines.extend(textwrap.wrap(row.help, 96, initial_indent=" " * 6, subsequent_indent=" " * 6))
    return "\n".join(lines)
