"""From what the front hears of a worker to what has to happen to it; pure rules on a given clock.

A worker answers pings from its event loop, owes an answer for every picture it was given, and says
how its lanes are and how much memory it has. Too long a silence first costs it new work, then its
life.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass
from typing import Final

from service.workers.wire import Pong

PING_S: Final = 0.4
"""Seconds between pings; a ping waits for the answer of the one before."""

DOUBT_S: Final = 0.5
"""A worker that is silent for so long gets no new work: with the above, within a second."""

OVERDUE_S: Final = 1.0
"""So long after it was due an answer that is still owed shows that the worker hangs."""

_PATIENCE: Final = 2  # times what the slowest of the last replies took, a reply may take
_REMEMBERED: Final = 64

EXCUSE_S: Final = 1.0
"""So long the front judges nobody after it was itself held up: answers may be waiting unread."""


class Reason(enum.StrEnum):
    """Why a worker is replaced; the values of a metric's label."""

    EXITED = "exited"
    SILENT = "silent"
    OVERDUE = "overdue"
    LANES = "lanes"
    MEMORY = "memory"
    TERMINATED = "terminated"

    @property
    def can_wait(self) -> bool:
        """True where the worker can finish its work while another is being started."""
        return self in (Reason.LANES, Reason.MEMORY, Reason.TERMINATED)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What a worker may do before it is replaced.

    Attributes:
        silent_s: seconds without an answer to a ping.
        max_memory_bytes: resident memory; None for any.
    """

    silent_s: float = 5.0
    max_memory_bytes: int | None = None


class Vitals:
    """The signs of life of one worker."""

    def __init__(self, tolerance: Tolerance, now_s: float, usual_s: float = 0.0) -> None:
        """Starts with a worker that has just said that it is ready.

        Args:
            tolerance: see `Tolerance`.
            now_s: monotonic seconds.
            usual_s: what a reply may take, until some have been seen.
        """
        self._tolerance = tolerance
        self._usual_s = usual_s
        self._took_s: deque[float] = deque(maxlen=_REMEMBERED)
        self._number = 0
        self._pinged_s = now_s
        self._answered = True
        self._excused_until_s = now_s
        self._last = Pong(alive=True, resident_bytes=0)

    @property
    def resident_bytes(self) -> int:
        """Memory at the last ping; 0 if unknown."""
        return self._last.resident_bytes

    def next_ping(self, now_s: float) -> int | None:
        """Returns the number of the ping to send now, or None if none is due."""
        if not self._answered or now_s - self._pinged_s < PING_S:
            return None
        self._number += 1
        self._pinged_s = now_s
        self._answered = False
        return self._number

    def heard(self, number: int, pong: Pong) -> None:
        """Takes the answer to a ping."""
        if number == self._number:
            self._answered = True
            self._last = pong

    def replied(self, took_s: float) -> None:
        """Takes the seconds from a picture's sending to its reply."""
        self._took_s.append(took_s)

    def due_s(self, sent_s: float, deadline_s: float) -> float:
        """Returns when the reply to a picture is due.

        At its deadline; but a client that allows less than a run takes must not make a worker look
        as if it hung.
        """
        slowest_s = max(self._took_s, default=self._usual_s)
        return max(deadline_s, sent_s + _PATIENCE * slowest_s)

    def excuse(self, now_s: float) -> None:
        """Counts the silence anew: the front did not look for a while, for which nobody is to blame."""
        self._pinged_s = now_s
        self._excused_until_s = now_s + EXCUSE_S

    def doubtful(self, now_s: float) -> bool:
        """True while the worker should get no new work."""
        return self._silence_s(now_s) > DOUBT_S or not self._last.alive

    def verdict(self, now_s: float, first_due_s: float) -> Reason | None:
        """Returns why the worker has to be replaced, or None.

        Args:
            now_s: monotonic seconds.
            first_due_s: when the first reply that it owes is due; infinite if it owes none.
        """
        tolerance = self._tolerance
        if now_s > first_due_s + OVERDUE_S and now_s >= self._excused_until_s:
            return Reason.OVERDUE
        if self._silence_s(now_s) > tolerance.silent_s:
            return Reason.SILENT
        if not self._last.alive:
            return Reason.LANES
        if tolerance.max_memory_bytes and self._last.resident_bytes > tolerance.max_memory_bytes:
            return Reason.MEMORY
        return None

    def _silence_s(self, now_s: float) -> float:
        return 0.0 if self._answered else now_s - self._pinged_s
