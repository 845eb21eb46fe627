"""From the whole configuration to the small objects that parts are given.

Rule that holds here: a part never sees ``EngineConfig``; what it needs is picked out here, once for
``serve`` and for the commands that publish, pull and inspect.
"""

import atexit
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from engine.config import EngineConfig, resolve_persist_dir
from engine.errors import StartupError
from engine.publish.credentials import Credentials, RegistryAccess
from engine.publish.pull import PullOptions
from engine.publish.reference import parse_registry
from engine.tokens import TokenFile

__all__ = ["PersistFolder", "pull_options", "read_tokens", "registry_access", "unmet_settings"]

_CACHE = "oci"


class PersistFolder:
    """Where things are kept: the resolved ``PERSIST_DIR``, or a temporary folder."""

    def __init__(self, config: EngineConfig, warn: Callable[[str], None]) -> None:
        """Find it.

        Args:
            config: The whole configuration.
            warn: Told when what is kept will be lost.

        Raises:
            StartupError: Nothing can be written anywhere.
            ConfigError: The folder that was asked for cannot be made or written to.
        """
        try:
            self.path, warning = resolve_persist_dir(config.persist_dir)
        except OSError as error:
            raise StartupError(
                f"no folder can be written to ({error.strerror}); mount a volume at /persist, or "
                "a tmpfs at /tmp"
            ) from error
        self.is_temporary = warning is not None
        if warning is not None:
            atexit.register(self.close)  # for a start that fails half-way
            warn(warning)

    def close(self) -> None:
        """Remove a temporary folder."""
        if self.is_temporary:
            shutil.rmtree(self.path, ignore_errors=True)


def registry_access(config: EngineConfig, credential_files: tuple[Path, ...]) -> RegistryAccess:
    """How registries are reached.

    Args:
        config: The whole configuration.
        credential_files: Where Docker and Podman keep credentials; used without ``OCI_USERNAME``.

    Returns:
        Host, credentials and trust.

    Raises:
        ConfigError: ``OCI_REGISTRY`` names no host.
    """
    credentials = None
    if config.oci_username is not None and config.oci_password is not None:
        credentials = Credentials(config.oci_username, config.oci_password, "OCI_USERNAME")
    return RegistryAccess(
        registry=None if config.oci_registry is None else parse_registry(config.oci_registry),
        credentials=credentials,
        files=credential_files,
        ca_file=config.oci_ca_file,
        plain_http=config.oci_plain_http,
    )


def pull_options(
    config: EngineConfig, persist_dir: Path, credential_files: tuple[Path, ...]
) -> PullOptions:
    """What opening the published pipeline needs.

    Args:
        config: The whole configuration.
        persist_dir: The resolved ``PERSIST_DIR``.
        credential_files: As in ``registry_access``.

    Returns:
        The options; the cache is ``PERSIST_DIR/oci``.
    """
    return PullOptions(
        access=registry_access(config, credential_files),
        cache_directory=persist_dir / _CACHE,
        verify_key_file=config.verify_key_file,
    )


def read_tokens(config: EngineConfig) -> TokenFile | None:
    """The bearer tokens that callers must show; None where none are asked for.

    Raises:
        StartupError: The file cannot be read.
    """
    if config.api_token_file is None:
        return None
    try:
        return TokenFile(config.api_token_file)
    except OSError as error:
        raise StartupError(
            f"API_TOKEN_FILE {str(config.api_token_file)!r} cannot be read: {error.strerror}"
        ) from error


def unmet_settings(config: EngineConfig) -> Iterator[str]:
    """What was asked for and this version does not do, for the start-up log."""
    if config.edge is not None:
        yield (
            f"EDGE_BUNDLE names {config.edge}: its settings are used, but this version does not "
            "join an operations centre; the log stays here and the one-time token is not spent"
        )
