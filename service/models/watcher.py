"""Adopts versions that are published while the service runs; no request is lost over it.

A look compares the files of the repository with those of the last look. Where they differ, new
versions are loaded and proven on a thread of their own while the old ones go on answering; then the
whole set is swapped at once. A version that fails its checks is reported and not adopted, and what
was served before goes on being served.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from contract.errors import ModelError
from contract.versions import find_versions
from service.errors import ProviderUnavailable
from service.models.repository import Load, Repository, RepositoryConfig, renew
from service.system.metrics import Metrics
from service.system.threads import DaemonThread

log = logging.getLogger(__name__)

Fingerprint = frozenset[tuple[str, int, int]]
Result = TypeVar("Result")


def fingerprint(models_dir: Path) -> Fingerprint:
    """Returns path, size in bytes and time of change in ns of every file of every version.

    A version that is being copied in file by file changes it again and again, and so is tried again
    until it is whole.
    """
    found = set()
    for name, numbers in find_versions(models_dir).items():
        for number in numbers:
            for path in (models_dir / name / str(number)).rglob("*"):
                try:
                    facts = path.lstat()
                except OSError:  # removed meanwhile
                    continue
                found.add((str(path.relative_to(models_dir)), facts.st_size, facts.st_mtime_ns))
    return frozenset(found)


class RepositoryWatcher:
    """Looks for new versions at intervals and hands the renewed repository on."""

    def __init__(
        self,
        config: RepositoryConfig,
        current: Callable[[], Repository],
        adopt: Callable[[Repository], Awaitable[None]],
        *,
        metrics: Metrics,
        seen: Fingerprint,
        load: Load | None = None,
    ) -> None:
        """Connects the parts; `looking` does the work.

        Args:
            config: where versions are and how they are loaded.
            current: the repository being served.
            adopt: puts a renewed one in its place; on the event loop. It may fail, and then leaves
                things as they were.
            metrics: counts adoptions and failures.
            seen: fingerprint of the files from before the current repository was loaded.
            load: how a version is proven, if not in this process.
        """
        self._shelf = config
        self._current = current
        self._adopt = adopt
        self._metrics = metrics
        self._seen = seen
        self._load = load
        self._asked = asyncio.Event()
        self._thread = DaemonThread("adopt")

    @asynccontextmanager
    async def polling(self, interval_s: float) -> AsyncIterator[None]:
        """Looks every `interval_s` seconds, and when asked to, for as long as the context lasts.

        With an interval of 0 it looks only when it is asked to.
        """
        task = asyncio.create_task(self._look_again(interval_s), name="adopt")
        try:
            yield
        finally:
            task.cancel()
            self._thread.close()

    def poll_soon(self) -> None:
        """Asks for a look before the interval is over; after the present one, if there is one."""
        self._asked.set()

    async def look(self) -> None:
        """Looks once, and adopts what is new and proves itself."""
        seen = await self._apart(partial(fingerprint, self._shelf.models_dir))
        if seen == self._seen:
            return
        self._seen = seen
        current = self._current()
        renewed, failures = await self._apart(partial(renew, self._shelf, current, self._load))
        for failure in failures:
            log.error("not adopted", extra={"reason": str(failure)})
            self._metrics.adoptions.labels("failed").inc()
        if renewed.versions() != current.versions():
            await self._hand_on(renewed)

    async def _hand_on(self, renewed: Repository) -> None:
        try:
            await self._adopt(renewed)
        except (ModelError, ProviderUnavailable) as error:
            log.error("not adopted", extra={"reason": str(error)})
            self._metrics.adoptions.labels("failed").inc()
            self._seen = frozenset()  # the versions are sound: try again at the next look
            return
        self._metrics.adoptions.labels("adopted").inc()
        served = [f"{name}/{number}" for name, number in (v.key for v in renewed.versions())]
        log.info("adopted", extra={"versions": served})

    async def _look_again(self, interval_s: float) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._asked.wait(), interval_s or None)
            self._asked.clear()
            try:
                await self.look()
            except Exception:
                # Whatever a file system or a graph can raise must not end the looking.
                log.exception("looking for new versions failed")

    async def _apart(self, call: Callable[[], Result]) -> Result:
        return await asyncio.wrap_future(self._thread.submit(call))
