"""Drops work as soon as nobody is left to receive its answer.

Our own protocol says so by calling back (`Peer`); under any other server a task waits for ASGI's
disconnect message, which costs more than all the rest of the waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

from starlette.requests import ClientDisconnect, Request

from service.serving.classifier import Answer

PEER: Final = "convserve.peer"
"""Where in the ASGI scope the protocol puts the `Peer`."""


class Peer:
    """The other end of a connection, for the time of one request.

    Attributes:
        gone: it will not receive an answer any more.
        on_gone: called once when that happens.
    """

    __slots__ = ("gone", "on_gone")

    def __init__(self) -> None:
        self.gone = False
        self.on_gone: Callable[[], object] | None = None

    def leave(self) -> None:
        """Notes that it is gone and tells whoever asked."""
        self.gone = True
        if self.on_gone is not None:
            self.on_gone()


async def while_connected(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
    """Waits for the work, or drops it once its client is gone.

    Raises:
        ClientDisconnect: the client is gone.
    """
    peer: Peer | None = request.scope.get(PEER)
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


async def _racing_disconnect(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
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
