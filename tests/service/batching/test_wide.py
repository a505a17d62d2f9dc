from __future__ import annotations

import asyncio
from typing import Any

import pytest

from service.batching.wide import Width
from tests.fakes import FakeClock, FakeEngine
from tests.service.batching.harness import (
    occupy,
    running,
    settle,
    submit,
    values_of,
)

pytestmark = pytest.mark.anyio


def test_width_a_batch_or_company_never_gets_all():
    clock = FakeClock()
    width = Width(clock)
    clock.advance(1)
    alone, batch = width.may_be_all(1), width.may_be_all(2)
    width.crowded()
    crowded = width.may_be_all(1)
    clock.advance(0.1)

    assert (alone, batch, crowded, width.may_be_all(1)) == (True, False, False, True)


def test_width_without_narrow_runs_there_is_no_doubt():
    clock = FakeClock()
    width = Width(clock)
    for _ in range(20):
        width.learn(9.0, wide=True)
    clock.advance(1)

    assert width.may_be_all(1)


async def test_width_lone_items_get_all_cores_and_crowded_ones_do_not():
    wide: list[bool] = []

    class WidthEngine(FakeEngine):
        def run(self, batch: Any, run: Any = None) -> Any:
            wide.append(run.wide)
            return super().run(batch)

    engine, clock = WidthEngine(), FakeClock()
    async with running(engine, clock=clock, max_batch_size=1) as batcher:
        await submit(batcher, 0.25)
        tasks = [await occupy(batcher, engine, 0.5), submit(batcher, 0.75)]
        await settle()
        engine.release()
        await values_of(tasks)
        await submit(batcher, 0.125)
        clock.advance(1)
        await submit(batcher, 0.375)

    assert wide == [True, True, False, False, True]


async def test_width_all_cores_slower_than_one_are_left_alone_for_a_while():
    clock = FakeClock()
    wide: list[bool] = []

    class CrowdedMachineEngine(FakeEngine):
        def run(self, batch: Any, run: Any = None) -> Any:
            wide.append(run.wide)
            clock.advance(0.5 if run.wide else 0.25)
            return super().run(batch)

    engine = CrowdedMachineEngine()
    async with running(engine, clock=clock, max_batch_size=1) as batcher:
        await asyncio.gather(submit(batcher, 0.25), submit(batcher, 0.5))
        for _ in range(10):
            clock.advance(0.1)
            await submit(batcher, 0.25)
        clock.advance(6)
        await submit(batcher, 0.25)

    assert wide == [True, False, *[True] * 7, False, False, False, True]


async def test_width_one_slow_run_with_all_cores_is_no_reason_to_leave_them_alone():
    clock = FakeClock()
    wide: list[bool] = []
    slow = iter([0.5])

    class Engine(FakeEngine):
        def run(self, batch: Any, run: Any = None) -> Any:
            wide.append(run.wide)
            clock.advance(next(slow, 0.125) if run.wide else 0.25)
            return super().run(batch)

    async with running(Engine(), clock=clock, max_batch_size=1) as batcher:
        await asyncio.gather(submit(batcher, 0.25), submit(batcher, 0.5))
        for _ in range(12):
            clock.advance(0.1)
            await submit(batcher, 0.25)

    assert wide[1:] == [False, *[True] * 12]
