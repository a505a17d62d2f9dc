"""Dynamic batching: a batch is whatever queued while the engine was busy.

The rules, each with a test in tests/service/batching/test_batcher.py:

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

Everything but the work on a batch (`service.batching.lane`) happens on the event loop, so there are no locks.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from service.batching.lane import BatchedRow, Entry, Lane, Recipe, Report
from service.batching.lanes import Lanes
from service.batching.wide import Width
from service.errors import DeadlineExceeded, Draining, ModelNotReady, Overloaded
from service.models.engine import Batch, Engine

__all__ = ["BatchLimits", "BatchedRow", "Batcher"]

# Others take what waits behind a lane that has been at work for longer than so many full batches
# take, and for so long at least.
_SLOW_BATCHES: Final = 4
_SLOW_S: Final = 0.05
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
        self._lanes = Lanes(
            limits.stuck_after_s, lambda: self._engine, clock, self._finished, self._lanes_changed
        )
        self._closing = False
        self._emptied = asyncio.Event()
        self._window: asyncio.TimerHandle | None = None
        self._width = Width(clock)
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
        return not self._waiting and not self._lanes.at_work

    @property
    def alive(self) -> bool:
        """True while every lane runs and none has been in one run longer than `stuck_after_s`."""
        return self._lanes.alive

    @property
    def at_rest(self) -> bool:
        """True while no lane is inside the engine, even one that has been given up."""
        return self._lanes.at_rest

    def expected_s(self) -> float:
        """Returns the seconds until an item that came now would be answered.

        0 if that is not known yet, or if nothing is ahead of it: only runs correct an estimate that
        is too high, so one item must always be let in.
        """
        ahead = self._waiting + self._lanes.in_hand
        return self._item_s * (ahead / max(1, self._lanes.n_living) + 1) if ahead else 0.0

    def start(self) -> None:
        """Starts the lanes on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._lanes.resize(self._limits.lanes)

    def resize(self, *, lanes: int, max_batch_size: int) -> None:
        """Changes how many lanes there are and how much they take at once, while running."""
        self._limits = replace(self._limits, lanes=lanes, max_batch_size=max_batch_size)
        self._lanes.resize(lanes)
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
        if not self._lanes.n_living:
            raise ModelNotReady("no lane of the model is running")
        if self._waiting >= self._limits.max_queue:
            raise Overloaded(f"{self._waiting} pictures are waiting already", reason="queue")
        if self._queue or self._lanes.at_work:
            self._width.crowded()
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
        self._lanes.close()
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
        stopped = Draining("the service stopped before this picture was run")
        self._fail_waiting(stopped)
        if self._window is not None:
            self._window.cancel()
        for entry in self._lanes.stop():
            entry.fail(stopped)
        return finished

    # Dispatching

    def _dispatch(self) -> None:
        """Gives queued items to idle lanes, and a full batch ahead to a busy one.

        A lane that has its next batch already goes on with it at once, without waiting for its turn
        on the event loop; a lane that is free before that takes it over. Less than a full batch may
        still grow and stays in the queue.
        """
        batch_s = self._item_s * self._limits.max_batch_size
        self._lanes.share(slow_s=max(_SLOW_S, _SLOW_BATCHES * batch_s))
        while self._queue and (lane := self._lanes.next()) is not None:
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
                self._lanes.work(lane, batch, wide=self._width.may_be_all(len(batch)))
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

    def _idle_and_empty(self) -> bool:
        waiting = any(not entry.future.done() for entry in self._queue)
        return not waiting and not self._lanes.at_work

    # What lanes report

    def _finished(self, lane: Lane, report: Report) -> None:
        """Takes a lane's report: the answers are on their way, the lane is free."""
        if self._on_run is not None:
            for size, run_s in report.runs:
                self._on_run(size, run_s)
        if self._on_work is not None:
            self._on_work(report.work_s)
        if report.died is not None:
            self._lanes.died(lane, report.died)
        elif report.runs:
            self._lanes.forgive()
            self._learn(report)
        self._lanes.close_surplus()
        self._dispatch()

    def _learn(self, report: Report) -> None:
        if len(report.batch) == 1 and not self._queue:
            self._width.learn(report.runs[0][1], wide=report.run.wide)
        item_s = report.work_s / len(report.batch)
        weight = _COST_WEIGHT if self._item_s else 1.0
        self._item_s += weight * (item_s - self._item_s)

    def _lanes_changed(self, given_back: list[Entry]) -> None:
        """Takes back what a lost lane had not begun, and goes on with the others, if any."""
        for entry in reversed(given_back):
            self._queue.appendleft(entry)
            self._waiting += not entry.future.done()
        if not self._lanes.n_living:
            self._fail_waiting(ModelNotReady("no lane of the model is running"))
        self._dispatch()

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
