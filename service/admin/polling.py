"""Polls of the model repository on request, shared by all who wait for one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


class NextPoll:
    """Runs polls one after the other; requests that come during one share the next."""

    def __init__(self, poll: Callable[[], Awaitable[None]]) -> None:
        self._poll = poll
        self._running: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None

    def begin(self) -> asyncio.Task[None]:
        """Returns a task that ends when a poll has ended that began after this call.

        Others wait for it too, so do not cancel it.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._run(self._running), name="admin poll")
        return self._next

    async def _run(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait((before,))
        self._running, self._next = self._next, None
        await self._poll()
