"""What the process asks of the system before it serves: to keep freed memory, to open many files.

Request and reply bytes live in the C library's memory. By default glibc hands every large piece
back to the kernel at once, and opens up to eight heaps a CPU. A stream of batches of 1 MiB then
spends a third of its time on pages that the kernel clears, and memory that was freed on one thread
is of no use to another.

Every connection is an open file. Containers and shells allow 1,024 of them for the sake of programs
that cannot have more, and leave those that can to ask.

Rules that hold here:
- A setting that the environment makes (``MALLOC_ARENA_MAX`` and its like) is left alone.
- Where the C library is another one, nothing is done.
"""

from __future__ import annotations

import contextlib
import ctypes
import resource
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

__all__ = ["allow_open_files", "keep_freed_memory"]

MIB: Final = 1 << 20
# glibc's number of each setting, its environment variable, and what it is set to
SETTINGS: Final = (
    (-8, "MALLOC_ARENA_MAX", 2),
    (-1, "MALLOC_TRIM_THRESHOLD_", 64 * MIB),  # free bytes at a heap's end that are kept
    (-3, "MALLOC_MMAP_THRESHOLD_", 32 * MIB),  # pieces from this size on are never kept
)


def keep_freed_memory(environ: Mapping[str, str]) -> None:
    """Have freed memory used again; to be called before any thread is started.

    Args:
        environ: the environment, whose own settings win.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for setting, variable, value in SETTINGS:
        if variable not in environ:
            mallopt(setting, value)


def allow_open_files() -> None:
    """Allow the process as many open files as it may allow itself."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # some sandboxes refuse what others allow
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
