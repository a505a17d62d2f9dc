"""Waits for what nothing announces: each wait polls, and fails after its timeout."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

TIMEOUT_S = 30.0
_PAUSE_S = 0.002


def wait_until(condition: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> float:
    """Returns how long it took until the condition was met, in seconds."""
    started_s = time.monotonic()
    while not condition():
        assert time.monotonic() - started_s < timeout_s, f"not met within {timeout_s:g} s"
        time.sleep(_PAUSE_S)
    return time.monotonic() - started_s


async def until(condition: Callable[[], object], timeout_s: float = TIMEOUT_S) -> None:
    """Lets the event loop run until the condition is met."""
    ends_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends_s, f"not met within {timeout_s:g} s"
        await asyncio.sleep(0)
