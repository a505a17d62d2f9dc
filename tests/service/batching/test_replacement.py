"""Replacement of lanes that are lost, retire or hang, and what happens to their pictures."""

from __future__ import annotations

import asyncio
import logging

import pytest

from service.batching.lane import RestartReason
from service.batching.lanes import MAX_BACKOFF_S, OVERDUE_S
from tests.fakes import FakeEngine, FakeVersion
from tests.service.batching.fakelanes import Rig, new_rig, outcome_of, outcomes_of
from tests.service.batching.harness import settle

pytestmark = pytest.mark.anyio

# Lanes that are lost


async def test_lost_lane_fails_only_its_own_pictures():
    async with new_rig(2) as rig:
        (lost,) = await rig.submit(1)
        (kept,) = await rig.submit(2)
        (waits,) = await rig.submit(3)
        rig.lanes[0].lose()
        await settle()
        rig.lanes[1].answer()
        rig.lanes[2].answer()

        assert await outcomes_of([lost, kept, waits]) == ["WorkerLost", 2.0, 3.0]
        assert (rig.replaced, rig.lanes[0].closed) == ([RestartReason.EXITED], True)


async def test_lost_lane_is_replaced_at_once():
    async with new_rig() as rig:
        rig.lanes[0].lose()
        await settle()
        (task,) = await rig.submit(1)
        rig.lanes[1].answer()

        assert (await outcome_of(task), rig.delays, rig.batcher.n_ready) == (1.0, [], 1)


async def test_pictures_wait_while_a_lost_lane_is_being_replaced():
    async with new_rig(slow=True) as rig:
        rig.lanes[0].become_ready()
        rig.lanes[0].lose()
        (task,) = await rig.submit(1)
        before = (rig.batcher.n_ready, rig.batcher.waiting)
        rig.lanes[1].become_ready()
        rig.lanes[1].answer()

        assert (before, await outcome_of(task)) == ((0, 1), 1.0)


async def lose_all(rig: Rig, times: int) -> list[float]:
    """Loses the newest lane repeatedly, and returns the delay before each start."""
    delays = []
    for _ in range(times):
        rig.lanes[-1].lose()
        delays += rig.delays or [0.0]
        await rig.fire()
    return delays


async def test_lanes_lost_before_any_run_are_replaced_with_growing_delays():
    async with new_rig() as rig:
        delays = await lose_all(rig, 13)

        assert delays[:5] == [0.0, 0.1, 0.2, 0.4, 0.8]
        assert (delays[-1], len(rig.lanes)) == (MAX_BACKOFF_S, 14)
        assert rig.replaced == [RestartReason.EXITED] * 13


async def test_lanes_that_do_not_start_are_replaced_with_growing_delays():
    async with new_rig(slow=True) as rig:
        delays = []
        for _ in range(4):
            rig.lanes[-1].lose(RestartReason.NOT_STARTED)
            delays += rig.delays or [0.0]
            await rig.fire()

        assert delays == [0.0, 0.1, 0.2, 0.4]
        assert rig.replaced == [RestartReason.NOT_STARTED] * 4


@pytest.mark.parametrize(("runs", "delay_s"), [(True, 0.0), (False, 0.4)], ids=["run", "no_run"])
async def test_lane_that_ran_a_batch_resets_the_backoff(runs, delay_s):
    async with new_rig() as rig:
        await lose_all(rig, 3)
        (task,) = await rig.submit(1)
        rig.lanes[-1].answer(runs=runs)

        assert await outcome_of(task) == 1.0
        assert await lose_all(rig, 1) == [delay_s]


async def test_lanes_in_other_slots_are_not_held_up():
    async with new_rig(2) as rig:
        await lose_all(rig, 3)
        rig.lanes[0].lose()
        await settle()

        assert (rig.delays, rig.batcher.n_ready) == ([], 2)


async def test_lanes_unavailable_refuse_at_once_and_recover():
    async with new_rig() as rig:
        await lose_all(rig, 5)
        (held,) = await rig.submit(1)
        (waits,) = await rig.submit(2)

        before = rig.batcher.unavailable
        rig.lanes[-1].lose()
        (refused,) = await rig.submit(3)
        outcomes = await outcomes_of([held, waits, refused])
        after = (rig.batcher.unavailable, rig.batcher.alive)

        await rig.fire()
        (answered,) = await rig.submit(4)
        rig.lanes[-1].answer()

        assert outcomes == ["WorkerLost", "ModelNotReady", "ModelNotReady"]
        assert (before, after) == (False, (True, True)), "a new process would not help"
        assert (await outcome_of(answered), rig.batcher.unavailable) == (4.0, False)


async def test_lanes_are_available_while_one_works():
    async with new_rig(2) as rig:
        await lose_all(rig, 6)
        rig.lanes[-1].lose()
        (task,) = await rig.submit(1)
        rig.lanes[0].answer()

        assert await outcome_of(task) == 1.0


# Lanes that ask to be replaced


async def test_retiring_lane_works_until_its_successor_is_ready_and_then_closes():
    async with new_rig(slow=True) as rig:
        old = rig.lanes[0]
        old.become_ready()
        (first,) = await rig.submit(1)
        old.retire()
        old.answer()
        (second,) = await rig.submit(2)
        in_both = ([lane.values for lane in rig.lanes], rig.replaced)

        rig.lanes[1].become_ready()
        (third,) = await rig.submit(3)
        open_while_busy = not old.closed
        old.answer()
        rig.lanes[1].answer()

        assert in_both == ([[2.0], []], [RestartReason.TERMINATED])
        assert await outcomes_of([first, second, third]) == [1.0, 2.0, 3.0]
        assert (open_while_busy, old.closed, rig.batcher.n_ready) == (True, True, 1)


async def test_retiring_lane_without_work_is_closed_when_its_successor_is_ready():
    async with new_rig(slow=True) as rig:
        rig.lanes[0].become_ready()
        rig.lanes[0].retire(RestartReason.MEMORY)
        before = rig.lanes[0].closed
        rig.lanes[1].become_ready()

        assert (before, rig.lanes[0].closed, rig.replaced) == (
            False,
            True,
            [RestartReason.MEMORY],
        )


async def test_retiring_lanes_are_replaced_one_at_a_time():
    """Each successor uses extra memory until the old lane closes."""
    async with new_rig(3, slow=True) as rig:
        for lane in rig.lanes:
            lane.become_ready()

        first, second, _ = rig.lanes
        for lane in (first, second, first):
            lane.retire()
        at_once = len(rig.lanes) - 3
        rig.lanes[3].become_ready()
        second.retire()

        assert (at_once, len(rig.lanes), rig.batcher.n_ready) == (1, 5, 3)
        assert (first.closed, second.closed) == (True, False)


async def test_retiring_lane_too_large_is_replaced_once_a_minute_in_one_slot():
    """A lane that is too large from the start would otherwise be replaced continually."""
    async with new_rig() as rig:
        counts = []
        for seconds in (0, 1, 58, 1):
            rig.clock.advance(seconds)
            rig.lanes[-1].retire(RestartReason.MEMORY)
            await settle()
            counts.append(len(rig.lanes) - 1)

        assert counts == [1, 1, 1, 2]


async def test_retiring_lanes_in_other_slots_do_not_wait_for_that_minute():
    async with new_rig(2) as rig:
        for lane in list(rig.lanes):
            lane.retire(RestartReason.MEMORY)
            await settle()

        assert (len(rig.lanes), rig.replaced) == (4, [RestartReason.MEMORY] * 2)


async def test_retiring_lane_whose_successor_is_lost_keeps_working_and_gets_another():
    async with new_rig(slow=True) as rig:
        rig.lanes[0].become_ready()
        rig.lanes[0].retire()
        rig.lanes[1].lose(RestartReason.NOT_STARTED)
        (task,) = await rig.submit(1)
        rig.lanes[0].answer()
        alone = len(rig.lanes)

        rig.clock.advance(5)
        rig.lanes[0].retire()
        rig.lanes[2].become_ready()

        assert (await outcome_of(task), alone, rig.delays) == (1.0, 2, [])
        assert (rig.lanes[0].closed, rig.batcher.n_ready) == (True, 1)


async def test_retiring_lane_whose_successors_do_not_start_waits_between_attempts():
    async with new_rig(slow=True) as rig:
        rig.lanes[0].become_ready()
        for _ in range(60 * 4):
            rig.lanes[0].retire()  # at every check
            if not rig.lanes[-1].ready and not rig.lanes[-1].dead:
                rig.lanes[-1].lose(RestartReason.NOT_STARTED)
            rig.clock.advance(0.25)

        assert (len(rig.lanes) - 1, rig.batcher.n_ready) == (12, 1)


async def test_retiring_lane_that_is_lost_leaves_its_slot_to_its_successor():
    async with new_rig(slow=True) as rig:
        rig.lanes[0].become_ready()
        rig.lanes[0].retire()
        rig.lanes[0].lose()
        (task,) = await rig.submit(1)
        rig.lanes[1].become_ready()
        rig.lanes[1].answer()

        assert (await outcome_of(task), len(rig.lanes)) == (1.0, 2)


async def test_retiring_lane_lost_together_with_its_successor_is_replaced():
    async with new_rig(slow=True) as rig:
        rig.lanes[0].become_ready()
        rig.lanes[0].retire()
        rig.lanes[0].lose()
        rig.lanes[1].lose(RestartReason.NOT_STARTED)

        assert (len(rig.lanes), rig.batcher.unavailable) == (3, False)


@pytest.mark.parametrize("ends", ["lost", "hangs"])
async def test_retiring_lane_that_ends_while_it_finishes_is_not_replaced_twice(ends):
    async with new_rig() as rig:
        (task,) = await rig.submit(1, deadline_s=rig.clock() + 2)
        old = rig.lanes[0]
        old.retire()
        await settle()

        if ends == "lost":
            old.lose()
        else:
            await rig.pass_time(2 + OVERDUE_S + 0.5)

        assert (await outcome_of(task), old.closed) == ("WorkerLost", True)
        assert (len(rig.lanes), rig.batcher.n_ready) == (2, 1)


# Lanes that hang


async def test_overdue_batch_ends_its_lane_at_the_second_check():
    async with new_rig() as rig:
        (task,) = await rig.submit(1, deadline_s=rig.clock() + 2)
        await rig.pass_time(2 + OVERDUE_S + 0.25)
        after_one = task.done()
        await rig.pass_time(0.25)

        assert (after_one, await outcome_of(task)) == (False, "WorkerLost")
        assert (rig.replaced, rig.batcher.n_ready) == ([RestartReason.OVERDUE], 1)


async def test_batch_is_overdue_after_the_earliest_of_its_deadlines():
    async with new_rig() as rig:
        (held,) = await rig.submit(0)
        tasks = await rig.submit(1)
        tasks += await rig.submit(2, deadline_s=rig.clock() + 3)
        rig.lanes[0].answer()
        await held
        await rig.pass_time(3 + OVERDUE_S + 0.5)

        assert await outcomes_of(tasks) == ["WorkerLost"] * 2


async def test_overdue_lane_gets_no_new_batch_but_others_do():
    async with new_rig(2) as rig:
        await rig.submit(1, deadline_s=rig.clock() + 2)
        rig.clock.advance(2 + OVERDUE_S + 0.01)
        await rig.submit(2)
        await rig.submit(3)

        assert [lane.values for lane in rig.lanes] == [[1.0], [2.0]]


@pytest.mark.parametrize(
    ("load_s", "deadline_s", "due_s"),
    [(0.0, 1e9, 30.0), (10.0, 0.1, 21.0), (0.25, 0.1, 1.5), (100.0, 0.1, 30.0)],
    ids=["far_deadline", "loading_was_slow", "loading_was_fast", "loading_took_very_long"],
)
async def test_batch_is_due_at_the_earliest_safe_time(load_s, deadline_s, due_s):
    """Before the first run, the loading time shows how long a run may take on this machine."""
    async with new_rig() as rig:
        version = FakeVersion(FakeEngine(), load_s=load_s)
        await rig.submit(1, version=version, deadline_s=rig.clock() + deadline_s)
        (job,) = rig.lanes[0].jobs

        assert job.due_s - rig.clock() == pytest.approx(due_s)


async def test_batch_is_due_after_twice_the_slowest_recent_run():
    async with new_rig() as rig:
        for took_s in (1, 5, 1):
            await rig.submit(1)
            rig.clock.advance(took_s)
            rig.lanes[0].answer()
        await rig.submit(2, deadline_s=rig.clock() + 0.5)
        (job,) = rig.lanes[0].jobs

        assert job.due_s - rig.clock() == pytest.approx(2 * 5 + OVERDUE_S)


async def test_lanes_are_checked_by_one_timer_after_a_lane_was_replaced():
    """A second timer would find a batch overdue at two checks at the same moment."""
    async with new_rig() as rig:
        await rig.submit(1, deadline_s=rig.clock() + 2)
        await rig.submit(2)
        await rig.pass_time(2 + OVERDUE_S + 0.5)

        assert (rig.replaced, rig.n_checks) == ([RestartReason.OVERDUE], 1)


# Drain and stop


async def test_stop_while_lanes_start_closes_every_lane():
    async with new_rig(4, slow=True) as rig:
        for lane in rig.lanes[:3]:
            lane.become_ready()
        rig.lanes[0].retire()  # its successor is being started
        for _ in range(2):
            rig.lanes[-1 if len(rig.lanes) > 5 else 1].lose()  # waits for its next start
        assert (len(rig.lanes), rig.delays) == (6, [0.1])
        await rig.batcher.stop()
        await rig.fire()

        assert (len(rig.lanes), [lane.closed for lane in rig.lanes]) == (6, [True] * 6)


async def test_stop_fails_running_and_waiting_pictures_and_ends_every_lane():
    async with new_rig(2, slow=True) as rig:
        for lane in rig.lanes:
            lane.become_ready()

        tasks = await rig.submit(1)
        rig.lanes[0].retire()  # a lane lost during the stop must not be replaced by its successor
        rig.lanes[2].become_ready()
        tasks += await rig.submit(2)
        rig.lanes[2].retire()
        tasks += await rig.submit(3, 4)

        assert not await rig.batcher.stop(0)
        assert await outcomes_of(tasks) == [*["WorkerLost"] * 3, "Draining"]
        assert [lane.closed for lane in rig.lanes] == [True] * 4
        assert rig.replaced == [RestartReason.TERMINATED] * 2


async def test_drain_finishes_accepted_pictures_without_new_lanes():
    async with new_rig(2) as rig:
        tasks = [*await rig.submit(1), *await rig.submit(2), *await rig.submit(3)]

        draining = asyncio.create_task(rig.batcher.drain())
        await settle()
        rig.lanes[0].retire()
        rig.lanes[0].lose()
        rig.lanes[1].answer()
        await settle()
        rig.lanes[1].answer()
        await draining

        assert await outcomes_of(tasks) == ["WorkerLost", 2.0, 3.0]
        assert (len(rig.lanes), rig.replaced) == (2, [])


# Everything at once


async def test_two_thousand_pictures_with_dying_lanes_are_never_mixed_up(caplog):
    caplog.set_level(logging.CRITICAL)
    async with new_rig(3, max_queue=2000) as rig:
        tasks = await rig.submit(*range(2000))

        turns = 0
        while not all(task.done() for task in tasks):
            turns += 1
            busy = [lane for lane in rig.lanes if lane.jobs and not lane.dead]
            for place, lane in enumerate(busy):
                if (turns + place) % 7 == 0:
                    lane.lose()
                elif (turns + place) % 11 == 0:
                    lane.retire()
                else:
                    lane.answer()
            await rig.fire()

        outcomes = await outcomes_of(tasks)

    lost = [number for number, outcome in enumerate(outcomes) if outcome == "WorkerLost"]
    answered = {number: value for number, value in enumerate(outcomes) if number not in set(lost)}
    assert answered == {number: float(number) for number in answered}

    n_lost, n_retired = map(rig.replaced.count, (RestartReason.EXITED, RestartReason.TERMINATED))
    assert 1 <= n_lost <= len(lost) <= 8 * (n_lost + n_retired), (
        "a retiring lane can be lost as well"
    )
    assert n_retired >= 1
