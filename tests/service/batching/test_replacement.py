"""Replacement of lanes that are lost, retire or hang, and what happens to their pictures."""

from __future__ import annotations

import asyncio
import logging

import pytest

from service.batching.lane import RestartReason
from service.batching.lanes import MAX_BACKOFF_S, OVERDUE_S
from tests.fakes import FakeEngine, FakeVersion
from tests.service.batching.fakelanes import Rig, outcome_of, outcomes_of, rig
from tests.service.batching.harness import settle

pytestmark = pytest.mark.anyio

# Lanes that are lost


async def test_lost_lane_fails_only_its_own_pictures():
    async with rig(2) as made:
        (lost,) = await made.ask(1)
        (kept,) = await made.ask(2)
        (waits,) = await made.ask(3)
        made.lanes[0].lose()
        await settle()
        made.lanes[1].answer()
        made.lanes[2].answer()

        assert await outcomes_of([lost, kept, waits]) == ["WorkerLost", 2.0, 3.0]
        assert (made.replaced, made.lanes[0].closed) == ([RestartReason.EXITED], True)


async def test_lost_lane_is_replaced_at_once():
    async with rig() as made:
        made.lanes[0].lose()
        await settle()
        (task,) = await made.ask(1)
        made.lanes[1].answer()

        assert (await outcome_of(task), made.delays, made.batcher.n_ready) == (1.0, [], 1)


async def test_lost_lane_pictures_wait_while_it_is_being_replaced():
    async with rig(slow=True) as made:
        made.lanes[0].become_ready()
        made.lanes[0].lose()
        (task,) = await made.ask(1)
        before = (made.batcher.n_ready, made.batcher.waiting)
        made.lanes[1].become_ready()
        made.lanes[1].answer()

        assert (before, await outcome_of(task)) == ((0, 1), 1.0)


async def lose_all(made: Rig, times: int) -> list[float]:
    """Loses the newest lane repeatedly, and returns the delay before each start."""
    delays = []
    for _ in range(times):
        made.lanes[-1].lose()
        delays += made.delays or [0.0]
        await made.fire()
    return delays


async def test_lanes_lost_before_any_run_are_replaced_with_growing_delays():
    async with rig() as made:
        delays = await lose_all(made, 13)

        assert delays[:5] == [0.0, 0.1, 0.2, 0.4, 0.8]
        assert (delays[-1], len(made.lanes)) == (MAX_BACKOFF_S, 14)
        assert made.replaced == [RestartReason.EXITED] * 13


async def test_lanes_that_do_not_start_are_replaced_with_growing_delays():
    async with rig(slow=True) as made:
        delays = []
        for _ in range(4):
            made.lanes[-1].lose(RestartReason.NOT_STARTED)
            delays += made.delays or [0.0]
            await made.fire()

        assert delays == [0.0, 0.1, 0.2, 0.4]
        assert made.replaced == [RestartReason.NOT_STARTED] * 4


@pytest.mark.parametrize(("runs", "delay_s"), [(True, 0.0), (False, 0.4)], ids=["run", "no_run"])
async def test_lane_that_ran_something_resets_the_backoff(runs, delay_s):
    async with rig() as made:
        await lose_all(made, 3)
        (task,) = await made.ask(1)
        made.lanes[-1].answer(runs=runs)

        assert await outcome_of(task) == 1.0
        assert await lose_all(made, 1) == [delay_s]


async def test_lanes_in_other_slots_are_not_held_up():
    async with rig(2) as made:
        await lose_all(made, 3)
        made.lanes[0].lose()
        await settle()

        assert (made.delays, made.batcher.n_ready) == ([], 2)


async def test_lanes_unavailable_refuse_at_once_and_recover():
    async with rig() as made:
        await lose_all(made, 5)
        (held,) = await made.ask(1)
        (waits,) = await made.ask(2)
        before = made.batcher.unavailable
        made.lanes[-1].lose()
        (refused,) = await made.ask(3)
        outcomes = await outcomes_of([held, waits, refused])
        after = (made.batcher.unavailable, made.batcher.alive)
        await made.fire()
        (answered,) = await made.ask(4)
        made.lanes[-1].answer()

        assert outcomes == ["WorkerLost", "ModelNotReady", "ModelNotReady"]
        assert (before, after) == (False, (True, True)), "a new process would not help"
        assert (await outcome_of(answered), made.batcher.unavailable) == (4.0, False)


async def test_lanes_are_available_while_one_works():
    async with rig(2) as made:
        await lose_all(made, 6)
        made.lanes[-1].lose()
        (task,) = await made.ask(1)
        made.lanes[0].answer()

        assert await outcome_of(task) == 1.0


# Lanes that ask to be replaced


async def test_retiring_lane_works_until_its_successor_is_ready_and_then_finishes():
    async with rig(slow=True) as made:
        old = made.lanes[0]
        old.become_ready()
        (first,) = await made.ask(1)
        old.retire()
        old.answer()
        (second,) = await made.ask(2)
        in_both = ([lane.values for lane in made.lanes], made.replaced)
        made.lanes[1].become_ready()
        (third,) = await made.ask(3)
        open_while_busy = not old.closed
        old.answer()
        made.lanes[1].answer()

        assert in_both == ([[2.0], []], [RestartReason.TERMINATED])
        assert await outcomes_of([first, second, third]) == [1.0, 2.0, 3.0]
        assert (open_while_busy, old.closed, made.batcher.n_ready) == (True, True, 1)


async def test_retiring_lane_without_work_is_closed_when_its_successor_is_ready():
    async with rig(slow=True) as made:
        made.lanes[0].become_ready()
        made.lanes[0].retire(RestartReason.MEMORY)
        before = made.lanes[0].closed
        made.lanes[1].become_ready()

        assert (before, made.lanes[0].closed, made.replaced) == (
            False,
            True,
            [RestartReason.MEMORY],
        )


async def test_retiring_lanes_are_replaced_one_at_a_time():
    """Each successor costs memory while both are there."""
    async with rig(3, slow=True) as made:
        for lane in made.lanes:
            lane.become_ready()
        first, second, _ = made.lanes
        for lane in (first, second, first):
            lane.retire()
        at_once = len(made.lanes) - 3
        made.lanes[3].become_ready()
        second.retire()

        assert (at_once, len(made.lanes), made.batcher.n_ready) == (1, 5, 3)
        assert (first.closed, second.closed) == (True, False)


async def test_retiring_lane_too_large_is_replaced_once_a_minute_in_one_slot():
    """One that is too large from the start would otherwise be replaced all the time."""
    async with rig() as made:
        counts = []
        for seconds in (0, 1, 58, 1):
            made.clock.advance(seconds)
            made.lanes[-1].retire(RestartReason.MEMORY)
            await settle()
            counts.append(len(made.lanes) - 1)

        assert counts == [1, 1, 1, 2]


async def test_retiring_lanes_in_other_slots_need_not_wait_for_that_minute():
    async with rig(2) as made:
        for lane in list(made.lanes):
            lane.retire(RestartReason.MEMORY)
            await settle()

        assert (len(made.lanes), made.replaced) == (4, [RestartReason.MEMORY] * 2)


async def test_retiring_lane_whose_successor_is_lost_works_on_and_gets_another():
    async with rig(slow=True) as made:
        made.lanes[0].become_ready()
        made.lanes[0].retire()
        made.lanes[1].lose(RestartReason.NOT_STARTED)
        (task,) = await made.ask(1)
        made.lanes[0].answer()
        alone = len(made.lanes)
        made.clock.advance(5)
        made.lanes[0].retire()
        made.lanes[2].become_ready()

        assert (await outcome_of(task), alone, made.delays) == (1.0, 2, [])
        assert (made.lanes[0].closed, made.batcher.n_ready) == (True, 1)


async def test_retiring_lane_whose_successors_do_not_start_does_not_try_without_pause():
    async with rig(slow=True) as made:
        made.lanes[0].become_ready()
        for _ in range(60 * 4):
            made.lanes[0].retire()  # at every check
            if not made.lanes[-1].ready and not made.lanes[-1].dead:
                made.lanes[-1].lose(RestartReason.NOT_STARTED)
            made.clock.advance(0.25)

        assert (len(made.lanes) - 1, made.batcher.n_ready) == (12, 1)


async def test_retiring_lane_that_is_lost_meanwhile_leaves_its_slot_to_its_successor():
    async with rig(slow=True) as made:
        made.lanes[0].become_ready()
        made.lanes[0].retire()
        made.lanes[0].lose()
        (task,) = await made.ask(1)
        made.lanes[1].become_ready()
        made.lanes[1].answer()

        assert (await outcome_of(task), len(made.lanes)) == (1.0, 2)


async def test_retiring_lane_and_its_successor_lost_both_are_replaced():
    async with rig(slow=True) as made:
        made.lanes[0].become_ready()
        made.lanes[0].retire()
        made.lanes[0].lose()
        made.lanes[1].lose(RestartReason.NOT_STARTED)

        assert (len(made.lanes), made.batcher.unavailable) == (3, False)


@pytest.mark.parametrize("ends", ["lost", "hangs"])
async def test_retiring_lane_that_ends_while_it_finishes_is_not_replaced_twice(ends):
    async with rig() as made:
        (task,) = await made.ask(1, deadline_s=made.clock() + 2)
        old = made.lanes[0]
        old.retire()
        await settle()
        if ends == "lost":
            old.lose()
        else:
            await made.pass_time(2 + OVERDUE_S + 0.5)

        assert (await outcome_of(task), old.closed) == ("WorkerLost", True)
        assert (len(made.lanes), made.batcher.n_ready) == (2, 1)


# Lanes that hang


async def test_overdue_batch_ends_its_lane_at_the_second_check():
    async with rig() as made:
        (task,) = await made.ask(1, deadline_s=made.clock() + 2)
        await made.pass_time(2 + OVERDUE_S + 0.25)
        after_one = task.done()
        await made.pass_time(0.25)

        assert (after_one, await outcome_of(task)) == (False, "WorkerLost")
        assert (made.replaced, made.batcher.n_ready) == ([RestartReason.OVERDUE], 1)


async def test_overdue_batch_is_so_after_the_first_of_its_deadlines():
    async with rig() as made:
        (held,) = await made.ask(0)
        tasks = await made.ask(1)
        tasks += await made.ask(2, deadline_s=made.clock() + 3)
        made.lanes[0].answer()
        await held
        await made.pass_time(3 + OVERDUE_S + 0.5)

        assert await outcomes_of(tasks) == ["WorkerLost"] * 2


async def test_overdue_lane_gets_nothing_new_and_others_do():
    async with rig(2) as made:
        await made.ask(1, deadline_s=made.clock() + 2)
        made.clock.advance(2 + OVERDUE_S + 0.01)
        await made.ask(2)
        await made.ask(3)

        assert [lane.values for lane in made.lanes] == [[1.0], [2.0]]


@pytest.mark.parametrize(
    ("load_s", "deadline_s", "due_s"),
    [(0.0, 1e9, 30.0), (10.0, 0.1, 21.0), (0.25, 0.1, 1.5), (100.0, 0.1, 30.0)],
    ids=["far_deadline", "loading_was_slow", "loading_was_fast", "loading_took_very_long"],
)
async def test_batch_is_due_at_the_earliest_safe_time(load_s, deadline_s, due_s):
    """Before the first run, the loading time shows how long a run may take on this machine."""
    async with rig() as made:
        version = FakeVersion(FakeEngine(), load_s=load_s)
        await made.ask(1, version=version, deadline_s=made.clock() + deadline_s)
        (job,) = made.lanes[0].jobs

        assert job.due_s - made.clock() == pytest.approx(due_s)


async def test_batch_is_due_after_twice_the_slowest_of_the_last():
    async with rig() as made:
        for took_s in (1, 5, 1):
            await made.ask(1)
            made.clock.advance(took_s)
            made.lanes[0].answer()
        await made.ask(2, deadline_s=made.clock() + 0.5)
        (job,) = made.lanes[0].jobs

        assert job.due_s - made.clock() == pytest.approx(2 * 5 + OVERDUE_S)


async def test_lanes_are_checked_by_one_timer_after_a_lane_was_replaced():
    """A second timer would find a batch overdue at two checks at the same moment."""
    async with rig() as made:
        await made.ask(1, deadline_s=made.clock() + 2)
        await made.ask(2)
        await made.pass_time(2 + OVERDUE_S + 0.5)

        assert (made.replaced, made.n_checks) == ([RestartReason.OVERDUE], 1)


# The end


async def test_stop_during_starts_leaves_nothing_behind():
    async with rig(4, slow=True) as made:
        for lane in made.lanes[:3]:
            lane.become_ready()
        made.lanes[0].retire()  # its successor is being started
        for _ in range(2):
            made.lanes[-1 if len(made.lanes) > 5 else 1].lose()  # waits for its next start
        assert (len(made.lanes), made.delays) == (6, [0.1])
        await made.batcher.stop()
        await made.fire()

        assert (len(made.lanes), [lane.closed for lane in made.lanes]) == (6, [True] * 6)


async def test_stop_fails_running_and_waiting_pictures_and_ends_every_lane():
    async with rig(2, slow=True) as made:
        for lane in made.lanes:
            lane.become_ready()
        tasks = await made.ask(1)
        made.lanes[0].retire()  # a lane lost during the stop must not be replaced by its successor
        made.lanes[2].become_ready()
        tasks += await made.ask(2)
        made.lanes[2].retire()
        tasks += await made.ask(3, 4)

        assert not await made.batcher.stop(0)
        assert await outcomes_of(tasks) == [*["WorkerLost"] * 3, "Draining"]
        assert [lane.closed for lane in made.lanes] == [True] * 4
        assert made.replaced == [RestartReason.TERMINATED] * 2


async def test_drain_finishes_what_was_accepted_without_new_lanes():
    async with rig(2) as made:
        tasks = [*await made.ask(1), *await made.ask(2), *await made.ask(3)]
        draining = asyncio.create_task(made.batcher.drain())
        await settle()
        made.lanes[0].retire()
        made.lanes[0].lose()
        made.lanes[1].answer()
        await settle()
        made.lanes[1].answer()
        await draining

        assert await outcomes_of(tasks) == ["WorkerLost", 2.0, 3.0]
        assert (len(made.lanes), made.replaced) == (2, [])


# All of it at once


async def test_two_thousand_pictures_with_dying_lanes_are_never_mixed_up(caplog):
    caplog.set_level(logging.CRITICAL)
    async with rig(3, max_queue=2000) as made:
        tasks = await made.ask(*range(2000))
        turns = 0
        while not all(task.done() for task in tasks):
            turns += 1
            busy = [lane for lane in made.lanes if lane.jobs and not lane.dead]
            for place, lane in enumerate(busy):
                if (turns + place) % 7 == 0:
                    lane.lose()
                elif (turns + place) % 11 == 0:
                    lane.retire()
                else:
                    lane.answer()
            await made.fire()
        outcomes = await outcomes_of(tasks)

    lost = [number for number, outcome in enumerate(outcomes) if outcome == "WorkerLost"]
    answered = {number: value for number, value in enumerate(outcomes) if number not in set(lost)}
    assert answered == {number: float(number) for number in answered}
    n_lost, n_retired = map(made.replaced.count, (RestartReason.EXITED, RestartReason.TERMINATED))
    assert 1 <= n_lost <= len(lost) <= 8 * (n_lost + n_retired), (
        "a retiring lane can be lost as well"
    )
    assert n_retired >= 1
