"""From texts to values: precedence, the collection of problems, and the checks between variables.

Rules that hold here:
- Explicit environment, then bundle, then default; three names exist in the bundle only.
- No check stops the others; a text from the bundle, like a secret's, is never printed.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from engine.config.parsers import CredentialsInsideError, is_loopback
from engine.config.values import EdgeBundle
from engine.config.variable import Variable
from engine.errors import ConfigError

__all__ = ["Reading", "read"]

BUNDLE_NAME = "EDGE_BUNDLE"
BUNDLE_ONLY = ("EDGE_NAME", "JOIN_TOKEN", "OPSCENTER_HOST")
FROM_ENVIRONMENT = "environment"
FROM_BUNDLE = "bundle"
TOGETHER = (
    ("LOCAL_INFERENCE_STORAGE", "PLATEAU_PAGE_SIZE"),
    ("TLS_CERT_FILE", "TLS_KEY_FILE"),
    ("OCI_USERNAME", "OCI_PASSWORD"),
)
PORTS = (
    ("HTTP_PORT", "http_port"),
    ("FLIGHT_PORT", "flight_port"),
    ("METRICS_PORT", "metrics_port"),
)
SHOWN_CHARACTERS = 80


@dataclasses.dataclass(slots=True)
class Reading:
    """What was found so far.

    Attributes:
        values: Field to value, default or parsed; a field that does not parse is not in it.
        origins: Variable to where it was given.
        warnings: For the start log.
        problems: One line each; any of them stops the start.
    """

    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    origins: dict[str, str] = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)


def read(
    variables: Sequence[Variable],
    environ: Mapping[str, str],
    decode_bundle: Callable[[str], EdgeBundle],
) -> Reading:
    """Read every variable.

    Args:
        variables: The rows of the table.
        environ: The environment; the empty text is unset, but for a row that says otherwise.
        decode_bundle: Decoder of ``EDGE_BUNDLE``.

    Returns:
        The value of every variable, and what to warn about.

    Raises:
        ConfigError: At least one problem was found.
    """
    reading = Reading(values={row.field: row.default for row in variables})
    bundle = _read_bundle(reading, environ, decode_bundle)
    for row in variables:
        if row.name != BUNDLE_NAME:
            _read_variable(reading, row, environ, bundle.variables if bundle else {})
    _check_together(reading)
    _check_ports(reading)
    _check_operations_centre(reading, bundle)
    _warn(reading, environ, bundle)
    if reading.problems:
        count = len(reading.problems)
        head = f"{count} problem{'s' * (count > 1)} in the configuration:"
        raise ConfigError("\n  ".join([head, *reading.problems]))
    return reading


def _read_bundle(
    reading: Reading, environ: Mapping[str, str], decode_bundle: Callable[[str], EdgeBundle]
) -> EdgeBundle | None:
    text = environ.get(BUNDLE_NAME, "").strip()
    if not text:
        return None
    reading.origins[BUNDLE_NAME] = FROM_ENVIRONMENT
    try:
        bundle = decode_bundle(text)
    except ConfigError as error:
        reading.problems.append(f"{BUNDLE_NAME}: {error}")
        return None
    reading.values["edge"] = bundle
    return bundle


def _read_variable(
    reading: Reading, row: Variable, environ: Mapping[str, str], bundled: Mapping[str, str]
) -> None:
    for source, origin in ((environ, FROM_ENVIRONMENT), (bundled, FROM_BUNDLE)):
        text = source.get(row.name)
        if text is not None and not row.is_secret:
            text = text.strip()  # a carriage return from an env file; a password is left alone
        if text or (text is not None and row.empty_is_value):
            reading.origins[row.name] = origin
            _parse(reading, row, text, origin)
            return
    if row.required:
        also = f" and not in a readable {BUNDLE_NAME}" if environ.get(BUNDLE_NAME) else ""
        reading.problems.append(
            f"{row.name}: not set{also}; accepted: host/repository:tag, oci-layout:DIR or a folder"
        )


def _parse(reading: Reading, row: Variable, text: str, origin: str) -> None:
    assert row.parse is not None, "only the bundle has no parser. This is a bug."  # noqa: S101
    try:
        reading.values[row.field] = row.parse(text)
    except ValueError as error:
        if origin == FROM_BUNDLE:
            shown = f"{row.name} in {BUNDLE_NAME}"
        elif row.is_secret or isinstance(error, CredentialsInsideError):
            shown = f"{row.name}=<secret>"
        else:
            shown = f"{row.name}={text[:SHOWN_CHARACTERS]!a}"
        reading.problems.append(f"{shown}: {error}")
        del reading.values[row.field]  # so that no check compares against the default


def _check_together(reading: Reading) -> None:
    for pair in TOGETHER:
        given = [name for name in pair if name in reading.origins]
        if len(given) == 1:
            (missing,) = set(pair) - set(given)
            reading.problems.append(
                f"{given[0]} is set without {missing}; accepted: both of them, or neither"
            )
    if "TLS_CLIENT_CA_FILE" in reading.origins and "TLS_CERT_FILE" not in reading.origins:
        reading.problems.append(
            "TLS_CLIENT_CA_FILE is set without TLS_CERT_FILE and TLS_KEY_FILE; "
            "accepted: all three, since only a TLS server can ask for a client's certificate"
        )


def _check_ports(reading: Reading) -> None:
    # Defaults meet here too: HTTP_PORT=9000 collides with the METRICS_PORT nobody wrote.
    ports = {name: reading.values[field] for name, field in PORTS if field in reading.values}
    names: dict[int, str] = {}
    for name, port in ports.items():
        if port and port in names:
            reading.problems.append(
                f"{names[port]} and {name} are both {port}; accepted: different ports, or 0"
            )
        elif port:
            names[port] = name
    if ports.get("HTTP_PORT", 0) is None and ports.get("FLIGHT_PORT", 0) is None:
        reading.problems.append(
            "HTTP_PORT and FLIGHT_PORT are both off; accepted: at least one of them on"
        )


def _check_operations_centre(reading: Reading, bundle: EdgeBundle | None) -> None:
    if bundle is None or not reading.values.get("opscenter_plaintext"):
        return
    if not _is_on_loopback(bundle.opscenter_host):
        reading.problems.append(
            "OPSCENTER_PLAINTEXT=true, but OPSCENTER_HOST in EDGE_BUNDLE is not on loopback; "
            "accepted: false, with OPSCENTER_CA_FILE for a private CA"
        )


def _is_on_loopback(address: str) -> bool:
    """Whether an address, with or without scheme, port and path, is on loopback."""
    host = address.rpartition("://")[2].split("/", 1)[0]
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    return is_loopback(host)


def _warn(reading: Reading, environ: Mapping[str, str], bundle: EdgeBundle | None) -> None:
    reading.warnings.extend(
        f"{name} is ignored outside EDGE_BUNDLE; put it into the bundle"
        for name in BUNDLE_ONLY
        if environ.get(name)
    )
    url, bundled_url = (
        source.get("PIPELINE_URL", "").strip().removeprefix("oci://")
        for source in (environ, bundle.variables if bundle else {})
    )
    if url and bundled_url and url != bundled_url:
        reading.warnings.append(
            "PIPELINE_URL differs from the one in EDGE_BUNDLE; the explicit PIPELINE_URL is used"
        )
    reading.warnings.extend(_limit_warnings(reading.values))


def _limit_warnings(values: Mapping[str, Any]) -> Iterator[str]:
    body_bytes, queue_bytes = values.get("max_body_bytes", 0), values.get("queue_max_bytes", 0)
    if body_bytes > queue_bytes > 0:
        yield (
            f"MAX_BODY_BYTES ({body_bytes}) is more than QUEUE_MAX_BYTES ({queue_bytes}): "
            "a request between the two is always answered 429"
        )
