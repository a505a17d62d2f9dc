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


class Refused:
    """Refusals that wait; `sent` has the clients of those that may go out, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, allowance: Allowance | None = None) -> None:
        self.sent: list[str] = []
        self.clock = FakeClock()
        self._refusals = PacedRefusals(allowance or Allowance(1, 1, self.clock))
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
        """Lets time pass, and returns all that have been sent by then."""
        self.clock.advance(seconds)
        for _ in range(5):
            due, self._later = self._later, []
            for _, begin in due:
                begin()
            await turn()
        return self.sent


def length(n_bytes: int) -> tuple[bytes, bytes]:
    return b"content-length", b"%d" % n_bytes


async def test_refusals_go_out_at_a_rate_in_turn_by_client(monkeypatch):
    refused = Refused(monkeypatch)
    for name in ("a0", "a1", "a2", "b0"):
        refused.refuse(name)

    at_once = list(await refused.advance(0))
    for _ in range(3):
        await refused.advance(1)

    assert at_once == ["a0"]
    assert refused.sent == ["a0", "a1", "b0", "a2"]


async def test_refusals_of_requests_with_large_bodies_wait_longer(monkeypatch):
    refused = Refused(monkeypatch)
    refused.refuse("a0", length(2 * 65_536))  # costs as much as three without a body
    refused.refuse("a1")

    await refused.advance(0)
    before = list(await refused.advance(2.9))
    after = list(await refused.advance(0.2))

    assert (before, after) == (["a0"], ["a0", "a1"])


async def test_refusals_that_would_wait_more_than_a_second_go_out_at_once(monkeypatch):
    refused = Refused(monkeypatch)
    for index in range(1_200):
        refused.refuse(f"a{index}")

    sent = await refused.advance(0)

    assert sent == ["a0", *(f"a{index}" for index in range(1_001, 1_200))]


@pytest.mark.parametrize("value", [b"", b"-1", b"1e9", "\u00b2".encode(), b"x"])
async def test_refusals_body_length_that_is_no_number_costs_nothing(monkeypatch, value):
    refused = Refused(monkeypatch)
    refused.refuse("a0", (b"content-length", value))
    refused.refuse("a1")

    assert await refused.advance(0) == ["a0"]
    assert await refused.advance(1) == ["a0", "a1"]
