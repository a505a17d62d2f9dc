"""The lanes of a batcher: who is free, who is stuck, and who takes a lost one's place."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from service.batching.lane import (
    BatchJob,
    Lane,
    LaneCallbacks,
    LaneFactory,
    QueueEntry,
    RestartReason,
)

log = logging.getLogger(__name__)

FIRST_DELAY_S: Final = 0.1
LONGEST_DELAY_S: Final = 30.0
_HOPELESS_S: Final = 1.0  # where the next start is further away, nobody is made to wait for it
LOOK_S: Final = 0.25
"""Seconds between looks at lanes that work. What is wrong must be so at two of them."""

OVERDUE_S: Final = 1.0
"""So long after it was due a batch shows that its lane hangs."""

_HELD_UP: Final = 3  # so many times this late, the event loop has not been reading reports either
_PATIENCE: Final = 2  # times what the slowest of the last batches took, a batch may take
_REMEMBERED: Final = 64
_SETTLED_S: Final = 60.0  # a lane that is too large at once would be replaced for ever
_RETRY_S: Final = 5.0  # a successor that does not start costs a core while it tries to
_INTERRUPT_S: Final = 1.0  # an interrupted run that goes on for so long is abandoned


@dataclass(slots=True, eq=False)
class _Place:
    """Where one lane is after the other.

    Attributes:
        lane: the one that works; None while the next one waits for its start.
        successor: is being started, and takes over when it is ready.
        delay_s: before the next start; grows while lanes are lost before they have done anything.
        timer: of the next start.
        renewed_s: when a lane was last replaced here because it was too large.
        failed_s: when a successor was last lost before it took over.
    """

    lane: Lane | None = None
    successor: Lane | None = None
    delay_s: float = 0.0
    timer: asyncio.TimerHandle | None = None
    renewed_s: float = -math.inf
    failed_s: float = -math.inf

    @property
    def hopeless(self) -> bool:
        """True while nothing works here, nor will soon."""
        # `delay_s` is for the start after the one that is waited for, and twice its delay.
        return (self.lane is None or not self.lane.ready) and self.delay_s > 2 * _HOPELESS_S


class Lanes:
    """Keeps so many lanes at work; used on the event loop only."""

    def __init__(
        self,
        source: LaneFactory,
        stuck_after_s: float,
        clock: Callable[[], float],
        on_done: Callable[[Lane, BatchJob[QueueEntry]], None],
        on_change: Callable[[list[BatchJob[QueueEntry]]], None],
        on_replaced: Callable[[RestartReason], None] = lambda _: None,
    ) -> None:
        """Prepares; `start` starts them.

        Args:
            source: makes lanes.
            stuck_after_s: seconds that a batch may take at most, whatever its deadlines.
            clock: monotonic seconds.
            on_done: called for each finished job, after its entries were answered.
            on_change: called when a lane has become ready or was lost, with the jobs, in order,
                that a lost one had not begun.
            on_replaced: called for each lane that has to be replaced.
        """
        self._source = source
        self._stuck_after_s = stuck_after_s
        self._clock = clock
        self._on_done = on_done
        self._on_change = on_change
        self._on_replaced = on_replaced
        self._places: list[_Place] = []
        self._leaving: list[Lane] = []  # finish what they have in hand
        self._abandoned: list[Lane] = []  # stuck, and perhaps still inside the engine
        self._closing = False
        self._watch: asyncio.TimerHandle | None = None
        self._looked_s = clock()
        self._suspects: list[BatchJob[QueueEntry]] = []  # were overdue at the last look
        self._took_s: deque[float] = deque(maxlen=_REMEMBERED)
        self._callbacks = LaneCallbacks(self._done, self._ready, self._lost, self._worn)

    def __iter__(self) -> Iterator[Lane]:
        return (place.lane for place in self._places if place.lane is not None)

    @property
    def at_work(self) -> bool:
        """True while any has a batch."""
        return any(lane.jobs for lane in (*self, *self._leaving))

    @property
    def some_ahead(self) -> bool:
        """True while a lane has a batch behind the one in hand."""
        return any(len(lane.jobs) > 1 for lane in self)

    @property
    def in_hand(self) -> int:
        """Entries that lanes have been given and have not reported."""
        return sum(len(job.items) for lane in self for job in lane.jobs)

    @property
    def n_large(self) -> int:
        """Lanes that work on a large picture."""
        return sum(any(job.large for job in lane.jobs) for lane in self)

    @property
    def n_ready(self) -> int:
        """Lanes that work, or could."""
        return sum(lane.ready and not lane.dead for lane in self)

    @property
    def n_places(self) -> int:
        """Lanes that there should be."""
        return len(self._places)

    @property
    def hopeless(self) -> bool:
        """True while no lane works, nor will soon."""
        return all(place.hopeless for place in self._places)

    @property
    def alive(self) -> bool:
        """False where only a new process would help."""
        if self._source.restarts:
            return True
        self._abandoned = [lane for lane in self._abandoned if lane.busy]
        lanes = list(self)
        whole = bool(lanes) and len(lanes) == len(self._places)
        return whole and not self._abandoned and not any(map(self._faulty, lanes))

    def start(self, count: int) -> None:
        """Starts so many lanes on the running event loop."""
        for _ in range(count):
            place = _Place()
            self._places.append(place)
            self._open(place)

    def next(self) -> Lane | None:
        """Returns an idle lane, or else the one that will be free first and has nothing ahead."""
        now_s = self._clock()
        first: Lane | None = None
        for place in self._places:
            lane = place.lane
            if lane is None or not lane.ready or lane.dead:
                continue
            if not lane.jobs:
                return lane  # always the same one first: a lone client's stays in the caches
            job = lane.jobs[0]
            if len(lane.jobs) == lane.depth or now_s > job.due_s:
                continue
            if first is None or job.since_s < first.jobs[0].since_s:
                first = lane
        return first

    def share(self, slow_s: float) -> None:
        """Lets a lane that is free, or nearly, take over what waits behind a slow or stuck run.

        Args:
            slow_s: seconds after which a run is slow; what waits behind others keeps its place,
                unless a lane has nothing to do at all.
        """
        while (taker := self.next()) is not None:
            late_s = self._clock() - slow_s if taker.jobs else math.inf
            givers = (
                lane
                for lane in self
                if lane is not taker and lane.jobs and lane.jobs[0].since_s < late_s
            )
            ahead = next((job for lane in givers if (job := lane.pass_on())), None)
            if ahead is None:
                return
            self.work(
                taker, BatchJob(ahead.version, ahead.items, ahead.run, self._clock(), ahead.large)
            )

    def work(self, lane: Lane, job: BatchJob[QueueEntry]) -> None:
        """Gives a lane a batch and watches over it."""
        job.due_s = self._due_s(job)
        lane.work(job)
        if self._watch is None:
            self._looked_s = self._clock()
            self._look_again()

    def close(self) -> None:
        """Replaces no lane any more."""
        self._closing = True

    def stop(self) -> list[BatchJob[QueueEntry]]:
        """Ends them all at once and returns what they had not begun."""
        self._closing = True
        if self._watch is not None:
            self._watch.cancel()

        for place in self._places:
            if place.timer is not None:
                place.timer.cancel()

        left = []
        # A lane that is lost by being interrupted has its successor take its place.
        successors = [place.successor for place in self._places if place.successor is not None]
        for lane in (*self, *self._leaving, *successors):
            lane.dead = True
            lane.interrupt()
            left += lane.take_back()
            lane.close()
        return left

    async def closed(self) -> None:
        """Returns when every lane that was closed has ended."""
        await self._source.closed()

    # What lanes report

    def _done(self, lane: Lane, job: BatchJob[QueueEntry]) -> None:
        place = self._place_of(lane)
        if job.died is not None:
            log.critical("a lane died", exc_info=job.died)
            self._replace(lane, RestartReason.DIED)
        elif place is not None and job.runs:
            place.delay_s = 0.0  # it was worth its start
        if job.runs and not job.run.interrupted:
            self._took_s.append(self._clock() - job.since_s)
        if lane.jobs:
            lane.jobs[0].due_s = self._due_s(lane.jobs[0])
        if lane in self._leaving and not lane.jobs:
            self._leaving.remove(lane)
            lane.close()
        self._on_done(lane, job)

    def _ready(self, lane: Lane) -> None:
        for place in self._places:
            if place.successor is lane:
                old, place.lane, place.successor = place.lane, lane, None
                if old is not None:
                    self._let_go(old)
        self._on_change([])

    def _lost(self, lane: Lane, reason: RestartReason) -> None:
        for place in self._places:
            if place.successor is lane:  # the one that it should have replaced goes on
                place.successor, place.failed_s = None, self._clock()
        self._replace(lane, reason)

    def _worn(self, lane: Lane, reason: RestartReason) -> None:
        """Starts a successor, one at a time: each costs memory while both are there."""
        place = self._place_of(lane)
        if place is None or self._closing or any(one.successor for one in self._places):
            return
        now_s = self._clock()
        if now_s - place.failed_s < _RETRY_S:
            return  # the lane says so again
        if reason is RestartReason.MEMORY:
            if now_s - place.renewed_s < _SETTLED_S:
                return
            place.renewed_s = now_s
        log.warning("a lane is replaced", extra={"reason": str(reason)})
        self._on_replaced(reason)
        self._open(place)

    # Replacing

    def _open(self, place: _Place) -> None:
        place.timer = None
        lane = self._source.open(self._callbacks)
        if place.lane is None:
            place.lane = lane
        else:
            place.successor = lane

    def _reopen(self, place: _Place) -> None:
        self._open(place)
        self._on_change([])

    def _open_later(self, place: _Place) -> None:
        delay_s = place.delay_s
        place.delay_s = min(LONGEST_DELAY_S, max(FIRST_DELAY_S, 2 * delay_s))
        if delay_s:
            place.timer = asyncio.get_running_loop().call_later(delay_s, self._reopen, place)
        else:
            self._open(place)

    def _replace(self, lane: Lane, reason: RestartReason) -> None:
        """Takes a lane out that works no more, and puts another in its place."""
        lane.dead = True
        left = lane.take_back()
        lane.close()
        if lane in self._leaving:
            self._leaving.remove(lane)

        place = self._place_of(lane)
        if place is not None and not self._closing:
            log.warning("a lane is replaced", extra={"reason": str(reason)})
            self._on_replaced(reason)
        if place is not None:
            place.lane, place.successor = place.successor, None
            if place.lane is None and not self._closing:
                self._open_later(place)
        self._on_change(left)

    def _let_go(self, lane: Lane) -> None:
        if lane.jobs:
            self._leaving.append(lane)
        else:
            lane.close()

    def _place_of(self, lane: Lane) -> _Place | None:
        return next((place for place in self._places if place.lane is lane), None)

    # Lanes that hang

    def _faulty(self, lane: Lane) -> bool:
        return lane.dead or bool(lane.jobs and self._clock() > lane.jobs[0].due_s)

    def _due_s(self, job: BatchJob[QueueEntry]) -> float:
        """Returns when a batch that is begun now shows that its lane hangs.

        One second after the first of its deadlines; but a client that allows less than a batch takes
        must not make a lane look as if it hung.
        """
        now_s = self._clock()
        usual_s = max(self._took_s, default=job.version.load_s)  # loading runs the largest batch
        answered_s = min(entry.deadline_s for entry in job.items)
        due_s = max(answered_s, now_s + _PATIENCE * usual_s) + OVERDUE_S
        return min(due_s, now_s + self._stuck_after_s)

    def _look_again(self) -> None:
        self._watch = asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def _look(self) -> None:
        self._watch = None
        now_s = self._clock()
        held_up = now_s - self._looked_s > _HELD_UP * LOOK_S
        self._looked_s = now_s
        before, self._suspects = self._suspects, []
        if not held_up:  # otherwise reports may be waiting unread: nobody is to blame
            for lane in [one for one in (*self, *self._leaving) if one.jobs and not one.dead]:
                self._judge(lane, before)
        if self.at_work:
            self._look_again()
        self._on_change([])

    def _judge(self, lane: Lane, suspects: list[BatchJob[QueueEntry]]) -> None:
        job, now_s = lane.jobs[0], self._clock()
        if now_s <= job.due_s:
            return
        if job not in suspects and not job.run.interrupted:
            self._suspects.append(job)
        elif not job.run.interrupted:
            log.error("a batch is overdue and is interrupted")
            job.due_s = now_s
            lane.interrupt()
        elif now_s - job.due_s > _INTERRUPT_S:
            log.critical("a lane is stuck and is abandoned")
            self._abandoned.append(lane)
            self._replace(lane, RestartReason.STUCK)
