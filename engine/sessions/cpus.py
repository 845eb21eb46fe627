"""How many CPU cores this container may use, and how many threads a model gets.

Rules that hold here:
- The count of the machine says nothing in a container: what the scheduler and the control groups
  allow does, and both versions of the latter are in use.
- What cannot be read, or is not a number, limits nothing.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["available_cpus", "intra_op_threads"]

V2_MOUNTS = ("sys/fs/cgroup", "sys/fs/cgroup/unified")  # the second where both versions are mounted
V1_MOUNTS = ("sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu,cpuacct", "sys/fs/cgroup/cpuacct,cpu")
DEFAULT_PERIOD_US = "100000"


def available_cpus(
    root: Path = Path("/"), *, affinity_cores: int | None = None
) -> tuple[float, str]:
    """Find how many cores this process may use at most.

    The least of the CPUs it may be scheduled on (cpuset, ``taskset``) and of every CPU quota on
    the way from its control group up to the root (``docker run --cpus``, Kubernetes limits).

    Args:
        root: Where ``proc`` and ``sys`` are; another folder in tests.
        affinity_cores: CPUs this process may be scheduled on; asked of the kernel when None.

    Returns:
        Cores, a fraction where a quota is one, and where the number comes from.
    """
    if affinity_cores is None:
        affinity_cores = len(os.sched_getaffinity(0))
    limits = [(float(affinity_cores), "CPU affinity"), *_quotas(root)]
    return min(limits, key=lambda limit: limit[0])


def intra_op_threads(cpu_cores: float | None, available: float) -> tuple[int, str | None]:
    """Choose the threads of a model run, which decide the bits of some results.

    Args:
        cpu_cores: ``CONFIG_CPUS``, above 0; None when not given.
        available: Cores from ``available_cpus``.

    Returns:
        Threads, ``ceil(CONFIG_CPUS)`` exactly as said where it was, and a warning for the log when
        more threads than cores were asked for. (reference page, Docker Deployment: CONFIG_CPUS)
    """
    usable = max(1, math.ceil(available))
    if cpu_cores is None:
        return usable, None
    threads = math.ceil(cpu_cores)
    if threads <= usable:
        return threads, None
    return threads, (
        f"CONFIG_CPUS={cpu_cores:g} asks for {threads} threads where this container may use "
        f"{available:g} CPUs: results are those of {threads} threads, but slower than with "
        f"{usable}; give the container more CPUs or lower CONFIG_CPUS"
    )


def _quotas(root: Path) -> Iterator[tuple[float, str]]:
    v2_path, v1_path = _own_groups(root)
    for mounts, own_path, read in (
        (V2_MOUNTS, v2_path, _v2_cores),
        (V1_MOUNTS, v1_path, _v1_cores),
    ):
        for mount in mounts:
            for folder in _up_from(root / mount, own_path):
                cores = read(folder)
                if cores is not None:
                    yield cores, f"CPU quota of /{folder.relative_to(root)}"


def _own_groups(root: Path) -> tuple[str, str]:
    """Return this process's groups below the mounts of version 2 and of version 1's cpu."""
    v2_path = v1_path = ""
    for line in _text(root / "proc/self/cgroup").splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        if not controllers:
            v2_path = path
        elif "cpu" in controllers.split(","):
            v1_path = path
    return v2_path, v1_path


def _up_from(mount: Path, own_path: str) -> Iterator[Path]:
    """Yield the group's folder and all above it, up to the mount.

    The folder is not there when the path is the host's and the mount the container's own; the
    mount itself then holds the container's quota.
    """
    names = [name for name in own_path.split("/") if name not in ("", ".", "..")]
    for depth in range(len(names), -1, -1):
        yield mount.joinpath(*names[:depth])


def _v2_cores(folder: Path) -> float | None:
    quota, _, period = _text(folder / "cpu.max").strip().partition(" ")
    return _cores(quota, period or DEFAULT_PERIOD_US)


def _v1_cores(folder: Path) -> float | None:
    return _cores(_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us"))


def _cores(quota_us: str, period_us: str) -> float | None:
    """Return quota over period; None for "max", -1, nothing, or anything that is not a number."""
    try:
        quota, period = int(quota_us), int(period_us)
    except ValueError:
        return None
    return quota / period if quota > 0 and period > 0 else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
