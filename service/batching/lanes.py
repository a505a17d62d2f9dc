"""The lanes of one batcher: who is free, who is stuck, and who takes a lost one's place."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterator
from typing import Final

from service.batching.lane import Entry, Lane, Report
from service.errors import EngineFailure
from service.models.engine import Engine

log = logging.getLogger(__name__)

_MAX_REPLACEMENTS: Final = 3  # of lanes, without a run that succeeds in between
_INTERRUPT_S: Final = 1.0  # an interrupted run that goes on for so long is abandoned


class Lanes:
    """As many lanes as are wanted; used on the event loop only."""

    def __init__(
        self,
        stuck_after_s: float,
        engine: Callable[[], Engine],
        clock: Callable[[], float],
        on_report: Callable[[Lane, Report], None],
        on_change: Callable[[list[Entry]], None],
    ) -> None:
        """Prepares; `start` starts them.

        Args:
            stuck_after_s: seconds after which a run counts as stuck.
            engine: returns what runs batches.
            clock: monotonic seconds.
            on_report: as `Lane` calls it.
            on_change: called after lanes were looked at or lost, with the entries, in order, that
                a lost one had not begun.
        """
        self._stuck_after_s = stuck_after_s
        self._engine = engine
        self._clock = clock
        self._on_report = on_report
        self._on_change = on_change
        self._wanted = 0
        self._lanes: list[Lane] = []
        self._abandoned: list[Lane] = []  # stuck, and perhaps still inside the engine
        self._replacements = 0
        self._closing = False
        self._watch: asyncio.TimerHandle | None = None

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._lanes)

    def __len__(self) -> int:
        return len(self._lanes)

    @property
    def at_work(self) -> bool:
        """True while any has a batch."""
        return any(lane.jobs for lane in self._lanes)

    @property
    def in_hand(self) -> int:
        """Entries that lanes have been given and have not reported."""
        return sum(len(job.entries) for lane in self._lanes for job in lane.jobs)

    @property
    def n_living(self) -> int:
        """Lanes that are not dead."""
        return sum(not lane.dead for lane in self._lanes)

    @property
    def alive(self) -> bool:
        """True while every lane runs and none has been in one run for too long."""
        self._abandoned = [lane for lane in self._abandoned if lane.busy]
        return bool(self._lanes) and not self._abandoned and not any(map(self._faulty, self._lanes))

    @property
    def at_rest(self) -> bool:
        """True while no lane is inside the engine, even one that has been given up."""
        return not any(lane.busy for lane in (*self._lanes, *self._abandoned))

    def resize(self, wanted: int) -> None:
        """Starts lanes, or ends those that are too many as soon as they have finished."""
        self._wanted = wanted
        self.close_surplus()
        for number in range(len(self._lanes), wanted):
            self._lanes.append(self._new_lane(number))

    def close_surplus(self) -> None:
        """Ends the lanes beyond the limit that have finished; they are given nothing more."""
        for lane in self._lanes[self._wanted :]:
            if not lane.jobs:
                self._lanes.remove(lane)
                lane.close()

    def next(self) -> Lane | None:
        """Returns an idle lane, or else the one that will be free first and has nothing ahead."""
        lanes = self._lanes[: self._wanted]
        able = [lane for lane in lanes if len(lane.jobs) < 2 and not self._faulty(lane)]
        idle = [lane for lane in able if not lane.jobs]
        if idle:
            return idle[0]  # always the same one first: a lone client's stays in the caches
        return min(able, key=lambda lane: lane.since_s, default=None)

    def share(self, slow_s: float) -> None:
        """Lets a lane that is free, or nearly, take over what waits behind a slow or stuck run.

        Args:
            slow_s: seconds after which a run is slow; what waits behind others keeps its place,
                unless a lane has nothing to do at all.
        """
        if all(len(lane.jobs) < 2 for lane in self._lanes):
            return
        while (taker := self.next()) is not None:
            late_s = self._clock() - slow_s if taker.jobs else math.inf
            givers = (lane for lane in self._lanes if lane is not taker and lane.since_s < late_s)
            ahead = next((batch for lane in givers if (batch := lane.pass_on())), None)
            if ahead is None:
                return
            self.work(taker, ahead, wide=False)

    def work(self, lane: Lane, batch: list[Entry], *, wide: bool) -> None:
        """Gives a lane a batch and watches over it."""
        lane.work(batch, wide=wide)
        if self._watch is None:
            self._watch = asyncio.get_running_loop().call_later(
                self._stuck_after_s, self._look_for_stuck
            )

    def forgive(self) -> None:
        """A run succeeded: what died before counts no more."""
        self._replacements = 0

    def died(self, lane: Lane, error: BaseException) -> None:
        """Replaces a lane whose work on a batch ended it."""
        log.critical("a lane died", exc_info=error)
        self._retire(lane)

    def close(self) -> None:
        """Replaces no lane any more."""
        self._closing = True

    def stop(self) -> list[Entry]:
        """Ends them all at once and returns what they had not begun."""
        self._closing = True
        if self._watch is not None:
            self._watch.cancel()
        left = []
        for lane in self._lanes:
            lane.dead = True
            lane.interrupt(EngineFailure("the lane stopped during the run"))
            left += lane.take_back()
            lane.close()
        return left

    def _new_lane(self, number: int) -> Lane:
        return Lane(number, self._engine, self._clock, self._on_report)

    def _faulty(self, lane: Lane) -> bool:
        return lane.dead or bool(lane.jobs and self._clock() - lane.since_s > self._stuck_after_s)

    def _look_for_stuck(self) -> None:
        self._watch = None
        now_s = self._clock()
        for lane in [lane for lane in self._lanes if self._faulty(lane) and not lane.dead]:
            overdue_s = now_s - lane.since_s - self._stuck_after_s
            if not lane.interrupted:
                log.error("a run is stuck and is interrupted")
                lane.interrupt(EngineFailure("the run of this picture took too long"))
            elif overdue_s > _INTERRUPT_S:
                log.critical("a lane is stuck and is abandoned")
                self._abandoned.append(lane)
                self._retire(lane)
        if self.at_work:
            delay_s = min(self._stuck_after_s, _INTERRUPT_S)
            self._watch = asyncio.get_running_loop().call_later(delay_s, self._look_for_stuck)
        self._on_change([])

    def _retire(self, lane: Lane) -> None:
        """Closes a lane that works no more and replaces it, a few times."""
        lane.dead = True
        left = lane.take_back()
        lane.close()
        if lane in self._lanes and not self._closing:
            self._replace(lane)
        self._on_change(left)

    def _replace(self, lane: Lane) -> None:
        if self._replacements >= _MAX_REPLACEMENTS * self._wanted:
            return
        self._replacements += 1
        position = self._lanes.index(lane)
        self._lanes[position] = self._new_lane(position)
        log.warning("a lane was replaced")
