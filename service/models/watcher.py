"""Watches the model repository and adopts new versions while the service runs.

Each poll compares the files with those of the last poll. If they differ, new versions are loaded and
verified on a separate thread while the old ones keep answering. Then the whole set is swapped at once,
and no request is lost. A version that fails its checks is reported, and the old ones stay.
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
    # Path, size in bytes and time of change in ns of every file. While a version is copied in file by
    # file, the fingerprint keeps changing, so the version is tried again until it is complete.
    found = set()
    for name, numbers in find_versions(models_dir).items():
        for number in numbers:
            for path in (models_dir / name / str(number)).rglob("*"):
                try:
                    facts = path.lstat()
                except OSError:  # removed since it was listed
                    continue
                found.add((str(path.relative_to(models_dir)), facts.st_size, facts.st_mtime_ns))
    return frozenset(found)


class RepositoryWatcher:
    """Polls for new versions and passes on the changed repository."""

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
        """`polling` starts it.

        `adopt` replaces the repository on the event loop. If it raises, it must have changed nothing.
        `seen` is the fingerprint from before the current repository was loaded. `load` replaces
        `load_version`, for example to load in another process.
        """
        self._config = config
        self._current = current
        self._adopt = adopt
        self._metrics = metrics
        self._seen = seen
        self._load = load
        self._n_failing = 0  # at the last poll that found a change
        self._requested = asyncio.Event()
        self._thread = DaemonThread("adopt")

    @asynccontextmanager
    async def polling(self, interval_s: float) -> AsyncIterator[None]:
        """Polls every `interval_s` seconds and on request, until the context ends.

        With an interval of 0 it polls only on request.
        """
        task = asyncio.create_task(self._poll_forever(interval_s), name="adopt")
        try:
            yield
        finally:
            task.cancel()
            self._thread.close()

    def poll_soon(self) -> None:
        """Requests a poll now, or after the current one."""
        self._requested.set()

    async def poll(self) -> None:
        """Compares the files once and adopts new versions that pass their checks."""
        seen = await self._in_thread(partial(fingerprint, self._config.models_dir))
        if seen == self._seen:
            self._metrics.adoptions_failing.set(self._n_failing)
            return

        self._seen = seen
        self._n_failing = 1  # for an exception that nobody expected; corrected below
        current = self._current()
        renewed, failures = await self._in_thread(partial(renew, self._config, current, self._load))
        for failure in failures:
            self._report(failure)
        self._n_failing = len(failures)
        if renewed.versions() != current.versions():
            await self._try_adopt(renewed)
        self._metrics.adoptions_failing.set(self._n_failing)

    async def _try_adopt(self, renewed: Repository) -> None:
        try:
            await self._adopt(renewed)
        except (ModelError, ProviderUnavailable) as error:
            self._report(error)
            self._n_failing += 1
            self._seen = frozenset()  # the versions are valid: try again at the next poll
            return

        self._metrics.adoptions.labels("adopted").inc()
        served = [f"{name}/{number}" for name, number in (v.key for v in renewed.versions())]
        log.info("adopted", extra={"versions": served})

    def _report(self, failure: Exception) -> None:
        log.error("not adopted", extra={"reason": str(failure)})
        self._metrics.adoptions.labels("failed").inc()

    async def _poll_forever(self, interval_s: float) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._requested.wait(), interval_s or None)
            self._requested.clear()
            try:
                await self.poll()
            except Exception:
                # A file system or a graph can raise anything. Polling must go on.
                log.exception("polling for new versions failed")
                self._metrics.adoptions_failing.set(max(1, self._n_failing))

    async def _in_thread(self, call: Callable[[], Result]) -> Result:
        return await asyncio.wrap_future(self._thread.submit(call))
