"""Parsers of single variables: text in, value out, ``ValueError`` otherwise.

Rules that hold here:
- The text of the ``ValueError`` ends a line ``NAME='value': …``: what is wrong; what is accepted.
- It never repeats the value, so that a variable may be a secret.
- Digits are ASCII digits: no underscores, no exponents, no digits of other scripts.
"""

import enum
import ipaddress
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

__all__ = [
    "boolean",
    "choice",
    "cores",
    "existing_file",
    "folder",
    "integer",
    "is_loopback",
    "pipeline_url",
    "port",
    "registry_host",
    "seconds",
    "single_word",
    "size",
    "storage_size",
]

EnumT = TypeVar("EnumT", bound=enum.StrEnum)

MIB = 1 << 20
MAX_SIZE_BYTES = (1 << 63) - 1  # what the file system and the memory map can address
MAX_CORES = 4096  # more than any machine has; a typing error beyond it would start as many threads
SIZE_PATTERN = re.compile(r"([0-9]{1,20})(?:\.([0-9]{1,20}))?\s*(?:([kmgt])(i?))?b?", re.IGNORECASE)
DECIMAL_PATTERN = re.compile(r"[0-9]{1,20}(?:\.[0-9]{0,20})?|\.[0-9]{1,20}")
POWERS = {"k": 1, "m": 2, "g": 3, "t": 4}
BOOLEANS = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
SIZE_ACCEPTED = (
    "accepted: a number of bytes, or a number with k, m, g, t (powers of 1000) or "
    "Ki, Mi, Gi, Ti (powers of 1024), such as 512Mi"
)


def boolean(text: str) -> bool:
    """Parse ``true`` or ``false`` (also yes/no, 1/0), whatever the case."""
    try:
        return BOOLEANS[text.lower()]
    except KeyError:
        raise ValueError("not a yes or no; accepted: true, false") from None


def integer(minimum: int, maximum: int) -> Callable[[str], int]:
    """Return a parser of whole numbers from ``minimum`` to ``maximum``, both included."""

    def parse(text: str) -> int:
        if re.fullmatch(r"[0-9]{1,20}", text) and minimum <= int(text) <= maximum:
            return int(text)
        raise ValueError(f"accepted: a whole number from {minimum} to {maximum}")

    return parse


def seconds(maximum: float) -> Callable[[str], float]:
    """Return a parser of seconds above 0, fractions allowed, up to ``maximum``."""

    def parse(text: str) -> float:
        if DECIMAL_PATTERN.fullmatch(text) and 0 < float(text) <= maximum:
            return float(text)
        raise ValueError(f"accepted: a number of seconds above 0, at most {maximum:g}")

    return parse


def cores(text: str) -> float:
    """Parse a number of CPU cores; the documented commands write ``1``, ``1.0`` and ``4.0``."""
    if DECIMAL_PATTERN.fullmatch(text) and 0 < float(text) <= MAX_CORES:
        return float(text)
    raise ValueError(f"accepted: a number of CPUs above 0, at most {MAX_CORES}, such as 4 or 1.5")


def size(text: str) -> int:
    """Parse a size in bytes.

    The units are those of the documented engine's parser: any case, ``k`` = ``kb`` = 1000,
    ``ki`` = ``kib`` = 1024, no unit = bytes. So ``100m`` (reference page, Log Retrieval from Edge
    Locations) is 100,000,000 bytes, and never the ``m`` = 1/1000 of Kubernetes.

    Returns:
        Whole bytes, rounded down where a fraction such as ``1.5k`` leaves a part of a byte.
    """
    match = SIZE_PATTERN.fullmatch(text)
    if match is None:
        raise ValueError(f"not a size; {SIZE_ACCEPTED}")
    whole, fraction, unit, binary = match.groups()
    multiplier = (1024 if binary else 1000) ** POWERS[unit.lower()] if unit else 1
    size_bytes = int(whole) * multiplier
    if fraction:  # whole-number arithmetic: a double would lose the last bytes of a terabyte
        size_bytes += int(fraction) * multiplier // 10 ** len(fraction)
    if not 1 <= size_bytes <= MAX_SIZE_BYTES:
        raise ValueError("out of range; accepted: from 1 byte to 8388607Ti")
    return size_bytes


def storage_size(text: str) -> int:
    """Parse the size of the log ring, which needs at least 1 MiB to hold anything useful."""
    size_bytes = size(text)
    if size_bytes < MIB:
        raise ValueError(f"less than 1Mi is too small for a log; {SIZE_ACCEPTED}")
    return size_bytes


def port(text: str) -> int | None:
    """Parse a TCP port; 0 is any free port and the empty text is off."""
    if not text:
        return None
    if re.fullmatch(r"[0-9]{1,5}", text) and int(text) <= 65535:
        return int(text)
    raise ValueError("accepted: a port from 1 to 65535, 0 for any free port, empty for off")


def choice(kind: type[EnumT]) -> Callable[[str], EnumT]:
    """Return a parser of the values of one enumeration, whatever the case."""

    def parse(text: str) -> EnumT:
        try:
            return kind(text.lower())
        except ValueError:
            raise ValueError(f"accepted: {', '.join(kind)}") from None

    return parse


def existing_file(text: str) -> Path:
    """Parse the path of a file that exists and can be read."""
    if not os.path.isfile(text):  # also False, not an error, for a text with a NUL
        raise ValueError("no such file; accepted: the path of a file inside the container")
    if not os.access(text, os.R_OK):
        raise ValueError(f"the file cannot be read by user {os.getuid()}; give it read permission")
    return Path(text)


def folder(text: str) -> Path:
    """Parse the path of a folder, which need not exist yet."""
    if "\0" in text or (os.path.exists(text) and not os.path.isdir(text)):
        raise ValueError("not a folder; accepted: the path of a folder inside the container")
    return Path(text)


def single_word(text: str) -> str:
    """Parse a text without white space or control characters."""
    if not text.isprintable() or len(text.split()) != 1:
        raise ValueError("accepted: one word without white space")
    return text


def pipeline_url(text: str) -> str:
    """Parse where the pipeline is; its grammar is judged where it is opened.

    Credentials in it are refused, because a pipeline's address is logged.
    """
    if not text.isprintable():
        raise ValueError("holds control characters; accepted: host/repository:tag")
    if text.startswith(("oci-layout:", "file:")):  # a folder's name may hold anything
        return text
    _, at, after = text.rpartition("://")[2].split("/", 1)[0].rpartition("@")
    if at and not after.startswith("sha256:"):
        raise CredentialsInsideError
    return text


def registry_host(text: str) -> str:
    """Parse the registry's host; the documentation calls it a URL, so scheme and path may be there.

    Returns:
        ``host`` or ``host:port``.
    """
    host = single_word(text).rpartition("://")[2].split("/", 1)[0]
    if "@" in host:
        raise CredentialsInsideError
    if not host:
        raise ValueError("accepted: a registry host such as ghcr.io or 10.0.0.5:5000")
    return host


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's loopback."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class CredentialsInsideError(ValueError):
    """An address has a user name and password inside; the reader must not print its value."""

    def __init__(self) -> None:
        super().__init__("holds credentials; accepted: them in OCI_USERNAME and OCI_PASSWORD only")
