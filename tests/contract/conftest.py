"""What the contract cases share: engines with both shells, and the shell to ask through."""

import pytest
from support.shells import Flight, Rest


@pytest.fixture(scope="module")
def serving(serving):
    """As everywhere, with Arrow Flight: both shells' cases share an engine."""

    def get(model, *, environ=None, **definition):
        return serving(model, environ={"FLIGHT_PORT": "0", **(environ or {})}, **definition)

    return get


@pytest.fixture(params=[Rest, Flight], ids=["rest", "flight"])
def client(request):
    """The shell that a case goes through: ``client(engine).records(rows)``.

    Every case that means something on both runs through both. HTTP's own, and asked over HTTP
    alone, are: media types and ``Accept``, methods and paths, keep-alive, the documented ``curl``
    lines, the spelling of JSON (the legacy body, flat keys of a reply, what text stands for a
    float), and Prometheus metrics. Flight's own are in ``test_flight.py``.
    """
    return request.param
