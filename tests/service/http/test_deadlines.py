from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from service.errors import InvalidParameter
from service.http.deadlines import Deadlines
from service.http.scope import set_request_info
from tests import tinymodel
from tests.fakes import FakeClock
from tests.problems import assert_problem
from tests.service.running import PictureEngine, use_engine

RED = tinymodel.picture("red")
CLASSIFY = "/v1/classify"
INVALID = {
    "zero": "0",
    "negative_zero": "-0",
    "negative": "-5",
    "nan": "nan",
    "infinite": "inf",
    "minus_infinite": "-inf",
    "beyond_a_float": "9" * 400,
    "text": "soon",
    "unit": "5ms",
    "two": "5, 5",
    "empty": "",
}


def request(requested_ms: str | None = None) -> Request:
    headers = [] if requested_ms is None else [(b"x-request-timeout-ms", requested_ms.encode())]
    return Request({"type": "http", "headers": headers})


def deadlines(clock: FakeClock | None = None) -> Deadlines:
    return Deadlines(default_s=30, max_s=300, clock=clock or FakeClock())


@pytest.mark.parametrize(
    ("requested_ms", "expected_s"),
    [
        (None, 30),
        ("250", 0.25),
        ("0.5", 0.0005),
        ("1e3", 1),
        (" 40 ", 0.04),
        ("300000", 300),
        ("300001", 300),
        ("1e300", 300),
    ],
    ids=["default", "whole", "part", "exponent", "spaces", "longest", "longer", "huge"],
)
def test_deadline_is_the_requested_timeout_up_to_the_maximum(requested_ms, expected_s):
    deadline = deadlines().of(request(requested_ms))

    assert deadline.at_s - deadline.started_s == pytest.approx(expected_s)


@given(st.floats(min_value=1e-3, allow_nan=False, allow_infinity=False))
def test_deadline_of_any_positive_number_is_within_the_maximum(milliseconds):
    deadline = deadlines().of(request(repr(milliseconds)))

    assert 0 <= deadline.remaining_s() <= 300


@pytest.mark.parametrize("requested_ms", INVALID.values(), ids=INVALID.keys())
def test_deadline_that_is_not_a_positive_number_refused(requested_ms):
    with pytest.raises(InvalidParameter, match="X-Request-Timeout-Ms"):
        deadlines().of(request(requested_ms))


def test_deadline_default_is_never_capped():
    deadline = Deadlines(default_s=30, max_s=5, clock=FakeClock()).of(request())

    assert deadline.remaining_s() == 30


def test_deadline_counts_from_the_request_head():
    clock, timed_request = FakeClock(), request("5000")
    set_request_info(timed_request.scope, "id", clock())
    clock.advance(2)

    deadline = deadlines(clock).of(timed_request)

    assert (deadline.remaining_s(), deadline.elapsed_s()) == (3, 2)


def test_deadline_without_the_edge_middleware_counts_from_now():
    clock = FakeClock()

    deadline = deadlines(clock).of(request("5000"))

    assert (deadline.remaining_s(), deadline.elapsed_s()) == (5, 0)


def test_deadline_that_has_passed_has_negative_time_left():
    clock = FakeClock()
    deadline = deadlines(clock).of(request("5000"))

    clock.advance(6)

    assert (deadline.remaining_s(), deadline.elapsed_s()) == (-1, 6)


@pytest.mark.parametrize("requested_ms", INVALID.values(), ids=INVALID.keys())
def test_deadline_header_that_is_invalid_answers_invalid_parameter(client, requested_ms):
    response = client.post(CLASSIFY, content=RED, headers={"x-request-timeout-ms": requested_ms})

    assert_problem(response, 422, "invalid_parameter")


def test_deadline_that_is_long_enough_is_met(client):
    response = client.post(CLASSIFY, content=RED, headers={"x-request-timeout-ms": "60000"})

    assert response.status_code == 200


@pytest.mark.parametrize("requested_ms", ["1e-9", "0.000001"], ids=["exponent", "decimal"])
def test_deadline_that_passed_answers_504_and_the_picture_is_never_run(fresh_client, requested_ms):
    engine = PictureEngine()
    use_engine(fresh_client.app.state.service, engine)

    response = fresh_client.post(
        CLASSIFY, content=RED, headers={"x-request-timeout-ms": requested_ms}
    )

    assert_problem(response, 504, "deadline_exceeded")
    assert engine.batches == []


def test_deadline_above_the_maximum_is_capped_over_http(make_client, monkeypatch):
    monkeypatch.setattr("service.running.MAX_REQUEST_TIMEOUT_S", 1e-9)
    client = make_client()

    response = client.post(CLASSIFY, content=RED, headers={"x-request-timeout-ms": "60000"})

    assert_problem(response, 504, "deadline_exceeded")
