"""EDGE_BUNDLE: base64 of ``export NAME=VALUE`` lines, read as text and never run.

Rules that hold here:
- Nothing is evaluated: ``$(touch x)``, backticks, ``$NAME`` and backslashes are just characters.
- The text may have been wrapped, indented, cut of its padding or copied from the reference page
  with the ``^D`` behind it; it still decodes. What no copying does (a foreign character, a
  missing piece) is refused.
- An error names the line by number and the variable by a name known beforehand, and never a
  piece of the content: it holds a token.
"""

import base64
import binascii
import re
from types import MappingProxyType

from engine.config import EdgeBundle, Secret
from engine.errors import ConfigError

__all__ = ["decode_bundle"]

MAX_BUNDLE_CHARACTERS = 64 * 1024  # real ones have about 600
BUNDLE_VERSION = "1"  # the only one ever seen
REQUIRED_NAMES = ("EDGE_NAME", "JOIN_TOKEN", "OPSCENTER_HOST")
URL_SAFE_TO_STANDARD = str.maketrans("-_", "+/")
LINE_PATTERN = re.compile(r"(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)")
COPY_AGAIN = "copy the whole value of EDGE_BUNDLE again from the edge's docker_run_variables"


def decode_bundle(text: str) -> EdgeBundle:
    """Decode the bundle of an edge.

    Both generations of bundles are read: with ``WORKSPACE_ID``, and with ``CONFIG_CPUS`` and
    ``OCI_REGISTRY`` in its place. Names that nobody knows are kept. One pair of quotes around a
    value, single or double, is taken off as a shell would; of two lines with one name the later
    holds, also as in a shell.

    Args:
        text: Base64, standard or URL-safe alphabet, with or without padding.

    Returns:
        The bundle; its ``variables`` are every pair but the three that it names itself.

    Raises:
        ConfigError: It cannot be decoded, or lacks a name. The content is not in the text.
    """
    pairs = dict(_pairs(_decode_base64(text)))
    missing = [name for name in REQUIRED_NAMES if not pairs.get(name)]
    if missing:
        raise ConfigError(f"lacks {', '.join(missing)}; {COPY_AGAIN}")
    if pairs.get("BUNDLE_VERSION", BUNDLE_VERSION) != BUNDLE_VERSION:
        raise ConfigError(f"its BUNDLE_VERSION is not {BUNDLE_VERSION}; this engine is too old")
    edge_name, join_token, opscenter_host = (pairs.pop(name) for name in REQUIRED_NAMES)
    return EdgeBundle(
        edge_name=edge_name,
        join_token=Secret(join_token),
        opscenter_host=opscenter_host,
        variables=MappingProxyType(pairs),
    )


def _decode_base64(text: str) -> str:
    if len(text) > MAX_BUNDLE_CHARACTERS:
        raise ConfigError(f"longer than {MAX_BUNDLE_CHARACTERS} characters; {COPY_AGAIN}")
    digits = "".join(text.split()).removesuffix("^D").removesuffix("\x04").strip("'\"")
    digits = digits.rstrip("=").translate(URL_SAFE_TO_STANDARD)
    try:
        padded = digits + "=" * (-len(digits) % 4)
        decoded = base64.b64decode(padded, validate=True).decode("utf-8")
    except (binascii.Error, ValueError):  # the error of the decoder quotes the bytes
        raise ConfigError(f"not base64 of a text; {COPY_AGAIN}") from None
    return decoded


def _pairs(decoded: str) -> list[tuple[str, str]]:
    pairs = []
    for number, line in enumerate(decoded.split("\n"), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        match = LINE_PATTERN.fullmatch(stripped)
        if match is None or any(ord(character) < 32 for character in match[2]):
            raise ConfigError(
                f"line {number} of the decoded text is not export NAME=VALUE; {COPY_AGAIN}"
            )
        pairs.append((match[1], _unquote(match[2].strip())))
    return pairs


def _unquote(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1]
    return value
