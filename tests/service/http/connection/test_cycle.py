"""The cycle of one request: how it writes a response and reads a body."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from service.http.connection.cycle import ResponseCycle

pytestmark = pytest.mark.anyio

BODY = {"type": "http.response.body", "body": b"done"}


class FakeFlow:
    """Flow control that never pauses, unless a test says so."""

    def __init__(self) -> None:
        self.write_paused = False
        self.drained = 0

    def resume_reading(self) -> None:
        pass

    async def drain(self) -> None:
        self.drained += 1


class RecordingTransport:
    """Records its calls."""

    def __init__(self) -> None:
        self.calls: list[bytes | str] = []

    def write(self, data: bytes) -> None:
        self.calls.append(data)

    def close(self) -> None:
        self.calls.append("close")

    def is_closing(self) -> bool:
        return "close" in self.calls


def new_cycle(*, method: str = "GET", keep_alive: bool = True, **changes: Any) -> Any:
    transport = RecordingTransport()
    cycle: Any = ResponseCycle(
        close=transport.close,
        scope={"type": "http", "method": method},
        transport=transport,
        flow=FakeFlow(),
        logger=logging.getLogger("test"),
        access_logger=logging.getLogger("test"),
        access_log=False,
        default_headers=[(b"date", b"now")],
        message_event=asyncio.Event(),
        expect_100_continue=False,
        keep_alive=keep_alive,
        on_response=lambda: cycle.finished.append(True),
    )
    cycle.finished = []
    vars(cycle).update(changes)
    return cycle


def start(*headers: tuple[bytes, bytes], status: int = 200) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


LENGTH = (b"content-length", b"4")


async def test_cycle_whole_response_is_one_write():
    cycle = new_cycle()

    await cycle.send(start(LENGTH, (b"x-id", b"7")))
    assert cycle.transport.calls == []
    await cycle.send(BODY)

    head = b"HTTP/1.1 200 OK\r\ndate: now\r\ncontent-length: 4\r\nx-id: 7\r\n\r\n"
    assert cycle.transport.calls == [head + b"done"]
    assert cycle.response_complete
    assert cycle.finished == [True]


@pytest.mark.parametrize(
    ("keep_alive", "headers"),
    [(False, ()), (True, ((b"connection", b"close"),)), (False, ((b"connection", b"close"),))],
    ids=["client", "application", "both"],
)
async def test_cycle_last_response_says_so_once_and_closes(keep_alive, headers):
    cycle = new_cycle(keep_alive=keep_alive)

    await cycle.send(start(LENGTH, *headers))
    await cycle.send(BODY)

    written, closed = cycle.transport.calls
    assert written.count(b"connection: close\r\n") == 1
    assert closed == "close"


async def test_cycle_response_in_parts_is_written_in_parts():
    cycle = new_cycle()

    await cycle.send(start())
    await cycle.send({"type": "http.response.body", "body": b"do", "more_body": True})
    await cycle.send({"type": "http.response.body", "body": b"ne"})

    head, first, last = cycle.transport.calls
    assert head.endswith(b"transfer-encoding: chunked\r\n\r\n")
    assert (first, last) == (b"2\r\ndo\r\n", b"2\r\nne\r\n0\r\n\r\n")
    assert cycle.response_complete


async def test_cycle_response_to_head_has_no_body():
    cycle = new_cycle(method="HEAD")

    await cycle.send(start(LENGTH))
    await cycle.send(BODY)

    assert b"done" not in b"".join(cycle.transport.calls)
    assert cycle.response_complete


@pytest.mark.parametrize("value", [b"a\nb", b"a\r\nb: c", b"a\rb"])
async def test_cycle_header_with_a_line_break_is_refused(value):
    cycle = new_cycle()
    await cycle.send(start(LENGTH, (b"x-id", value)))

    with pytest.raises(RuntimeError, match="Invalid HTTP header value"):
        await cycle.send(BODY)

    assert cycle.transport.calls == []


async def test_cycle_body_of_another_length_is_refused():
    cycle = new_cycle()
    await cycle.send(start((b"content-length", b"5")))

    with pytest.raises(RuntimeError, match="shorter than Content-Length"):
        await cycle.send(BODY)


@pytest.mark.parametrize("length", [b"0", b"5"])
@pytest.mark.parametrize("outcome", ["raises", "returns"])
async def test_cycle_application_that_ends_before_the_body_is_a_500(length, outcome):
    async def application(_scope: Any, _receive: Any, send: Any) -> None:
        await send(start((b"content-length", length)))
        if outcome == "raises":
            raise ValueError("broken")

    cycle = new_cycle()

    await cycle.run_asgi(application)

    written, closed = cycle.transport.calls
    assert written.startswith(b"HTTP/1.1 500 ")
    assert written.endswith(b"Internal Server Error")
    assert closed == "close"
    assert cycle.response_complete


async def test_cycle_waits_while_the_peer_does_not_read():
    cycle = new_cycle()
    cycle.flow.write_paused = True

    await cycle.send(start(LENGTH))
    await cycle.send(BODY)

    assert cycle.flow.drained == 1


async def test_cycle_writes_nothing_to_a_peer_that_is_gone():
    cycle = new_cycle(disconnected=True)

    await cycle.send(start(LENGTH))
    await cycle.send(BODY)

    assert cycle.transport.calls == []
    assert cycle.finished == []


async def test_cycle_body_in_one_piece_is_not_copied():
    cycle = new_cycle()
    body = bytes(1000)
    cycle.add_body(body)
    cycle.more_body = False

    message = await cycle.receive()

    assert message == {"type": "http.request", "body": body, "more_body": False}
    assert message["body"] is body


async def test_cycle_body_in_pieces_is_joined_and_counted():
    cycle = new_cycle()
    for piece in (b"ab", b"cde"):
        cycle.add_body(piece)
    assert cycle.n_unread == 5

    message = await cycle.receive()

    assert (message["body"], message["more_body"], cycle.n_unread) == (b"abcde", True, 0)
