"""Helpers for the batcher's tests: a running batcher, items to submit, and their outcomes."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from service.batching.batcher import BatchCallbacks, Batcher, BatchLimits
from service.batching.lane import CHECK_INTERVAL_S, RowResult
from service.batching.thread_lane import ThreadLaneFactory
from tests.fakes import FakeClock, FakeEngine, FakeVersion

NEVER = math.inf


class SingleVersionBatcher(Batcher):
    """A batcher with a single version, so that tests need not pass one."""

    version: FakeVersion

    async def submit(self, item: Any, deadline_s: float, **how: Any) -> RowResult:  # type: ignore[override]
        return await super().submit(self.version, item, deadline_s, **how)

    def expected_s(self, version: Any = None, peer: str = "") -> float:
        return super().expected_s(version or self.version, peer)


@asynccontextmanager
async def running(
    engine: FakeEngine,
    *,
    clock: Callable[[], float] = time.monotonic,
    on_run: Callable[[tuple[str, int], int, float], None] = lambda *_: None,
    max_batch_size: int = 8,
    **limits: Any,
) -> AsyncIterator[SingleVersionBatcher]:
    callbacks = BatchCallbacks(on_run=on_run)
    batcher = SingleVersionBatcher(
        ThreadLaneFactory(clock), BatchLimits(**limits), clock=clock, callbacks=callbacks
    )
    batcher.version = FakeVersion(engine, max_batch_size=max_batch_size)

    batcher.start()
    try:
        yield batcher
    finally:
        engine.release()
        await batcher.stop()


def submit(
    batcher: SingleVersionBatcher, value: float, deadline_s: float = NEVER
) -> asyncio.Task[RowResult]:
    row = np.array([value], np.float32)
    return asyncio.create_task(batcher.submit(row, deadline_s))


async def settle() -> None:
    """Lets every task run until it waits for something outside the event loop."""
    for _ in range(20):
        await asyncio.sleep(0)


def pass_time(batcher: SingleVersionBatcher, clock: FakeClock, seconds: float) -> None:
    """Advances the clock in steps, with a health check of the lanes after each."""
    for _ in range(round(seconds / CHECK_INTERVAL_S)):
        clock.advance(CHECK_INTERVAL_S)
        batcher._lanes._check()


async def run_started(engine: FakeEngine) -> None:
    """Waits until one more run has started."""
    await asyncio.to_thread(engine.entered.acquire)


async def occupy(
    batcher: SingleVersionBatcher, engine: FakeEngine, value: float = 0.0
) -> asyncio.Task[RowResult]:
    """Blocks a lane inside the engine with one item."""
    engine.hold()
    task = submit(batcher, value)
    await run_started(engine)
    return task


def value_of(answered: RowResult) -> float:
    return dict(answered.ranking)[0]


async def values_of(tasks: list[asyncio.Task[RowResult]]) -> list[float | str]:
    """Each task's value, or the name of its error."""
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    return [
        value_of(outcome) if isinstance(outcome, RowResult) else type(outcome).__name__
        for outcome in outcomes
    ]


def raising(error: BaseException) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    def answer(_batch: NDArray[Any]) -> NoReturn:
        raise error

    return answer
