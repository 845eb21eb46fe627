"""What the tests of the log share: processes of their own, at the price of a fork."""

import multiprocessing
import os
import sys
from multiprocessing import forkserver

import pytest


@pytest.fixture(scope="session")
def forks():
    """Processes that may die: ``forks.Process(target=…)`` begins with the log imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["pandas", "pytest", "support.answers", "engine.codecs.record_batch", "engine.logring"]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # what the fork server imports from
        forkserver.ensure_running()
    return context
