"""Fixtures that start real engines."""

import os
from pathlib import Path

import pytest
from support import models
from support.engine import Engine, stop_all

DEFAULT_GOLDEN = Path(__file__).parents[2] / "shared" / "golden"


@pytest.fixture(scope="session")
def golden():
    """The recordings of the documented engine, which are not part of the repository."""
    folder = Path(os.environ.get("SAGITTA_GOLDEN", DEFAULT_GOLDEN))
    if not folder.is_dir():
        pytest.skip(f"no golden data at {folder} (SAGITTA_GOLDEN)")
    return folder


@pytest.fixture
def engine_process():
    """Start engines for one test: ``engine_process(PIPELINE_URL=…)``; each must end cleanly."""
    started = []

    def start(**environ):
        engine = Engine(environ)
        started.append(engine)
        return engine

    yield start
    stop_all(started)


@pytest.fixture(scope="module")
def serving(tmp_path_factory):
    """An engine that serves a model, shared by the tests of a module that ask for the same one.

    ``serving("linear")`` serves ``support.models.linear()``; ``serving(model_bytes, …)`` any other;
    ``environ={…}`` adds variables, further arguments go into the pipeline's definition.
    """
    running = {}

    def get(model, *, environ=None, **definition):
        key = (model, str(environ), str(definition))
        if key not in running:
            content = getattr(models, model)() if isinstance(model, str) else model
            folder = tmp_path_factory.mktemp("pipeline")
            models.write_pipeline(folder, content, **definition)
            running[key] = Engine({"PIPELINE_URL": str(folder), **(environ or {})}).ready()
        return running[key]

    yield get
    stop_all(running.values())
