from __future__ import annotations

import asyncio

import pytest

from service.admin.polling import NextPoll

pytestmark = pytest.mark.anyio


class Polls:
    """Polls that end when they are told to."""

    def __init__(self) -> None:
        self.begun = 0
        self.end = asyncio.Semaphore(0)

    async def poll(self) -> None:
        self.begun += 1
        await self.end.acquire()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_next_poll_is_shared_by_all_who_come_during_another():
    polls = Polls()
    next_poll = NextPoll(polls.poll)
    first = next_poll.begin()
    await settle()

    second, third = next_poll.begin(), next_poll.begin()
    await settle()
    begun_during_the_first = polls.begun
    polls.end.release()
    await settle()

    assert (begun_during_the_first, polls.begun) == (1, 2)
    assert (first.done(), second.done()) == (True, False)
    assert second is third
    polls.end.release()
    await second


async def test_next_poll_after_a_failed_one_is_begun():
    results = [ValueError("broken"), None]

    async def poll() -> None:
        result = results.pop(0)
        if result is not None:
            raise result

    next_poll = NextPoll(poll)
    with pytest.raises(ValueError, match="broken"):
        await next_poll.begin()
    await next_poll.begin()

    assert not results
