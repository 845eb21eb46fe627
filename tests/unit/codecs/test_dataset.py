"""Which columns the ``dataset`` parameters choose."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.codecs.dataset import Dataset
from engine.errors import SchemaMismatchError

PATHS = [("time",), ("in", "a"), ("in", "a.b"), ("in", "ab"), ("out", "y"), ("metadata", "elapsed")]
NAMES = [
    "*",
    "in",
    "in.a",
    "in.a.b",
    "in.ab",
    "out",
    "out.y",
    "time",
    "metadata",
    "metadata.elapsed",
]


def is_under(path, name):
    """As one reads it: the name itself, or the name and a dot before more."""
    return f"{'.'.join(path)}.".startswith(f"{name}.")


@given(
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=5), st.lists(st.sampled_from(NAMES[1:]))
)
def test_each_name_chooses_what_is_under_it(include, exclude):
    chosen = Dataset(tuple(include), tuple(exclude)).select(PATHS).paths

    wanted = {}
    for name in include:
        for path in PATHS:
            is_kept = not any(is_under(path, one) for one in exclude)
            if is_kept if name == "*" else is_under(path, name):
                wanted[path] = None
    assert chosen == tuple(wanted)


def test_thousands_of_names_for_thousands_of_columns():
    """Each column is looked at once: 25 s of work in a URL of 64 KB before."""
    columns = [("in", f"c{number}") for number in range(2000)]
    names = tuple(f"in.c{number}" for number in reversed(range(2000)))

    assert Dataset(names * 5).select(columns).paths == tuple(reversed(columns))


def test_an_unknown_name_is_refused_with_what_there_is():
    with pytest.raises(SchemaMismatchError, match=r"key not found: in\.z \(.*in\.a, in\.a\.b"):
        Dataset(("time", "in.z")).select(PATHS)
