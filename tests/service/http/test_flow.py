"""Writes that go out together; see test_http_protocol for the bounded flow."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from service.http.flow import CoalescingTransport

pytestmark = pytest.mark.anyio

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Transport:
    """Writes down what it is told."""

    limit = 7

    def __init__(self) -> None:
        self.told: list[bytes | str] = []

    def write(self, data: bytes) -> None:
        self.told.append(data)

    def close(self) -> None:
        self.told.append("close")

    def is_closing(self) -> bool:
        return "close" in self.told


def joined() -> tuple[CoalescingTransport, list[bytes | str]]:
    transport: Any = Transport()
    return CoalescingTransport(transport, asyncio.get_running_loop()), transport.told


async def end_of_turn() -> None:
    """Returns after what was called soon."""
    done = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(done.set_result, None)
    await done


async def test_joined_head_goes_out_with_its_body():
    writes, told = joined()

    writes.write(HEAD)
    writes.write(b"done")

    assert told == [HEAD + b"done"]


async def test_joined_head_and_body_are_written_once():
    writes, told = joined()
    writes.write(HEAD)
    writes.write(b"done")

    await end_of_turn()

    assert told == [HEAD + b"done"]


async def test_joined_head_waits_for_the_rest_of_the_turn():
    writes, told = joined()

    writes.write(HEAD)

    assert told == []


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified", b"503 Busy"])
async def test_joined_lone_head_goes_out_at_the_end_of_the_turn(status):
    writes, told = joined()
    head = b"HTTP/1.1 " + status + b"\r\n\r\n"
    writes.write(head)

    await end_of_turn()

    assert told == [head]


async def test_joined_body_of_a_later_turn_is_written_at_once():
    writes, told = joined()
    writes.write(HEAD)
    await end_of_turn()

    writes.write(b"done")

    assert told == [HEAD, b"done"]


async def test_joined_only_the_first_part_of_a_body_goes_with_the_head():
    writes, told = joined()

    for part in (HEAD, b"do", b"ne"):
        writes.write(part)

    assert told == [HEAD + b"do", b"ne"]


async def test_joined_empty_body_lets_the_head_out():
    writes, told = joined()

    writes.write(HEAD)
    writes.write(b"")

    assert told == [HEAD]


async def test_joined_continue_is_written_at_once():
    writes, told = joined()

    writes.write(CONTINUE)

    assert told == [CONTINUE]


async def test_joined_head_after_continue_goes_out_with_its_body():
    writes, told = joined()
    writes.write(CONTINUE)

    writes.write(HEAD)
    writes.write(b"done")

    assert told == [CONTINUE, HEAD + b"done"]


async def test_joined_body_that_looks_like_a_head_stays_behind_its_head():
    writes, told = joined()

    writes.write(HEAD)
    writes.write(HEAD)

    assert told == [HEAD + HEAD]


async def test_joined_close_lets_the_head_out_first():
    writes, told = joined()
    writes.write(HEAD)

    writes.close()

    assert told == [HEAD, "close"]


async def test_joined_close_with_nothing_kept_writes_nothing():
    writes, told = joined()

    writes.close()

    assert told == ["close"]


async def test_joined_nothing_is_written_after_the_close():
    writes, told = joined()
    writes.write(HEAD)
    writes.close()

    await end_of_turn()

    assert told == [HEAD, "close"]


async def test_joined_anything_else_is_the_transports():
    writes, _ = joined()

    assert (writes.limit, writes.is_closing()) == (7, False)
