"""Bounds how often something happens, and says whose turn it is."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Allowance:
    """Allows a number of events at once, and a rate after that: a token bucket."""

    def __init__(
        self, burst: int, per_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`clock` gives monotonic seconds."""
        self._burst = burst
        self._per_s = per_s
        self._clock = clock
        self._left = float(burst)
        self._counted_s = clock()

    def take(self, cost: float = 1.0) -> bool:
        """Returns whether one more event is allowed now, and counts it if it is.

        One event is allowed whatever it costs. The next ones wait until its cost is made up for.
        """
        self._refill()
        if self._left < 1:
            return False
        self._left -= cost
        return True

    def wait_s(self) -> float:
        """Returns the seconds until `take` allows an event; 0 if it does now."""
        self._refill()
        return max(0.0, (1 - self._left) / self._per_s)

    def _refill(self) -> None:
        now_s = self._clock()
        self._left = min(self._burst, self._left + (now_s - self._counted_s) * self._per_s)
        self._counted_s = now_s


class RoundRobin(Generic[T]):
    """A queue that goes round its flows, and within a flow is first in, first out."""

    def __init__(self) -> None:
        self._flows: OrderedDict[Hashable, deque[T]] = OrderedDict()
        self._n_items = 0

    def __len__(self) -> int:
        return self._n_items

    @property
    def first(self) -> T:
        return next(iter(self._flows.values()))[0]

    def push(self, flow: Hashable, item: T) -> None:
        self._flows.setdefault(flow, deque()).append(item)
        self._n_items += 1

    def pop(self) -> T:
        flow, items = self._flows.popitem(last=False)
        item = items.popleft()
        if items:
            self._flows[flow] = items  # behind the other flows
        self._n_items -= 1
        return item
