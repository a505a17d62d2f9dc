"""Dynamic batching: a batch is whatever queued while the lanes were busy.

The rules, each with a test in tests/service/batching:

- a lone item on an idle lane is dispatched at once, and may have all cores; a waiting window, where
  configured, starts at the first entry; idle lanes use no CPU;
- a batch is of one version; the version whose first item has waited longest comes first; a lane takes
  its even share of what waits;
- a full queue refuses at once; entries whose waiter is gone or whose deadline has passed are dropped
  before a run and cost nothing;
- an item may be a recipe that its lane carries out right before the run; one that fails costs
  nobody else anything;
- a failed batch is retried one by one and only the guilty item fails; a wrong row count is a failure
  of the run, a non-finite row one of its item;
- a batch that is overdue is interrupted; a lane that dies, or cannot be interrupted, is replaced;
- `drain` finishes what was accepted; `stop` is bounded.

Everything but the work on a batch (`service.batching.work`) happens on the event loop, so there are no
locks.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from service.batching.lane import (
    BatchJob,
    Lane,
    LaneFactory,
    QueueEntry,
    Recipe,
    RestartReason,
    RowResult,
    RunnableVersion,
)
from service.batching.lanes import Lanes
from service.batching.wide import LoadMonitor, RunTimes
from service.errors import DeadlineExceeded, Draining, ModelNotReady, Overloaded
from service.models.engine import Batch, Run

# Others take what waits behind a lane that has been at work for longer than so many full batches
# take, and for so long at least.
_SLOW_BATCHES: Final = 4
_SLOW_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """The limits of a batcher.

    Attributes:
        max_wait_s: seconds a batch may wait for company, counted from its first entry.
        max_queue: items waiting at most; more are refused.
        lanes: runs at the same time.
        stuck_after_s: seconds that a batch may take at most, whatever its deadlines.
    """

    max_wait_s: float = 0.0
    max_queue: int = 256
    lanes: int = 1
    stuck_after_s: float = 30.0


@dataclass(frozen=True, slots=True)
class BatchCallbacks:
    """What a batcher calls, on the event loop.

    Attributes:
        on_run: after every run: a model's name, pictures in the run, its seconds.
        on_work: after every batch: a model's name, seconds that a lane was at work on it.
        on_replaced: for every lane that has to be replaced.
    """

    on_run: Callable[[str, int, float], None] = lambda *_: None
    on_work: Callable[[str, float], None] = lambda *_: None
    on_replaced: Callable[[RestartReason], None] = lambda _: None


class _Queue:
    """What waits for one version, and what its runs have been taking.

    Large pictures, which are dear to prepare, have a queue of their own: they are run one by one, on
    half of the lanes at most, and hold up each other only.
    """

    def __init__(
        self, version: RunnableVersion, clock: Callable[[], float], *, large: bool
    ) -> None:
        self.version = version
        self.large = large
        self.max_batch_size = 1 if large else version.max_batch_size
        self.entries: deque[QueueEntry] = deque()
        self.n_wanted = 0  # entries whose waiter is still there
        self.times = RunTimes(clock)


class Batcher:
    """Joins concurrently submitted items into runs on one or more lanes."""

    def __init__(
        self,
        source: LaneFactory,
        limits: BatchLimits,
        *,
        clock: Callable[[], float] = time.monotonic,
        callbacks: BatchCallbacks | None = None,
    ) -> None:
        """Prepares; `start` must be called on the event loop before the first submit.

        Args:
            source: makes the lanes.
            limits: see `BatchLimits`.
            clock: monotonic seconds; deadlines are on the same clock.
            callbacks: see `BatchCallbacks`.
        """
        self._limits = limits
        self._clock = clock
        self._callbacks = callbacks or BatchCallbacks()
        self._queues: dict[tuple[tuple[str, int], bool], _Queue] = {}
        self._lanes = Lanes(
            source,
            limits.stuck_after_s,
            clock,
            self._finished,
            self._lanes_changed,
            self._callbacks.on_replaced,
        )
        self._closing = False
        self._emptied = asyncio.Event()
        self._window: asyncio.TimerHandle | None = None
        self._solitude = LoadMonitor(clock)

    @property
    def limits(self) -> BatchLimits:
        """The limits in force."""
        return self._limits

    @property
    def waiting(self) -> int:
        """Items in the queue that somebody still waits for."""
        return sum(queue.n_wanted for queue in self._queues.values())

    @property
    def n_ready(self) -> int:
        """Lanes that work, or could."""
        return self._lanes.n_ready

    @property
    def hopeless(self) -> bool:
        """True while no lane works, nor will soon."""
        return self._lanes.hopeless

    @property
    def alive(self) -> bool:
        """False where only a new process would help: a lane is dead or stuck for good."""
        return self._lanes.alive

    def waiting_for(self, name: str) -> int:
        """Returns how many items wait for a model."""
        return sum(one.n_wanted for one in self._queues.values() if one.version.key[0] == name)

    def expected_s(self, version: RunnableVersion) -> float:
        """Returns the seconds until an item that came now would be answered.

        0 if that is not known yet, or if nothing is ahead of it: only runs correct an estimate that
        is too high, so one item must always be let in.
        """
        ahead = self.waiting + self._lanes.in_hand
        own = self._queue_of(version)
        if not ahead or not own.times.item_s:
            return 0.0
        ahead_s = sum(one.n_wanted * one.times.item_s for one in self._queues.values())
        for lane in self._lanes:
            for job in lane.jobs:
                ahead_s += len(job.items) * self._queue_of(job.version, job.large).times.item_s
        return ahead_s / max(1, self._lanes.n_ready) + own.times.item_s

    def start(self) -> None:
        """Starts the lanes on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._lanes.start(self._limits.lanes)

    async def submit(
        self,
        version: RunnableVersion,
        item: Batch | Recipe,
        deadline_s: float,
        *,
        large: bool = False,
    ) -> RowResult:
        """Queues one picture and waits for its answer.

        Args:
            version: answers it.
            item: the prepared picture, without the batch axis, or a recipe that makes it: a
                callable without arguments, which a lane calls right before the run.
            deadline_s: on the batcher's clock; after it the item is not worth running.
            large: it is dear to prepare; see `_Queue`.

        Raises:
            Overloaded: the queue is full.
            Draining: the batcher is stopping.
            ModelNotReady: no lane is running, nor will be soon.
            DeadlineExceeded: the deadline passed before the item's run began.
            EngineFailure: the engine failed on this item.
            WorkerLost: the process that had it ended.
            Exception: whatever the recipe raised.
        """
        if self._closing:
            raise Draining("the service is shutting down")
        if self._lanes.hopeless:
            raise ModelNotReady("no lane is running")
        waiting = self.waiting
        if waiting >= self._limits.max_queue:
            raise Overloaded(f"{waiting} pictures are waiting already", reason="queue")
        if waiting or self._lanes.at_work:
            self._solitude.crowded()

        future: asyncio.Future[RowResult] = self._loop.create_future()
        queue = self._queue_of(version, large)
        queue.entries.append(QueueEntry(item, deadline_s, self._clock(), future))
        queue.n_wanted += 1
        self._dispatch()
        try:
            return await future
        except asyncio.CancelledError:
            self._forget_abandoned(queue)
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
        for job in self._lanes.stop():
            for entry in job.items:
                entry.fail(stopped)
        await self._lanes.closed()
        return finished

    # Dispatching

    def _dispatch(self) -> None:
        """Gives queued items to idle lanes, and a full batch ahead to a busy one.

        A lane that has its next batch already goes on with it at once, without waiting for its turn
        on the event loop; a lane that is free before that takes it over. Less than a full batch may
        still grow and stays in the queue.
        """
        lanes = self._lanes
        if lanes.some_ahead:
            lanes.share(slow_s=self._slow_s())
        shares: dict[_Queue, int] = {}  # of what waits now, for each lane that is free now
        while self.waiting and (lane := lanes.next()) is not None:
            queue = self._first_queue(may_wait=not lane.jobs)
            if queue is None:
                break
            most = queue.max_batch_size
            if lane.jobs:
                if queue.n_wanted < most:
                    break
            elif queue.n_wanted > 1:
                # Counted over all lanes: those that are busy want theirs in a moment.
                share = shares.setdefault(queue, -(-queue.n_wanted // max(1, lanes.n_ready)))
                most = min(most, share)
            if batch := self._take(queue, most):
                wide = len(batch) == 1 and self._solitude.lasts() and queue.times.may_be_wide()
                job = BatchJob(queue.version, batch, Run(wide=wide), self._clock(), queue.large)
                lanes.work(lane, job)
        if self._closing and self._idle_and_empty():
            self._emptied.set()

    def _first_queue(self, *, may_wait: bool) -> _Queue | None:
        """Returns the queue whose first live entry has waited longest, if a lane may take it.

        Where entries may wait for company, those of one version hold up no other version's.
        """
        first: _Queue | None = None
        soonest_s = math.inf
        for queue in self._queues.values():
            if not queue.entries:
                continue
            self._drop_dead(queue)
            if not queue.entries or (queue.large and not self._may_be_large()):
                continue
            if may_wait and (wait_s := self._wait_s(queue)) > 0:
                soonest_s = min(soonest_s, wait_s)
            elif first is None or queue.entries[0].submitted_s < first.entries[0].submitted_s:
                first = queue
        if first is None and soonest_s < math.inf:
            self._open_window(soonest_s)
        return first

    def _may_be_large(self) -> bool:
        return self._lanes.n_large < max(1, self._limits.lanes // 2)

    def _slow_s(self) -> float:
        full_s = (one.times.item_s * one.max_batch_size for one in self._queues.values())
        return max(_SLOW_S, _SLOW_BATCHES * max(full_s, default=0.0))

    def _wait_s(self, queue: _Queue) -> float:
        """Returns how long the first entry should still wait for company."""
        max_wait_s = self._limits.max_wait_s
        if not max_wait_s or self._closing or queue.n_wanted >= queue.max_batch_size:
            return 0.0
        return queue.entries[0].submitted_s + max_wait_s - self._clock()

    def _open_window(self, wait_s: float) -> None:
        if self._window is not None:
            self._window.cancel()
        self._window = self._loop.call_later(wait_s, self._dispatch)

    def _take(self, queue: _Queue, most: int) -> list[QueueEntry]:
        batch: list[QueueEntry] = []
        while queue.entries and len(batch) < most:
            entry = queue.entries.popleft()
            if entry.wanted:
                queue.n_wanted -= 1
                if self._is_live(entry):
                    batch.append(entry)
        return batch

    def _drop_dead(self, queue: _Queue) -> None:
        while queue.entries:
            entry = queue.entries[0]
            left = not entry.wanted
            if not left and self._is_live(entry):
                return
            queue.entries.popleft()
            if not left:
                queue.n_wanted -= 1
        queue.n_wanted = 0

    def _is_live(self, entry: QueueEntry) -> bool:
        if not entry.wanted:
            return False
        if self._clock() >= entry.deadline_s:
            entry.fail(DeadlineExceeded("the deadline passed before the picture was run"))
            return False
        return True

    def _idle_and_empty(self) -> bool:
        return not self._lanes.at_work and not any(one.wanted for one in self._entries())

    def _entries(self) -> Iterator[QueueEntry]:
        return (entry for queue in self._queues.values() for entry in queue.entries)

    def _queue_of(self, version: RunnableVersion, large: bool = False) -> _Queue:
        key = version.key, large
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = _Queue(version, self._clock, large=large)
        return queue

    # What lanes report

    def _finished(self, _lane: Lane, job: BatchJob[QueueEntry]) -> None:
        """Takes a finished job: the answers are on their way, the lane is free."""
        name = job.version.key[0]
        for size, run_s in job.runs:
            self._callbacks.on_run(name, size, run_s)
        self._callbacks.on_work(name, job.work_s)
        if job.runs and job.died is None:
            times = self._queue_of(job.version, job.large).times
            times.learn_cost(job.work_s / len(job.items))
            if len(job.items) == 1 and not self.waiting:
                times.learn_alone(job.runs[0][1], wide=job.run.wide)
        self._dispatch()

    def _lanes_changed(self, given_back: list[BatchJob[QueueEntry]]) -> None:
        """Takes back what a lost lane had not begun, and goes on with the others, if any."""
        for job in reversed(given_back):
            queue = self._queue_of(job.version, job.large)
            queue.entries.extendleft(reversed(job.items))
            queue.n_wanted += sum(entry.wanted for entry in job.items)
        if self._lanes.hopeless:
            self._fail_waiting(ModelNotReady("no lane is running"))
        self._dispatch()

    def _forget_abandoned(self, queue: _Queue) -> None:
        # Counts anew rather than guessing whether the abandoned entry was still queued; its place is
        # free at once, the entry itself goes when it reaches the front.
        queue.n_wanted = sum(entry.wanted for entry in queue.entries)
        while queue.entries and not queue.entries[0].wanted:
            queue.entries.popleft()
        if self._closing and self._idle_and_empty():
            self._emptied.set()

    def _fail_waiting(self, error: Exception) -> None:
        for queue in self._queues.values():
            while queue.entries:
                queue.entries.popleft().fail(error)
            queue.n_wanted = 0
