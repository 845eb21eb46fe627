"""Where credentials, the log ring and fetched artifacts are kept."""

import os
from pathlib import Path

from engine.errors import ConfigError

__all__ = ["resolve_persist_dir"]

DOCUMENTED_PERSIST_DIR = Path("/persist")  # reference page: -v $PERSISTENT_VOLUME_DIR:/persist


def resolve_persist_dir(
    configured: Path | None, *, documented: Path = DOCUMENTED_PERSIST_DIR
) -> tuple[Path, str | None]:
    """Choose the folder that outlives the container, and make it if it was asked for by name.

    Args:
        configured: ``EngineConfig.persist_dir``.
        documented: The folder used when none was asked for.

    Returns:
        The folder, and a warning for the log when what is kept there will be lost. A temporary
        folder belongs to the caller, who removes it.

    Raises:
        ConfigError: The folder that was asked for cannot be made or written to.
    """
    if configured is not None:
        try:
            configured.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"PERSIST_DIR='{configured}': {error.strerror}") from error
        if os.statvfs(configured).f_flag & os.ST_RDONLY:
            raise ConfigError(
                f"PERSIST_DIR='{configured}': its file system is mounted read-only; "
                "mount the volume for writing (without :ro)"
            )
        if not _is_writable(configured):
            raise ConfigError(
                f"PERSIST_DIR='{configured}': not writable by user {os.getuid()}; "
                "change the owner of the volume, or run the container as its owner"
            )
        return configured, None
    if documented.is_dir() and _is_writable(documented):
        return documented, None
    import tempfile  # noqa: PLC0415  # 5 ms that only an engine without a volume pays

    folder = Path(tempfile.mkdtemp(prefix="sagitta-"))
    state = "is not writable" if documented.is_dir() else "does not exist"
    return folder, (
        f"{documented} {state}: credentials, inference log and fetched models are kept in {folder} "
        "and lost with the container; mount a volume (-v ./data:/persist) to keep them"
    )


def _is_writable(folder: Path) -> bool:
    return os.access(folder, os.R_OK | os.W_OK | os.X_OK)
