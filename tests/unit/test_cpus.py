"""Cores of a container, over simulated trees of both control group versions."""

import os

import pytest

from engine.sessions.cpus import available_cpus, intra_op_threads

V1_OWN = "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n2:cpuset:/elsewhere\n"


def tree(root, **files):
    for name, text in files["files"].items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "cores", "source"),
    [
        ({}, 16, "CPU affinity"),
        ({"sys/fs/cgroup/cpu.max": "125000 100000\n"}, 1.25, "/sys/fs/cgroup"),
        ({"sys/fs/cgroup/cpu.max": "50000\n"}, 0.5, "/sys/fs/cgroup"),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, 16, "CPU affinity"),
        ({"sys/fs/cgroup/cpu.max": "3200000 100000\n"}, 16, "CPU affinity"),
        ({"sys/fs/cgroup/cpu.max": "lots of it\n"}, 16, "CPU affinity"),
        ({"sys/fs/cgroup/cpu.max": ""}, 16, "CPU affinity"),
        ({"sys/fs/cgroup/cpu.max": "100000 0\n"}, 16, "CPU affinity"),
        ({"sys/fs/cgroup/cpu.max": "-5 100000\n"}, 16, "CPU affinity"),
        ({"sys/fs/cgroup/unified/cpu.max": "200000 100000\n"}, 2, "/sys/fs/cgroup/unified"),
        (
            {
                "proc/self/cgroup": "0::/kubepods/pod1/c1\n",
                "sys/fs/cgroup/kubepods/pod1/c1/cpu.max": "max 100000\n",
                "sys/fs/cgroup/kubepods/pod1/cpu.max": "150000 100000\n",
                "sys/fs/cgroup/kubepods/cpu.max": "800000 100000\n",
            },
            1.5,
            "/sys/fs/cgroup/kubepods/pod1",
        ),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/a/other/cpu.max": "100000 100000\n",
            },
            4,
            "/sys/fs/cgroup/a/b",
        ),
        (
            {
                "proc/self/cgroup": "0::/../../outside\n",
                "sys/fs/cgroup/cpu.max": "300000 100000\n",
            },
            3,
            "/sys/fs/cgroup",
        ),
        (
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "125000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            1.25,
            "/sys/fs/cgroup/cpu",
        ),
        (
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            16,
            "CPU affinity",
        ),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "125000\n"}, 16, "CPU affinity"),
        (
            {
                "proc/self/cgroup": V1_OWN,
                "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "200000\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "50000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            4,
            "/sys/fs/cgroup/cpu,cpuacct/docker/abc",
        ),
        (  # the path is the host's, the mount is the container's own
            {
                "proc/self/cgroup": V1_OWN,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            0.5,
            "/sys/fs/cgroup/cpu",
        ),
        (  # both versions mounted: the tighter one holds
            {
                "proc/self/cgroup": V1_OWN + "0::/docker/abc\n",
                "sys/fs/cgroup/unified/docker/abc/cpu.max": "600000 100000\n",
                "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_quota_us": "700000\n",
                "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_period_us": "100000\n",
            },
            6,
            "/sys/fs/cgroup/unified/docker/abc",
        ),
        ({"proc/self/cgroup": "\x00\nnonsense\n:::\n"}, 16, "CPU affinity"),
    ],
)
def test_the_tightest_limit_holds(tmp_path, files, cores, source):
    found, how = available_cpus(tree(tmp_path, files=files), affinity_cores=16)

    assert found == cores
    assert how.removeprefix("CPU quota of ") == source


def test_affinity_holds_below_a_quota(tmp_path):
    root = tree(tmp_path, files={"sys/fs/cgroup/cpu.max": "800000 100000\n"})

    assert available_cpus(root, affinity_cores=2) == (2.0, "CPU affinity")


def test_this_machine_has_at_least_a_part_of_a_core():
    cores, how = available_cpus()

    assert 0 < cores <= len(os.sched_getaffinity(0))
    assert how


@pytest.mark.parametrize(
    ("cpu_cores", "available", "threads", "warned"),
    [
        (None, 4.0, 4, False),
        (None, 1.25, 2, False),
        (None, 0.5, 1, False),
        (1.0, 0.5, 1, False),  # reference page: CONFIG_CPUS=1.0 --cpus=0.5
        (1.0, 1.25, 1, False),  # reference page: CONFIG_CPUS=1.0 --cpus=1.25
        (0.1, 8.0, 1, False),
        (1.5, 8.0, 2, False),
        (2.0, 1.25, 2, False),
        (4.0, 2.0, 4, True),  # exactly as said: the answers are those of 4 threads
        (3.0, 1.25, 3, True),
    ],
)
def test_threads_are_exactly_as_said(cpu_cores, available, threads, warned):
    chosen, warning = intra_op_threads(cpu_cores, available)

    assert chosen == threads
    assert (warning is not None) == warned
    if warning:
        assert f"CONFIG_CPUS={cpu_cores:g}" in warning
