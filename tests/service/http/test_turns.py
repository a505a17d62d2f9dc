from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from service.http.scope import add_peer
from service.http.turns import FairTurns
from service.system.pacing import Allowance
from tests.fakes import FakeClock
from tests.waiting import until

pytestmark = pytest.mark.anyio


async def never() -> Any:
    raise AssertionError("nothing may be received while a request waits for its turn")


class Door:
    """Requests that wait for their turn; `begun` has those that had it, in order."""

    def __init__(self, turns: FairTurns) -> None:
        self.begun: list[str] = []
        self._turns = turns

    def arrive(self, name: str, scope: dict[str, Any] | None = None) -> asyncio.Task[None]:
        """A request of the client named by the first letter."""
        return asyncio.create_task(self._pass(name, {} if scope is None else scope))

    async def _pass(self, name: str, scope: dict[str, Any]) -> None:
        await self._turns.wait(name[0], scope, never)
        self.begun.append(name)

    async def finish(self, tasks: list[asyncio.Task[None]]) -> list[str]:
        await asyncio.gather(*tasks)
        return self.begun


async def turn() -> None:
    await asyncio.sleep(0)


async def test_turns_a_few_requests_begin_at_once():
    door = Door(FairTurns(2))
    tasks = [door.arrive(f"a{index}") for index in range(5)]

    await turn()
    at_once = list(door.begun)

    assert at_once == ["a0", "a1"]
    assert await door.finish(tasks) == ["a0", "a1", "a2", "a3", "a4"]


async def test_turns_go_round_the_clients():
    door = Door(FairTurns(1))
    names = ["a0", "a1", "a2", "a3", "b0", "b1", "c0"]

    begun = await door.finish([door.arrive(name) for name in names])

    assert begun == ["a0", "a1", "b0", "c0", "a2", "b1", "a3"]


async def test_turns_client_that_comes_late_waits_for_one_request_of_each_other():
    door = Door(FairTurns(1))
    tasks = [door.arrive(f"a{index}") for index in range(100)]
    for _ in range(5):
        await turn()
    before = len(door.begun)

    tasks.append(door.arrive("b0"))
    begun = await door.finish(tasks)

    assert begun.index("b0") <= before + 3


async def test_turns_allowance_bounds_the_rate(monkeypatch):
    clock, later = FakeClock(), []
    door = Door(FairTurns(10, Allowance(2, 4, clock)))
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "call_later", lambda delay_s, call: later.append((delay_s, call)))
    tasks = [door.arrive(f"a{index}") for index in range(3)]
    for _ in range(5):
        await turn()
    at_once = list(door.begun)

    ((pause_s, begin),) = later
    clock.advance(pause_s)
    begin()

    assert (at_once, pause_s) == (["a0", "a1"], 0.25)
    assert await door.finish(tasks) == ["a0", "a1", "a2"]


async def test_turns_client_that_leaves_while_it_waits_takes_no_turn():
    door = Door(FairTurns(1))
    scope: dict[str, Any] = {"type": "http"}
    peer = add_peer(scope)
    first, gone, last = door.arrive("a0"), door.arrive("b0", scope), door.arrive("c0")
    await turn()

    peer.disconnect()
    outcomes = await asyncio.gather(first, gone, last, return_exceptions=True)

    assert isinstance(outcomes[1], ClientDisconnect)
    assert door.begun == ["a0", "c0"]


async def test_turns_calls_take_turns_with_requests_that_wait():
    turns = FairTurns(1)
    door = Door(turns)
    tasks = [door.arrive("a0"), door.arrive("a1")]
    await turn()

    turns.call("b", lambda: door.begun.append("b0"), lambda: False)
    turns.call("b", lambda: door.begun.append("gone"), lambda: True)
    turns.call("b", lambda: door.begun.append("b1"), lambda: False)
    waiting = turns.n_waiting

    await door.finish(tasks)
    await turn()
    await turn()
    assert (waiting, turns.n_waiting) == (4, 0)
    assert door.begun == ["a0", "a1", "b0", "b1"]


async def test_turns_call_that_fails_stops_no_others(monkeypatch):
    errors: list[Any] = []
    turns = FairTurns(1)
    door = Door(turns)
    monkeypatch.setattr(
        asyncio.get_running_loop(), "call_exception_handler", lambda context: errors.append(context)
    )
    tasks = [door.arrive("a0")]
    await turn()
    turns.call("a", lambda: 1 / 0, lambda: False)
    turns.call("a", lambda: door.begun.append("a1"), lambda: False)

    await until(lambda: len(door.begun) == 2)

    assert await door.finish(tasks) == ["a0", "a1"]
    assert (len(errors), turns.n_waiting) == (1, 0)
