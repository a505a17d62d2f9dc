from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from service.batching.lanes import OVERDUE_S
from tests.fakes import FakeClock, FakeEngine
from tests.service.batching.harness import (
    occupy,
    pass_time,
    raising,
    run_started,
    running,
    settle,
    submit,
    values_of,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio


FATAL_ERRORS = {
    "system_exit": SystemExit(2),
    "keyboard_interrupt": KeyboardInterrupt(),
    "cancelled": asyncio.CancelledError(),
    "generator_exit": GeneratorExit(),
}


@pytest.mark.parametrize("error", FATAL_ERRORS.values(), ids=FATAL_ERRORS.keys())
async def test_lane_that_dies_fails_its_item_and_is_replaced(error):
    engine = FakeEngine()
    async with running(engine, max_batch_size=1) as batcher:
        tasks = [await occupy(batcher, engine), submit(batcher, 0.25), submit(batcher, 0.5)]
        await settle()
        answers = iter([raising(error), engine._answer, engine._answer, engine._answer])
        engine.answer = lambda batch: next(answers)(batch)
        engine.release()
        values = await values_of(tasks)

        assert values == ["EngineFailure", 0.25, 0.5]
        assert batcher.alive


async def test_lanes_that_keep_dying_fail_liveness_and_waiting_items(monkeypatch):
    monkeypatch.setattr("service.batching.lanes.FIRST_BACKOFF_S", 2.0)
    engine = FakeEngine()
    engine.answer = raising(SystemExit(2))
    async with running(engine, max_batch_size=1) as batcher:
        values = await values_of([submit(batcher, number / 8) for number in range(8)])
        after = await values_of([submit(batcher, 0.75)])

        assert values == ["EngineFailure"] * 2 + ["ModelNotReady"] * 6
        assert (after, batcher.alive) == (["ModelNotReady"], False)


async def test_lanes_successful_run_resets_the_backoff():
    engine = FakeEngine()
    async with running(engine, max_batch_size=1) as batcher:
        for _ in range(5):
            engine.answer = raising(SystemExit(2))
            await values_of([submit(batcher, 0.5)])
            engine.answer = engine._answer
            await values_of([submit(batcher, 0.5)])

        assert batcher.alive


async def test_lanes_stuck_lane_fails_liveness_until_it_recovers():
    engine, clock = FakeEngine(), FakeClock()
    async with running(engine, clock=clock, stuck_after_s=30) as batcher:
        held = await occupy(batcher, engine)
        states = [batcher.alive]
        for seconds in (30, 1):
            clock.advance(seconds)
            states.append(batcher.alive)

        engine.release()
        await held
        states.append(batcher.alive)

    assert states == [True, True, False, True]


class InterruptibleEngine(FakeEngine):
    """An interrupted run raises, as onnxruntime's do."""

    def run(self, batch: Any, run: Any = None) -> Any:
        run.on_interrupt(self.release)
        scores = super().run(batch)
        if run.interrupted:
            raise RuntimeError("terminated")
        return scores


async def test_lanes_stuck_run_is_interrupted_and_the_lane_keeps_working():
    engine, clock = InterruptibleEngine(), FakeClock()
    async with running(engine, clock=clock, stuck_after_s=30) as batcher:
        tasks = [await occupy(batcher, engine), submit(batcher, 0.25)]
        await settle()
        pass_time(batcher, clock, 31)
        values = await values_of(tasks)

        assert (values, batcher.alive) == (["EngineFailure", 0.25], True)
    assert engine.batches == [[0.0], [0.25]]


async def test_lanes_run_that_cannot_be_interrupted_is_abandoned_and_its_lane_replaced(caplog):
    engine, clock = FakeEngine(), FakeClock()
    async with running(engine, clock=clock, stuck_after_s=30) as batcher:
        tasks = [await occupy(batcher, engine), submit(batcher, 0.25)]
        await settle()

        pass_time(batcher, clock, 33)
        await run_started(engine)  # the run of the new lane
        alive_while_stuck = batcher.alive
        engine.release()
        values = await values_of(tasks)
        await asyncio.to_thread(wait_until, lambda: batcher.alive)

    assert (values, alive_while_stuck) == (["EngineFailure", 0.25], False)
    late, stuck = (vars(one) for one in caplog.records if "is replaced" not in one.message)
    for record in (late, stuck):
        assert (record["model"], record["version"], record["pictures"]) == ("fake", 1, 1)
        assert record["running_s"] > 30
    assert late["overdue_s"] > 0
    assert stuck["interrupted_s"] > 1


async def test_lanes_batch_behind_a_stuck_run_goes_to_another_lane():
    engine, clock = FakeEngine(), FakeClock()
    async with running(engine, clock=clock, max_batch_size=1, stuck_after_s=30) as batcher:
        tasks = [await occupy(batcher, engine), submit(batcher, 0.25)]
        await settle()
        ahead = batcher.waiting == 0

        pass_time(batcher, clock, 33)
        await run_started(engine)  # the run of the new lane
        engine.release()
        values = await values_of(tasks)

    assert (ahead, values) == (True, ["EngineFailure", 0.25])
    assert engine.batches == [[0.0], [0.25]]


async def test_lanes_run_overdue_by_a_second_is_interrupted():
    engine, clock = InterruptibleEngine(), FakeClock()
    async with running(engine, clock=clock) as batcher:
        engine.hold()
        late = submit(batcher, 0.0, clock() + 2)
        await run_started(engine)
        pass_time(batcher, clock, 2.75)
        before = late.done()
        pass_time(batcher, clock, 0.75)
        values = await values_of([late, submit(batcher, 0.25)])

    assert (before, values) == (False, ["DeadlineExceeded", 0.25])


async def test_lanes_interrupted_run_does_not_count_in_the_usual_time():
    engine, clock = InterruptibleEngine(), FakeClock()
    async with running(engine, clock=clock) as batcher:
        due_s = []
        for _ in range(2):
            engine.hold()
            late = submit(batcher, 0.0, clock() + 2)
            await run_started(engine)
            (lane,) = batcher._lanes
            due_s.append(lane.jobs[0].due_s - clock())

            pass_time(batcher, clock, 3.5)
            engine.release()
            await values_of([late])
            await asyncio.to_thread(
                wait_until, lambda: not any(lane.busy for lane in batcher._lanes)
            )
            await settle()

    assert due_s == [2 + OVERDUE_S] * 2


async def test_lanes_deadline_shorter_than_a_run_does_not_interrupt_it():
    engine, clock = InterruptibleEngine(), FakeClock()
    async with running(engine, clock=clock) as batcher:
        first = await occupy(batcher, engine)
        clock.advance(10)
        engine.release()
        await first

        engine.hold()
        short = submit(batcher, 0.5, clock() + 0.1)
        await run_started(engine)
        pass_time(batcher, clock, 18)
        done_early = short.done()
        engine.release()
        values = await values_of([short])

    assert (done_early, values) == (False, [0.5])


async def test_lanes_blocked_event_loop_interrupts_no_run():
    engine, clock = InterruptibleEngine(), FakeClock()
    async with running(engine, clock=clock) as batcher:
        engine.hold()
        task = submit(batcher, 0.5, clock() + 1)
        await run_started(engine)

        for _ in range(2):
            clock.advance(60)
            batcher._lanes._check()
        engine.release()
        values = await values_of([task])

    assert values == [0.5]


class OneSlowRun(FakeEngine):
    """Answers the item 0.0 only once `slow` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = threading.Event()

    def run(self, batch: Any, run: Any = None) -> Any:
        scores = super().run(batch, run)
        if float(batch[0, 0]) == 0.0:
            self.slow.wait()
        return scores


async def test_lanes_batch_behind_a_slow_run_goes_to_a_free_lane():
    engine = OneSlowRun()
    async with running(engine, lanes=2, max_batch_size=1) as batcher:
        tasks = [await occupy(batcher, engine, 0.0), await occupy(batcher, engine, 0.125)]
        tasks += [submit(batcher, value) for value in (0.25, 0.5)]
        await settle()
        queue_is_empty = batcher.waiting == 0

        engine.release()
        others = await values_of(tasks[1:])
        slow_done = tasks[0].done()
        engine.slow.set()
        (last,) = await values_of(tasks[:1])

    assert (queue_is_empty, others, slow_done, last) == (True, [0.125, 0.25, 0.5], False, 0.0)
    assert sorted(engine.batches) == [[0.0], [0.125], [0.25], [0.5]]


@pytest.mark.parametrize(
    ("passed_s", "second_run"), [(0.01, 0.75), (10.0, 0.25)], ids=["usual", "slow"]
)
async def test_lanes_batch_behind_a_slow_run_is_not_overtaken_by_later_ones(passed_s, second_run):
    engine, clock = OneSlowRun(), FakeClock()
    async with running(engine, clock=clock, lanes=2, max_batch_size=1) as batcher:
        tasks = [await occupy(batcher, engine, 0.0), await occupy(batcher, engine, 0.125)]
        tasks += [submit(batcher, value) for value in (0.25, 0.5, 0.75)]
        await settle()
        batcher._queue_of(batcher.version).times.item_s = 0.01

        clock.advance(passed_s)
        engine.release()
        await values_of([tasks[1], tasks[3]])
        await asyncio.to_thread(wait_until, lambda: len(engine.batches) > 3)
        fourth_batch = engine.batches[3][0]
        engine.slow.set()
        await values_of(tasks)

    assert fourth_batch == second_run
    assert sorted(engine.batches) == [[0.0], [0.125], [0.25], [0.5], [0.75]]
