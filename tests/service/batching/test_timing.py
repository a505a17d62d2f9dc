from __future__ import annotations

import asyncio
from typing import Any

import pytest

from service.batching.timing import LoadMonitor, RunTimes
from tests.fakes import FakeClock, FakeEngine
from tests.service.batching.harness import (
    occupy,
    running,
    settle,
    submit,
    values_of,
)

pytestmark = pytest.mark.anyio


def test_load_monitor_overlap_counts_for_a_while():
    clock = FakeClock()
    load = LoadMonitor(clock)
    clock.advance(1)
    before = load.one_at_a_time()
    load.mark_overlap()
    after = load.one_at_a_time()
    clock.advance(0.1)

    assert (before, after, load.one_at_a_time()) == (True, False, True)


def test_run_times_without_runs_on_one_core_prefer_all_cores():
    clock = FakeClock()
    times = RunTimes(clock)
    for _ in range(20):
        times.record_lone_run(9.0, all_cores=True)

    assert times.all_cores_help()


def test_run_times_item_time_is_a_running_mean():
    times = RunTimes(FakeClock())
    means = []
    for item_s in (1.0, 2.0):
        times.record_item(item_s)
        means.append(times.item_s)

    assert means == [1.0, pytest.approx(1.1)]


async def test_all_cores_are_used_for_lone_items_but_not_for_overlapping_ones():
    all_cores: list[bool] = []

    class Engine(FakeEngine):
        def run(self, batch: Any, run: Any = None) -> Any:
            all_cores.append(run.all_cores)
            return super().run(batch)

    engine, clock = Engine(), FakeClock()
    async with running(engine, clock=clock, max_batch_size=1) as batcher:
        await submit(batcher, 0.25)
        tasks = [await occupy(batcher, engine, 0.5), submit(batcher, 0.75)]
        await settle()
        engine.release()
        await values_of(tasks)
        await submit(batcher, 0.125)
        clock.advance(1)
        await submit(batcher, 0.375)

    assert all_cores == [True, True, False, False, True]


async def test_all_cores_are_not_used_for_a_while_if_slower_than_one():
    clock = FakeClock()
    all_cores: list[bool] = []

    class BusyMachineEngine(FakeEngine):
        def run(self, batch: Any, run: Any = None) -> Any:
            all_cores.append(run.all_cores)
            clock.advance(0.5 if run.all_cores else 0.25)
            return super().run(batch)

    engine = BusyMachineEngine()
    async with running(engine, clock=clock, max_batch_size=1) as batcher:
        await asyncio.gather(submit(batcher, 0.25), submit(batcher, 0.5))
        for _ in range(10):
            clock.advance(0.1)
            await submit(batcher, 0.25)
        clock.advance(6)
        await submit(batcher, 0.25)

    assert all_cores == [False, False, *[True] * 8, False, False, True]


async def test_all_cores_are_still_used_after_one_slow_run():
    clock = FakeClock()
    all_cores: list[bool] = []
    slow = iter([0.5])

    class Engine(FakeEngine):
        def run(self, batch: Any, run: Any = None) -> Any:
            all_cores.append(run.all_cores)
            clock.advance(next(slow, 0.125) if run.all_cores else 0.25)
            return super().run(batch)

    async with running(Engine(), clock=clock, max_batch_size=1) as batcher:
        await asyncio.gather(submit(batcher, 0.25), submit(batcher, 0.5))
        for _ in range(12):
            clock.advance(0.1)
            await submit(batcher, 0.25)

    assert all_cores[1:] == [False, *[True] * 12]
