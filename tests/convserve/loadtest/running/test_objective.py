from __future__ import annotations

import numpy as np
import pytest

from convserve.loadtest.histogram import Latencies
from convserve.loadtest.running.objective import parse_objective


def latencies(milliseconds: list[float], n_unanswered: int = 0) -> Latencies:
    found = Latencies()
    found.add(np.array([*(one / 1e3 for one in milliseconds), *[np.inf] * n_unanswered]))
    return found


@pytest.mark.parametrize(
    ("text", "n_missed"),
    [
        ("p99<200ms", 0),
        ("p50<50ms", 1),
        ("p99.9 < 0.2 s", 0),
        ("mean<50ms, max<101ms", 1),
        ("max<100ms", 1),
        ("errors<0.1%", 1),
        ("errors<1%", 1),
        ("errors<1.1%", 0),
        ("errors<0%", 1),
        ("p50<1ms,p90<1ms,errors<0.1%", 3),
    ],
)
def test_objective_names_each_term_that_was_missed(text, n_missed):
    measured = latencies([float(ms) for ms in range(1, 101)])

    misses = parse_objective(text).misses(measured, n_errors=1, n_sent=100)

    assert len(misses) == n_missed


def test_objective_without_errors_allows_a_limit_of_zero():
    assert parse_objective("errors<0%").misses(latencies([1.0]), n_errors=0, n_sent=1) == []


def test_objective_mean_with_a_request_that_was_not_answered_is_missed():
    misses = parse_objective("mean<1000s").misses(latencies([1.0], n_unanswered=1), 0, 2)

    assert misses == ["mean<1000s: mean was not answered"]


def test_objective_percentile_that_was_not_answered_is_missed():
    measured = latencies([1.0] * 98, n_unanswered=2)

    misses = parse_objective("p99<1000s").misses(measured, n_errors=0, n_sent=100)

    assert misses == ["p99<1000s: p99 was not answered"]


@pytest.mark.parametrize(
    "text", ["", " , ", "p99", "p99<200", "fast", "p99>200ms", "errors<1", "errors<200%", "p100<1s"]
)
def test_objective_that_does_not_parse_says_how_to_write_one(text):
    with pytest.raises(ValueError, match="p99<200ms"):
        parse_objective(text)


@pytest.mark.parametrize(
    ("text", "n"), [("p99<1s", 200), ("p50<1s,p99.9<2s", 2000), ("errors<1%,max<1s", 1)]
)
def test_objective_needs_requests_beyond_its_highest_percentile(text, n):
    assert parse_objective(text).n_needed == n
