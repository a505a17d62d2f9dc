"""How sure a difference is: confidence intervals from blocks of one run, or from several runs.

Requests that follow each other are alike: one that waits holds up the next. So single requests are
no independent samples, and blocks of time are compared instead (batch means: B. Schmeiser, "Batch
size effects in the analysis of simulation output", Operations Research 30, 1982). A percentile's
interval comes from the share of requests above it in each block: a run's p99 is made in its few
busy moments, which a mean over the blocks' own percentiles would hide (P. Heidelberger and
P. Lewis, "Quantile estimation in dependent sequences", Operations Research 32, 1984; R. Woodruff,
JASA 47, 1952).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, correlation, fmean, variance
from typing import Final

LEVEL: Final = 0.99  # of each interval, so that those of five measures hold together with 95%
MIN_BLOCKS: Final = 5  # fewer give intervals that are as wide as a guess

Interval = tuple[float, float]

# 99.5% quantiles of Student's t for 1 to 10 degrees of freedom; the expansion below is for more.
_T: Final = (63.657, 9.925, 5.841, 4.604, 4.032, 3.707, 3.499, 3.355, 3.250, 3.169)
_CORRELATED: Final = 0.45  # 20 blocks that are independent reach this in 1 of 40 cases


@dataclass(frozen=True, slots=True)
class Spread:
    """The standard error of an estimate, and its degrees of freedom."""

    error: float
    freedom: float

    @property
    def margin(self) -> float:
        """Half of a confidence interval."""
        return t_quantile(self.freedom) * self.error

    def around(self, centre: float) -> Interval:
        return centre - self.margin, centre + self.margin


def t_quantile(freedom: float) -> float:
    """Returns the quantile of Student's t distribution for an interval of `LEVEL`."""
    if freedom < len(_T) + 1:
        return _T[max(1, math.floor(freedom)) - 1]
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    # Cornish and Fisher's expansion; M. Abramowitz and I. Stegun, 26.7.5.
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def spread_of_mean(values: Sequence[float]) -> Spread:
    """Returns the spread of the mean of independent samples, of which there are at least two."""
    return Spread(math.sqrt(variance(values) / len(values)), len(values) - 1)


def spread_of_runs(a: Sequence[float], b: Sequence[float]) -> Spread | None:
    """Returns the spread of the difference of the means of runs (Welch); None for one run each.

    A single run is taken to vary as the other side's do.
    """
    if len(a) < 2 and len(b) < 2:
        return None
    if len(a) < 2 or len(b) < 2:
        several = a if len(b) < 2 else b
        error = math.sqrt(variance(several) * (1 / len(a) + 1 / len(b)))
        return Spread(error, len(several) - 1)
    return combined(spread_of_mean(a), spread_of_mean(b))


def combined(a: Spread, b: Spread) -> Spread:
    """Returns the spread of a difference (Welch and Satterthwaite)."""
    squared = a.error**2 + b.error**2
    if not squared:
        return Spread(0.0, a.freedom + b.freedom)
    freedom = squared**2 / (a.error**4 / a.freedom + b.error**4 / b.freedom)
    return Spread(math.sqrt(squared), freedom)


def common_course(a: Sequence[float], b: Sequence[float]) -> float:
    """Returns the correlation of two courses block by block, 0 if it may be chance.

    The blocks of a spike differ from each other by design, and the same seed makes the same
    arrivals. Neither is noise.
    """
    if len(a) != len(b) or len(a) < MIN_BLOCKS or not variance(a) or not variance(b):
        return 0.0
    found = correlation(a, b)
    return found if found >= _CORRELATED else 0.0


def difference(
    values: tuple[float, float], bounds: tuple[Interval, Interval], common: float = 0.0
) -> Interval:
    """Returns the interval of b - a from those of a and b, which need not be symmetric.

    G. Zou and A. Donner, "Construction of confidence limits about effect measures", Statistics in
    Medicine 27, 2008. Values and bounds may be infinite. `common` is the correlation of a and b.
    """
    (a, b), ((low_a, high_a), (low_b, high_b)) = values, bounds
    if math.isinf(a) or math.isinf(b):
        # Only intervals that are apart say anything.
        low = low_b - high_a if low_b > high_a else -math.inf
        high = high_b - low_a if high_b < low_a else math.inf
        return low, high
    return (
        b - a - _root(b - low_b, high_a - a, common),
        b - a + _root(high_b - b, a - low_a, common),
    )


def share_bounds(share: float, n: float) -> Interval:
    """Returns Wilson's interval, which is of use for a share of 0 too."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def design_effect(counts: Sequence[tuple[int, int]]) -> float:
    """Returns the variance of shares between groups over that of independent requests, at least 1.

    Args:
        counts: (failed, sent) of each block or run.
    """
    counts = [(failed, sent) for failed, sent in counts if sent]
    n_failed, n_sent = sum(failed for failed, _ in counts), sum(sent for _, sent in counts)
    if len(counts) < 2 or not 0 < n_failed < n_sent:
        return 1.0
    share = n_failed / n_sent
    # Pearson's statistic over its degrees of freedom.
    found = sum((failed - sent * share) ** 2 / sent for failed, sent in counts)
    return max(1.0, found / (share * (1 - share)) / (len(counts) - 1))


def spread_of_share(counts: Sequence[tuple[int, int]]) -> Spread:
    """Returns the spread of a share over blocks of different size (a ratio estimator).

    Args:
        counts: (requests above, requests) of each block; at least one block has some.
    """
    share = sum(above for above, _ in counts) / sum(n for _, n in counts)
    mean = fmean(n for _, n in counts)
    return spread_of_mean([(above - share * n) / mean for above, n in counts])


def _root(x: float, y: float, common: float) -> float:
    if math.isinf(x) or math.isinf(y):
        return math.inf
    return math.sqrt(max(0.0, x * x + y * y - 2 * common * x * y))
