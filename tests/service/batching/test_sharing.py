"""Dispatch: even shares, several versions and large pictures."""

from __future__ import annotations

import pytest

from tests.fakes import FakeEngine, FakeVersion
from tests.service.batching.fakelanes import Rig, new_rig, outcomes_of

pytestmark = pytest.mark.anyio


def version(name: str, max_batch_size: int = 8) -> FakeVersion:
    return FakeVersion(FakeEngine(), (name, 1), max_batch_size)


async def answer_all(rig: Rig) -> None:
    """Makes every lane answer until no batch is left."""
    while busy := [lane for lane in rig.lanes if lane.jobs]:
        for lane in busy:
            lane.answer()


def batches(rig: Rig) -> list[list[list[float]]]:
    return [list(lane.batches) for lane in rig.lanes]


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
    async with new_rig(3, max_wait_s=1.0) as rig:
        tasks = await rig.submit(*range(waiting))
        rig.clock.advance(1)
        await rig.fire()

        assert batches(rig) == shares
        await answer_all(rig)
        assert await outcomes_of(tasks) == list(range(waiting))


async def test_lane_that_becomes_free_first_takes_only_its_share():
    async with new_rig(2) as rig:
        tasks = [*await rig.submit(0), *await rig.submit(1), *await rig.submit(2, 3, 4)]
        rig.lanes[1].answer()

        assert batches(rig) == [[[0]], [[1], [2, 3]]]
        await answer_all(rig)
        assert await outcomes_of(tasks) == [0, 1, 2, 3, 4]


async def test_lanes_that_are_starting_have_no_share():
    async with new_rig(3, slow=True, max_wait_s=1.0) as rig:
        for lane in rig.lanes[:2]:
            lane.become_ready()
        await rig.submit(0)
        rig.clock.advance(1)
        await rig.fire()
        await rig.submit(1, 2, 3)
        rig.clock.advance(1)
        await rig.fire()

        assert batches(rig) == [[[0]], [[1, 2]], []]


# Several versions


async def test_versions_share_lanes_but_not_batches():
    one, other = version("one"), version("other")
    async with new_rig() as rig:
        tasks = await rig.submit(0, version=one)
        for value in (1, 2, 3, 4):
            tasks += await rig.submit(value, version=one if value % 2 else other)
        await answer_all(rig)

        assert batches(rig) == [[[0], [1, 3], [2, 4]]]
        assert await outcomes_of(tasks) == [0, 1, 2, 3, 4]


async def test_version_whose_first_picture_has_waited_longest_comes_first():
    one, other = version("one", 2), version("other", 2)
    async with new_rig() as rig:
        await rig.submit(0, version=one)
        for value, which in ((1, other), (2, one), (3, one), (4, one), (5, other)):
            await rig.submit(value, version=which)
            rig.clock.advance(1)
        await answer_all(rig)

        assert batches(rig) == [[[0], [1, 5], [2, 3], [4]]]


async def test_versions_have_their_own_max_batch_size():
    one, other = version("one", 1), version("other", 3)
    async with new_rig() as rig:
        await rig.submit(0, version=one)
        await rig.submit(1, 2, version=one)
        rig.clock.advance(1)
        await rig.submit(3, 4, 5, 6, version=other)
        await answer_all(rig)

        assert batches(rig) == [[[0], [1], [2], [3, 4, 5], [6]]]


async def test_versions_waiting_are_counted_by_version():
    async with new_rig() as rig:
        await rig.submit(0)
        await rig.submit(1, 2, version=version("one"))
        await rig.submit(3, version=FakeVersion(FakeEngine(), ("one", 2)))
        await rig.submit(4, version=version("other"), large=True)

        keys = [("one", 1), ("one", 2), ("other", 1), ("fake", 1)]
        counts = [rig.batcher.waiting_for(key) for key in keys]
        assert (counts, rig.batcher.waiting) == ([2, 1, 1, 0], 4)


async def test_versions_share_the_queue_limit():
    async with new_rig(max_queue=2) as rig:
        await rig.submit(0)
        await rig.submit(1, version=version("one"))
        await rig.submit(2, version=version("other"))
        (refused,) = await rig.submit(3, version=version("one"))

        assert await outcomes_of([refused]) == ["Overloaded"]


async def test_version_waiting_for_its_window_does_not_hold_up_a_full_batch_of_another():
    one, other = version("one", 2), version("other", 2)
    async with new_rig(max_wait_s=1.0) as rig:
        await rig.submit(0, version=one)
        rig.clock.advance(0.5)
        await rig.submit(1, 2, version=other)
        at_once = batches(rig)

        rig.lanes[0].answer()
        before = batches(rig)
        rig.clock.advance(0.5)
        await rig.fire()

        assert (at_once, before) == ([[[1, 2]]], [[[1, 2]]])
        assert batches(rig) == [[[1, 2], [0]]]


async def test_versions_each_have_a_window_that_starts_at_their_first_picture():
    one, other = version("one"), version("other")
    async with new_rig(max_wait_s=1.0) as rig:
        await rig.submit(0, version=one)
        rig.clock.advance(0.75)
        await rig.submit(1, version=other)
        rig.clock.advance(0.25)
        await rig.fire()

        rig.lanes[0].answer()
        first = batches(rig)
        (left_s,) = rig.delays
        rig.clock.advance(0.75)
        await rig.fire()

        assert (first, left_s, batches(rig)) == ([[[0]]], 0.75, [[[0], [1]]])


async def test_versions_all_count_in_the_expected_time():
    one, other = version("one", 1), version("other", 1)
    async with new_rig() as rig:
        for which in (one, other):
            (task,) = await rig.submit(0, version=which)
            rig.lanes[0].answer()  # reports a run of 0.5 s
            await task

        unknown = rig.batcher.expected_s(version("third"))
        idle = rig.batcher.expected_s(one)
        await rig.submit(1, version=one)
        await rig.submit(2, 3, version=other)

        assert (unknown, idle, rig.batcher.expected_s(one)) == (0.0, 0.0, 4 * 0.5)


# Large pictures


async def test_large_pictures_are_run_one_by_one():
    async with new_rig() as rig:
        tasks = [*await rig.submit(0), *await rig.submit(1, 2, 3, large=True)]
        await answer_all(rig)

        assert batches(rig) == [[[0], [1], [2], [3]]]
        assert await outcomes_of(tasks) == [0, 1, 2, 3]


@pytest.mark.parametrize(("lanes", "at_once"), [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2)])
async def test_large_pictures_use_at_most_half_of_the_lanes(lanes, at_once):
    async with new_rig(lanes) as rig:
        await rig.submit(*range(6), large=True)
        begun = sum(bool(lane.jobs) for lane in rig.lanes)
        rig.lanes[0].answer()
        next_ones = sum(bool(lane.jobs) for lane in rig.lanes)

        assert (begun, next_ones) == (at_once, at_once)


async def test_large_pictures_are_overtaken_by_small_ones():
    async with new_rig(2) as rig:
        large = await rig.submit(1, 2, 3, large=True)
        small = await rig.submit(4)
        rig.lanes[1].answer()

        assert (await outcomes_of(small), batches(rig)) == ([4], [[[1]], [[4]]])
        await answer_all(rig)
        assert await outcomes_of(large) == [1, 2, 3]


async def test_large_pictures_of_two_versions_share_their_half():
    async with new_rig(4) as rig:
        await rig.submit(1, 2, version=version("one"), large=True)
        await rig.submit(3, 4, version=version("other"), large=True)

        assert [lane.values for lane in rig.lanes] == [[1], [2], [], []]


async def test_large_pictures_do_not_wait_for_a_window():
    async with new_rig(max_wait_s=1.0) as rig:
        await rig.submit(1, large=True)

        assert batches(rig) == [[[1]]]
