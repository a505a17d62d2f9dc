"""Drops work as soon as nobody is left to receive its answer.

Our own protocol says so by calling back (`Peer`); under any other server a task waits for ASGI's
disconnect message, which costs more than all the rest of the waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from service.http.scope import Peer, peer_of

T = TypeVar("T")


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Waits for the work, or drops it once its client is gone.

    Raises:
        ClientDisconnect: the client is gone.
    """
    peer = peer_of(request.scope)
    task = asyncio.current_task()
    if peer is None or task is None:
        return await _racing_disconnect(request, work)
    if _is_gone(peer):
        work.close()
        raise ClientDisconnect

    peer.on_gone = task.cancel
    try:
        return await work
    except asyncio.CancelledError:
        if not _is_gone(peer):  # the server gives up, not the client
            raise
        task.uncancel()
        raise ClientDisconnect from None
    finally:
        peer.on_gone = None


def _is_gone(peer: Peer) -> bool:
    return peer.gone  # which changes while its request waits


async def _racing_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    answer, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()
    finally:
        answer.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
