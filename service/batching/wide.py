"""Decides which runs may have all cores: those that nothing else would be run beside."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from statistics import median
from typing import Final

_SOLITUDE_S: Final = 0.05  # items must have come one at a time for so long
_ENOUGH_RUNS: Final = 8  # before they are compared with others: a single one may be unlucky
_DOUBT_S: Final = 5.0  # so long one lane's threads are preferred after all cores were slower
_NEWEST_WEIGHT: Final = 0.1  # in the running mean of runs with one lane's threads


class Width:
    """What is known of a model's runs with all cores and with those of one lane."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Begins without any knowledge.

        Args:
            clock: monotonic seconds.
        """
        self._clock = clock
        self._crowded_s = -_SOLITUDE_S  # when more than one item was last in hand
        self._narrow_run_s = math.inf  # of one item; mean of late
        self._wide_runs_s: deque[float] = deque(maxlen=2 * _ENOUGH_RUNS)
        self._doubted_s = -math.inf  # when a run with all cores was last slower

    def crowded(self) -> None:
        """Notes that an item came while another was in hand."""
        self._crowded_s = self._clock()

    def may_be_all(self, batch_size: int) -> bool:
        """Says whether a run may have all cores: items have been coming one at a time.

        Where other processes keep the cores busy, its threads wait for each other and it takes
        longer than with one; then it may not, but for a try now and then.
        """
        now_s = self._clock()
        if batch_size > 1 or now_s - self._crowded_s < _SOLITUDE_S:
            return False
        return now_s - self._doubted_s >= _DOUBT_S

    def learn(self, run_s: float, *, wide: bool) -> None:
        """Takes the seconds of a run of one item that nothing waited behind."""
        if not wide:
            before_s = run_s if math.isinf(self._narrow_run_s) else self._narrow_run_s
            self._narrow_run_s = before_s + _NEWEST_WEIGHT * (run_s - before_s)
            return
        self._wide_runs_s.append(run_s)
        enough = len(self._wide_runs_s) >= _ENOUGH_RUNS
        if enough and median(self._wide_runs_s) > self._narrow_run_s:
            self._doubted_s = self._clock()
            self._wide_runs_s.clear()
