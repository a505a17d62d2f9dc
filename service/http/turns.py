"""Lets requests through a few at a time, in turn by client, so that no client keeps the event loop.

A client with 400 connections can have 400 requests arrive in one turn of the event loop. Without this,
the request of another client would wait for all of them, several times on its way.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Any

from starlette.requests import Request
from starlette.types import Receive

from service.http.peer import while_connected
from service.http.scope import peer_of
from service.system.pacing import Allowance


class FairTurns:
    """Bounds how many requests begin in one turn of the event loop; used on the event loop only.

    Requests that have to wait are let through round robin by flow, and in order within a flow.
    """

    def __init__(self, at_once: int, allowance: Allowance | None = None) -> None:
        """`at_once` requests begin in one turn, and no more than `allowance` allows."""
        self._at_once = at_once
        self._allowance = allowance
        self._left = at_once  # of this turn
        self._waiting: OrderedDict[Hashable, deque[asyncio.Future[None]]] = OrderedDict()
        self._scheduled = False

    async def wait(self, flow: Hashable, scope: Any, receive: Receive) -> None:
        """Returns when the request may begin.

        Raises:
            ClientDisconnect: the client disconnected first.
        """
        if not self._waiting and self._take():
            self._schedule()
            return

        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(flow, deque()).append(future)
        self._schedule()
        if peer_of(scope) is None:
            await future  # another server: watching for a disconnect would take the body's messages
        else:
            await while_connected(Request(scope, receive), _result_of(future))

    def _take(self) -> bool:
        if self._left < 1 or (self._allowance is not None and not self._allowance.take()):
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
            flow, futures = next(iter(self._waiting.items()))
            while futures and futures[0].done():  # the client left
                futures.popleft()
            if futures and not self._take():
                break
            if futures:
                futures.popleft().set_result(None)
            self._waiting.move_to_end(flow)
            if not futures:
                del self._waiting[flow]
        if self._waiting:
            self._schedule()


async def _result_of(future: asyncio.Future[None]) -> None:
    await future
