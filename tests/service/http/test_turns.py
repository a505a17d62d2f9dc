from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from service.http.scope import add_peer
from service.http.turns import FairTurns, PacedRefusals
from service.system.pacing import Allowance
from tests.fakes import FakeClock

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


ONE_MORE_S = 0.001001  # the time in which one more refusal may go out


class Refused:
    """Refusals that wait; `sent` has the clients of those that may go out, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[str] = []
        self.clock = FakeClock()
        self._refusals = PacedRefusals(self.clock)
        self._later: list[tuple[float, Any]] = []
        self._tasks: list[asyncio.Task[None]] = []
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "call_later", lambda *call: self._later.append(call))

    def refuse(self, name: str, *headers: tuple[bytes, bytes]) -> None:
        """A refusal for the client named by the first letter."""
        self._tasks.append(asyncio.create_task(self._wait(name, {"headers": headers})))

    async def _wait(self, name: str, scope: dict[str, Any]) -> None:
        await self._refusals.wait(name[0], scope, never)
        self.sent.append(name)

    async def advance(self, seconds: float) -> list[str]:
        """Lets time pass, and returns all that have been sent since the last call."""
        self.clock.advance(seconds)
        before = len(self.sent)
        for _ in range(20):
            due, self._later = self._later, []
            for _, begin in due:
                begin()
            await turn()
        return self.sent[before:]

    async def use_the_burst(self) -> None:
        for _ in range(100):
            self.refuse("burst")
        assert len(await self.advance(0)) == 100


def length(n_bytes: int) -> tuple[bytes, bytes]:
    return b"content-length", b"%d" % n_bytes


async def test_refusals_go_out_at_a_rate_in_turn_by_client(monkeypatch):
    refused = Refused(monkeypatch)
    await refused.use_the_burst()
    for name in ("a0", "a1", "a2", "b0"):
        refused.refuse(name)

    assert await refused.advance(0) == []
    assert [await refused.advance(ONE_MORE_S) for _ in range(4)] == [["a0"], ["b0"], ["a1"], ["a2"]]


async def test_refusals_of_requests_with_large_bodies_wait_longer(monkeypatch):
    refused = Refused(monkeypatch)
    await refused.use_the_burst()
    refused.refuse("a0", length(4 * 65_536))  # costs as much as three small ones
    refused.refuse("a1")

    assert await refused.advance(ONE_MORE_S) == ["a0"]
    assert await refused.advance(2 * ONE_MORE_S) == []
    assert await refused.advance(ONE_MORE_S) == ["a1"]


async def test_refusals_go_out_at_once_for_a_while_when_too_many_wait(monkeypatch):
    refused = Refused(monkeypatch)
    await refused.use_the_burst()
    for index in range(256):
        refused.refuse(f"a{index}")
    waiting = await refused.advance(0)

    refused.refuse("b0")
    at_once = await refused.advance(0)
    await refused.advance(29)
    refused.refuse("c0")
    still_at_once = await refused.advance(0)

    assert waiting == []
    assert at_once == ["b0"]
    assert still_at_once == ["c0"]


async def test_refusals_wait_again_after_a_while(monkeypatch):
    refused = Refused(monkeypatch)
    await refused.use_the_burst()
    for index in range(257):
        refused.refuse(f"a{index}")
    for _ in range(40):
        await refused.advance(1)
    await refused.use_the_burst()

    refused.refuse("b0")

    assert await refused.advance(0) == []
    assert await refused.advance(ONE_MORE_S) == ["b0"]


@pytest.mark.parametrize("value", [b"", b"-1", b"1e9", "\u00b2".encode(), b"x"])
async def test_refusals_body_length_that_is_no_number_costs_nothing(monkeypatch, value):
    refused = Refused(monkeypatch)
    await refused.use_the_burst()
    refused.refuse("a0", (b"content-length", value))
    refused.refuse("a1")

    assert await refused.advance(ONE_MORE_S) == ["a0"]
    assert await refused.advance(ONE_MORE_S) == ["a1"]
