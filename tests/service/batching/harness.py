"""What tests of the batcher share: one that runs, items for it, and what became of them."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from service.batching.batcher import BatchedRow, Batcher, BatchLimits
from tests.fakes import FakeEngine

NEVER = math.inf


@asynccontextmanager
async def running(
    engine: FakeEngine,
    *,
    clock: Callable[[], float] = time.monotonic,
    on_run: Callable[[int, float], None] | None = None,
    **limits: Any,
) -> AsyncIterator[Batcher]:
    batcher = Batcher(engine, BatchLimits(**limits), clock=clock, on_run=on_run)
    batcher.start()
    try:
        yield batcher
    finally:
        engine.release()
        await batcher.stop()


def submit(batcher: Batcher, value: float, deadline_s: float = NEVER) -> asyncio.Task[BatchedRow]:
    row = np.array([value], np.float32)
    return asyncio.create_task(batcher.submit(row, deadline_s))


async def settle() -> None:
    """Lets every task run until it waits for something outside the loop."""
    for _ in range(20):
        await asyncio.sleep(0)


async def entered(engine: FakeEngine) -> None:
    """Returns when one more run has begun."""
    await asyncio.to_thread(engine.entered.acquire)


async def occupy(
    batcher: Batcher, engine: FakeEngine, value: float = 0.0
) -> asyncio.Task[BatchedRow]:
    """Has a lane run one item and stay in the engine."""
    engine.hold()
    task = submit(batcher, value)
    await entered(engine)
    return task


def value_of(answered: BatchedRow) -> float:
    return float(answered.probabilities[0])


async def values_of(tasks: list[asyncio.Task[BatchedRow]]) -> list[float | str]:
    """Each task's value, or the name of its error."""
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    return [
        value_of(outcome) if isinstance(outcome, BatchedRow) else type(outcome).__name__
        for outcome in outcomes
    ]


def raising(error: BaseException) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    def answer(_batch: NDArray[Any]) -> NoReturn:
        raise error

    return answer


def wait_until(true: Callable[[], bool]) -> None:
    turn = threading.Event()
    while not true():
        turn.wait(0.001)
