"""The search for the highest rate that keeps an objective.

A trial near the limit passes or fails by chance, so both ends of the bracket are tried until two
outcomes agree. The answer is that bracket.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Final

from convserve.loadtest.results import Capacity

MAX_TRIALS: Final = 30  # about 13 are usual
_AGREEING: Final = 2  # outcomes that decide about an end of the bracket: the best of three
_STEPS: Final = (1.15, 1.3, 1.6, 2.0, 4.0)  # while no trial has failed yet, or none has passed


class Search:
    """Chooses rates to try, and learns from the outcomes."""

    def __init__(self, start_per_s: float, precision: float) -> None:
        """`precision`: the bracket's width, as a share of the rate, at which the search ends."""
        self._start_per_s = start_per_s
        self._precision = precision
        self._kept: dict[float, int] = defaultdict(int)
        self._missed: dict[float, int] = defaultdict(int)
        self.n_trials = 0

    def next_rate(self) -> float | None:
        """Returns the next rate to try, or None at the end."""
        if self.n_trials >= MAX_TRIALS:
            return None
        # Anything else on the machine can make a good rate miss the objective once, but little makes
        # a bad one keep it. So one miss decides nothing.
        for rate, missed in self._missed.items():
            if missed < _AGREEING and self._kept[rate] < _AGREEING:
                return rate

        low, high = self._bracket()
        if high is None:
            return self._start_per_s if low is None else _rounded(low * self._step())
        if low is None:
            lower = _rounded(high / self._step())
            return lower if 0 < lower < high else None

        middle = _rounded(math.sqrt(low * high))
        if high / low > 1 + self._precision and low < middle < high:
            return middle
        return low if self._kept[low] < _AGREEING else None

    def record(self, rate_per_s: float, *, kept: bool) -> None:
        self.n_trials += 1
        (self._kept if kept else self._missed)[rate_per_s] += 1

    def capacity(self) -> Capacity | None:
        """Returns what is known; None if no rate kept the objective."""
        low, high = self._bracket()
        if low is None:
            return None
        n_kept, n_low = self._kept[low], self._kept[low] + self._missed[low]
        kept = f"{low:,.4g}/s kept the objective in {n_kept} of {n_low} {_trials(n_low)}"
        if high is None:
            statement = f"{kept}. No trial missed it, so the capacity is higher."
        else:
            n_missed, n_high = self._missed[high], self._kept[high] + self._missed[high]
            statement = (
                f"{kept}, {high:,.4g}/s missed it in {n_missed} of {n_high}. "
                f"The limit lies between them: {100 * (high / low - 1):.1f}% apart."
            )
        if self._is_unfinished():
            statement += " The search ended early."
        return Capacity(
            rate_per_s=low,
            kept_up_to_per_s=low,
            missed_from_per_s=high,
            statement=statement,
        )

    def _is_unfinished(self) -> bool:
        return self.next_rate() is not None

    def _bracket(self) -> tuple[float | None, float | None]:
        """Returns the highest rate that kept the objective, and the next one that missed it."""
        tried = sorted({*self._kept, *self._missed})
        decided = (rate for rate in tried if self._kept[rate] != self._missed[rate])
        verdicts = {rate: self._kept[rate] > self._missed[rate] for rate in decided}
        missed = [rate for rate, kept in verdicts.items() if not kept]
        high = missed[0] if missed else None
        # A rate above one that was missed kept the objective by luck.
        kept = [rate for rate, good in verdicts.items() if good and (high is None or rate < high)]
        return (kept[-1] if kept else None), high

    def _step(self) -> float:
        n_tried = len({*self._kept, *self._missed})
        return _STEPS[min(n_tried, len(_STEPS)) - 1]


def _rounded(rate_per_s: float) -> float:
    # Three digits: a report with 263.8176 requests a second claims too much.
    return float(f"{rate_per_s:.4g}") if rate_per_s < 100 else float(round(rate_per_s, 1))


def _trials(n: int) -> str:
    return "trial" if n == 1 else "trials"
