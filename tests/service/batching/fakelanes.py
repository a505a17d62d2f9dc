"""A batcher with fake lanes. The test makes each lane start, answer or fail."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.batching.batcher import BatchCallbacks, Batcher, BatchLimits
from service.batching.lane import (
    CHECK_INTERVAL_S,
    BatchJob,
    LaneCallbacks,
    QueueEntry,
    RestartReason,
    RowResult,
    deliver,
)
from service.errors import WorkerLost
from tests.fakes import FakeClock, FakeEngine, FakeVersion
from tests.service.batching.harness import settle, value_of

NEVER = math.inf


class FakeLane:
    """A lane that answers when the test says so, and can be lost like a process."""

    busy = False

    def __init__(self, callbacks: LaneCallbacks, depth: int) -> None:
        self.jobs: deque[BatchJob[QueueEntry]] = deque()
        self.depth = depth
        self.ready = False
        self.dead = False
        self.closed = False
        self.batches: list[list[float]] = []
        self._callbacks = callbacks

    def become_ready(self) -> None:
        self.ready = True
        self._callbacks.on_ready(self)

    def answer(self, *, runs: bool = True) -> None:
        """Answers the running batch, each picture with its own value."""
        job = self.jobs.popleft()
        n_pictures = len(job.items)
        for entry in job.items:
            ranking = [(0, number_of(entry))]
            job.outcomes.append((entry, RowResult(ranking, 0.0, 0.5, n_pictures)))
        job.runs = [(n_pictures, 0.5)] if runs else []
        job.work_s = 0.5
        deliver(job)
        self._callbacks.on_done(self, job)

    def lose(self, reason: RestartReason = RestartReason.EXITED) -> None:
        self.dead, self.ready = True, False
        for job in self.jobs:
            for entry in job.items:
                entry.fail(WorkerLost("lost"))
        self._callbacks.on_lost(self, reason)

    def retire(self, reason: RestartReason = RestartReason.TERMINATED) -> None:
        self._callbacks.on_retiring(self, reason)

    @property
    def values(self) -> list[float]:
        return [number_of(entry) for job in self.jobs for entry in job.items]

    # Methods of a lane

    def work(self, job: BatchJob[QueueEntry]) -> None:
        self.jobs.append(job)
        self.batches.append([number_of(entry) for entry in job.items])

    def interrupt(self) -> None:
        if self.jobs:
            self.lose(RestartReason.OVERDUE)

    def take_unstarted(self) -> list[BatchJob[QueueEntry]]:
        self.jobs.clear()
        return []

    def steal_next(self) -> BatchJob[QueueEntry] | None:
        return self.jobs.pop() if len(self.jobs) > 1 else None

    def close(self) -> None:
        self.closed, self.ready = True, False


def number_of(entry: QueueEntry) -> float:
    return float(entry.item[0])  # type: ignore[index]


class FakeFactory:
    """Creates fake lanes; a `LaneFactory`.

    Attributes:
        lanes: every lane created, in order.
        slow: lanes become ready only when the test says so.
    """

    restarts = True
    pids = ()

    def __init__(self, *, slow: bool = False, depth: int = 1) -> None:
        self.lanes: list[FakeLane] = []
        self.slow = slow
        self._depth = depth

    def open(self, callbacks: LaneCallbacks) -> FakeLane:
        lane = FakeLane(callbacks, self._depth)
        self.lanes.append(lane)
        lane.ready = not self.slow
        if not self.slow:
            asyncio.get_running_loop().call_soon(callbacks.on_ready, lane)
        return lane

    async def wait_closed(self) -> None:
        assert all(lane.closed for lane in self.lanes)


@dataclass(eq=False)
class Timer:
    """A delayed call that fires when the test says so."""

    delay_s: float
    call: Callable[[], None]
    is_check: bool  # whether it checks the lanes' health
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


class Rig:
    """A batcher with fake lanes, a fake clock, and timers that only the test fires."""

    def __init__(self, factory: FakeFactory, limits: BatchLimits) -> None:
        self.clock = FakeClock()
        self.factory = factory
        self.replaced: list[RestartReason] = []
        self.tasks: list[asyncio.Task[RowResult]] = []
        self.batcher = Batcher(
            factory,
            limits,
            clock=self.clock,
            callbacks=BatchCallbacks(on_replaced=self.replaced.append),
        )
        self.version = FakeVersion(FakeEngine())
        self._timers: list[Timer] = []
        asyncio.get_running_loop().call_later = self._call_later  # type: ignore[assignment,method-assign]

    def _call_later(self, delay_s: float, callback: Callable[..., Any], *arguments: Any) -> Timer:
        is_check = callback == self.batcher._lanes._check
        self._timers.append(Timer(delay_s, lambda: callback(*arguments), is_check))
        return self._timers[-1]

    @property
    def lanes(self) -> list[FakeLane]:
        return self.factory.lanes

    @property
    def delays(self) -> list[float]:
        """The delays of the running timers, except health checks."""
        return [one.delay_s for one in self._running() if not one.is_check]

    @property
    def n_checks(self) -> int:
        return sum(one.is_check for one in self._running())

    def _running(self) -> list[Timer]:
        return [one for one in self._timers if not one.cancelled]

    async def fire(self) -> None:
        """Fires every timer except health checks."""
        for timer in self._running():
            if not timer.is_check:
                self._timers.remove(timer)
                timer.call()
        await settle()

    async def pass_time(self, seconds: float) -> None:
        """Advances the clock, with a health check of the lanes at every interval."""
        for _ in range(round(seconds / CHECK_INTERVAL_S)):
            self.clock.advance(CHECK_INTERVAL_S)
            checks = [one for one in self._running() if one.is_check]
            for check in checks:
                self._timers.remove(check)
                check.call()
            await settle()

    async def submit(
        self,
        *values: float,
        version: FakeVersion | None = None,
        deadline_s: float = NEVER,
        large: bool = False,
        peer: str = "",
    ) -> list[asyncio.Task[RowResult]]:
        """Submits pictures in order and lets the batcher dispatch them."""
        tasks = [
            asyncio.create_task(
                self.batcher.submit(
                    version or self.version,
                    np.array([value], np.float32),
                    deadline_s,
                    large=large,
                    peer=peer,
                )
            )
            for value in values
        ]

        self.tasks += tasks
        await settle()
        return tasks


@asynccontextmanager
async def new_rig(
    lanes: int = 1, *, slow: bool = False, depth: int = 1, **limits: Any
) -> AsyncIterator[Rig]:
    rig = Rig(FakeFactory(slow=slow, depth=depth), BatchLimits(lanes=lanes, **limits))
    rig.batcher.start()
    await settle()

    try:
        yield rig
    finally:
        for task in rig.tasks:
            task.cancel()
        await asyncio.gather(*rig.tasks, return_exceptions=True)
        await rig.batcher.stop(0)


async def outcome_of(task: asyncio.Task[RowResult]) -> float | str:
    """The picture's value, or the name of its error."""
    (outcome,) = await asyncio.gather(task, return_exceptions=True)
    return value_of(outcome) if isinstance(outcome, RowResult) else type(outcome).__name__


async def outcomes_of(tasks: list[asyncio.Task[RowResult]]) -> list[float | str]:
    return [await outcome_of(task) for task in tasks]
