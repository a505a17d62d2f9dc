import math

import numpy as np
import pytest

from convserve.loadtest.compare.noise import (
    MIN_BLOCKS,
    Spread,
    combined,
    common_course,
    design_effect,
    difference,
    share_bounds,
    spread_of_runs,
    spread_of_share,
    t_quantile,
)


# From published tables of Student's t, 99.5%.
@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [
        pytest.param(1, 63.657, id="one"),
        pytest.param(4.9, 4.604, id="fractions-round-down-to-the-table"),
        pytest.param(10, 3.169, id="last-of-the-table"),
        pytest.param(11, 3.106, id="first-of-the-expansion"),
        pytest.param(19, 2.861, id="twenty-blocks"),
        pytest.param(1e6, 2.576, id="normal"),
    ],
)
def test_t_quantile_is_the_published_one(freedom, quantile):
    assert t_quantile(freedom) == pytest.approx(quantile, abs=2e-3)


def test_combined_spread_is_welchs():
    # Variances of the means 4 and 1: 5**2 / (16 / 9 + 1 / 4) degrees of freedom.
    spread = combined(Spread(2, 9), Spread(1, 4))

    assert spread.error == pytest.approx(math.sqrt(5))
    assert spread.freedom == pytest.approx(25 / (16 / 9 + 1 / 4))


def test_spread_of_runs_takes_a_single_run_to_vary_as_the_others():
    spread = spread_of_runs([10.0], [10.0, 12.0, 14.0])

    assert spread is not None
    assert spread.error == pytest.approx(math.sqrt(4 * (1 + 1 / 3)))
    assert spread.freedom == 2
    assert spread_of_runs([10.0], [12.0]) is None


def test_difference_of_symmetric_intervals_adds_in_quadrature():
    low, high = difference((10, 20), ((7, 13), (16, 24)))

    assert (low, high) == pytest.approx((5, 15))


def test_difference_of_what_is_alike_is_surer():
    bounds = (7.0, 13.0), (17.0, 23.0)

    assert difference((10, 20), bounds, common=0.5) == pytest.approx((7, 13))
    assert difference((10, 20), bounds, common=1.0) == pytest.approx((10, 10))


@pytest.mark.parametrize(
    ("a", "b", "low", "high"),
    [
        pytest.param((5, (4, 6)), (math.inf, (8, math.inf)), 2, math.inf, id="apart"),
        pytest.param((5, (4, 9)), (math.inf, (8, math.inf)), -math.inf, math.inf, id="overlap"),
        pytest.param((math.inf, (8, math.inf)), (5, (4, 6)), -math.inf, -2, id="the-other-way"),
    ],
)
def test_difference_to_an_unanswered_percentile_needs_intervals_that_are_apart(a, b, low, high):
    assert difference((a[0], b[0]), (a[1], b[1])) == (low, high)


def test_share_bounds_of_no_failure_have_a_width():
    low, high = share_bounds(0, 1000)

    squared_quantile = 2.5758**2
    assert low == 0
    assert high == pytest.approx(squared_quantile / (1000 + squared_quantile), rel=1e-3)


def test_design_effect_tells_a_burst_from_single_failures():
    random = np.random.default_rng(0)
    scattered = [(int(n), 200) for n in random.binomial(200, 0.01, 20)]
    burst = [(40, 200), *[(0, 200)] * 19]

    assert design_effect(scattered) < 2
    assert design_effect(burst) == pytest.approx(40, rel=0.05)
    assert design_effect([(0, 200)] * 20) == 1


def test_spread_of_share_is_that_of_independent_requests_where_they_are():
    random = np.random.default_rng(1)
    blocks = [(int(n), 500) for n in random.binomial(500, 0.1, 400)]

    spread = spread_of_share(blocks)

    assert spread.error == pytest.approx(math.sqrt(0.1 * 0.9 / 200_000), rel=0.1)


def test_common_course_counts_only_beyond_chance():
    course = [1.0, 2.0, 1.0, 5.0, 4.0, 1.0, 2.0, 1.0]

    assert common_course(course, [2 * one for one in course]) == pytest.approx(1)
    assert common_course(course, [3.0, 1.0, 4.0, 1.0, 2.0, 6.0, 3.0, 2.0]) == 0
    assert common_course(course[: MIN_BLOCKS - 1], course[: MIN_BLOCKS - 1]) == 0
    assert common_course(course, [1.0] * len(course)) == 0
