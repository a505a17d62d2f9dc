from __future__ import annotations

import math

import pytest

from benchmarks.measures import Row, percentile, spread, summarise
from convserve.loadtest.sending.rows import BROKEN, UNANSWERED


def row(latency_s: float = 0.1, status: int = 200, **more) -> Row:
    return Row(more.pop("bad", False), 1.0, 1.0, 1.0 + latency_s, status, **more)


@pytest.mark.parametrize(("percent", "expected"), [(50, 50), (90, 90), (99, 99), (100, 100)])
def test_percentile_of_one_to_a_hundred_is_itself(percent, expected):
    assert percentile(list(range(100, 0, -1)), percent) == expected


def test_percentile_without_a_finite_value_is_none():
    assert percentile([], 99) is None
    assert percentile([1.0, math.inf], 99) is None


def test_latency_late_sending_counts_from_the_intended_time():
    late = Row(False, intended_s=1.0, sent_s=3.0, done_s=3.5, status=200)

    summary = summarise([late], 1.0, deadline_s=1.0)

    assert summary["latency_p50_ms"] == 2500
    assert summary["lateness_p50_ms"] == 2000
    assert summary["goodput_per_s"] == 0


def test_summary_counts_refusals_separately():
    rows = [row(0.1), row(0.01, 503, retry_after=True), row(0.03, 429)]

    summary = summarise(rows, 1.0, deadline_s=1.0)

    assert summary["latency_p99_ms"] == pytest.approx(100)
    assert summary["n_refused"] == 2
    assert summary["refusal_p99_ms"] == pytest.approx(30)
    assert summary["retry_after_percent"] == 50
    assert summary["statuses"] == {"200": 1, "429": 1, "503": 1}


@pytest.mark.parametrize("status", [UNANSWERED, BROKEN])
def test_summary_request_without_answer_is_infinitely_late(status):
    summary = summarise([row(0.1, status)], 1.0, deadline_s=1.0)

    assert summary["latency_p50_ms"] is None
    assert summary["innocent_failed"] == 1


def test_summary_broken_pictures_count_among_statuses_only():
    summary = summarise([row(), row(status=422, bad=True)], 1.0, deadline_s=1.0)

    assert (summary["n"], summary["n_bad"], summary["innocent_failed"]) == (1, 1, 0)
    assert summary["statuses"] == {"200": 1, "422": 1}


def test_spread_ignores_missing_values():
    found = spread([3.0, None, 1.0, 2.0])

    assert found is not None
    assert (found.median, found.low, found.high, found.n) == (2.0, 1.0, 3.0, 3)
    assert spread([None]) is None
