"""Dynamic batching: a batch is whatever queued while the lanes were busy.

Everything except the work on a batch (`service.batching.work`) runs on the event loop, so there are no
locks. The rules, each with a test in tests/service/batching:

- A lone item on an idle lane is dispatched at once and may have all cores. A waiting window, where
  configured, starts at the first entry. Idle lanes use no CPU.
- Clients take turns, picture by picture (`service.batching.fairness`). A client's own items are first in,
  first out. While several clients wait for full batches, a batch has half the size, or a quarter if one
  of them has most of the pictures, so that whoever comes next waits less.
- A batch is of one version. The version whose first item has its turn first comes first. A lane takes
  its even share of the queue.
- A full queue refuses at once. Entries whose client is gone or whose deadline has passed are dropped
  before a run.
- An item may be a recipe that its lane carries out right before the run. If that fails, the other items
  of the batch are not affected.
- A failed batch is retried one by one and only the item at fault fails. A wrong row count fails the run,
  a non-finite row only its item.
- An overdue batch is interrupted. A lane that dies or cannot be interrupted is replaced.
- `drain` finishes what was accepted; `stop` is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from contract.predictions import TopK
from service.batching.expiry import ExpiryTimer
from service.batching.fairness import FairOrder, FairQueue
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
from service.batching.timing import LoadMonitor, RunTimes
from service.errors import Draining, ModelNotReady, Overloaded
from service.models.engine import Batch, Run

_CANNOT_RUN: Final = "the model cannot run now; try again"
STUCK_AFTER_S: Final = 30.0  # no network that answers over HTTP takes a tenth of this

# A lane whose run takes longer than this many full batches, and longer than this many seconds, is
# slow: other lanes take the batch queued behind the run.
_SLOW_BATCHES: Final = 4
_SLOW_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """The limits of a batcher."""

    max_wait_s: float = 0.0  # a batch may wait this long for more entries, from its first
    max_queue: int = 256  # items that may wait; more are refused
    lanes: int = 1  # runs at the same time
    stuck_after_s: float = STUCK_AFTER_S  # a batch may take this long, whatever its deadlines


@dataclass(frozen=True, slots=True)
class BatchCallbacks:
    """Callbacks for a batcher's events, on the event loop."""

    # After every run: the version's key, pictures in the run, seconds of the run.
    on_run: Callable[[tuple[str, int], int, float], None] = lambda *_: None
    # After every batch: the version's key, seconds a lane worked on it.
    on_work: Callable[[tuple[str, int], float], None] = lambda *_: None
    # For every lane that has to be replaced.
    on_replaced: Callable[[RestartReason], None] = lambda _: None


class _Queue:
    """The entries waiting for one version, and the times of its runs.

    Large pictures take long to prepare, so they have a queue of their own. They run one by one, on at
    most half of the lanes, and delay only each other.
    """

    def __init__(
        self, version: RunnableVersion, clock: Callable[[], float], *, large: bool
    ) -> None:
        self.version = version
        self.large = large
        self.max_batch_size = 1 if large else version.max_batch_size
        self.entries = FairQueue()
        self.n_pending = 0  # entries whose client is still there
        self.times = RunTimes(clock)


class Batcher:
    """Joins concurrently submitted items into runs on one or more lanes."""

    def __init__(
        self,
        factory: LaneFactory,
        limits: BatchLimits,
        *,
        clock: Callable[[], float] = time.monotonic,
        callbacks: BatchCallbacks | None = None,
    ) -> None:
        """Call `start` on the event loop before the first `submit`.

        `clock` gives monotonic seconds; deadlines are on the same clock.
        """
        self._limits = limits
        self._clock = clock
        self._callbacks = callbacks or BatchCallbacks()
        self._queues: dict[tuple[tuple[str, int], bool], _Queue] = {}
        self._lanes = Lanes(
            factory,
            limits.stuck_after_s,
            clock,
            self._finished,
            self._lanes_changed,
            self._callbacks.on_replaced,
        )
        self._max_large_lanes = max(1, limits.lanes // 2)
        self._order = FairOrder(clock)
        self._load = LoadMonitor(clock)
        self._expiry = ExpiryTimer(clock, self._forget_abandoned)
        self._window: asyncio.TimerHandle | None = None
        self._dispatch_due = False
        self._closing = False
        self._emptied = asyncio.Event()

    @property
    def limits(self) -> BatchLimits:
        return self._limits

    @property
    def waiting(self) -> int:
        """Items in the queue whose client is still there."""
        return sum(queue.n_pending for queue in self._queues.values())

    @property
    def n_ready(self) -> int:
        return self._lanes.n_ready

    @property
    def unavailable(self) -> bool:
        """True while no lane works and none will be started soon."""
        return self._lanes.unavailable

    @property
    def alive(self) -> bool:
        """False if a lane is dead or stuck for good, so that only a new process would help."""
        return self._lanes.alive

    def waiting_for(self, key: tuple[str, int]) -> int:
        return sum(one.n_pending for one in self._queues.values() if one.version.key == key)

    def expected_s(self, version: RunnableVersion, peer: str = "") -> float:
        """Returns the seconds until a client's item submitted now would be answered; 0 if not known."""
        waiting = self.waiting
        ahead = waiting + self._lanes.n_dispatched
        own = self._queue_of(version)
        # Also 0 if nothing is ahead: only a run corrects an estimate that is too high, so an idle
        # batcher must let one item in.
        if not ahead or not own.times.item_s:
            return 0.0

        ahead_s = sum(one.n_pending * one.times.item_s for one in self._queues.values())
        ahead_s *= min(1.0, self._order.ahead_of(peer) / max(1, waiting))
        for lane in self._lanes:
            for job in lane.jobs:
                ahead_s += len(job.items) * self._queue_of(job.version, job.large).times.item_s
        return ahead_s / max(1, self._lanes.n_ready) + own.times.item_s

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lanes.start(self._limits.lanes)

    async def submit(
        self,
        version: RunnableVersion,
        item: Batch | Recipe,
        deadline_s: float,
        *,
        wanted: TopK = TopK(),
        large: bool = False,
        peer: str = "",
    ) -> RowResult:
        """Queues one picture and waits for its answer.

        Args:
            version: the version that answers.
            item: the prepared picture, without the batch axis, or a recipe that prepares it, which
                the lane calls right before the run.
            deadline_s: on the batcher's clock; an item without an answer by then fails.
            wanted: the classes to return.
            large: the picture takes long to prepare.
            peer: the client, which shares the lanes evenly with the other ones.

        Raises:
            Overloaded: the queue is full.
            Draining: the batcher is stopping.
            ModelNotReady: no lane is running and none will be started soon.
            DeadlineExceeded: the deadline passed before the answer.
            EngineFailure: the engine failed on this item.
            WorkerLost: the worker process ended during the run.
            Exception: raised by the recipe.
        """
        if self._closing:
            raise Draining("the service is shutting down")
        if self._lanes.unavailable:
            raise ModelNotReady(_CANNOT_RUN)
        waiting = self.waiting
        if waiting >= self._limits.max_queue:
            raise Overloaded(f"{waiting} pictures are waiting already", reason="queue")
        if waiting or self._lanes.at_work:
            self._load.mark_overlap()

        future: asyncio.Future[RowResult] = self._loop.create_future()
        queue = self._queue_of(version, large)
        entry = QueueEntry(item, deadline_s, self._clock(), wanted, future, peer)
        self._order.enter(entry)
        queue.entries.push(entry)
        queue.n_pending += 1
        self._expiry.add(entry)

        # After all requests that arrived in this turn of the event loop, so that they share a batch.
        if not self._dispatch_due:
            self._dispatch_due = True
            self._loop.call_soon(self._dispatch)

        try:
            return await future
        except asyncio.CancelledError:
            self._forget_abandoned()
            raise
        finally:
            self._expiry.discard(entry)
            self._order.leave(entry)

    async def drain(self) -> None:
        """Refuses new items and returns once every accepted item has been answered."""
        self._closing = True
        self._lanes.close()
        self._dispatch()
        while not self._idle_and_empty():
            self._emptied.clear()
            await self._emptied.wait()

    async def stop(self, timeout_s: float = 5.0) -> bool:
        """Drains, then fails the items that are left; returns True if there are none."""
        finished = False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await asyncio.sleep(0)  # with a timeout of 0, nothing more is started
                await self.drain()
                finished = True

        self._closing = True
        stopped = Draining("the service stopped before this picture was run")
        self._fail_waiting(stopped)
        self._expiry.stop()
        if self._window is not None:
            self._window.cancel()
        for job in self._lanes.stop():
            for entry in job.items:
                entry.fail(stopped)
        await self._lanes.wait_closed()

        # The queues hold the versions. Batcher and lanes refer to each other, so without this the
        # sessions would stay in memory until the next full garbage collection.
        self._queues.clear()
        return finished

    # Dispatching

    def _dispatch(self) -> None:
        """Gives queued items to idle lanes, and a full batch ahead to busy ones.

        A lane with a batch ahead starts it at once, without a turn of the event loop in between. A
        lane that is free before that steals it.
        """
        self._dispatch_due = False
        lanes = self._lanes
        if lanes.has_backlog:
            self._recall()
            queues = self._queues.values()
            full_s = max((one.times.item_s * one.max_batch_size for one in queues), default=0.0)
            lanes.rebalance(slow_s=max(_SLOW_S, _SLOW_BATCHES * full_s))

        shares: dict[_Queue, int] = {}  # per idle lane, of the items queued when this call began
        while self.waiting and (lane := lanes.pick()) is not None:
            queue = self._next_queue(may_wait=not lane.jobs)
            if queue is None:
                break

            size = queue.max_batch_size
            if lane.jobs:
                # Less than a full batch can still grow, so it stays in the queue.
                if queue.n_pending < size:
                    break
                size = self._shared_size(queue)
            elif queue.n_pending > 1:
                # Shared among all ready lanes: the busy ones want theirs in a moment.
                share = shares.setdefault(queue, -(-queue.n_pending // max(1, lanes.n_ready)))
                size = min(self._shared_size(queue), share)

            if batch := self._take(queue, size):
                if not lane.jobs:
                    self._order.begin(batch)
                alone = len(batch) == 1 and self._load.one_at_a_time()
                run = Run(all_cores=alone and queue.times.all_cores_help())
                lanes.work(lane, BatchJob(queue.version, batch, run, self._clock(), queue.large))

        if self._closing and self._idle_and_empty():
            self._emptied.set()

    def _shared_size(self, queue: _Queue) -> int:
        if queue.n_pending < queue.max_batch_size or not self._order.shared():
            return queue.max_batch_size
        # Half a batch costs a CPU hardly any throughput, a quarter a tenth (0032).
        return -(-queue.max_batch_size // (4 if self._order.dominated() else 2))

    def _recall(self) -> None:
        """Takes back batches that wait behind a run, if another client's turn comes before theirs."""
        queues = [one for one in self._queues.values() if one.entries and not one.large]
        if not queues:
            return
        first = min(one.entries.first.order for one in queues)
        for lane in self._lanes:
            behind = lane.jobs[-1] if len(lane.jobs) > 1 else None
            if behind and first < behind.items[0].order and (job := lane.steal_next()):
                self._requeue(job)

    def _requeue(self, job: BatchJob[QueueEntry]) -> None:
        queue = self._queue_of(job.version, job.large)
        for entry in job.items:
            queue.entries.push(entry)
            queue.n_pending += entry.pending

    def _next_queue(self, *, may_wait: bool) -> _Queue | None:
        """Returns the queue whose first live entry has the first turn, if a lane may take it.

        With `may_wait`, a queue below a full batch is passed over while its window is open. It does
        not hold up the others.
        """
        max_wait_s = self._limits.max_wait_s if may_wait and not self._closing else 0.0
        chosen: _Queue | None = None
        window_s = math.inf
        for queue in self._queues.values():
            if not queue.entries:
                continue
            self._drop_dead(queue)
            lanes_full = queue.large and self._lanes.n_large >= self._max_large_lanes
            if not queue.entries or lanes_full:
                continue

            if max_wait_s and queue.n_pending < queue.max_batch_size:
                wait_s = queue.entries.first.submitted_s + max_wait_s - self._clock()
                if wait_s > 0:
                    window_s = min(window_s, wait_s)
                    continue
            if chosen is None or queue.entries.first.order < chosen.entries.first.order:
                chosen = queue

        if chosen is None and window_s < math.inf:
            if self._window is not None:
                self._window.cancel()
            self._window = self._loop.call_later(window_s, self._dispatch)
        return chosen

    def _take(self, queue: _Queue, size: int) -> list[QueueEntry]:
        batch: list[QueueEntry] = []
        while queue.entries and len(batch) < size:
            entry = queue.entries.pop()
            if entry.pending:
                queue.n_pending -= 1
                if self._is_live(entry):
                    batch.append(entry)
        return batch

    def _drop_dead(self, queue: _Queue) -> None:
        """Drops entries at the front whose client is gone or whose deadline has passed."""
        while queue.entries:
            entry = queue.entries.first
            pending = entry.pending
            if pending and self._is_live(entry):
                return
            queue.entries.pop()
            if pending:
                queue.n_pending -= 1
        queue.n_pending = 0

    def _is_live(self, entry: QueueEntry) -> bool:
        if self._clock() >= entry.deadline_s:
            entry.expire("run")
            return False
        return True

    def _idle_and_empty(self) -> bool:
        return not self._lanes.at_work and not any(
            entry.pending for queue in self._queues.values() for entry in queue.entries
        )

    def _queue_of(self, version: RunnableVersion, large: bool = False) -> _Queue:
        key = version.key, large
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = _Queue(version, self._clock, large=large)
        return queue

    # Events of lanes

    def _finished(self, lane: Lane, job: BatchJob[QueueEntry]) -> None:
        # The entries have been answered and the lane is free.
        key = job.version.key
        for size, run_s in job.runs:
            self._callbacks.on_run(key, size, run_s)
        self._callbacks.on_work(key, job.work_s)
        if lane.jobs:
            self._order.begin(lane.jobs[0].items)

        queue = self._queues.get((key, job.large))  # None if the batcher was stopped meanwhile
        if queue is not None and job.runs and job.died is None:
            times = queue.times
            times.record_item(job.work_s / len(job.items))
            if len(job.items) == 1 and not self.waiting:
                times.record_lone_run(job.runs[0][1], all_cores=job.run.all_cores)
        self._dispatch()

    def _lanes_changed(self, unstarted: list[BatchJob[QueueEntry]]) -> None:
        # What a lost lane had not started keeps its turns, so it comes first.
        for job in unstarted:
            self._requeue(job)

        if self._lanes.unavailable:
            self._fail_waiting(ModelNotReady(_CANNOT_RUN))
        self._dispatch()

    def _forget_abandoned(self) -> None:
        # Entries may have left their queue already, so this counts again. Their space is free at once;
        # the entries themselves go when they reach the front.
        for queue in self._queues.values():
            queue.n_pending = sum(entry.pending for entry in queue.entries)
            while queue.entries and not queue.entries.first.pending:
                queue.entries.pop()
        if self._closing and self._idle_and_empty():
            self._emptied.set()

    def _fail_waiting(self, error: Exception) -> None:
        for queue in self._queues.values():
            while queue.entries:
                queue.entries.pop().fail(error)
            queue.n_pending = 0
