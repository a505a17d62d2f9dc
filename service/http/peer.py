"""Cancels a request's work when its client disconnects.

convserve's own protocol calls back through `Peer`. Under any other server, a task waits for ASGI's
disconnect message, which costs more than everything else in the wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from service.http.scope import Peer, peer_of

T = TypeVar("T")


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Awaits the work and returns its result; cancels it when the client disconnects.

    Raises:
        ClientDisconnect: the client disconnected first.
    """
    peer = peer_of(request.scope)
    task = asyncio.current_task()
    if peer is None or task is None:
        return await _race_disconnect(request, work)
    if _is_disconnected(peer):
        work.close()
        raise ClientDisconnect

    peer.on_disconnect = task.cancel
    try:
        return await work
    except asyncio.CancelledError:
        if not _is_disconnected(peer):  # the server cancelled the request
            raise
        task.uncancel()  # the caller goes on, for example to write its log line
        raise ClientDisconnect from None
    finally:
        peer.on_disconnect = None


def _is_disconnected(peer: Peer) -> bool:
    # A function, because mypy would narrow the attribute and call the check after `await` dead code.
    return peer.disconnected


async def _race_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    result, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((result, gone), return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            raise ClientDisconnect
        return result.result()
    finally:
        result.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
