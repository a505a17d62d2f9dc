from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from service.http.peer import while_connected
from service.http.scope import Peer, add_peer

pytestmark = pytest.mark.anyio

ANSWER = object()
DISCONNECT = {"type": "http.disconnect"}


class Work:
    """Waits until it is let go on, and writes down how far it came."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.ended = asyncio.Event()

    async def __call__(self) -> object:
        self.events.append("begun")
        self.begun.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.events.append("cancelled")
            raise
        finally:
            self.ended.set()
        self.events.append("done")
        return ANSWER


def connected() -> tuple[Request, Peer]:
    """A request whose protocol says when its peer is gone."""
    scope = {"type": "http"}
    peer = add_peer(scope)
    return Request(scope), peer


def request_receiving(*messages: dict[str, Any], then: asyncio.Event | None = None) -> Request:
    """A request without a peer, whose messages come when `then` is set."""
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


def begin(request: Request, work: Callable[[], Coroutine[Any, Any, object]]) -> asyncio.Task[Any]:
    return asyncio.create_task(while_connected(request, work()))


def test_peer_is_there_at_first():
    peer = Peer()

    assert (peer.gone, peer.on_gone) == (False, None)


def test_peer_that_leaves_tells_whoever_asked():
    peer, told = Peer(), []
    peer.on_gone = lambda: told.append(peer.gone)

    peer.leave()

    assert told == [True]


def test_peer_that_leaves_unasked_is_gone():
    peer = Peer()

    peer.leave()

    assert peer.gone


async def test_connected_work_answers():
    work, (request, _peer) = Work(), connected()
    work.go_on.set()

    answer = await begin(request, work)

    assert answer is ANSWER


@pytest.mark.parametrize("outcome", ["answer", "error"])
async def test_connected_peer_that_leaves_after_the_work_disturbs_nobody(outcome):
    (request, peer), work = connected(), Work()
    work.go_on.set()

    await asyncio.gather(
        begin(request, work if outcome == "answer" else failing), return_exceptions=True
    )

    assert peer.on_gone is None


async def test_connected_error_of_the_work_is_raised():
    with pytest.raises(KeyError):
        await begin(connected()[0], failing)


async def test_connected_peer_that_leaves_cancels_the_work():
    (request, peer), work = connected(), Work()
    task = begin(request, work)
    await work.begun.wait()

    peer.leave()

    with pytest.raises(ClientDisconnect):
        await task
    assert work.events == ["begun", "cancelled"]


async def test_connected_task_whose_peer_left_is_not_cancelled_itself():
    """Whoever answers for the request goes on awaiting, for example its log line."""
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
    await work.begun.wait()
    peer.leave()

    assert await task == ("went on", 0)


async def test_connected_peer_that_leaves_within_a_timeout_is_no_timeout():
    (request, peer), work = connected(), Work()

    async def patient() -> object:
        async with asyncio.timeout(60):
            return await work()

    task = begin(request, patient)
    await work.begun.wait()
    peer.leave()

    with pytest.raises(ClientDisconnect):
        await task


async def test_connected_server_that_gives_up_is_no_disconnect():
    (request, _peer), work = connected(), Work()
    task = begin(request, work)
    await work.begun.wait()

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.events == ["begun", "cancelled"]


async def test_connected_peer_already_gone_never_begins_the_work():
    (request, peer), work = connected(), Work()
    peer.leave()

    with pytest.raises(ClientDisconnect):
        await begin(request, work)

    assert work.events == []


async def test_unknown_server_work_answers():
    work = Work()
    work.go_on.set()

    answer = await begin(request_receiving(), work)

    assert answer is ANSWER


async def test_unknown_server_error_of_the_work_is_raised():
    with pytest.raises(KeyError):
        await begin(request_receiving(), failing)


async def test_unknown_server_disconnect_cancels_the_work():
    work = Work()
    rest = {"type": "http.request", "body": b"", "more_body": False}
    task = begin(request_receiving(rest, DISCONNECT, then=work.begun), work)

    with pytest.raises(ClientDisconnect):
        await task
    await work.ended.wait()

    assert work.events == ["begun", "cancelled"]


async def test_unknown_server_that_gives_up_is_no_disconnect():
    work = Work()
    task = begin(request_receiving(), work)
    await work.begun.wait()

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
