import math

import numpy as np
import pytest

from convserve.loadtest.histogram import Latencies, merged


@pytest.mark.parametrize("percent", [1, 50, 99, 99.9, 100])
def test_percentile_is_the_exact_one_within_a_thousandth(percent):
    latencies_s = np.random.default_rng(0).lognormal(-3, 1, 5000)
    counted = Latencies()

    counted.add(latencies_s)

    exact_ms = 1e3 * np.sort(latencies_s)[math.ceil(50 * percent) - 1]
    assert counted.percentile_ms(percent) == pytest.approx(exact_ms, rel=1e-3)


def test_percentile_of_requests_without_an_answer_is_none():
    counted = Latencies()

    counted.add(np.array([0.01] * 98 + [math.inf] * 2))

    assert counted.percentile_ms(98) == pytest.approx(10, rel=1e-3)
    assert counted.percentile_ms(99) is None


def test_n_above_counts_what_a_percentile_leaves():
    counted = Latencies()
    counted.add(np.array([0.01] * 90 + [0.02] * 7 + [math.inf] * 3))

    assert counted.n_above(counted.percentile_ms(90)) == 10
    assert counted.n_above(counted.percentile_ms(95)) == 3
    assert counted.n_above(counted.percentile_ms(99)) == 3


def test_merged_latencies_are_those_of_all_parts():
    parts = []
    for latencies_s in (np.array([0.01, 0.02]), np.array([0.03, math.inf])):
        part = Latencies()
        part.add(latencies_s)
        parts.append(part.summary())

    whole = merged(parts)

    assert (whole.n, whole.n_unanswered) == (4, 1)
    assert whole.mean_ms == pytest.approx(20, rel=1e-3)
    assert whole.percentile_ms(75) == pytest.approx(30, rel=1e-3)
