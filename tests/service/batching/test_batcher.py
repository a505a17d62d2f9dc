from __future__ import annotations

import asyncio
import random
import threading
from typing import Any, NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray

from service.batching.batcher import Batcher, BatchLimits
from service.batching.thread_lane import ThreadLaneFactory
from service.errors import DeadlineExceeded, EngineFailure, ModelNotReady, Overloaded
from tests.fakes import FakeClock, FakeEngine, FakeVersion
from tests.service.batching.harness import (
    NEVER,
    occupy,
    raising,
    run_started,
    running,
    settle,
    submit,
    value_of,
    values_of,
)

pytestmark = pytest.mark.anyio

# When a run starts


async def test_batcher_lone_item_on_idle_lane_dispatched_at_once():
    engine, clock = FakeEngine(), FakeClock()
    async with running(engine, clock=clock) as batcher:
        answered = await submit(batcher, 0.25)

    assert engine.batches == [[0.25]]
    assert (value_of(answered), answered.batch_size) == (0.25, 1)
    assert (answered.queue_s, answered.run_s) == (0.0, 0.0)


async def test_batcher_items_queued_while_busy_become_one_batch():
    engine = FakeEngine()
    async with running(engine, max_batch_size=8) as batcher:
        tasks = [await occupy(batcher, engine, 0.0)]
        tasks += [submit(batcher, value) for value in (0.25, 0.5, 0.75)]
        await settle()
        engine.release()
        values = await values_of(tasks)

    assert values == [0.0, 0.25, 0.5, 0.75]
    assert engine.batches == [[0.0], [0.25, 0.5, 0.75]]


async def test_batcher_window_starts_at_the_first_entry_not_when_the_lane_became_idle():
    engine, clock = FakeEngine(), FakeClock()
    async with running(engine, clock=clock, max_batch_size=2, max_wait_s=60) as batcher:
        await settle()
        clock.advance(1000)
        first = submit(batcher, 0.25)
        await settle()
        alone = list(engine.batches)
        values = await values_of([first, submit(batcher, 0.5)])

    assert (alone, engine.batches, values) == ([], [[0.25, 0.5]], [0.25, 0.5])


async def test_batcher_window_that_passed_while_busy_is_not_waited_again():
    engine, clock = FakeEngine(), FakeClock()
    async with running(engine, clock=clock, max_batch_size=2, max_wait_s=60) as batcher:
        engine.hold()
        full = [submit(batcher, 0.25), submit(batcher, 0.375)]
        await run_started(engine)
        late = submit(batcher, 0.5)
        await settle()

        clock.advance(61)
        engine.release()
        values = await values_of([*full, late])

    assert values == [0.25, 0.375, 0.5]
    assert engine.batches[-1] == [0.5]


async def test_batcher_end_of_the_window_runs_a_partial_batch():
    engine = FakeEngine()
    async with running(engine, max_batch_size=8, max_wait_s=0.001) as batcher:
        answered = await submit(batcher, 0.5)

    assert (value_of(answered), engine.batches) == (0.5, [[0.5]])


async def test_batcher_entry_cancelled_in_window_never_run():
    engine, clock = FakeEngine(), FakeClock()
    async with running(engine, clock=clock, max_batch_size=2, max_wait_s=60) as batcher:
        gone = submit(batcher, 0.25)
        await settle()
        gone.cancel()
        values = await values_of([submit(batcher, 0.5), submit(batcher, 0.75)])

    assert values == [0.5, 0.75]
    assert [0.25] not in engine.batches
    assert gone.cancelled()


async def test_batcher_items_run_first_in_first_out():
    engine = FakeEngine()
    async with running(engine, max_batch_size=2) as batcher:
        tasks = [await occupy(batcher, engine)]
        tasks += [submit(batcher, number / 8) for number in range(1, 6)]
        await settle()
        engine.release()
        await values_of(tasks)

    assert [value * 8 for batch in engine.batches for value in batch] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("max_batch_size", [1, 3, 8], ids=["one", "three", "eight"])
async def test_batcher_many_items_never_exceed_max_batch_size(max_batch_size):
    engine = FakeEngine()
    async with running(engine, max_batch_size=max_batch_size, lanes=2) as batcher:
        values = await values_of([submit(batcher, number / 64) for number in range(50)])

    assert values == [number / 64 for number in range(50)]
    assert max(len(batch) for batch in engine.batches) <= max_batch_size


async def test_batcher_idle_lanes_set_no_timers_and_do_not_wake(monkeypatch):
    timers: list[object] = []
    dispatches: list[object] = []
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "call_at", lambda when, *_args, **_: timers.extend([when]))
    monkeypatch.setattr(Batcher, "_dispatch", dispatches.append)
    async with running(FakeEngine(), lanes=3):
        await settle()
        idle = (timers[:], dispatches[:])
        monkeypatch.undo()

    assert idle == ([], [])


async def test_batcher_two_lanes_run_at_the_same_time():
    engine = FakeEngine()
    async with running(engine, lanes=2) as batcher:
        tasks = [await occupy(batcher, engine, 0.25), await occupy(batcher, engine, 0.5)]
        at_once = list(engine.batches)
        engine.release()
        values = await values_of(tasks)

    assert (at_once, values) == ([[0.25], [0.5]], [0.25, 0.5])


async def test_batcher_each_run_reported_with_its_size():
    engine, reported = FakeEngine(), []
    async with running(engine, on_run=lambda _key, size, _run_s: reported.append(size)) as batcher:
        tasks = [await occupy(batcher, engine), submit(batcher, 0.25), submit(batcher, 0.5)]
        await settle()
        engine.release()
        await values_of(tasks)

    assert reported == [1, 2]


async def test_batcher_times_separate_queue_and_run():
    engine, clock = FakeEngine(), FakeClock()
    async with running(engine, clock=clock) as batcher:
        await occupy(batcher, engine)
        queued = submit(batcher, 0.5)
        await settle()
        clock.advance(2)
        engine.release()
        answered = await queued

    assert (answered.queue_s, answered.run_s) == (2.0, 0.0)


# Refused and dropped items


async def test_batcher_full_queue_refuses_at_once():
    engine = FakeEngine()
    async with running(engine, max_queue=2) as batcher:
        await occupy(batcher, engine)
        waiting = [submit(batcher, 0.25), submit(batcher, 0.5)]
        await settle()
        refused = submit(batcher, 0.75)
        await settle()

        assert (batcher.waiting, refused.done(), waiting[0].done()) == (2, True, False)
        with pytest.raises(Overloaded):
            await refused


async def test_batcher_cancelled_entry_frees_its_place_at_once():
    engine = FakeEngine()
    async with running(engine, max_queue=2) as batcher:
        held = await occupy(batcher, engine)
        first, second = submit(batcher, 0.25), submit(batcher, 0.5)
        await settle()

        second.cancel()
        await settle()
        third = submit(batcher, 0.75)
        await settle()
        engine.release()
        values = await values_of([held, first, third])

    assert values == [0.0, 0.25, 0.75]
    assert engine.batches == [[0.0], [0.25, 0.75]]


async def test_batcher_expired_entry_dropped_before_run():
    engine, clock = FakeEngine(), FakeClock()
    async with running(engine, clock=clock) as batcher:
        held = await occupy(batcher, engine)
        expired = submit(batcher, 0.25, deadline_s=clock() + 1)
        fresh = submit(batcher, 0.5, deadline_s=clock() + 100)
        await settle()

        clock.advance(2)
        engine.release()
        values = await values_of([held, expired, fresh])

    assert values == [0.0, "DeadlineExceeded", 0.5]
    assert engine.batches == [[0.0], [0.5]]


async def test_batcher_batch_of_expired_entries_is_not_run():
    engine, clock = FakeEngine(), FakeClock()
    async with running(engine, clock=clock) as batcher:
        with pytest.raises(DeadlineExceeded):
            await submit(batcher, 0.25, deadline_s=clock() - 1)

    assert engine.batches == []


async def test_batcher_entry_expired_in_window_dropped_before_run():
    engine, clock = FakeEngine(), FakeClock()
    async with running(engine, clock=clock, max_batch_size=2, max_wait_s=60) as batcher:
        expired = submit(batcher, 0.25, deadline_s=clock() + 1)
        await settle()

        clock.advance(2)
        fresh = submit(batcher, 0.5)
        await settle()
        clock.advance(60)
        values = await values_of([expired, fresh, submit(batcher, 0.75)])

    assert values == ["DeadlineExceeded", 0.5, 0.75]
    assert 0.25 not in [value for batch in engine.batches for value in batch]


async def test_batcher_not_started_refuses_and_is_not_alive():
    batcher = Batcher(ThreadLaneFactory(), BatchLimits())

    assert not batcher.alive
    with pytest.raises(ModelNotReady, match=r"^the model cannot run now; try again$"):
        await batcher.submit(FakeVersion(FakeEngine()), np.zeros(1, np.float32), NEVER)


# Failures and cancellations


async def test_batcher_item_cancelled_in_the_queue_does_not_affect_others():
    engine = FakeEngine()
    async with running(engine) as batcher:
        tasks = [await occupy(batcher, engine)]
        tasks += [submit(batcher, value) for value in (0.25, 0.5, 0.75)]
        await settle()
        tasks[1].cancel()
        engine.release()
        values = await values_of(tasks)

    assert values == [0.0, "CancelledError", 0.5, 0.75]
    assert engine.batches == [[0.0], [0.5, 0.75]]


async def test_batcher_item_cancelled_during_a_run_does_not_affect_others():
    engine = FakeEngine()
    async with running(engine, max_batch_size=3, max_wait_s=60) as batcher:
        engine.hold()
        tasks = [submit(batcher, value) for value in (0.25, 0.5, 0.75)]
        await run_started(engine)

        tasks[0].cancel()
        await settle()
        engine.release()
        values = await values_of(tasks)
        after = await values_of([submit(batcher, value) for value in (0.125, 0.375, 0.625)])

    assert values == ["CancelledError", 0.5, 0.75]
    assert (engine.batches[0], after) == ([0.25, 0.5, 0.75], [0.125, 0.375, 0.625])


async def test_batcher_item_without_memory_to_run_it_is_refused_alone():
    engine = FakeEngine()
    engine.not_enough_memory = {0.5}
    async with running(engine) as batcher:
        tasks = [await occupy(batcher, engine)]
        tasks += [submit(batcher, value) for value in (0.25, 0.5)]
        await settle()
        engine.release()

        assert await values_of(tasks) == [0.0, 0.25, "Overloaded"]


async def test_batcher_poisoned_item_fails_alone_after_retries_one_by_one():
    engine = FakeEngine()
    engine.poison = {0.5}
    async with running(engine) as batcher:
        tasks = [await occupy(batcher, engine)]
        tasks += [submit(batcher, value) for value in (0.25, 0.5, 0.75)]
        await settle()
        engine.release()
        values = await values_of(tasks)

    assert values == [0.0, 0.25, "EngineFailure", 0.75]
    assert engine.batches == [[0.0], [0.25, 0.5, 0.75], [0.25], [0.5], [0.75]]


async def test_batcher_failed_run_does_not_affect_other_batches():
    engine = FakeEngine()
    engine.poison = {0.25}
    async with running(engine, max_batch_size=1) as batcher:
        values = await values_of([submit(batcher, value) for value in (0.125, 0.25, 0.5)])

        assert values == [0.125, "EngineFailure", 0.5]
        assert batcher.alive


async def test_batcher_item_cancelled_during_a_failed_run_is_not_retried():
    engine = FakeEngine()
    engine.poison = {0.5}
    async with running(engine) as batcher:
        await occupy(batcher, engine)
        tasks = [submit(batcher, value) for value in (0.25, 0.5)]
        await settle()
        loop, cancelled = asyncio.get_running_loop(), threading.Event()
        tasks[0].add_done_callback(lambda _: cancelled.set())

        def cancel_and_answer(batch):
            if len(batch) > 1:
                loop.call_soon_threadsafe(tasks[0].cancel)
                cancelled.wait()
            return engine._answer(batch)

        engine.answer = cancel_and_answer
        engine.release()
        values = await values_of(tasks)

    assert values == ["CancelledError", "EngineFailure"]
    assert engine.batches == [[0.0], [0.25, 0.5], [0.5]]


@pytest.mark.parametrize(
    "answer",
    [lambda scores: scores[:-1], lambda scores: np.vstack([scores, scores]), lambda s: s[:, 0]],
    ids=["too_few", "too_many", "one_dimension"],
)
async def test_batcher_wrong_row_count_fails_the_run_and_retries_items_one_by_one(answer):
    engine = FakeEngine()
    engine.answer = lambda batch: (
        answer(engine._answer(batch)) if len(batch) > 1 else engine._answer(batch)
    )

    async with running(engine) as batcher:
        await occupy(batcher, engine)
        tasks = [submit(batcher, 0.25), submit(batcher, 0.5)]
        await settle()
        engine.release()
        values = await values_of(tasks)

    assert values == [0.25, 0.5]
    assert engine.batches == [[0.0], [0.25, 0.5], [0.25], [0.5]]


async def test_batcher_wrong_row_count_of_single_item_fails_it():
    engine = FakeEngine()
    engine.answer = lambda batch: engine._answer(batch)[:0]
    async with running(engine) as batcher:
        with pytest.raises(EngineFailure):
            await submit(batcher, 0.5)


async def test_batcher_non_finite_row_fails_only_its_item():
    engine = FakeEngine()
    engine.not_finite = {0.5}
    async with running(engine) as batcher:
        tasks = [await occupy(batcher, engine)]
        tasks += [submit(batcher, value) for value in (0.25, 0.5, 0.75)]
        await settle()
        engine.release()
        values = await values_of(tasks)

    assert values == [0.0, 0.25, "EngineFailure", 0.75]
    assert engine.batches == [[0.0], [0.25, 0.5, 0.75]]


async def test_batcher_rows_of_different_shapes_fail_alone():
    engine = FakeEngine()
    async with running(engine) as batcher:
        await occupy(batcher, engine)
        odd = asyncio.create_task(batcher.submit(np.zeros((2, 2), np.float32), NEVER))
        good = submit(batcher, 0.5)
        await settle()
        engine.release()
        values = await values_of([odd, good])

    assert values == ["EngineFailure", 0.5]


async def test_batcher_two_thousand_items_with_random_cancels_never_mixed_up():
    engine = FakeEngine()
    victims = random.Random(5).sample(range(2000), 300)  # noqa: S311 - repeatable

    async with running(engine, lanes=2, max_queue=2000) as batcher:
        tasks = {number: submit(batcher, number / 4096) for number in range(2000)}
        cancelled = set()
        for victim in victims:
            await asyncio.sleep(0)
            if tasks[victim].cancel():
                cancelled.add(victim)

        values = await values_of(list(tasks.values()))

    expected = ["CancelledError" if n in cancelled else n / 4096 for n in range(2000)]
    assert cancelled
    assert values == expected


# Drain and stop


async def test_batcher_drain_finishes_accepted_and_refuses_new():
    engine = FakeEngine()
    async with running(engine, max_batch_size=1) as batcher:
        tasks = [await occupy(batcher, engine), submit(batcher, 0.25), submit(batcher, 0.5)]
        await settle()

        draining = asyncio.create_task(batcher.drain())
        await settle()
        late = submit(batcher, 0.75)
        engine.release()
        values = await values_of([*tasks, late])
        await draining

    assert values == [0.0, 0.25, 0.5, "Draining"]


async def test_batcher_drain_ends_the_window_early():
    engine, clock = FakeEngine(), FakeClock()
    async with running(engine, clock=clock, max_batch_size=2, max_wait_s=60) as batcher:
        waiting = submit(batcher, 0.5)
        await settle()
        await batcher.drain()

        assert value_of(await waiting) == 0.5


async def test_batcher_drain_that_is_cancelled_leaves_lanes_running():
    engine = FakeEngine()
    async with running(engine) as batcher:
        held = await occupy(batcher, engine)
        draining = asyncio.create_task(batcher.drain())
        await settle()
        draining.cancel()
        await settle()
        engine.release()

        assert value_of(await held) == 0.0


async def test_batcher_stop_in_time_returns_true():
    engine = FakeEngine()
    async with running(engine) as batcher:
        answered = await submit(batcher, 0.5)

        assert (await batcher.stop(), batcher.alive) == (True, False)
        assert value_of(answered) == 0.5


async def test_batcher_stop_with_a_blocked_engine_ends_in_time_and_fails_the_remaining_items():
    engine = FakeEngine()
    async with running(engine, max_batch_size=1) as batcher:
        tasks = [await occupy(batcher, engine), submit(batcher, 0.25)]
        await settle()
        finished = await batcher.stop(timeout_s=0.01)
        values = await values_of(tasks)

    assert not finished
    assert values == ["EngineFailure", "Draining"]
    assert (engine.batches, batcher.waiting) == ([[0.0]], 0)


async def test_batcher_stop_with_zero_timeout_fails_the_entry_in_the_window():
    engine, clock = FakeEngine(), FakeClock()
    async with running(engine, clock=clock, max_batch_size=2, max_wait_s=60) as batcher:
        waiting = submit(batcher, 0.5)
        await settle()
        await batcher.stop(timeout_s=0)
        (value,) = await values_of([waiting])

    assert value == "Draining"


async def test_batcher_engine_raising_stop_iteration_fails_only_its_item():
    engine = FakeEngine()
    engine.answer = raising(StopIteration())
    async with running(engine) as batcher:
        (value,) = await values_of([submit(batcher, 0.5)])

        assert (value, batcher.alive) == ("EngineFailure", True)


# Recipes


async def test_batcher_recipe_runs_on_the_lane():
    engine = FakeEngine()

    def recipe() -> NDArray[Any]:
        made_on.append(threading.current_thread().name)
        return np.array([0.25], np.float32)

    made_on: list[str] = []
    async with running(engine) as batcher:
        answered = await batcher.submit(recipe, NEVER)

    assert (value_of(answered), made_on) == (0.25, ["lane"])


@pytest.mark.parametrize(
    ("error", "answer"),
    [(ValueError("bad"), "ValueError"), (StopIteration(), "RuntimeError")],
    ids=["error", "stop"],
)
async def test_batcher_recipe_that_fails_does_not_affect_other_items(error, answer):
    def recipe() -> NoReturn:
        raise error

    engine = FakeEngine()
    async with running(engine) as batcher:
        await occupy(batcher, engine)
        bad = asyncio.create_task(batcher.submit(recipe, NEVER))
        good = submit(batcher, 0.5)
        await settle()
        engine.release()
        values = await values_of([bad, good])

    assert (values, engine.batches) == ([answer, 0.5], [[0.0], [0.5]])


# Expected time


async def test_batcher_expected_time_follows_the_queue_and_the_last_runs():
    engine, clock = FakeEngine(), FakeClock()
    async with running(engine, clock=clock, max_batch_size=1) as batcher:
        unknown = batcher.expected_s()
        first = await occupy(batcher, engine)
        clock.advance(2)
        engine.release()
        await first
        idle = batcher.expected_s()

        await occupy(batcher, engine)
        _queued = submit(batcher, 0.5)
        await settle()
        with_queue = batcher.expected_s()

    assert (unknown, idle, with_queue) == (0.0, 0.0, 6.0)


# Batches ahead


async def test_batcher_busy_lane_has_one_full_batch_ahead_and_no_more():
    engine = FakeEngine()
    async with running(engine, max_batch_size=2) as batcher:
        tasks = [await occupy(batcher, engine)]
        tasks += [submit(batcher, value) for value in (0.25, 0.5, 0.75)]
        await settle()
        waiting = batcher.waiting
        engine.release()
        values = await values_of(tasks)

    assert (waiting, values) == (1, [0.0, 0.25, 0.5, 0.75])
    assert engine.batches == [[0.0], [0.25, 0.5], [0.75]]


async def test_batcher_expired_batch_ahead_is_not_run():
    engine, clock = FakeEngine(), FakeClock()
    async with running(engine, clock=clock, max_batch_size=1) as batcher:
        held = await occupy(batcher, engine)
        expired = submit(batcher, 0.25, deadline_s=clock() + 1)
        await settle()
        clock.advance(2)
        engine.release()
        values = await values_of([held, expired])

    assert (values, engine.batches) == ([0.0, "DeadlineExceeded"], [[0.0]])
