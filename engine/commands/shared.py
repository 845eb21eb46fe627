"""What publish, pull and inspect have in common.

Rules that hold here:
- Results go to standard output, progress and remarks to standard error.
- The registry is reached with the same variables as ``serve`` reads.
"""

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence

from engine.config import EngineConfig
from engine.console import printable
from engine.edge.bundle import decode_bundle
from engine.errors import ConfigError
from engine.options import PersistFolder, pull_options
from engine.pipeline.definition import DefinitionDraft, ModelDraft, parse_definition
from engine.publish.credentials import credential_files
from engine.publish.pull import PullOptions

__all__ = ["DefinitionReader", "pulling", "read_config", "remark", "say", "table"]


class DefinitionReader:
    """Reads a definition for ``open_artifact`` and keeps the draft."""

    def __init__(self) -> None:
        self.drafts: list[DefinitionDraft] = []

    def __call__(self, document: bytes) -> Sequence[ModelDraft]:
        """Parse; the last draft is that of the artifact that was opened."""
        self.drafts.append(parse_definition(document))
        return self.drafts[-1].models

    @property
    def draft(self) -> DefinitionDraft:
        """The definition that was read last."""
        return self.drafts[-1]


def say(text: str = "") -> None:
    """Print a line of the result; names in a publish are somebody else's."""
    sys.stdout.write(f"{printable(text)}\n")


def remark(text: str) -> None:
    """Print a line beside the result."""
    sys.stderr.write(f"{printable(text)}\n")


def read_config(environ: Mapping[str, str], url: str) -> EngineConfig:
    """The variables that ``serve`` reads, for another ``PIPELINE_URL``.

    Raises:
        ConfigError: One of them, or the URL, is wrong.
    """
    return EngineConfig.from_environ({**environ, "PIPELINE_URL": url}, decode_bundle=decode_bundle)


@contextlib.contextmanager
def pulling(environ: Mapping[str, str], url: str, *, keeps: bool = False) -> Iterator[PullOptions]:
    """Options to open an artifact with; a temporary cache is removed afterwards.

    Args:
        environ: The environment.
        url: What will be opened.
        keeps: Whether the cache is what the command is for.

    Yields:
        The options.

    Raises:
        ConfigError: A variable is wrong, or there is no folder to keep anything in.
    """
    config = read_config(environ, url)
    folder = PersistFolder(config, lambda _warning: None)
    try:
        if keeps and folder.is_temporary:
            raise ConfigError("PERSIST_DIR: not set, and /persist is not there to keep a pull in")
        yield pull_options(config, folder.path, credential_files(environ))
    finally:
        folder.close()


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay out rows in columns, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
