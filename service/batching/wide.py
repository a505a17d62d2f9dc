"""What a version's runs take, and which of them may have all cores: those that are alone."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from statistics import median
from typing import Final

_SOLITUDE_S: Final = 0.05  # items must have come one at a time for so long
_ENOUGH_RUNS: Final = 8  # before they are compared with others: a single one may be unlucky
_DOUBT_S: Final = 5.0  # so long one lane's threads are preferred after all cores were slower
_NEWEST_WEIGHT: Final = 0.1  # in running means


class LoadMonitor:
    """Knows whether pictures have been coming one at a time, of whatever version."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._crowded_s = -_SOLITUDE_S  # when more than one item was last in hand

    def crowded(self) -> None:
        """Notes that an item came while another was in hand."""
        self._crowded_s = self._clock()

    def lasts(self) -> bool:
        return self._clock() - self._crowded_s >= _SOLITUDE_S


class RunTimes:
    """What is known of one version's runs.

    Attributes:
        item_s: seconds of a lane that a picture costs; 0 until the first run.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """Begins without any knowledge.

        Args:
            clock: monotonic seconds.
        """
        self.item_s = 0.0
        self._clock = clock
        self._narrow_run_s = math.inf  # of one item; mean of late
        self._wide_runs_s: deque[float] = deque(maxlen=2 * _ENOUGH_RUNS)
        self._doubted_s = -math.inf  # when a run with all cores was last slower

    def may_be_wide(self) -> bool:
        """Says whether a lone run should have all cores.

        Where other processes keep the cores busy, its threads wait for each other and it takes
        longer than with one; then it should not, but for a try now and then.
        """
        return self._clock() - self._doubted_s >= _DOUBT_S

    def learn_cost(self, item_s: float) -> None:
        """Takes the seconds of a lane that each picture of a batch cost."""
        weight = _NEWEST_WEIGHT if self.item_s else 1.0
        self.item_s += weight * (item_s - self.item_s)

    def learn_alone(self, run_s: float, *, wide: bool) -> None:
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
