"""Dispatch: even shares, several versions and large pictures."""

from __future__ import annotations

import pytest

from tests.fakes import FakeEngine, FakeVersion
from tests.service.batching.fakelanes import Rig, outcomes_of, rig

pytestmark = pytest.mark.anyio


def version(name: str, max_batch_size: int = 8) -> FakeVersion:
    return FakeVersion(FakeEngine(), (name, 1), max_batch_size)


async def answer_all(made: Rig) -> None:
    """Makes every lane answer until no batch is left."""
    while busy := [lane for lane in made.lanes if lane.jobs]:
        for lane in busy:
            lane.answer()


def batches(made: Rig) -> list[list[list[float]]]:
    return [list(lane.batches) for lane in made.lanes]


# Even shares


@pytest.mark.parametrize(
    ("waiting", "shares"),
    [
        (1, [[[0]], [], []]),
        (3, [[[0]], [[1]], [[2]]]),
        (5, [[[0, 1]], [[2, 3]], [[4]]]),
        (7, [[[0, 1, 2]], [[3, 4, 5]], [[6]]]),
    ],
)
async def test_lanes_that_are_free_together_take_even_shares(waiting, shares):
    """One batch on one lane would leave the others idle."""
    async with rig(3, max_wait_s=1.0) as made:
        tasks = await made.ask(*range(waiting))
        made.clock.advance(1)
        await made.fire()

        assert batches(made) == shares
        await answer_all(made)
        assert await outcomes_of(tasks) == list(range(waiting))


async def test_lane_that_is_free_alone_leaves_the_others_their_shares():
    async with rig(2) as made:
        tasks = [*await made.ask(0), *await made.ask(1), *await made.ask(2, 3, 4)]
        made.lanes[1].answer()

        assert batches(made) == [[[0]], [[1], [2, 3]]]
        await answer_all(made)
        assert await outcomes_of(tasks) == [0, 1, 2, 3, 4]


async def test_lanes_that_start_have_no_share():
    async with rig(3, slow=True, max_wait_s=1.0) as made:
        for lane in made.lanes[:2]:
            lane.become_ready()
        await made.ask(0)
        made.clock.advance(1)
        await made.fire()
        await made.ask(1, 2, 3)
        made.clock.advance(1)
        await made.fire()

        assert batches(made) == [[[0]], [[1, 2]], []]


# Several versions


async def test_versions_share_the_lanes_and_no_batch():
    one, other = version("one"), version("other")
    async with rig() as made:
        tasks = await made.ask(0, version=one)
        for value in (1, 2, 3, 4):
            tasks += await made.ask(value, version=one if value % 2 else other)
        await answer_all(made)

        assert batches(made) == [[[0], [1, 3], [2, 4]]]
        assert await outcomes_of(tasks) == [0, 1, 2, 3, 4]


async def test_versions_whose_first_picture_has_waited_longest_come_first():
    one, other = version("one", 2), version("other", 2)
    async with rig() as made:
        await made.ask(0, version=one)
        for value, which in ((1, other), (2, one), (3, one), (4, one), (5, other)):
            await made.ask(value, version=which)
            made.clock.advance(1)
        await answer_all(made)

        assert batches(made) == [[[0], [1, 5], [2, 3], [4]]]


async def test_versions_have_their_own_largest_batch():
    one, other = version("one", 1), version("other", 3)
    async with rig() as made:
        await made.ask(0, version=one)
        await made.ask(1, 2, version=one)
        made.clock.advance(1)
        await made.ask(3, 4, 5, 6, version=other)
        await answer_all(made)

        assert batches(made) == [[[0], [1], [2], [3, 4, 5], [6]]]


async def test_versions_waiting_are_counted_by_model():
    async with rig() as made:
        await made.ask(0)
        await made.ask(1, 2, version=version("one"))
        await made.ask(3, version=FakeVersion(FakeEngine(), ("one", 2)))
        await made.ask(4, version=version("other"), large=True)

        counts = [made.batcher.waiting_for(name) for name in ("one", "other", "fake")]
        assert (counts, made.batcher.waiting) == ([3, 1, 0], 4)


async def test_versions_share_the_places_in_the_queue():
    async with rig(max_queue=2) as made:
        await made.ask(0)
        await made.ask(1, version=version("one"))
        await made.ask(2, version=version("other"))
        (refused,) = await made.ask(3, version=version("one"))

        assert await outcomes_of([refused]) == ["Overloaded"]


async def test_versions_waiting_for_company_do_not_hold_up_a_full_batch_of_another():
    one, other = version("one", 2), version("other", 2)
    async with rig(max_wait_s=1.0) as made:
        await made.ask(0, version=one)
        made.clock.advance(0.5)
        await made.ask(1, 2, version=other)
        at_once = batches(made)
        made.lanes[0].answer()
        before = batches(made)
        made.clock.advance(0.5)
        await made.fire()

        assert (at_once, before) == ([[[1, 2]]], [[[1, 2]]])
        assert batches(made) == [[[1, 2], [0]]]


async def test_versions_each_wait_for_company_from_their_own_first_picture():
    one, other = version("one"), version("other")
    async with rig(max_wait_s=1.0) as made:
        await made.ask(0, version=one)
        made.clock.advance(0.75)
        await made.ask(1, version=other)
        made.clock.advance(0.25)
        await made.fire()
        made.lanes[0].answer()
        first = batches(made)
        (left_s,) = made.delays
        made.clock.advance(0.75)
        await made.fire()

        assert (first, left_s, batches(made)) == ([[[0]]], 0.75, [[[0], [1]]])


async def test_versions_all_count_in_what_is_expected():
    one, other = version("one", 1), version("other", 1)
    async with rig() as made:
        for which in (one, other):
            (task,) = await made.ask(0, version=which)
            made.lanes[0].answer()  # has taken half a second
            await task
        unknown = made.batcher.expected_s(version("third"))
        idle = made.batcher.expected_s(one)
        await made.ask(1, version=one)
        await made.ask(2, 3, version=other)

        assert (unknown, idle, made.batcher.expected_s(one)) == (0.0, 0.0, 4 * 0.5)


# Large pictures


async def test_large_pictures_are_run_one_by_one():
    async with rig() as made:
        tasks = [*await made.ask(0), *await made.ask(1, 2, 3, large=True)]
        await answer_all(made)

        assert batches(made) == [[[0], [1], [2], [3]]]
        assert await outcomes_of(tasks) == [0, 1, 2, 3]


@pytest.mark.parametrize(("lanes", "at_once"), [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2)])
async def test_large_pictures_have_half_of_the_lanes_at_most(lanes, at_once):
    async with rig(lanes) as made:
        await made.ask(*range(6), large=True)
        begun = sum(bool(lane.jobs) for lane in made.lanes)
        made.lanes[0].answer()
        next_ones = sum(bool(lane.jobs) for lane in made.lanes)

        assert (begun, next_ones) == (at_once, at_once)


async def test_large_pictures_are_overtaken_by_small_ones():
    async with rig(2) as made:
        large = await made.ask(1, 2, 3, large=True)
        small = await made.ask(4)
        made.lanes[1].answer()

        assert (await outcomes_of(small), batches(made)) == ([4], [[[1]], [[4]]])
        await answer_all(made)
        assert await outcomes_of(large) == [1, 2, 3]


async def test_large_pictures_of_two_versions_share_their_half():
    async with rig(4) as made:
        await made.ask(1, 2, version=version("one"), large=True)
        await made.ask(3, 4, version=version("other"), large=True)

        assert [lane.values for lane in made.lanes] == [[1], [2], [], []]


async def test_large_pictures_do_not_wait_for_company():
    async with rig(max_wait_s=1.0) as made:
        await made.ask(1, large=True)

        assert batches(made) == [[[1]]]
