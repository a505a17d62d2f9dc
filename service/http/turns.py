"""Lets requests through a few at a time, in turn by client, so that no client keeps the event loop.

A client with 400 connections can have 400 requests arrive in one turn of the event loop. Without this,
the request of another client would wait for all of them, several times on its way.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Any, Final

from starlette.requests import Request
from starlette.types import Receive

from service.http.peer import while_connected
from service.http.scope import peer_of
from service.system.pacing import Allowance

# Refusals: 0.1 ms each, so that a steady stream takes a tenth of the event loop.
_REFUSALS_AT_ONCE: Final = 16
_REFUSALS_BURST: Final = 100
_REFUSALS_PER_S: Final = 1000
# Of a body: what is part of every refusal, and what costs as much as one more.
_INCLUDED_BYTES: Final = 131_072
_BYTES_PER_REFUSAL: Final = 65_536
_MAX_WAITING: Final = 256  # each holds up to 64 kB of its body
_AT_ONCE_S: Final = 30.0

_Turn = tuple["asyncio.Future[None]", float]  # with its cost


class FairTurns:
    """Bounds how many requests begin in one turn of the event loop; used on the event loop only.

    Requests that have to wait are let through round robin by flow, and in order within a flow.
    """

    def __init__(self, at_once: int, allowance: Allowance | None = None) -> None:
        """`at_once` requests begin in one turn, and no more than `allowance` allows."""
        self._at_once = at_once
        self._allowance = allowance
        self._left = at_once  # of this turn
        self._waiting: OrderedDict[Hashable, deque[_Turn]] = OrderedDict()
        self._scheduled = False

    async def wait(self, flow: Hashable, scope: Any, receive: Receive, cost: float = 1.0) -> None:
        """Returns when the request may begin; `cost` is what it takes from the allowance.

        Raises:
            ClientDisconnect: the client disconnected first.
        """
        if not self._waiting and self._take(cost):
            self._schedule()
            return

        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(flow, deque()).append((future, cost))
        self._schedule()
        if peer_of(scope) is None:
            await future  # another server: watching for a disconnect would take the body's messages
        else:
            await while_connected(Request(scope, receive), _result_of(future))

    def _take(self, cost: float) -> bool:
        if self._left < 1 or (self._allowance is not None and not self._allowance.take(cost)):
            return False
        self._left -= 1
        return True

    def _schedule(self) -> None:
        if self._scheduled:
            return
        self._scheduled = True
        loop = asyncio.get_running_loop()
        pause_s = self._allowance.wait_s() if self._waiting and self._allowance else 0.0
        if pause_s:
            loop.call_later(pause_s, self._begin_turn)
        else:
            loop.call_soon(self._begin_turn)

    def _begin_turn(self) -> None:
        self._scheduled = False
        self._left = self._at_once
        while self._waiting:
            flow, turns = next(iter(self._waiting.items()))
            while turns and turns[0][0].done():  # the client left
                turns.popleft()
            if turns and not self._take(turns[0][1]):
                break
            if turns:
                turns.popleft()[0].set_result(None)
            self._waiting.move_to_end(flow)
            if not turns:
                del self._waiting[flow]
        if self._waiting:
            self._schedule()


class PacedRefusals:
    """Lets a client that sends on while it is refused wait for its refusals.

    A refused request costs the event loop its parsing, its answer and the bytes of its body. A client with
    hundreds of connections that all send again at once would take a core for that. So refusals go out at a
    bounded rate, in turn by client.

    That slows down a client that waits for its answers before it sends more. One that does not would only
    open more connections. So when too many refusals wait, the next ones go out at once for a while.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives monotonic seconds."""
        allowance = Allowance(_REFUSALS_BURST, _REFUSALS_PER_S, clock)
        self._turns = FairTurns(_REFUSALS_AT_ONCE, allowance)
        self._waiting = 0
        self._clock = clock
        self._at_once_until_s = -math.inf

    async def wait(self, client: str, scope: Any, receive: Receive) -> None:
        """Returns when the refusal of a request may be sent.

        Raises:
            ClientDisconnect: the client disconnected first.
        """
        now_s = self._clock()
        if self._waiting >= _MAX_WAITING:
            self._at_once_until_s = now_s + _AT_ONCE_S
        if now_s < self._at_once_until_s:
            return
        cost = 1.0 + max(0, _n_body_bytes(scope) - _INCLUDED_BYTES) / _BYTES_PER_REFUSAL
        self._waiting += 1
        try:
            await self._turns.wait(client, scope, receive, cost)
        finally:
            self._waiting -= 1


def _n_body_bytes(scope: Any) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else 0
    return 0


async def _result_of(future: asyncio.Future[None]) -> None:
    await future
