"""Dynamic batching: a batch is whatever queued while the engine was busy.

The rules, each with a test in tests/service/test_batcher.py:

- a lone item on an idle lane is dispatched at once; a waiting window, where configured, starts at
  the first entry; order is first in, first out; idle lanes use no CPU;
- a full queue refuses at once; entries whose waiter is gone or whose deadline has passed are dropped
  before a run and cost nothing;
- an item may be a recipe that its lane carries out right before the run; one that fails costs
  nobody else anything;
- a failed batch is retried one by one and only the guilty item fails; a wrong row count is a failure
  of the run, a non-finite row one of its item;
- a run that takes too long is interrupted; a lane that dies, or cannot be interrupted, is replaced,
  a few times;
- `drain` finishes what was accepted; `stop` is bounded; a dead or stuck lane makes `alive` false.

Everything but the work on a batch (`service.lane`) happens on the event loop, so there are no locks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Final

from service.engine import Batch, Engine
from service.errors import DeadlineExceeded, Draining, EngineFailure, ModelNotReady, Overloaded
from service.lane import BatchedRow, Entry, Lane, Recipe, Report

__all__ = ["BatchLimits", "BatchedRow", "Batcher"]

log = logging.getLogger(__name__)

_MAX_REPLACEMENTS: Final = 3  # of lanes, without a run that succeeds in between
_INTERRUPT_S: Final = 1.0  # an interrupted run that goes on for so long is abandoned
_SOLITUDE_S: Final = (
    0.05  # items must have come one at a time for so long before one gets all cores
)
_ENOUGH_WIDE_RUNS: Final = 8  # before they are compared with others: a single one may be unlucky
_DOUBT_S: Final = 5.0  # so long one lane's run is preferred after all cores were slower
_COST_WEIGHT: Final = 0.1  # of the newest batch in the running mean of what an item costs


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """The limits of a batcher.

    Attributes:
        max_batch_size: items in one run at most.
        max_wait_s: seconds a batch may wait for company, counted from its first entry.
        max_queue: items waiting at most; more are refused.
        lanes: runs at the same time.
        stuck_after_s: seconds after which a run counts as stuck.
    """

    max_batch_size: int = 8
    max_wait_s: float = 0.0
    max_queue: int = 256
    lanes: int = 1
    stuck_after_s: float = 30.0


class Batcher:
    """Joins concurrently submitted items into runs of an engine on one or more lanes."""

    def __init__(
        self,
        engine: Engine,
        limits: BatchLimits,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_run: Callable[[int, float], None] | None = None,
        on_work: Callable[[float], None] | None = None,
    ) -> None:
        """Prepares; `start` must be called on the event loop before the first submit.

        Args:
            engine: its `run` is called from the lanes' threads.
            limits: see `BatchLimits`.
            clock: monotonic seconds; deadlines are on the same clock.
            on_run: called after every run with the batch size and its seconds.
            on_work: called after every batch with the seconds that its lane was at work.
        """
        self._engine = engine
        self._limits = limits
        self._clock = clock
        self._on_run, self._on_work = on_run, on_work
        self._queue: deque[Entry] = deque()
        self._waiting = 0  # entries in the queue whose waiter is still there
        self._lanes: list[Lane] = []
        self._abandoned: list[Lane] = []  # stuck, and perhaps still inside the engine
        self._replacements = 0
        self._closing = False
        self._emptied = asyncio.Event()
        self._window: asyncio.TimerHandle | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._crowded_s = -_SOLITUDE_S  # when more than one item was last in hand
        self._narrow_run_s = math.inf  # of one item with one lane's threads; mean of late
        self._wide_runs_s: deque[float] = deque(maxlen=2 * _ENOUGH_WIDE_RUNS)
        self._doubted_s = -math.inf  # when a run with all cores was last slower
        self._item_s = 0.0  # seconds of a lane that an item costs; 0 until the first run

    @property
    def limits(self) -> BatchLimits:
        """The limits in force."""
        return self._limits

    @property
    def waiting(self) -> int:
        """Items in the queue that somebody still waits for."""
        return self._waiting

    @property
    def idle(self) -> bool:
        """True while it has nothing to do."""
        return not self._waiting and not any(lane.jobs for lane in self._lanes)

    @property
    def alive(self) -> bool:
        """True while every lane runs and none has been in one run longer than `stuck_after_s`."""
        self._abandoned = [lane for lane in self._abandoned if lane.busy]
        return bool(self._lanes) and not self._abandoned and not any(map(self._faulty, self._lanes))

    @property
    def at_rest(self) -> bool:
        """True while no lane is inside the engine, even one that has been given up."""
        return not any(lane.busy for lane in (*self._lanes, *self._abandoned))

    def expected_s(self) -> float:
        """Returns the seconds until an item that came now would be answered; 0 if not known yet."""
        running = sum(len(job.entries) for lane in self._lanes for job in lane.jobs)
        lanes = max(1, sum(not lane.dead for lane in self._lanes))
        return self._item_s * ((self._waiting + running) / lanes + 1)

    def start(self) -> None:
        """Starts the lanes on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._lanes = [self._new_lane(number) for number in range(self._limits.lanes)]

    def resize(self, *, lanes: int, max_batch_size: int) -> None:
        """Changes how many lanes there are and how much they take at once, while running."""
        self._limits = replace(self._limits, lanes=lanes, max_batch_size=max_batch_size)
        self._close_surplus()
        for number in range(len(self._lanes), lanes):
            self._lanes.append(self._new_lane(number))
        self._dispatch()

    async def submit(self, item: Batch | Recipe, deadline_s: float) -> BatchedRow:
        """Queues one picture and waits for its answer.

        Args:
            item: the prepared picture, without the batch axis, or a recipe that makes it: a
                callable without arguments, which a lane calls right before the run.
            deadline_s: on the batcher's clock; after it the item is not worth running.

        Raises:
            Overloaded: the queue is full.
            Draining: the batcher is stopping.
            ModelNotReady: no lane is running.
            DeadlineExceeded: the deadline passed before the item's run began.
            EngineFailure: the engine failed on this item.
            Exception: whatever the recipe raised.
        """
        if self._closing:
            raise Draining("the service is shutting down")
        if self._all_lanes_dead():
            raise ModelNotReady("no lane of the model is running")
        if self._waiting >= self._limits.max_queue:
            raise Overloaded(f"{self._waiting} pictures are waiting already", reason="queue")
        if self._queue or any(lane.jobs for lane in self._lanes):
            self._crowded_s = self._clock()
        future: asyncio.Future[BatchedRow] = self._loop.create_future()
        self._queue.append(Entry(item, deadline_s, self._clock(), future))
        self._waiting += 1
        self._dispatch()
        try:
            return await future
        except asyncio.CancelledError:
            self._forget_abandoned()
            raise

    async def drain(self) -> None:
        """Refuses new items and returns when everything accepted has been answered."""
        self._closing = True
        self._dispatch()
        while not self._idle_and_empty():
            self._emptied.clear()
            await self._emptied.wait()

    async def stop(self, timeout_s: float = 5.0) -> bool:
        """Drains for a limited time, then fails what is left.

        Returns:
            True if everything accepted was answered in time.
        """
        finished = False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await asyncio.sleep(0)  # without any time, nothing more is begun
                await self.drain()
                finished = True
        self._closing = True
        self._fail_waiting(Draining("the service stopped before this picture was run"))
        for timer in (self._window, self._watch):
            if timer is not None:
                timer.cancel()
        for lane in self._lanes:
            lane.dead = True
            lane.interrupt(EngineFailure("the lane stopped during the run"))
            for entry in lane.take_back():
                entry.fail(Draining("the service stopped before this picture was run"))
            lane.close()
        return finished

    # Dispatching

    def _dispatch(self) -> None:
        """Gives queued items to idle lanes, and a full batch ahead to a busy one.

        A lane that has its next batch already goes on with it at once, without waiting for its turn
        on the event loop. Less than a full batch may still grow and stays in the queue.
        """
        while self._queue and (lane := self._next_lane()) is not None:
            self._drop_dead()
            if not self._queue:
                break
            if lane.jobs:
                if self._waiting < self._limits.max_batch_size:
                    break
            elif (wait_s := self._wait_s()) > 0:
                self._open_window(wait_s)
                break
            batch = self._take()
            if batch:
                lane.work(batch, wide=self._alone(batch))
                self._watch_over()
        if not self._queue:
            self._waiting = 0
        if self._closing and self._idle_and_empty():
            self._emptied.set()

    def _wait_s(self) -> float:
        """Returns how long the first entry should still wait for company."""
        limits = self._limits
        if not limits.max_wait_s or self._closing or self._waiting >= limits.max_batch_size:
            return 0.0
        return self._queue[0].submitted_s + limits.max_wait_s - self._clock()

    def _open_window(self, wait_s: float) -> None:
        if self._window is not None:
            self._window.cancel()
        self._window = self._loop.call_later(wait_s, self._dispatch)

    def _take(self) -> list[Entry]:
        batch: list[Entry] = []
        while self._queue and len(batch) < self._limits.max_batch_size:
            entry = self._queue.popleft()
            if not entry.future.done():
                self._waiting -= 1
                if self._is_live(entry):
                    batch.append(entry)
        return batch

    def _drop_dead(self) -> None:
        while self._queue:
            entry = self._queue[0]
            left = entry.future.done()
            if not left and self._is_live(entry):
                return
            self._queue.popleft()
            if not left:
                self._waiting -= 1

    def _is_live(self, entry: Entry) -> bool:
        if entry.future.done():
            return False
        if self._clock() >= entry.deadline_s:
            entry.fail(DeadlineExceeded("the deadline passed before the picture was run"))
            return False
        return True

    def _alone(self, batch: list[Entry]) -> bool:
        """Says whether a run may have all cores: items have been coming one at a time.

        Where other processes keep the cores busy, its threads wait for each other and it takes
        longer than with one; then it does not, but for a try now and then.
        """
        now_s = self._clock()
        if len(batch) > 1 or now_s - self._crowded_s < _SOLITUDE_S:
            return False
        return now_s - self._doubted_s >= _DOUBT_S

    def _next_lane(self) -> Lane | None:
        """Returns an idle lane, or else the one that will be free first and has nothing ahead."""
        lanes = self._lanes[: self._limits.lanes]
        able = [lane for lane in lanes if len(lane.jobs) < 2 and not self._faulty(lane)]
        idle = [lane for lane in able if not lane.jobs]
        if idle:
            return idle[0]  # always the same one first: a lone client's stays in the caches
        return min(able, key=lambda lane: lane.since_s, default=None)

    def _close_surplus(self) -> None:
        """Ends the lanes beyond the limit that have finished; they are given nothing more."""
        for lane in self._lanes[self._limits.lanes :]:
            if not lane.jobs:
                self._lanes.remove(lane)
                lane.close()

    def _idle_and_empty(self) -> bool:
        waiting = any(not entry.future.done() for entry in self._queue)
        return not waiting and not any(lane.jobs for lane in self._lanes)

    # What lanes report

    def _finished(self, lane: Lane, report: Report) -> None:
        """Takes a lane's report: the answers are on their way, the lane is free."""
        if self._on_run is not None:
            for size, run_s in report.runs:
                self._on_run(size, run_s)
        if self._on_work is not None:
            self._on_work(report.work_s)
        if report.died is not None:
            self._lane_died(lane, report.died)
        elif report.runs:
            self._replacements = 0
            self._learn_width(report)
            item_s = report.work_s / len(report.batch)
            weight = _COST_WEIGHT if self._item_s else 1.0
            self._item_s += weight * (item_s - self._item_s)
        self._close_surplus()
        self._dispatch()

    def _learn_width(self, report: Report) -> None:
        if len(report.batch) > 1 or self._queue:
            return
        _, run_s = report.runs[0]
        if not report.run.wide:
            before_s = run_s if math.isinf(self._narrow_run_s) else self._narrow_run_s
            self._narrow_run_s = before_s + _COST_WEIGHT * (run_s - before_s)
            return
        self._wide_runs_s.append(run_s)
        enough = len(self._wide_runs_s) >= _ENOUGH_WIDE_RUNS
        if enough and median(self._wide_runs_s) > self._narrow_run_s:
            self._doubted_s = self._clock()
            self._wide_runs_s.clear()

    def _lane_died(self, lane: Lane, error: BaseException) -> None:
        log.critical("a lane died", exc_info=error)
        self._retire(lane)

    def _retire(self, lane: Lane) -> None:
        """Closes a lane that works no more, gives back what it had not begun, and replaces it."""
        lane.dead = True
        for entry in reversed(lane.take_back()):
            self._queue.appendleft(entry)
            self._waiting += not entry.future.done()
        lane.close()
        self._replace(lane)

    def _replace(self, lane: Lane) -> None:
        if lane not in self._lanes:
            return
        if self._closing or self._replacements >= _MAX_REPLACEMENTS * self._limits.lanes:
            if self._all_lanes_dead():
                self._fail_waiting(ModelNotReady("no lane of the model is running"))
            return
        self._replacements += 1
        position = self._lanes.index(lane)
        self._lanes[position] = self._new_lane(position)
        log.warning("a lane was replaced")

    def _new_lane(self, number: int) -> Lane:
        return Lane(number, self._engine_of, self._clock, self._finished)

    def _engine_of(self) -> Engine:
        return self._engine

    # Watching over runs

    def _watch_over(self) -> None:
        if self._watch is None:
            self._watch = self._loop.call_later(self._limits.stuck_after_s, self._look_for_stuck)

    def _look_for_stuck(self) -> None:
        self._watch = None
        now_s = self._clock()
        for lane in [lane for lane in self._lanes if self._faulty(lane) and not lane.dead]:
            overdue_s = now_s - lane.since_s - self._limits.stuck_after_s
            if not lane.interrupted:
                log.error("a run is stuck and is interrupted")
                lane.interrupt(EngineFailure("the run of this picture took too long"))
            elif overdue_s > _INTERRUPT_S:
                log.critical("a lane is stuck and is abandoned")
                self._abandoned.append(lane)
                self._retire(lane)
        if any(lane.jobs for lane in self._lanes):
            delay_s = min(self._limits.stuck_after_s, _INTERRUPT_S)
            self._watch = self._loop.call_later(delay_s, self._look_for_stuck)
        self._dispatch()

    def _faulty(self, lane: Lane) -> bool:
        stuck_s = self._limits.stuck_after_s
        return lane.dead or bool(lane.jobs and self._clock() - lane.since_s > stuck_s)

    def _all_lanes_dead(self) -> bool:
        return all(lane.dead for lane in self._lanes)

    def _forget_abandoned(self) -> None:
        # Counts anew rather than guessing whether the abandoned entry was still queued; its place is
        # free at once, the entry itself goes when it reaches the front.
        self._waiting = sum(1 for entry in self._queue if not entry.future.done())
        while self._queue and self._queue[0].future.done():
            self._queue.popleft()
        if self._closing and self._idle_and_empty():
            self._emptied.set()

    def _fail_waiting(self, error: Exception) -> None:
        while self._queue:
            self._queue.popleft().fail(error)
        self._waiting = 0
