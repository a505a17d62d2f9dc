"""What is known of a version's run times, and which runs may have all cores: those that are alone."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from statistics import median
from typing import Final

_QUIET_S: Final = 0.05  # items must have come one at a time for this long
_MIN_RUNS: Final = 8  # runs on all cores before they are compared: a single one may be unlucky
_RETRY_S: Final = 5.0  # between tries of all cores after they were slower than one
_MEAN_WEIGHT: Final = 0.1  # of the newest value in a running mean


class LoadMonitor:
    """Knows whether pictures have been coming one at a time, whatever their versions."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._overlapped_s = -_QUIET_S

    def mark_overlap(self) -> None:
        """Records that an item came before an earlier one was answered."""
        self._overlapped_s = self._clock()

    def one_at_a_time(self) -> bool:
        return self._clock() - self._overlapped_s >= _QUIET_S


class RunTimes:
    """The run times of one version."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.item_s = 0.0  # of a lane, per picture: a running mean; 0 before the first run
        self._clock = clock
        self._one_core_s = math.inf  # running mean over lone items
        self._all_cores_s: deque[float] = deque(maxlen=2 * _MIN_RUNS)
        self._slower_at_s = -math.inf  # when all cores were last found to be slower

    def record_item(self, item_s: float) -> None:
        weight = _MEAN_WEIGHT if self.item_s else 1.0
        self.item_s += weight * (item_s - self.item_s)

    def record_lone_run(self, run_s: float, *, all_cores: bool) -> None:
        """Records the seconds of a run of one item with no other item waiting."""
        if not all_cores:
            before_s = run_s if math.isinf(self._one_core_s) else self._one_core_s
            self._one_core_s = before_s + _MEAN_WEIGHT * (run_s - before_s)
            return

        # The median, so that one slow run does not count as evidence.
        self._all_cores_s.append(run_s)
        if len(self._all_cores_s) >= _MIN_RUNS and median(self._all_cores_s) > self._one_core_s:
            self._slower_at_s = self._clock()
            self._all_cores_s.clear()

    def all_cores_help(self) -> bool:
        # Where other processes keep the cores busy, the threads of a run wait for each other and it
        # takes longer than with one thread. That may change, so it is tried again now and then.
        return self._clock() - self._slower_at_s >= _RETRY_S
