"""Requests merged into one run and its outputs split again."""

import numpy as np

from engine.batching.batch import merge, split
from engine.values import Output


def test_a_lone_request_is_not_copied():
    feeds = [np.zeros((2, 3)), np.zeros(2)]

    assert merge([feeds]) is feeds


def test_merged_rows_come_back_to_their_requests():
    requests = [[np.full((rows, 2), rows, np.float32)] for rows in (1, 3, 2)]

    (merged,) = merge(requests)
    parts = split((Output("y", merged * 2, per_row=True),), [1, 3, 2])

    assert merged.shape == (6, 2)
    for (request,), (output,) in zip(requests, parts, strict=True):
        assert (output.name, output.per_row) == ("y", True)
        assert (output.values == request * 2).all()
        assert output.values.base is not None  # a view


def test_a_request_without_rows_takes_none():
    values = np.arange(3.0)

    nothing, all_of_it = split((Output("y", values, per_row=True),), [0, 3])

    assert len(nothing[0].values) == 0
    assert (all_of_it[0].values == values).all()
