"""Dynamic batching: a batch is whatever queued while the engine was busy.

The rules, each with a test in tests/service/test_batcher.py:

- a lone item on an idle lane is dispatched at once; a waiting window, where configured, starts at
  the first entry; order is first in, first out; idle lanes use no CPU;
- a full queue refuses at once; entries whose waiter is gone or whose deadline has passed are dropped
  before a run and cost nothing;
- a failed batch is retried one by one and only the guilty item fails; a wrong row count is a failure
  of the run, a non-finite row one of its item;
- `drain` finishes what was accepted; `stop` is bounded; a dead or stuck lane makes `alive` false.

Everything but the runs happens on the event loop, so there are no locks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from service.engine import Batch, Engine
from service.errors import DeadlineExceeded, Draining, EngineFailure, ModelNotReady, Overloaded
from service.threads import DaemonThread

log = logging.getLogger(__name__)


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


@dataclass(frozen=True, slots=True)
class BatchedRow:
    """One item's answer.

    Attributes:
        probabilities: float32, shape (C,).
        queue_s: seconds from submit to the start of its run.
        run_s: seconds of its run.
        batch_size: items in its run.
    """

    probabilities: NDArray[np.float32]
    queue_s: float
    run_s: float
    batch_size: int


@dataclass(slots=True, eq=False)
class _Entry:
    row: Batch
    deadline_s: float
    submitted_s: float
    future: asyncio.Future[BatchedRow]


@dataclass(slots=True, eq=False)
class _Lane:
    thread: DaemonThread
    task: asyncio.Task[None] | None = None
    busy_since_s: float | None = None


class _LaneDied(BaseException):
    """Ends a lane: the engine raised what is not an error of a run."""


class Batcher:
    """Joins concurrently submitted items into runs of an engine on one or more lanes."""

    def __init__(
        self,
        engine: Engine,
        limits: BatchLimits,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_run: Callable[[int, float], None] | None = None,
    ) -> None:
        """Prepares the lanes; `start` must be called on the event loop before the first submit.

        Args:
            engine: its `run` is called from the lanes' threads.
            limits: see `BatchLimits`.
            clock: monotonic seconds; deadlines are on the same clock.
            on_run: called after every run with the batch size and its seconds.
        """
        self._engine = engine
        self._limits = limits
        self._clock = clock
        self._on_run = on_run
        self._queue: deque[_Entry] = deque()
        self._waiting = 0  # entries in the queue whose waiter is still there
        self._idle: deque[asyncio.Future[None]] = deque()
        self._lanes: list[_Lane] = []
        self._closing = False

    @property
    def waiting(self) -> int:
        """Items in the queue that somebody still waits for."""
        return self._waiting

    @property
    def alive(self) -> bool:
        """True while every lane runs and none has been in one run longer than `stuck_after_s`."""
        now = self._clock()
        return bool(self._lanes) and all(
            lane.task is not None
            and not lane.task.done()
            and (lane.busy_since_s is None or now - lane.busy_since_s <= self._limits.stuck_after_s)
            for lane in self._lanes
        )

    @property
    def at_rest(self) -> bool:
        """True while no lane is inside the engine, even one that has been given up."""
        return not any(lane.thread.busy for lane in self._lanes)

    def start(self) -> None:
        """Starts the lanes on the running event loop."""
        for number in range(self._limits.lanes):
            lane = _Lane(DaemonThread(f"lane-{number}"))
            lane.task = asyncio.create_task(self._serve(lane), name=f"lane-{number}")
            lane.task.add_done_callback(self._lane_ended)
            self._lanes.append(lane)

    async def submit(self, row: Batch, deadline_s: float) -> BatchedRow:
        """Queues one prepared picture and waits for its answer.

        Args:
            row: the prepared picture, without the batch axis.
            deadline_s: on the batcher's clock; after it the item is not worth running.

        Raises:
            Overloaded: the queue is full.
            Draining: the batcher is stopping.
            ModelNotReady: no lane is running.
            DeadlineExceeded: the deadline passed before the item's run began.
            EngineFailure: the engine failed on this item.
        """
        if self._closing:
            raise Draining("the service is shutting down")
        if self._all_lanes_dead():
            raise ModelNotReady("no lane of the model is running")
        if self._waiting >= self._limits.max_queue:
            raise Overloaded(f"{self._waiting} pictures are waiting already")
        future: asyncio.Future[BatchedRow] = asyncio.get_running_loop().create_future()
        self._queue.append(_Entry(row, deadline_s, self._clock(), future))
        self._waiting += 1
        self._wake_one()
        try:
            return await future
        except asyncio.CancelledError:
            self._forget_abandoned()
            raise

    async def drain(self) -> None:
        """Refuses new items and returns when everything accepted has been answered."""
        self._closing = True
        self._wake_all()
        tasks = [lane.task for lane in self._lanes if lane.task]
        if tasks:
            await asyncio.wait(tasks)  # which, unlike gather, does not cancel them when given up

    async def stop(self, timeout_s: float = 5.0) -> bool:
        """Drains for a limited time, then fails what is left.

        Returns:
            True if everything accepted was answered in time.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self.drain()
        tasks = [lane.task for lane in self._lanes if lane.task]
        finished = all(task.done() for task in tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._fail_waiting(Draining("the service stopped before this picture was run"))
        for lane in self._lanes:
            lane.thread.close()
        return finished

    async def _serve(self, lane: _Lane) -> None:
        while batch := await self._next_batch():
            lane.busy_since_s = self._clock()
            try:
                await self._answer(lane, batch)
            finally:
                lane.busy_since_s = None
                for entry in batch:  # only where the lane itself is being torn down
                    _fail(entry, EngineFailure("the lane stopped during the run"))

    async def _next_batch(self) -> list[_Entry]:
        """Waits for work; an empty list means that the batcher is closed and the queue is empty."""
        batch: list[_Entry] = []
        try:
            while True:
                batch[:] = filter(self._is_live, batch)  # whoever left makes room
                self._take(batch)
                wait_s = None
                if batch:
                    wait_s = batch[0].submitted_s + self._limits.max_wait_s - self._clock()
                    if wait_s <= 0 or len(batch) == self._limits.max_batch_size:
                        return batch
                if self._closing:
                    return batch
                await self._wait_for_work(wait_s)
        except asyncio.CancelledError:  # stopped within the window: `stop` fails what is queued
            self._queue.extendleft(reversed(batch))
            self._waiting += len(batch)
            raise

    def _take(self, batch: list[_Entry]) -> None:
        while self._queue and len(batch) < self._limits.max_batch_size:
            entry = self._queue.popleft()
            if not entry.future.done():
                self._waiting -= 1
                if self._is_live(entry):
                    batch.append(entry)

    def _is_live(self, entry: _Entry) -> bool:
        if entry.future.done():
            return False
        if self._clock() >= entry.deadline_s:
            _fail(entry, DeadlineExceeded("the deadline passed before the picture was run"))
            return False
        return True

    async def _answer(self, lane: _Lane, batch: list[_Entry]) -> None:
        try:
            await self._run(lane, batch)
        except Exception as error:
            if len(batch) > 1:
                log.warning("a run of %d pictures failed; retrying one by one", len(batch))
                for entry in batch:
                    if self._is_live(entry):
                        await self._answer(lane, [entry])
                return
            log.exception("the engine failed on one picture")
            failure = EngineFailure("the engine failed on this picture")
            failure.__cause__ = error
            _fail(batch[0], failure)

    async def _run(self, lane: _Lane, batch: list[_Entry]) -> None:
        started_s = lane.busy_since_s = self._clock()
        rows = [entry.row for entry in batch]
        scores = await asyncio.wrap_future(lane.thread.submit(partial(self._call_engine, rows)))
        run_s = self._clock() - started_s
        if scores.ndim != 2 or len(scores) != len(batch):
            raise EngineFailure(f"{len(batch)} pictures gave scores of shape {scores.shape}")
        if self._on_run is not None:
            self._on_run(len(batch), run_s)
        for entry, row in zip(batch, scores, strict=True):
            if not np.isfinite(row).all():
                _fail(entry, EngineFailure("the network gave a non-finite row for this picture"))
            elif not entry.future.done():
                queue_s = started_s - entry.submitted_s
                entry.future.set_result(BatchedRow(row, queue_s, run_s, len(batch)))

    def _call_engine(self, rows: list[Batch]) -> NDArray[np.float32]:
        # On the lane's thread. What asyncio gives a meaning of its own must not reach the loop:
        # SystemExit would end it, CancelledError would pass for a lane that was told to stop.
        try:
            return self._engine.run(np.stack(rows))
        except StopIteration as error:
            raise RuntimeError("the engine raised StopIteration") from error
        except Exception:
            raise
        except BaseException as error:
            raise _LaneDied(f"the engine raised {type(error).__name__}") from error

    async def _wait_for_work(self, timeout_s: float | None = None) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._idle.append(waiter)
        try:
            await asyncio.wait([waiter], timeout=timeout_s)
        finally:
            if not waiter.done():
                self._idle.remove(waiter)
                waiter.cancel()

    def _wake_one(self) -> None:
        if self._idle:
            self._idle.popleft().set_result(None)

    def _wake_all(self) -> None:
        while self._idle:
            self._wake_one()

    def _forget_abandoned(self) -> None:
        # Counts anew rather than guessing whether the abandoned entry was still queued; its place is
        # free at once, the entry itself goes when it reaches the front.
        self._waiting = sum(1 for entry in self._queue if not entry.future.done())
        while self._queue and self._queue[0].future.done():
            self._queue.popleft()

    def _fail_waiting(self, error: Exception) -> None:
        while self._queue:
            _fail(self._queue.popleft(), error)
        self._waiting = 0

    def _all_lanes_dead(self) -> bool:
        return all(lane.task is None or lane.task.done() for lane in self._lanes)

    def _lane_ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is None:
            return
        log.critical("a lane died", exc_info=task.exception())
        if self._all_lanes_dead():
            self._fail_waiting(ModelNotReady("no lane of the model is running"))


def _fail(entry: _Entry, error: Exception) -> None:
    if not entry.future.done():
        entry.future.set_exception(error)
