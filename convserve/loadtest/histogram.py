"""Latencies as HdrHistograms: fixed memory, a relative error that is known, and mergeable."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

import numpy as np
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray

from convserve.loadtest.results import Latency

_LOWEST_US: Final = 1
_HIGHEST_US: Final = 3_600_000_000  # one hour; no timeout is longer
_FIGURES: Final = 3  # significant ones: an error of at most 0.1%


class Latencies:
    """Latencies of answered requests, and the number of those without an answer."""

    def __init__(self) -> None:
        self._histogram = HdrHistogram(_LOWEST_US, _HIGHEST_US, _FIGURES)
        self._sum_s = 0.0
        self.n_unanswered = 0

    def add(self, latencies_s: NDArray[np.float64]) -> None:
        """Counts latencies in seconds; infinite ones are requests without an answer."""
        answered = latencies_s[np.isfinite(latencies_s)]
        self.n_unanswered += len(latencies_s) - len(answered)
        self._sum_s += float(answered.sum())

        us = np.clip(np.rint(answered * 1e6), _LOWEST_US, _HIGHEST_US).astype(np.int64)
        values, counts = np.unique(us, return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            self._histogram.record_value(value, count)

    def include(self, other: Latencies) -> None:
        """Counts everything that another one has counted."""
        self._histogram.add(other._histogram)
        self._sum_s += other._sum_s
        self.n_unanswered += other.n_unanswered

    def include_encoded(self, part: Latency) -> None:
        """Counts everything in a result."""
        other = HdrHistogram.decode(part.histogram.encode())
        self._histogram.add(other)
        self._sum_s += (part.mean_ms or 0.0) * other.get_total_count() / 1e3
        self.n_unanswered += part.n_unanswered

    @property
    def n_answered(self) -> int:
        return int(self._histogram.get_total_count())

    @property
    def n(self) -> int:
        return self.n_answered + self.n_unanswered

    @property
    def mean_ms(self) -> float | None:
        return 1e3 * self._sum_s / self.n_answered if self.n_answered else None

    def n_above(self, limit_ms: float | None) -> int:
        """Returns how many were slower than a percentile; None: how many got no answer."""
        if limit_ms is None:
            return self.n_unanswered
        counts = np.frombuffer(self._histogram.counts, np.uint64)
        used = np.flatnonzero(counts)
        within = used[: bisect_right(used, limit_ms, key=self._value_ms)]
        return self.n - int(counts[within].sum())

    def percentile_ms(self, percent: float) -> float | None:
        """Returns the smallest value that at least `percent` % of the requests do not exceed.

        None where there are no requests, or where that request got no answer.
        """
        rank = max(1, math.ceil(self.n * percent / 100 - 1e-9))
        if not self.n or rank > self.n_answered:
            return None
        # The library's own search is a Python loop over 23,000 counts.
        counts = np.frombuffer(self._histogram.counts, np.uint64)
        index = int(np.searchsorted(np.cumsum(counts), rank))
        return self._value_ms(index)

    def _value_ms(self, index: int) -> float:
        # The highest value that is counted there.
        value = self._histogram.get_value_from_index(index)
        return float(self._histogram.get_highest_equivalent_value(value)) / 1e3

    def encode(self) -> str:
        encoded: bytes = self._histogram.encode()
        return encoded.decode()

    def summary(self) -> Latency:
        return Latency(
            n=self.n,
            n_unanswered=self.n_unanswered,
            mean_ms=self.mean_ms,
            p50_ms=self.percentile_ms(50),
            p90_ms=self.percentile_ms(90),
            p95_ms=self.percentile_ms(95),
            p99_ms=self.percentile_ms(99),
            p999_ms=self.percentile_ms(99.9),
            max_ms=self.percentile_ms(100),
            histogram=self.encode(),
        )


def merged(parts: Sequence[Latency]) -> Latencies:
    """Returns the latencies of several stretches of time together."""
    whole = Latencies()
    for part in parts:
        whole.include_encoded(part)
    return whole
