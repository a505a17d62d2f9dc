from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from service.http.peer import while_connected
from service.http.scope import Peer, add_peer

pytestmark = pytest.mark.anyio

RESULT = object()
DISCONNECT = {"type": "http.disconnect"}


class Work:
    """Work that waits for `go_on` and records how far it got."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.started = asyncio.Event()
        self.go_on = asyncio.Event()
        self.ended = asyncio.Event()

    async def __call__(self) -> object:
        self.events.append("started")
        self.started.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.events.append("cancelled")
            raise
        finally:
            self.ended.set()
        self.events.append("done")
        return RESULT


def connected() -> tuple[Request, Peer]:
    """A request with a peer, as `BoundedHttpProtocol` creates it."""
    scope = {"type": "http"}
    peer = add_peer(scope)
    return Request(scope), peer


def request_receiving(*messages: dict[str, Any], then: asyncio.Event | None = None) -> Request:
    """A request without a peer; its messages arrive once `then` is set."""
    queue = list(messages)

    async def receive() -> dict[str, Any]:
        if then is not None:
            await then.wait()
        if not queue:
            await asyncio.Event().wait()
        return queue.pop(0)

    return Request({"type": "http"}, receive)


async def failing() -> object:
    raise KeyError("x")


def start(request: Request, work: Callable[[], Coroutine[Any, Any, object]]) -> asyncio.Task[Any]:
    return asyncio.create_task(while_connected(request, work()))


def test_peer_is_connected_at_first():
    peer = Peer()

    assert (peer.disconnected, peer.on_disconnect) == (False, None)


def test_peer_that_disconnects_calls_its_callback():
    peer, calls = Peer(), []
    peer.on_disconnect = lambda: calls.append(peer.disconnected)

    peer.disconnect()

    assert calls == [True]


def test_peer_that_disconnects_without_a_callback_is_disconnected():
    peer = Peer()

    peer.disconnect()

    assert peer.disconnected


async def test_connected_work_returns_its_result():
    work, (request, _peer) = Work(), connected()
    work.go_on.set()

    result = await start(request, work)

    assert result is RESULT


@pytest.mark.parametrize("outcome", ["result", "error"])
async def test_connected_callback_is_removed_after_the_work(outcome):
    (request, peer), work = connected(), Work()
    work.go_on.set()

    await asyncio.gather(
        start(request, work if outcome == "result" else failing), return_exceptions=True
    )

    assert peer.on_disconnect is None


async def test_connected_error_in_the_work_is_raised():
    with pytest.raises(KeyError):
        await start(connected()[0], failing)


async def test_connected_disconnect_cancels_the_work():
    (request, peer), work = connected(), Work()
    task = start(request, work)
    await work.started.wait()

    peer.disconnect()

    with pytest.raises(ClientDisconnect):
        await task
    assert work.events == ["started", "cancelled"]


async def test_connected_task_itself_is_not_cancelled():
    """The task continues after a disconnect, for example to write its log line."""
    (request, peer), work = connected(), Work()

    async def handle() -> tuple[str, int]:
        try:
            await while_connected(request, work())
        except ClientDisconnect:
            await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        return "went on", task.cancelling()

    task = asyncio.create_task(handle())
    await work.started.wait()
    peer.disconnect()

    assert await task == ("went on", 0)


async def test_connected_disconnect_within_a_timeout_is_not_a_timeout():
    (request, peer), work = connected(), Work()

    async def work_with_timeout() -> object:
        async with asyncio.timeout(60):
            return await work()

    task = start(request, work_with_timeout)
    await work.started.wait()
    peer.disconnect()

    with pytest.raises(ClientDisconnect):
        await task


async def test_connected_cancellation_by_the_server_is_not_a_disconnect():
    (request, _peer), work = connected(), Work()
    task = start(request, work)
    await work.started.wait()

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.events == ["started", "cancelled"]


async def test_connected_peer_already_disconnected_never_starts_the_work():
    (request, peer), work = connected(), Work()
    peer.disconnect()

    with pytest.raises(ClientDisconnect):
        await start(request, work)

    assert work.events == []


async def test_without_a_peer_work_returns_its_result():
    work = Work()
    work.go_on.set()

    result = await start(request_receiving(), work)

    assert result is RESULT


async def test_without_a_peer_error_in_the_work_is_raised():
    with pytest.raises(KeyError):
        await start(request_receiving(), failing)


async def test_without_a_peer_disconnect_cancels_the_work():
    work = Work()
    rest = {"type": "http.request", "body": b"", "more_body": False}
    task = start(request_receiving(rest, DISCONNECT, then=work.started), work)

    with pytest.raises(ClientDisconnect):
        await task
    await work.ended.wait()

    assert work.events == ["started", "cancelled"]


async def test_without_a_peer_cancellation_is_not_a_disconnect():
    work = Work()
    task = start(request_receiving(), work)
    await work.started.wait()

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
