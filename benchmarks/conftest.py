"""Benchmarks are collected here only: ``pytest`` times nothing, ``pytest benchmarks`` does."""

import pytest

from benchmarks.workloads import make_workloads, uses_golden


def pytest_configure(config):
    config.addinivalue_line("python_files", "bench_*.py")


@pytest.fixture(scope="session")
def workloads(tmp_path_factory):
    return make_workloads(tmp_path_factory.mktemp("workloads"))


def pytest_benchmark_update_machine_info(machine_info):
    machine_info["data"] = "golden" if uses_golden() else "generated"
