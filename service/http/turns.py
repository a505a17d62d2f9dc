"""Lets requests through a few at a time, in turn by client, so that no client keeps the event loop.

A client with 400 connections can have 400 requests arrive in one turn of the event loop. Without this,
the request of another client would wait for all of them, several times on its way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from starlette.requests import Request
from starlette.types import Receive

from service.http.peer import while_connected
from service.http.scope import peer_of
from service.system.pacing import Allowance, RoundRobin

_MIN_PAUSE_S: Final = 0.005  # so that several begin after one


@dataclass(slots=True)
class _Turn:
    begin: Callable[[], object]
    is_gone: Callable[[], bool]  # the client left, so that the turn is not needed
    cost: float


class FairTurns:
    """Bounds how many requests begin in one turn of the event loop; used on the event loop only.

    Requests that have to wait are let through round robin by flow, and in order within a flow.
    """

    def __init__(self, at_once: int, allowance: Allowance | None = None) -> None:
        """`at_once` requests begin in one turn, and no more than `allowance` allows."""
        self._at_once = at_once
        self._allowance = allowance
        self._left = at_once  # of this turn
        self._waiting = RoundRobin[_Turn]()
        self._scheduled = False

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    async def wait(self, flow: Hashable, scope: Any, receive: Receive, cost: float = 1.0) -> None:
        """Returns when the request may begin; `cost` is what it takes from the allowance.

        Raises:
            ClientDisconnect: the client disconnected first.
        """
        if self._take_now(cost):
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._enqueue(flow, _Turn(partial(future.set_result, None), future.done, cost))
        if peer_of(scope) is None:
            await future  # another server: watching for a disconnect would take the body's messages
        else:
            await while_connected(Request(scope, receive), _result_of(future))

    def call(
        self,
        flow: Hashable,
        begin: Callable[[], object],
        is_gone: Callable[[], bool],
        cost: float = 1.0,
    ) -> None:
        """Calls `begin` now or when it is its turn, unless `is_gone` returns True by then."""
        if self._take_now(cost):
            begin()
        else:
            self._enqueue(flow, _Turn(begin, is_gone, cost))

    def _take_now(self, cost: float) -> bool:
        if self._waiting or not self._take(cost):
            return False
        self._schedule()
        return True

    def _take(self, cost: float) -> bool:
        if self._left < 1 or (self._allowance is not None and not self._allowance.take(cost)):
            return False
        self._left -= 1
        return True

    def _enqueue(self, flow: Hashable, turn: _Turn) -> None:
        self._waiting.push(flow, turn)
        self._schedule()

    def _schedule(self) -> None:
        if self._scheduled:
            return
        self._scheduled = True
        loop = asyncio.get_running_loop()
        pause_s = self._allowance.wait_s() if self._waiting and self._allowance else 0.0
        if pause_s:
            loop.call_later(max(pause_s, _MIN_PAUSE_S), self._begin_turn)
        else:
            loop.call_soon(self._begin_turn)

    def _begin_turn(self) -> None:
        self._scheduled = False
        self._left = self._at_once
        try:
            while self._waiting:
                turn = self._waiting.first
                gone = turn.is_gone()
                if not gone and not self._take(turn.cost):
                    break
                self._waiting.pop()
                if not gone:
                    turn.begin()
        finally:
            if self._waiting:
                self._schedule()


async def _result_of(future: asyncio.Future[None]) -> None:
    await future
