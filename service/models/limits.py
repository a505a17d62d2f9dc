"""Limits of time and memory for loading one version."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from service.system.usage import available_bytes, private_bytes

VersionId = tuple[str, int, str]
"""Name, number and manifest digest of a version."""

# Pages are taken at 1 to 2 GB a second, so that at most about 40 MB are missed between two checks.
CHECK_INTERVAL_S: Final = 0.02
_SHARE: Final = 0.8  # of the available memory; the rest is for what is missed and for requests


@dataclass(frozen=True, slots=True)
class LoadLimits:
    """What loading and verifying one version may take.

    Attributes:
        timeout_s: after this time the version counts as not servable.
        max_memory_bytes: memory that is not backed by files; None for 80% of what is available
            when the loading begins.
    """

    timeout_s: float = 120.0
    max_memory_bytes: int | None = None

    def begin(self, pid: int, *, siblings: int = 1) -> LoadBudget:
        """Starts the clock, and remembers the memory that the process has already.

        Args:
            pid: the process that loads the version.
            siblings: processes that load at the same time and share the available memory.
        """
        memory_bytes: float | None = self.max_memory_bytes
        if memory_bytes is None:
            memory_bytes = _SHARE * available_bytes() / siblings
        return LoadBudget(pid, self.timeout_s, memory_bytes)


class LoadBudget:
    """The limits of one version that is being loaded."""

    def __init__(self, pid: int, timeout_s: float, memory_bytes: float) -> None:
        self._pid = pid
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._until_s = time.monotonic() + timeout_s
        self._before_bytes = private_bytes(pid)

    def exceeded(self) -> str | None:
        """Returns why the version is refused now, or None."""
        if private_bytes(self._pid) - self._before_bytes > self._memory_bytes:
            limit = f"{self._memory_bytes / 2**20:,.0f} MiB"
            return f"loading takes more than {limit} of memory (CONVSERVE_LOAD_MAX_MEMORY_BYTES)"
        if time.monotonic() > self._until_s:
            limit = f"{self._timeout_s:g} s"
            return f"loading takes longer than {limit} (CONVSERVE_LOAD_TIMEOUT_S)"
        return None
