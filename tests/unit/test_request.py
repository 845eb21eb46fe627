"""One run for several requests: who is answered with what."""

import pytest
from support.fakes import FakeModel

from engine.batching.entry import BatchPolicy
from engine.errors import InferenceFailedError, SchemaMismatchError
from engine.metrics import Metrics
from engine.refusal import refusal_of
from engine.request import InferRequest, answer
from engine.values import Frame, PipelineIdentity


class Pipeline:
    """Outcomes are the rows themselves; a row of 13 fails its run, and ``error`` every run."""

    inputs = ()
    cost = None
    policy = BatchPolicy(10)

    def __init__(self):
        self.model = FakeModel("m")
        self.identity, self.partition = PipelineIdentity("pipe", "v1"), "edge-1"
        self.error = None
        self.runs = []

    def feeds(self, frame):
        return frame.columns["x"], "key"

    def infer_together(self, requests):
        rows = [value for request in requests for value in request.feeds]
        self.runs.append(rows)
        if self.error is not None:
            raise self.error
        if 13 in rows:
            raise InferenceFailedError("13")
        for request in requests:
            request.outcome = list(request.feeds)

    def infer(self, frame, _started_ns):
        if self.error is not None:
            raise self.error
        self.runs.append("alone")
        return frame.rows


class Caller(InferRequest):
    """A caller that remembers that it was answered."""

    is_answered = False

    def settle(self):
        assert not self.is_answered
        self.is_answered = True


@pytest.fixture
def pipeline():
    return Pipeline()


def caller(pipeline, *values, waited=True):
    made = Caller(pipeline)
    made.prepare(Frame(len(values), {"x": list(values)}))
    made.queued_ns = made.started_ns if waited else 0
    return made


def test_requests_share_a_run(pipeline):
    metrics = Metrics()
    callers = [caller(pipeline, 1), caller(pipeline, 2, 3)]

    answer(callers, metrics, None)

    assert pipeline.runs == [[1, 2, 3]]
    assert [one.outcome for one in callers] == [[1], [2, 3]]
    assert all(one.is_answered for one in callers)
    assert (metrics.batch_requests.total, metrics.batch_rows.total) == (2, 3)


def test_one_bad_request_fails_alone(pipeline):
    callers = [caller(pipeline, value) for value in (1, 13, 2)]

    answer(callers, Metrics(), None)

    assert [callers[0].outcome, callers[2].outcome] == [[1], [2]]
    assert isinstance(callers[1].outcome, InferenceFailedError)
    assert all(one.is_answered for one in callers)


def test_gone_callers_leave_before_the_run(pipeline):
    metrics = Metrics()
    callers = [caller(pipeline, value) for value in (1, 2)]
    callers[0].is_abandoned = True

    answer(callers, metrics, None)

    assert pipeline.runs == [[2]]
    assert (callers[0].outcome, callers[1].outcome) == (None, [2])
    assert all(one.is_answered for one in callers)  # which lets go of what they hold


def test_too_many_rows_run_alone(pipeline):
    large = caller(pipeline, *range(11), waited=False)

    answer([large], Metrics(), None)

    assert large.policy is None
    assert (pipeline.runs, large.outcome) == (["alone"], 11)


def test_rows_that_were_never_decoded_are_an_error_of_their_own(pipeline):
    empty = Caller(pipeline)

    answer([empty], Metrics(), None)

    assert empty.is_answered
    assert isinstance(empty.outcome, Exception)


class Log:
    """Remembers what was kept, and whether anybody had been answered by then."""

    def __init__(self, callers):
        self.callers = callers
        self.kept = []

    def append(self, results):
        self.kept.append((list(results), [one.is_answered for one in self.callers]))

    def append_failure(self, pipeline, partition, error):
        self.kept.append(error)


@pytest.mark.parametrize("waited", [False, True])
@pytest.mark.parametrize("count", [1, 2])
def test_answers_are_kept_before_anybody_has_one(pipeline, waited, count):
    callers = [caller(pipeline, value, waited=waited) for value in range(count)]
    log = Log(callers)

    answer(callers, Metrics(), log)

    assert log.kept == [([[value] for value in range(count)], [False] * count)]
    assert all(one.is_answered for one in callers)


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (InferenceFailedError("row 0 holds 4711"), "the model failed on this request"),
        (ValueError("4711"), "internal processing error"),
        (SchemaMismatchError("x[0] is 4711"), None),
    ],
)
def test_what_is_kept_of_a_failure_is_what_its_caller_is_told(pipeline, error, kept):
    """And of a caller's own mistake, wherever it is found, nothing."""
    failed = caller(pipeline, 1)
    log = Log([failed])
    pipeline.error = error

    answer([failed], Metrics(), log)

    assert log.kept == ([refusal_of(failed.outcome).text] if kept else [])
    assert all(text.startswith(kept) and "4711" not in text for text in log.kept)
