"""Clients take turns: the order of pictures, the size of batches, and batches that are taken back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.predictions import TopK
from service.batching.fairness import FairOrder, FairQueue, FairSlots
from service.batching.lane import QueueEntry
from tests.fakes import FakeClock, FakeEngine, FakeVersion
from tests.service.batching.fakelanes import Rig, new_rig, outcomes_of
from tests.service.batching.harness import settle

PEERS = st.sampled_from("abc")


def new_entry(peer: str) -> QueueEntry:
    future: Any = None
    return QueueEntry(None, 0.0, 0.0, TopK(), future, peer)  # type: ignore[arg-type]


def order_of(peers: str) -> str:
    """The order in which pictures of these clients, which arrive together, are begun."""
    order, queue = FairOrder(FakeClock()), FairQueue()
    for peer in peers:
        entry = new_entry(peer)
        order.enter(entry)
        queue.push(entry)
    return "".join(queue.pop().peer for _ in peers)


@pytest.mark.parametrize(
    ("arrived", "begun"),
    [("aaa", "aaa"), ("aaab", "abaa"), ("aaabbc", "abcaba"), ("abab", "abab"), ("", "")],
)
def test_fair_order_goes_round_the_clients(arrived, begun):
    assert order_of(arrived) == begun


@given(st.lists(st.tuples(PEERS, st.booleans()), max_size=80))
def test_fair_order_is_first_in_first_out_within_a_client(steps):
    order, queue = FairOrder(FakeClock()), FairQueue()
    arrived: dict[str, list[QueueEntry]] = {"a": [], "b": [], "c": []}
    begun: dict[str, list[QueueEntry]] = {"a": [], "b": [], "c": []}

    def begin() -> None:
        entry = queue.pop()
        order.begin([entry])
        order.leave(entry)
        begun[entry.peer].append(entry)

    for peer, one_ends in steps:
        entry = new_entry(peer)
        order.enter(entry)
        queue.push(entry)
        arrived[peer].append(entry)
        if one_ends:
            begin()
    while queue:
        begin()

    assert begun == arrived


@given(st.integers(1, 50), st.integers(1, 50))
def test_fair_order_waiting_clients_are_served_evenly(n_first, n_second):
    begun = order_of("a" * n_first + "b" * n_second)

    for end in range(1, 2 * min(n_first, n_second) + 1):
        assert abs(begun[:end].count("a") - begun[:end].count("b")) <= 1


def test_fair_order_idle_client_saves_up_nothing():
    order, queue = FairOrder(FakeClock()), FairQueue()
    for _ in range(10):
        entry = new_entry("a")
        order.enter(entry)
        order.begin([entry])
        order.leave(entry)

    for peer in "aabbbb":
        entry = new_entry(peer)
        order.enter(entry)
        queue.push(entry)

    assert "".join(queue.pop().peer for _ in range(6)) == "ababbb"


def test_fair_order_forgets_clients_without_pictures():
    order = FairOrder(FakeClock())
    for index in range(100):
        entry = new_entry(str(index))
        order.enter(entry)
        order.leave(entry)

    assert not order._peers


@pytest.mark.parametrize(("seconds", "shared"), [(0, True), (0.5, True), (1, False)])
def test_fair_order_is_shared_for_a_second_after_another_client(seconds, shared):
    clock = FakeClock()
    order = FairOrder(clock)
    for peer in "ab":
        entry = new_entry(peer)
        order.enter(entry)
        order.leave(entry)

    clock.advance(seconds)

    assert order.shared() is shared


def test_fair_order_of_one_client_is_not_shared():
    order = FairOrder(FakeClock())
    for _ in range(3):
        order.enter(new_entry("a"))

    assert order.shared() is False


@pytest.mark.parametrize(
    ("peers", "dominated"),
    [("", False), ("a", True), ("ab", False), ("aab", True), ("aabc", False)],
)
def test_fair_order_is_dominated_by_a_client_with_more_than_half(peers, dominated):
    order = FairOrder(FakeClock())
    for peer in peers:
        order.enter(new_entry(peer))

    assert order.dominated() is dominated


# In the batcher


def batches(rig: Rig) -> list[list[list[float]]]:
    return [list(lane.batches) for lane in rig.lanes]


@pytest.mark.anyio
async def test_client_that_comes_late_is_in_the_next_batch():
    async with new_rig() as rig:
        await rig.submit(*range(101), peer="hog")
        (polite,) = await rig.submit(500, peer="polite")
        rig.lanes[0].answer()

        assert batches(rig) == [[[*range(8)], [500, 8]]]
        rig.lanes[0].answer()
        assert await outcomes_of([polite]) == [500]


@pytest.mark.anyio
async def test_clients_that_have_the_same_get_halves_of_batches():
    async with new_rig() as rig:
        await rig.submit(*range(8), peer="a")
        await rig.submit(*range(100, 140), peer="b")
        await rig.submit(*range(200, 240), peer="c")
        rig.lanes[0].answer()

        assert batches(rig)[0][1] == [100, 200, 101, 201]


@pytest.mark.anyio
async def test_one_client_gets_full_batches_in_order():
    async with new_rig() as rig:
        await rig.submit(*range(20), peer="only")
        for _ in range(2):
            rig.lanes[0].answer()

        assert batches(rig) == [[[*range(8)], [*range(8, 16)], [*range(16, 20)]]]


@pytest.mark.anyio
async def test_batch_behind_a_run_is_taken_back_for_a_client_whose_turn_is_earlier():
    async with new_rig(depth=2) as rig:
        await rig.submit(0, peer="hog")
        await rig.submit(*range(1, 20), peer="hog")
        behind = batches(rig)[0][-1]

        await rig.submit(500, peer="polite")

        assert behind == [*range(1, 9)]
        assert rig.lanes[0].values == [0, 500, 1]
        rig.lanes[0].answer()
        rig.lanes[0].answer()
        assert rig.lanes[0].values[0] == 2  # what was taken back comes before what came later


@pytest.mark.anyio
async def test_batch_behind_a_run_stays_there_for_pictures_of_the_same_client():
    async with new_rig(depth=2) as rig:
        await rig.submit(0, peer="hog")
        await rig.submit(*range(1, 20), peer="hog")
        await rig.submit(20, 21, 22, peer="hog")

        assert batches(rig) == [[[0], [*range(1, 9)]]]


@pytest.mark.anyio
async def test_client_of_another_version_does_not_wait_for_the_queue_of_the_first():
    other = FakeVersion(FakeEngine(), ("other", 1))
    async with new_rig() as rig:
        await rig.submit(*range(50), peer="hog")
        await rig.submit(500, peer="polite", version=other)
        rig.lanes[0].answer()

        assert batches(rig)[0][1] == [500]


@pytest.mark.anyio
async def test_expected_time_counts_only_what_comes_before_the_client():
    async with new_rig() as rig:
        (first,) = await rig.submit(0, peer="hog")
        rig.lanes[0].answer()  # 0.5 s a picture
        await first
        await rig.submit(*range(21), peer="hog")

        hog = rig.batcher.expected_s(rig.version, "hog")
        polite = rig.batcher.expected_s(rig.version, "polite")

        # 8 are running and 13 wait. The client that is new is the second of two.
        assert (hog, polite) == ((8 + 13 + 1) * 0.5, (8 + 2 + 1) * 0.5)


@pytest.mark.anyio
async def test_client_that_leaves_gives_up_its_turns():
    async with new_rig() as rig:
        await rig.submit(0, peer="hog")
        gone = await rig.submit(1, 2, 3, peer="gone")
        await rig.submit(4, peer="hog")
        for task in gone:
            task.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        rig.lanes[0].answer()

        assert batches(rig) == [[[0], [4]]]
        assert set(rig.batcher._order._peers) == {"hog"}


# Slots


async def hold_slot(slots: FairSlots, name: str, begun: list[str], end: asyncio.Event) -> None:
    async with slots.slot(name[0]):
        begun.append(name)
        await end.wait()


@pytest.mark.anyio
async def test_fair_slots_bound_what_is_done_at_once_and_go_round_the_clients():
    slots, begun = FairSlots(2), list[str]()
    ends = {name: asyncio.Event() for name in ("a0", "a1", "a2", "a3", "b0")}
    tasks = [asyncio.create_task(hold_slot(slots, name, begun, ends[name])) for name in ends]
    await settle()
    at_once = list(begun)

    ends["a0"].set()
    await settle()
    second = list(begun)
    ends["a1"].set()
    await settle()
    third = list(begun)
    for end in ends.values():
        end.set()
    await asyncio.gather(*tasks)

    assert at_once == ["a0", "a1"]
    assert (second, third) == (["a0", "a1", "a2"], ["a0", "a1", "a2", "b0"])
    assert (begun[-1], slots._free) == ("a3", 2)


@pytest.mark.anyio
@pytest.mark.parametrize("given", [False, True], ids=["waiting", "just_given"])
async def test_fair_slots_client_that_leaves_gives_its_slot_up(given):
    slots, begun, end = FairSlots(1), list[str](), asyncio.Event()
    first, gone, last = (
        asyncio.create_task(hold_slot(slots, name, begun, end)) for name in ("a0", "b0", "c0")
    )
    await settle()

    if given:
        slots._pass_on()  # as if the first one ended in the same turn of the event loop
        slots._free -= 1
    gone.cancel()
    await settle()
    end.set()
    await asyncio.gather(first, gone, last, return_exceptions=True)

    assert begun == ["a0", "c0"]
