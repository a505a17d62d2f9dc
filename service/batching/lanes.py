"""The lanes of a batcher: which is free, which hangs, and the replacement of lost ones."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from service.batching.lane import (
    CHECK_INTERVAL_S,
    BatchJob,
    Lane,
    LaneCallbacks,
    LaneFactory,
    QueueEntry,
    RestartReason,
)

log = logging.getLogger(__name__)

# Replacement: at once, and with a growing delay while lanes are lost before they have run anything.
FIRST_BACKOFF_S: Final = 0.1
MAX_BACKOFF_S: Final = 30.0
_SOON_S: Final = 1.0  # clients wait for a lane that starts within this time, else they are refused
_RETIRE_INTERVAL_S: Final = 60.0  # a lane too large from the start would be replaced all the time
_RETRY_S: Final = 5.0  # after a successor failed to start: each try costs a core

# Stuck runs: a batch is overdue this long after it should have been done.
OVERDUE_S: Final = 1.0
_USUAL_FACTOR: Final = 2  # a batch may take this many times the slowest of the last ones
_N_RECENT: Final = 64  # batches that count as the last ones
_LATE_CHECK: Final = 3  # intervals; after this long the event loop itself was blocked
_INTERRUPT_S: Final = 1.0  # an interrupted run may take this long to end


@dataclass(slots=True, eq=False)
class _LaneSlot:
    """A lane and its successors, one after the other."""

    lane: Lane | None = None  # None while the next one waits for its start
    successor: Lane | None = None  # is starting, and takes over when it is ready
    backoff_s: float = 0.0  # before the next replacement
    timer: asyncio.TimerHandle | None = None  # of the next start
    retired_s: float = -math.inf  # when a lane was last replaced here because it was too large
    failed_s: float = -math.inf  # when a successor was last lost before it took over

    @property
    def unavailable(self) -> bool:
        # While a start is delayed, `backoff_s` is already that of the one after it: twice as long.
        return (self.lane is None or not self.lane.ready) and self.backoff_s > 2 * _SOON_S


class Lanes:
    """Keeps a number of lanes running; used on the event loop only."""

    def __init__(
        self,
        factory: LaneFactory,
        stuck_after_s: float,
        clock: Callable[[], float],
        on_done: Callable[[Lane, BatchJob[QueueEntry]], None],
        on_change: Callable[[list[BatchJob[QueueEntry]]], None],
        on_replaced: Callable[[RestartReason], None] = lambda _: None,
    ) -> None:
        """Call `start` to start the lanes.

        Args:
            factory: creates the lanes.
            stuck_after_s: seconds a batch may take, whatever its deadlines.
            clock: monotonic seconds.
            on_done: called for each finished batch, after its entries were answered.
            on_change: called when lanes became ready or were lost, with the batches, in order, that
                a lost lane had not started.
            on_replaced: called for each lane that has to be replaced.
        """
        self._factory = factory
        self._stuck_after_s = stuck_after_s
        self._clock = clock
        self._on_done = on_done
        self._on_change = on_change
        self._on_replaced = on_replaced
        self._callbacks = LaneCallbacks(self._done, self._ready, self._lost, self._retiring)

        self._slots: list[_LaneSlot] = []
        self._draining: list[Lane] = []  # replaced; they finish their batch first
        self._abandoned: list[Lane] = []  # stuck, and perhaps still inside the engine
        self._closing = False

        self._check_timer: asyncio.TimerHandle | None = None
        self._checked_s = clock()
        self._overdue: list[BatchJob[QueueEntry]] = []  # at the last check
        self._took_s: deque[float] = deque(maxlen=_N_RECENT)

    def __iter__(self) -> Iterator[Lane]:
        return (slot.lane for slot in self._slots if slot.lane is not None)

    @property
    def at_work(self) -> bool:
        return any(lane.jobs for lane in (*self, *self._draining))

    @property
    def has_backlog(self) -> bool:
        """True while a lane has a batch queued behind the running one."""
        return any(len(lane.jobs) > 1 for lane in self)

    @property
    def n_dispatched(self) -> int:
        """Entries given to lanes and not finished."""
        return sum(len(job.items) for lane in self for job in lane.jobs)

    @property
    def n_large(self) -> int:
        """Lanes that have a large picture."""
        return sum(any(job.large for job in lane.jobs) for lane in self)

    @property
    def n_ready(self) -> int:
        return sum(lane.ready and not lane.dead for lane in self)

    @property
    def unavailable(self) -> bool:
        """True while no lane works and none will be started soon."""
        return all(slot.unavailable for slot in self._slots)

    @property
    def alive(self) -> bool:
        """False if only a new process would help."""
        if self._factory.restarts:
            return True

        self._abandoned = [lane for lane in self._abandoned if lane.busy]
        lanes = list(self)
        if self._abandoned or not lanes or len(lanes) < len(self._slots):
            return False
        now_s = self._clock()
        return not any(lane.dead or (lane.jobs and now_s > lane.jobs[0].due_s) for lane in lanes)

    def start(self, count: int) -> None:
        """Starts `count` lanes, on the running event loop."""
        for _ in range(count):
            slot = _LaneSlot()
            self._slots.append(slot)
            self._open(slot)

    def pick(self) -> Lane | None:
        """Returns an idle lane, or else the one that will be free first and has no batch ahead."""
        now_s = self._clock()
        first: Lane | None = None
        for slot in self._slots:
            lane = slot.lane
            if lane is None or not lane.ready or lane.dead:
                continue
            if not lane.jobs:
                return lane  # the first idle one, so that a lone client's lane stays in the caches

            job = lane.jobs[0]
            if len(lane.jobs) == lane.depth or now_s > job.due_s:
                continue
            if first is None or job.started_s < first.jobs[0].started_s:
                first = lane
        return first

    def rebalance(self, slow_s: float) -> None:
        """Moves batches queued behind a slow or stuck run to a lane that is free, or nearly.

        Args:
            slow_s: seconds after which a run is slow. A batch behind a faster run stays there,
                unless a lane is idle.
        """
        while (free := self.pick()) is not None:
            before_s = self._clock() - slow_s if free.jobs else math.inf
            slow = (
                lane
                for lane in self
                if lane is not free and lane.jobs and lane.jobs[0].started_s < before_s
            )
            stolen = next((job for lane in slow if (job := lane.steal_next())), None)
            if stolen is None:
                return

            # A new job: the old one stays claimed, so that the slow lane skips it.
            self.work(
                free,
                BatchJob(stolen.version, stolen.items, stolen.run, self._clock(), stolen.large),
            )

    def work(self, lane: Lane, job: BatchJob[QueueEntry]) -> None:
        """Gives a lane a batch, and checks on lanes for as long as any is at work."""
        job.due_s = self._due_s(job)
        lane.work(job)
        if self._check_timer is None:
            self._checked_s = self._clock()
            self._check_later()

    def close(self) -> None:
        """Stops replacing lanes."""
        self._closing = True

    def stop(self) -> list[BatchJob[QueueEntry]]:
        """Ends all lanes at once and returns the batches they had not started."""
        self._closing = True
        if self._check_timer is not None:
            self._check_timer.cancel()
        for slot in self._slots:
            if slot.timer is not None:
                slot.timer.cancel()

        # Listed first: interrupting a lane can lose it, which moves its successor into its slot.
        successors = [slot.successor for slot in self._slots if slot.successor is not None]
        unstarted = []
        for lane in (*self, *self._draining, *successors):
            lane.dead = True
            lane.interrupt()
            unstarted += lane.take_unstarted()
            lane.close()
        self._overdue.clear()  # its batches hold their versions
        return unstarted

    async def wait_closed(self) -> None:
        await self._factory.wait_closed()

    # Events of lanes

    def _done(self, lane: Lane, job: BatchJob[QueueEntry]) -> None:
        slot = self._slot_of(lane)
        if job.died is not None:
            log.critical("a lane died", exc_info=job.died)
            self._replace(lane, RestartReason.DIED)
        elif slot is not None and job.runs:
            slot.backoff_s = 0.0  # only a lane that has run something counts as started

        # An interrupted run says nothing about how long a batch takes.
        if job.runs and not job.run.interrupted:
            self._took_s.append(self._clock() - job.started_s)
        if lane.jobs:
            lane.jobs[0].due_s = self._due_s(lane.jobs[0])

        if lane in self._draining and not lane.jobs:
            self._draining.remove(lane)
            lane.close()
        self._on_done(lane, job)

    def _ready(self, lane: Lane) -> None:
        for slot in self._slots:
            if slot.successor is lane:
                old, slot.lane, slot.successor = slot.lane, lane, None
                if old is not None and old.jobs:
                    self._draining.append(old)
                elif old is not None:
                    old.close()
        self._on_change([])

    def _lost(self, lane: Lane, reason: RestartReason) -> None:
        for slot in self._slots:
            if slot.successor is lane:  # the lane it was to replace goes on
                slot.successor, slot.failed_s = None, self._clock()
        self._replace(lane, reason)

    def _retiring(self, lane: Lane, reason: RestartReason) -> None:
        """Starts a successor, unless it is too early; the lane asks again."""
        # One at a time in all slots: each costs memory while both lanes are there.
        slot = self._slot_of(lane)
        if slot is None or self._closing or any(one.successor for one in self._slots):
            return
        now_s = self._clock()
        if now_s - slot.failed_s < _RETRY_S:
            return
        if reason is RestartReason.MEMORY:
            if now_s - slot.retired_s < _RETIRE_INTERVAL_S:
                return
            slot.retired_s = now_s

        log.warning("a lane is replaced", extra={"reason": str(reason)})
        self._on_replaced(reason)
        self._open(slot)

    # Replacement

    def _replace(self, lane: Lane, reason: RestartReason) -> None:
        """Takes a lost lane out and starts another in its slot, with backoff."""
        lane.dead = True
        unstarted = lane.take_unstarted()
        lane.close()
        if lane in self._draining:
            self._draining.remove(lane)

        slot = self._slot_of(lane)
        if slot is not None:
            slot.lane, slot.successor = slot.successor, None
        if slot is not None and not self._closing:
            log.warning("a lane is replaced", extra={"reason": str(reason)})
            self._on_replaced(reason)
            if slot.lane is None:
                delay_s = slot.backoff_s  # 0 the first time
                slot.backoff_s = min(MAX_BACKOFF_S, max(FIRST_BACKOFF_S, 2 * delay_s))
                if delay_s:
                    loop = asyncio.get_running_loop()
                    slot.timer = loop.call_later(delay_s, self._open_delayed, slot)
                else:
                    self._open(slot)
        self._on_change(unstarted)

    def _open_delayed(self, slot: _LaneSlot) -> None:
        self._open(slot)
        self._on_change([])

    def _open(self, slot: _LaneSlot) -> None:
        slot.timer = None
        lane = self._factory.open(self._callbacks)
        if slot.lane is None:
            slot.lane = lane
        else:
            slot.successor = lane

    def _slot_of(self, lane: Lane) -> _LaneSlot | None:
        return next((slot for slot in self._slots if slot.lane is lane), None)

    # Stuck runs

    def _due_s(self, job: BatchJob[QueueEntry]) -> float:
        """Returns the time at which a batch started now is overdue."""
        # One second after its first deadline. A client may allow less time than a batch takes; that
        # must not make the lane look stuck.
        now_s = self._clock()
        usual_s = max(self._took_s, default=job.version.load_s)  # loading runs the largest batch
        deadline_s = min(entry.deadline_s for entry in job.items)
        due_s = max(deadline_s, now_s + _USUAL_FACTOR * usual_s) + OVERDUE_S
        return min(due_s, now_s + self._stuck_after_s)

    def _check_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._check_timer = loop.call_later(CHECK_INTERVAL_S, self._check)

    def _check(self) -> None:
        """Interrupts a batch that is overdue at two checks; abandons its lane if that fails."""
        self._check_timer = None
        now_s = self._clock()
        blocked = now_s - self._checked_s > _LATE_CHECK * CHECK_INTERVAL_S
        self._checked_s = now_s

        before, self._overdue = self._overdue, []
        for lane in (*self, *self._draining):
            # After the event loop was blocked, answers may be waiting to be read.
            if blocked or lane.dead or not lane.jobs or now_s <= lane.jobs[0].due_s:
                continue
            job = lane.jobs[0]
            if not job.run.interrupted and job not in before:
                self._overdue.append(job)
            elif not job.run.interrupted:
                late = {"overdue_s": round(now_s - job.due_s, 3)}
                log.error("a batch is overdue and is interrupted", extra=_facts(job, now_s) | late)
                job.due_s = now_s
                lane.interrupt()
            elif now_s - job.due_s > _INTERRUPT_S:
                late = {"interrupted_s": round(now_s - job.due_s, 3)}
                log.critical("a lane is stuck and is abandoned", extra=_facts(job, now_s) | late)
                self._abandoned.append(lane)
                self._replace(lane, RestartReason.STUCK)

        # A replaced lane's work may have gone to another lane, which started the timer again.
        if self.at_work and self._check_timer is None:
            self._check_later()
        self._on_change([])


def _facts(job: BatchJob[QueueEntry], now_s: float) -> dict[str, str | int | float]:
    name, number = job.version.key
    return {
        "model": name,
        "version": number,
        "pictures": len(job.items),
        "running_s": round(now_s - job.started_s, 3),
    }
