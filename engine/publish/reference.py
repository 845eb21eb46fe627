"""``PIPELINE_URL``: what may be written there, read into one of three records.

Rules that hold here:
- Every character of host, repository, tag and digest is checked against the OCI distribution
  grammar, so that none can reach into a path or another URL.
- An error never repeats what may be a password: text before an ``@`` is not shown.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ConfigError

__all__ = [
    "DirectoryReference",
    "LayoutReference",
    "Reference",
    "RegistryReference",
    "is_digest",
    "parse_reference",
    "parse_registry",
]

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:.]+\])(?::([0-9]{{1,5}}))?")
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MAX_REPOSITORY_CHARS = 255
_FORMS = (
    "host[:port]/repository:tag, host[:port]/repository@sha256:…, oci-layout:DIR[:tag], "
    "or a directory such as /models or file:/models"
)


@dataclass(frozen=True, slots=True)
class RegistryReference:
    """An artifact in a registry; ``tag`` or ``digest`` is given, or both."""

    registry: str
    repository: str
    tag: str | None
    digest: str | None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.registry}/{self.repository}{tag}{digest}"


@dataclass(frozen=True, slots=True)
class LayoutReference:
    """An artifact in an OCI image layout; without tag and digest its only one."""

    directory: Path
    tag: str | None
    digest: str | None = None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"oci-layout:{self.directory}{tag}{digest}"


@dataclass(frozen=True, slots=True)
class DirectoryReference:
    """A plain directory with a definition and model files."""

    directory: Path
    definition: str = "pipeline.json"

    def __str__(self) -> str:
        return str(self.directory)


Reference = RegistryReference | LayoutReference | DirectoryReference


def parse_reference(url: str) -> Reference:
    """Read a ``PIPELINE_URL``.

    Args:
        url: As the user wrote it.

    Returns:
        What it names.

    Raises:
        ConfigError: It is none of the forms; the text says which part is wrong.
    """
    if not url or not url.isprintable() or url != url.strip():
        raise ConfigError(
            f"PIPELINE_URL is empty or holds spaces or control characters; {_forms()}"
        )
    if url.startswith("oci-layout:"):
        return _parse_layout(url.removeprefix("oci-layout:"))
    if url.startswith("file:"):
        return DirectoryReference(_path(url.removeprefix("file:")))
    if url.startswith(("/", "./", "../")) or url in (".", ".."):
        return DirectoryReference(_path(url))
    return _parse_registry_reference(url)


def parse_registry(text: str) -> str:
    """The ``host[:port]`` of ``OCI_REGISTRY``, which may be given with a scheme or a path.

    Args:
        text: For instance ``ghcr.io``, ``https://registry.example.com`` or ``ghcr.io/team``.

    Returns:
        Its host in lower case, with the port when there is one.

    Raises:
        ConfigError: No host can be read from it.
    """
    bare = re.sub(r"^(oci|https?)://", "", text)
    return _registry(bare.split("/", maxsplit=1)[0], "OCI_REGISTRY")


def is_digest(text: str) -> bool:
    """Whether the text is ``sha256:`` and 64 lower-case hexadecimal digits, and nothing else."""
    return _DIGEST.fullmatch(text) is not None


def _parse_registry_reference(url: str) -> RegistryReference:
    bare = url.removeprefix("oci://")
    if "://" in bare:
        scheme = bare.split("://", maxsplit=1)[0]
        raise ConfigError(
            f"PIPELINE_URL starts with {scheme!r}://; leave it out (plain http is asked for with "
            f"OCI_PLAIN_HTTP=true); {_forms()}"
        )
    name, digest = _split_digest(bare)
    registry, slash, path = name.partition("/")
    if not slash:
        raise ConfigError(f"PIPELINE_URL {name!r} names no host and repository; {_forms()}")
    repository, colon, tag = path.partition(":")
    if len(repository) > _MAX_REPOSITORY_CHARS or not _REPOSITORY.fullmatch(repository):
        raise ConfigError(
            f"PIPELINE_URL: repository {repository!r} is not lower-case letters, digits and single "
            "separators (. _ - /)"
        )
    if colon and not _TAG.fullmatch(tag):
        raise ConfigError(f"PIPELINE_URL: tag {tag!r} is not 1 to 128 letters, digits, _ . or -")
    if not colon and digest is None:
        raise ConfigError(f"PIPELINE_URL {name!r} has no tag and no digest; {_forms()}")
    return RegistryReference(
        _registry(registry, "PIPELINE_URL"), repository, tag if colon else None, digest
    )


def _parse_layout(text: str) -> LayoutReference:
    name, digest = _split_digest(text)
    directory, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        return LayoutReference(_path(name), None, digest)
    if not _TAG.fullmatch(tag):
        raise ConfigError(f"PIPELINE_URL: tag {tag!r} is not 1 to 128 letters, digits, _ . or -")
    return LayoutReference(_path(directory), tag, digest)


def _split_digest(text: str) -> tuple[str, str | None]:
    name, at, digest = text.partition("@")
    if not at:
        return text, None
    if not is_digest(digest):
        raise ConfigError(
            "PIPELINE_URL: what follows @ is not sha256: and 64 lower-case hexadecimal digits "
            "(credentials belong in OCI_USERNAME and OCI_PASSWORD)"
        )
    return name, digest


def _registry(text: str, variable: str) -> str:
    match = _REGISTRY.fullmatch(text)
    if match is None or (match[1] and not 0 < int(match[1]) < 65536):
        shown = "" if "@" in text else f" {text!r}"
        raise ConfigError(f"{variable}: registry{shown} is not a host name with an optional port")
    return text.lower()


def _path(text: str) -> Path:
    bare = text.removeprefix("//") if text.startswith("///") else text
    if not bare:
        raise ConfigError(f"PIPELINE_URL names no directory; {_forms()}")
    return Path(bare)


def _forms() -> str:
    return f"expected {_FORMS}"
