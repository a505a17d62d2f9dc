from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from contract.errors import ImageTruncated
from service.errors import WorkerNotStarted
from service.serving.answering import Answered
from service.workers import wire
from service.workers.pool import LOOK_S, PoolHooks, PoolLimits, WorkerPool
from service.workers.seat import LONGEST_DELAY_S
from service.workers.vitals import Reason, Tolerance
from service.workers.wire import Kind, Pong, Worked
from tests.fakes import FakeClock
from tests.service.workers.peers import FakeLauncher, Peer

pytestmark = pytest.mark.anyio

NEVER = math.inf
KEY = ("tiny", 1)


class Rig:
    """A pool of fake workers on a clock that stands still."""

    def __init__(self, **limits: Any) -> None:
        self.clock = FakeClock()
        self.launcher = FakeLauncher()
        self.delays: list[float] = []
        self.replaced: list[Reason] = []
        self.worked: list[Worked] = []
        self.tasks: list[asyncio.Task[Answered]] = []
        self.pool = WorkerPool(
            self.launcher,
            PoolLimits(**limits),
            PoolHooks(self.worked.append, self.replaced.append),
            clock=self.clock,
            sleep=self._sleep,
        )

    async def _sleep(self, seconds: float) -> None:
        self.delays.append(seconds)
        await asyncio.sleep(0)

    @property
    def peers(self) -> list[Peer]:
        return self.launcher.peers

    def ask(self, image: bytes, deadline_s: float = NEVER) -> asyncio.Task[Answered]:
        self.tasks.append(asyncio.create_task(self.pool.answer(KEY, image, deadline_s)))
        return self.tasks[-1]

    async def ask_now(self, *images: bytes, deadline_s: float = NEVER) -> list[Any]:
        """Asks, and returns when the pictures have arrived where they go."""
        tasks = []
        for image in images:
            tasks.append(self.ask(image, deadline_s))
            await settle()
        return tasks

    async def pass_time(self, seconds: float) -> None:
        """Lets time pass while the pool looks as often as it does."""
        for _ in range(round(seconds / LOOK_S)):
            self.clock.advance(LOOK_S)
            self.pool.look()
            await settle()


@asynccontextmanager
async def rig(workers: int = 2, **limits: Any) -> AsyncIterator[Rig]:
    made = Rig(**limits)
    made.pool.start([await made.launcher.make() for _ in range(workers)])
    await until(lambda: made.pool.n_live == workers)
    try:
        yield made
    finally:
        for task in made.tasks:
            task.cancel()
        await asyncio.gather(*made.tasks, return_exceptions=True)
        await made.pool.stop(0)


async def settle() -> None:
    """Lets everything happen that can without time passing."""
    for _ in range(10):
        await asyncio.sleep(0)


async def until(happened: Callable[[], bool]) -> None:
    """Returns once something is so; the test's timeout ends it."""
    while not happened():  # noqa: ASYNC110 - it must not be what is tested that wakes this
        await asyncio.sleep(0)


async def outcome_of(task: asyncio.Task[Answered]) -> float | str:
    """The picture's first probability, or the name of its error."""
    (outcome,) = await asyncio.gather(task, return_exceptions=True)
    if isinstance(outcome, Answered):
        return float(outcome.probabilities[0])
    return type(outcome).__name__


async def outcomes_of(tasks: list[Any]) -> list[float | str]:
    return [await outcome_of(task) for task in tasks]


# Who gets a picture


async def test_pool_pictures_go_to_the_worker_that_owes_fewest():
    async with rig() as made:
        tasks = await made.ask_now(b"1", b"22", b"333")
        made.peers[1].answer(b"22")
        await settle()
        tasks += await made.ask_now(b"4444")

        assert [peer.order for peer in made.peers] == [[b"1", b"333"], [b"22", b"4444"]]


async def test_pool_answers_reach_those_who_asked_in_any_order():
    async with rig(1) as made:
        tasks = await made.ask_now(b"1", b"22", b"333")
        for image in (b"333", b"1", b"22"):
            made.peers[0].answer(image)

        assert await outcomes_of(tasks) == [1.0, 2.0, 3.0]
        assert made.pool.n_owed == 0


async def test_pool_error_of_a_worker_is_raised_as_it_was():
    async with rig(1) as made:
        (task,) = await made.ask_now(b"1")
        made.peers[0].refuse(b"1", ImageTruncated("row 7 is missing"))

        with pytest.raises(ImageTruncated, match="row 7 is missing"):
            await task


async def test_pool_worker_has_no_more_than_its_bound_and_the_rest_waits_in_order():
    async with rig(1, in_flight=2) as made:
        await made.ask_now(b"1", b"22", b"333", b"4444")
        before = (list(made.peers[0].order), made.pool.waiting("tiny"), made.pool.waiting("other"))
        made.peers[0].answer(b"22")
        made.peers[0].answer(b"1")
        await until(lambda: len(made.peers[0].order) == 4)

    assert before == ([b"1", b"22"], 2, 0)
    assert made.peers[0].order == [b"1", b"22", b"333", b"4444"]


async def test_pool_deadline_travels_as_the_time_that_is_left():
    async with rig(1) as made:
        await made.ask_now(b"1", deadline_s=made.clock() + 2.5)

        (ask,) = made.peers[0].asks.values()
        assert (ask.name, ask.version) == KEY
        assert ask.remaining_s == pytest.approx(2.5, abs=0.002)


async def test_pool_work_of_lanes_is_reported():
    worked = Worked("tiny", 0.75, ((3, 0.5),))
    async with rig(1) as made:
        made.peers[0].send(wire.pack_worked(worked))
        await settle()

    assert made.worked == [worked]


async def test_pool_expects_what_pictures_have_cost():
    async with rig(1) as made:
        unknown = made.pool.expected_s()
        (task,) = await made.ask_now(b"1")
        made.peers[0].answer(b"1")
        await task
        idle = made.pool.expected_s()
        await made.ask_now(b"22", b"333")

        assert (unknown, idle, made.pool.expected_s()) == (0.0, 0.0, 3.0)


# Who leaves


async def test_pool_picture_given_up_while_waiting_costs_nothing():
    async with rig(1, in_flight=1) as made:
        first, gone, _ = await made.ask_now(b"1", b"22", b"333")
        gone.cancel()
        await settle()
        waiting = made.pool.waiting("tiny")
        made.peers[0].answer(b"1")
        await until(lambda: b"333" in made.peers[0].order)

        assert (await outcome_of(first), waiting) == (1.0, 1)
        assert made.peers[0].order == [b"1", b"333"]


async def test_pool_picture_given_up_in_a_worker_is_cancelled_there_and_still_owed():
    async with rig(1) as made:
        (gone,) = await made.ask_now(b"1")
        (number,) = made.peers[0].asks
        gone.cancel()
        await settle()
        owed = made.pool.n_owed
        made.peers[0].send(wire.pack(Kind.CANCELLED, number))
        await settle()

        assert (made.peers[0].cancelled, owed, made.pool.n_owed) == ([number], 1, 0)


async def test_pool_answer_for_somebody_who_left_disturbs_nobody():
    async with rig(1) as made:
        gone, stays = await made.ask_now(b"1", b"22")
        gone.cancel()
        await settle()
        made.peers[0].answer(b"1")
        made.peers[0].answer(b"22")

        assert (await outcome_of(stays), made.pool.n_live) == (2.0, 1)


async def test_pool_deadline_passes_while_waiting():
    async with rig(1, in_flight=1) as made:
        await made.ask_now(b"1")
        late = made.ask(b"22", made.clock() - 1)

        assert await outcome_of(late) == "DeadlineExceeded"
        assert made.peers[0].order == [b"1"]


async def test_pool_deadline_passes_in_a_worker_which_goes_on_owing():
    """The worker is not told: whether it replies shows whether it hangs."""
    async with rig(1) as made:
        late = made.ask(b"1", made.clock() + 0.001)

        assert await outcome_of(late) == "DeadlineExceeded"
        assert (made.peers[0].cancelled, made.pool.n_owed) == ([], 1)


# Workers that end


async def test_pool_worker_that_exits_costs_only_what_it_had():
    async with rig(2) as made:
        lost, kept, also_lost = await made.ask_now(b"1", b"22", b"333")
        made.peers[0].process.exit(-11)
        outcomes = await outcomes_of([lost, also_lost])
        made.peers[1].answer(b"22")

        assert outcomes == ["WorkerLost", "WorkerLost"]
        assert await outcome_of(kept) == 2.0
        assert made.replaced == [Reason.EXITED]


async def test_pool_worker_that_exits_is_replaced_at_once(caplog):
    async with rig(1) as made:
        (lost,) = await made.ask_now(b"1")
        with caplog.at_level(logging.WARNING):
            made.peers[0].process.exit(-11)
            await until(lambda: made.pool.n_live == 1 and len(made.peers) == 2)
        (task,) = await made.ask_now(b"22")
        made.peers[1].answer(b"22")

        assert (await outcome_of(lost), await outcome_of(task)) == ("WorkerLost", 2.0)
        assert made.delays == [0.0]
        (record,) = caplog.records
        assert (record.__dict__["signal"], record.__dict__["pictures_lost"]) == ("SIGSEGV", 1)


async def test_pool_answer_that_was_sent_before_the_exit_counts():
    async with rig(1) as made:
        answered, lost = await made.ask_now(b"1", b"22")
        made.peers[0].answer(b"1")
        made.peers[0].process.exit(1)

        assert await outcomes_of([answered, lost]) == [1.0, "WorkerLost"]


async def test_pool_pictures_wait_while_a_worker_is_being_replaced():
    async with rig(1) as made:
        made.launcher.gate.clear()
        made.peers[0].process.exit(1)
        await until(lambda: made.pool.n_live == 0)
        (task,) = await made.ask_now(b"1")
        states = made.pool.states()
        made.launcher.gate.set()
        await until(lambda: len(made.peers) == 2 and bool(made.peers[1].asks))
        made.peers[1].answer(b"1")

        assert (await outcome_of(task), states["starting"]) == (1.0, 1)


async def test_pool_workers_that_end_before_they_answer_are_replaced_ever_more_slowly():
    async with rig(1) as made:
        for number in range(13):
            await until(lambda n=number: len(made.peers) > n and made.pool.n_live == 1)  # type: ignore[misc]
            made.peers[number].process.exit(1)
            await until(lambda: made.pool.n_live == 0)
        await until(lambda: made.pool.n_live == 1)

    assert made.delays[:4] == [0.0, 0.1, 0.2, 0.4]
    assert made.delays[-1] == LONGEST_DELAY_S


@pytest.mark.parametrize("proof", ["answer", "age"])
async def test_pool_worker_that_proved_itself_ends_the_slowing_down(proof):
    async with rig(1) as made:
        for number in range(4):
            await until(lambda n=number: len(made.peers) > n and made.pool.n_live == 1)  # type: ignore[misc]
            if number == 3 and proof == "age":
                await made.pass_time(61)
            elif number == 3:
                tasks = await made.ask_now(b"1")
                made.peers[3].answer(b"1")
                await tasks[0]
            made.peers[number].process.exit(1)
            await until(lambda: made.pool.n_live == 0)
        await until(lambda: made.pool.n_live == 1)

    assert made.delays == [0.0, 0.1, 0.2, 0.0]


async def test_pool_without_hope_of_a_worker_refuses_and_recovers(caplog):
    async with rig(1) as made:
        made.launcher.failures = [WorkerNotStarted("no memory") for _ in range(6)]
        made.launcher.gate.clear()
        made.peers[0].process.exit(1)
        await until(lambda: made.pool.n_live == 0)
        (waiting,) = await made.ask_now(b"1")
        made.launcher.gate.set()
        with caplog.at_level(logging.ERROR):
            outcome = await outcome_of(waiting)
        await until(lambda: made.pool.n_live == 1)
        (task,) = await made.ask_now(b"22")
        made.peers[1].answer(b"22")

        assert (outcome, await outcome_of(task)) == ("ModelNotReady", 2.0)
        assert len([one for one in caplog.records if one.levelno == logging.ERROR]) == 6


# Workers that hang


async def test_pool_silent_worker_gets_nothing_new_within_a_second():
    async with rig(2) as made:
        made.peers[0].mute = True
        await made.pass_time(1.0)
        live = made.pool.n_live
        await made.ask_now(b"1", b"22", b"333")

        assert (live, made.peers[0].order) == (1, [])
        assert made.pool.states()["doubtful"] == 1


async def test_pool_worker_that_speaks_again_is_used_again():
    async with rig(1) as made:
        made.peers[0].mute = True
        await made.pass_time(1.0)
        (task,) = await made.ask_now(b"1")
        before = list(made.peers[0].order)
        made.peers[0].send(wire.pack_pong(made.pool._members()[0].vitals._number, Pong(True, 1)))
        await settle()
        made.peers[0].answer(b"1")

        assert (before, await outcome_of(task)) == ([], 1.0)
        assert made.replaced == []


async def test_pool_worker_silent_for_too_long_is_killed_and_its_pictures_answered():
    async with rig(2, tolerance=Tolerance(silent_s=5)) as made:
        held, other = await made.ask_now(b"1", b"22")
        made.peers[0].mute = True
        await made.pass_time(6)

        assert await outcome_of(held) == "WorkerLost"
        assert (made.peers[0].process.status, made.replaced) == (-9, [Reason.SILENT])
        made.peers[1].answer(b"22")
        assert await outcome_of(other) == 2.0


async def test_pool_reply_overdue_by_a_second_ends_the_worker():
    """Its event loop answers pings, but a thread hangs in native code."""
    async with rig(2) as made:
        deadline_s = made.clock() + 2
        hung = made.ask(b"1", deadline_s)
        await settle()
        _, other = await made.ask_now(b"22", b"333")
        await made.pass_time(2.9)
        before = made.peers[0].process.status
        await made.pass_time(0.3)

        assert (before, made.peers[0].process.status) == (None, -9)
        assert await outcomes_of([hung, other]) == ["DeadlineExceeded", "WorkerLost"]
        assert made.replaced == [Reason.OVERDUE]


async def test_pool_client_with_less_patience_than_a_run_takes_kills_nobody():
    async with rig(1) as made:
        (usual,) = await made.ask_now(b"1")
        await made.pass_time(5)
        made.peers[0].answer(b"1")
        await usual
        (hasty,) = await made.ask_now(b"22", deadline_s=made.clock() + 0.5)
        await made.pass_time(10.9)
        before = made.peers[0].process.status
        await made.pass_time(0.3)

        assert (before, made.replaced) == (None, [Reason.OVERDUE])
        assert await outcome_of(hasty) == "DeadlineExceeded"


async def test_pool_front_that_was_held_up_kills_nobody():
    async with rig(1, tolerance=Tolerance(silent_s=5)) as made:
        (task,) = await made.ask_now(b"1", deadline_s=made.clock() + 30)
        made.peers[0].mute = True
        await made.pass_time(0.5)
        made.clock.advance(3600)
        made.pool.look()
        made.peers[0].mute = False
        made.peers[0].answer(b"1")

        assert await outcome_of(task) == 1.0
        assert made.replaced == []


@pytest.mark.parametrize(
    "frame",
    [b"x" * 13, wire.pack(Kind.ASK), wire.pack(Kind.ANSWER, 77), wire.pack(Kind.PONG)],
    ids=["noise", "wrong_way", "not_asked", "cut"],
)
async def test_pool_worker_that_breaks_the_protocol_is_replaced(frame):
    async with rig(1) as made:
        (lost,) = await made.ask_now(b"1")
        made.peers[0].send(frame)

        assert await outcome_of(lost) == "WorkerLost"
        await until(lambda: len(made.peers) == 2 and made.pool.n_live == 1)


# Workers that can wait


@pytest.mark.parametrize(
    ("pong", "reason"),
    [(Pong(True, 2_000_000), Reason.MEMORY), (Pong(False, 1000), Reason.LANES)],
    ids=["memory", "lanes"],
)
async def test_pool_worker_that_can_wait_finishes_after_its_successor_started(pong, reason):
    async with rig(1, tolerance=Tolerance(max_memory_bytes=1_000_000)) as made:
        (first,) = await made.ask_now(b"1")
        made.peers[0].pong = pong
        await made.pass_time(0.5)
        await until(lambda: len(made.peers) == 2 and made.pool.states()["retiring"] == 1)
        (second,) = await made.ask_now(b"22")
        made.peers[0].answer(b"1")
        made.peers[1].answer(b"22")

        assert await outcomes_of([first, second]) == [1.0, 2.0]
        await until(lambda: made.peers[0].closed)
        assert (made.replaced, made.peers[0].process.status) == ([reason], 0)


async def test_pool_workers_over_their_memory_replaced_one_at_a_time():
    async with rig(3, tolerance=Tolerance(max_memory_bytes=1_000_000)) as made:
        made.launcher.gate.clear()
        for peer in made.peers:
            peer.pong = Pong(True, 2_000_000)
        await made.pass_time(1)
        live = made.pool.n_live
        made.launcher.gate.set()
        await until(lambda: len(made.replaced) == 3 and len(made.peers) == 6)
        await until(lambda: made.pool.states()["retiring"] == 0)

        assert (live, made.pool.n_live) == (3, 3)


async def test_pool_worker_told_to_terminate_is_replaced_without_a_loss():
    async with rig(1) as made:
        (task,) = await made.ask_now(b"1")
        made.peers[0].send(wire.pack(Kind.RETIRE))
        await until(lambda: made.pool.states()["retiring"] == 1)
        made.peers[0].answer(b"1")

        assert (await outcome_of(task), made.replaced) == (1.0, [Reason.TERMINATED])


async def test_pool_worker_that_hangs_while_it_retires_is_killed():
    async with rig(1) as made:
        hung = made.ask(b"1", made.clock() + 2)
        await settle()
        made.peers[0].send(wire.pack(Kind.RETIRE))
        await until(lambda: made.pool.states()["retiring"] == 1)
        await made.pass_time(3.2)

        assert (await outcome_of(hung), made.peers[0].process.status) == ("DeadlineExceeded", -9)


# Ends


async def test_pool_drain_finishes_what_was_accepted_and_refuses_new():
    async with rig(1, in_flight=1) as made:
        tasks = await made.ask_now(b"1", b"22")
        draining = asyncio.create_task(made.pool.stop())
        await settle()
        (late,) = await made.ask_now(b"333")
        made.peers[0].answer(b"1")
        await until(lambda: b"22" in made.peers[0].order)
        made.peers[0].answer(b"22")

        assert await outcomes_of([*tasks, late]) == [1.0, 2.0, "Draining"]
        assert await draining
        assert (made.peers[0].closed, made.peers[0].process.status) == (True, 0)


async def test_pool_stop_is_bounded_and_answers_what_is_left():
    async with rig(1, in_flight=1) as made:
        tasks = await made.ask_now(b"1", b"22")

        finished = await made.pool.stop(0.01)

        assert not finished
        assert await outcomes_of(tasks) == ["WorkerLost", "Draining"]
        assert made.peers[0].process.status == -9


async def test_pool_stop_during_a_start_leaves_nothing_behind():
    async with rig(1) as made:
        made.launcher.gate.clear()
        made.peers[0].process.exit(1)
        await until(lambda: made.pool.n_live == 0)

        await made.pool.stop()

        assert [peer.process.status for peer in made.peers] == [1]


async def test_pool_two_thousand_pictures_with_dying_workers_never_mixed_up():
    async with rig(3, in_flight=5) as made:
        tasks = {number: made.ask(b"x" * number) for number in range(2000)}
        for step in range(10**6):
            await asyncio.sleep(0)
            for place, peer in enumerate(list(made.peers)):
                for ask in list(peer.asks.values()) if not peer.closed else ():
                    peer.answer(ask.image)
                if step % 97 == 96 and place == len(made.peers) - 1 and not peer.closed:
                    peer.process.exit(1)
            if all(task.done() for task in tasks.values()):
                break
        outcomes = {number: await outcome_of(task) for number, task in tasks.items()}

    lost = [number for number, outcome in outcomes.items() if outcome == "WorkerLost"]
    right = {number: float(number) for number in outcomes if number not in lost}
    assert {number: outcomes[number] for number in right} == right
    assert len(made.replaced) >= 1
    assert len(lost) <= 5 * len(made.replaced)
