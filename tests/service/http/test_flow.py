"""The coalescing transport. test_protocol.py covers the flow control."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from service.http.flow import CoalescingTransport

pytestmark = pytest.mark.anyio

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class RecordingTransport:
    """Records its calls."""

    limit = 7

    def __init__(self) -> None:
        self.calls: list[bytes | str] = []

    def write(self, data: bytes) -> None:
        self.calls.append(data)

    def close(self) -> None:
        self.calls.append("close")

    def is_closing(self) -> bool:
        return "close" in self.calls


def make_transport() -> tuple[CoalescingTransport, list[bytes | str]]:
    recorder: Any = RecordingTransport()
    return CoalescingTransport(recorder, asyncio.get_running_loop()), recorder.calls


async def end_of_turn() -> None:
    """Returns after the callbacks that are scheduled now."""
    done = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(done.set_result, None)
    await done


async def test_coalescing_head_is_written_with_its_body():
    transport, calls = make_transport()

    transport.write(HEAD)
    transport.write(b"done")

    assert calls == [HEAD + b"done"]


async def test_coalescing_head_and_body_are_written_once():
    transport, calls = make_transport()
    transport.write(HEAD)
    transport.write(b"done")

    await end_of_turn()

    assert calls == [HEAD + b"done"]


async def test_coalescing_head_waits_for_the_rest_of_the_turn():
    transport, calls = make_transport()

    transport.write(HEAD)

    assert calls == []


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified", b"503 Busy"])
async def test_coalescing_lone_head_is_written_at_the_end_of_the_turn(status):
    transport, calls = make_transport()
    head = b"HTTP/1.1 " + status + b"\r\n\r\n"
    transport.write(head)

    await end_of_turn()

    assert calls == [head]


async def test_coalescing_body_of_a_later_turn_is_written_at_once():
    transport, calls = make_transport()
    transport.write(HEAD)
    await end_of_turn()

    transport.write(b"done")

    assert calls == [HEAD, b"done"]


async def test_coalescing_only_the_first_part_of_a_body_goes_with_the_head():
    transport, calls = make_transport()

    for part in (HEAD, b"do", b"ne"):
        transport.write(part)

    assert calls == [HEAD + b"do", b"ne"]


async def test_coalescing_empty_body_flushes_the_head():
    transport, calls = make_transport()

    transport.write(HEAD)
    transport.write(b"")

    assert calls == [HEAD]


async def test_coalescing_continue_is_written_at_once():
    transport, calls = make_transport()

    transport.write(CONTINUE)

    assert calls == [CONTINUE]


async def test_coalescing_head_after_continue_is_written_with_its_body():
    transport, calls = make_transport()
    transport.write(CONTINUE)

    transport.write(HEAD)
    transport.write(b"done")

    assert calls == [CONTINUE, HEAD + b"done"]


async def test_coalescing_body_that_looks_like_a_head_stays_behind_its_head():
    transport, calls = make_transport()

    transport.write(HEAD)
    transport.write(HEAD)

    assert calls == [HEAD + HEAD]


async def test_coalescing_close_flushes_the_head_first():
    transport, calls = make_transport()
    transport.write(HEAD)

    transport.close()

    assert calls == [HEAD, "close"]


async def test_coalescing_close_without_a_head_writes_nothing():
    transport, calls = make_transport()

    transport.close()

    assert calls == ["close"]


async def test_coalescing_nothing_is_written_after_the_close():
    transport, calls = make_transport()
    transport.write(HEAD)
    transport.close()

    await end_of_turn()

    assert calls == [HEAD, "close"]


async def test_coalescing_delegates_everything_else():
    transport, _ = make_transport()

    assert (transport.limit, transport.is_closing()) == (7, False)
