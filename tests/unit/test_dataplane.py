"""What the data plane tells of itself while it loads, runs, fails and drains."""

import pytest

from engine.dataplane import DataPlane
from engine.errors import NotFoundError, NotReadyError
from engine.metrics import Metrics
from engine.running import ServedModel
from engine.values import ModelIdentity, PipelineIdentity

IDENTITY = PipelineIdentity("p", "v1")
MODELS = (ServedModel(ModelIdentity("m", "v2", "abc"), 24),)


class Pipeline:
    """As much of a running pipeline as the plane looks at."""

    identity = IDENTITY
    models = MODELS
    policy = None


def plane():
    return DataPlane(Metrics())


def test_loading():
    loading = plane()
    assert (loading.pipelines(), loading.models(), loading.state) == ([], [], "Loading")
    loading.announce(IDENTITY, MODELS)

    assert loading.pipelines() == [{"id": "p", "version": "v1", "status": "Loading"}]
    assert not loading.is_ready
    with pytest.raises(NotReadyError, match="still loading"):
        loading.running  # noqa: B018 - it raises


def test_running():
    running = plane()
    running.serve(Pipeline())

    (model,) = running.models()
    assert list(model.items()) == [
        ("name", "m"),
        ("sha", "abc"),
        ("status", "Running"),
        ("version", "v2"),
        ("model_version_id", 24),
    ]
    assert running.is_ready
    assert running.named("p") is running.running
    with pytest.raises(NotFoundError, match="serves 'p'"):
        running.named("q")


def test_failed():
    failed = plane()
    failed.announce(IDENTITY, MODELS)
    failed.fail("it did not load")

    assert [one["status"] for one in (*failed.pipelines(), *failed.models())] == ["Error"] * 2
    assert (failed.state, failed.is_ready) == ("Error", False)
    with pytest.raises(NotReadyError, match="failed to load"):
        failed.running  # noqa: B018 - it raises


def test_draining():
    draining = plane()
    draining.serve(Pipeline())
    draining.drain()

    assert (draining.state, draining.is_ready, draining.is_draining) == ("Draining", False, True)
    assert draining.running  # what comes is still answered
