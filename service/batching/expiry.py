"""Answers pictures when their deadline passes, with one timer for all of them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from service.batching.lane import QueueEntry


class ExpiryTimer:
    """Fails entries at their deadline; used on the event loop only.

    A timer for each entry would cost more than everything else in the wait. Deadlines mostly come in
    order, so the one timer is rarely set anew.
    """

    def __init__(self, clock: Callable[[], float], on_expired: Callable[[], None]) -> None:
        """`on_expired` is called after entries have been failed."""
        self._clock = clock
        self._on_expired = on_expired
        self._entries: set[QueueEntry] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._at_s = math.inf

    def add(self, entry: QueueEntry) -> None:
        self._entries.add(entry)
        if entry.deadline_s < self._at_s:
            self._set(entry.deadline_s)

    def discard(self, entry: QueueEntry) -> None:
        self._entries.discard(entry)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _set(self, at_s: float) -> None:
        self.stop()
        self._at_s = at_s
        delay_s = max(0.0, at_s - self._clock())
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._expire)

    def _expire(self) -> None:
        now_s, self._at_s = self._clock(), math.inf
        late = [entry for entry in self._entries if entry.deadline_s <= now_s]
        for entry in late:
            self._entries.discard(entry)
            entry.expire("answered")

        next_s = min((entry.deadline_s for entry in self._entries), default=math.inf)
        if next_s < math.inf:
            self._set(next_s)
        if late:
            self._on_expired()
