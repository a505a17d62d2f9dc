"""Watches the model repository and adopts what changed while the service runs.

Each poll compares the files with those of the last poll. If they differ, `repository.toml` is read again
and new versions are loaded and verified on a separate thread, while the old ones keep answering. Then the
whole set is swapped at once, and no request is lost. A version that fails its checks is reported, and the
old ones stay.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Final, Protocol, TypeVar

from contract.errors import ContractError
from contract.repository.policy import Decision
from service.errors import ProviderUnavailable
from service.models.repository import Load, LoadedVersion, Repository, load_version
from service.models.selection import RepositoryConfig, renew
from service.models.snapshot import VersionFacts
from service.system.metrics import Metrics
from service.system.threads import DaemonThread

log = logging.getLogger(__name__)

Result = TypeVar("Result")

# A version that failed is tried again although its files have not changed: the reason may have been a
# full disk or too little memory.
_FIRST_PAUSE_S: Final = 60.0
_LONGEST_PAUSE_S: Final = 3600.0


class ServesRepository(Protocol):
    """What serves a repository and can be given another."""

    @property
    def repository(self) -> Repository: ...

    async def adopt(self, repository: Repository) -> None:
        """Serves the repository from now on; called on the event loop.

        Raises:
            ContractError, ProviderUnavailable: it cannot; nothing has changed.
        """
        ...


class RepositoryWatcher:
    """Polls for changes and passes on the changed repository."""

    def __init__(
        self,
        config: RepositoryConfig,
        serving: ServesRepository,
        *,
        metrics: Metrics,
        seen: VersionFacts,
        load: Load = load_version,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`polling` starts it.

        `seen` is the snapshot from before the current repository was loaded. `load` replaces
        `load_version`, for example to load in another process.
        """
        self._config = config
        self._serving = serving
        self._metrics = metrics
        self._seen = seen
        self._load = load
        self._clock = clock
        self._pause_s = _FIRST_PAUSE_S
        self._retry_at = clock() + _FIRST_PAUSE_S
        self.not_adopted: str | None = None  # why the last change could not be swapped in
        self._requested = asyncio.Event()
        self._polling = asyncio.Lock()
        self._thread = DaemonThread("adopt")
        self._show()

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
        """Compares the files once and adopts what changed."""
        async with self._polling:
            try:
                await self._poll()
            except Exception:
                self.not_adopted = "an unexpected error; the log has it"
                raise
            self._show()

    async def _poll(self) -> None:
        current = self._serving.repository
        failing = bool(current.problems) or self.not_adopted is not None
        retry = failing and self._clock() >= self._retry_at
        seen = await self._in_thread(self._config.snapshot)
        if seen == self._seen and not retry:
            return
        if seen != self._seen:
            self._pause_s = _FIRST_PAUSE_S

        self._seen = seen
        renewed = await self._in_thread(
            partial(renew, self._config, current, self._load, retry=retry)
        )
        self._report(current, renewed)
        await self._try_adopt(current, renewed)
        self._retry_at = self._clock() + self._pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)

    async def _try_adopt(self, current: Repository, renewed: Repository) -> None:
        try:
            await self._serving.adopt(renewed)
        except (ContractError, ProviderUnavailable) as error:
            self.not_adopted = str(error)
            self._count_failure(str(error))
            self._seen = frozenset()  # the versions are valid: try again at the next poll
            return

        self.not_adopted = None
        before, after = current.versions(), renewed.versions()
        if after != before or _answers(renewed) != _answers(current):
            self._metrics.adoptions.labels("adopted").inc()
            models = renewed.decision.models
            log.info(
                "adopted",
                extra={
                    "added": _names(one for one in after if one not in before),
                    "removed": _names(one for one in before if one not in after),
                    "versions": _names(after),
                    "answers": {name: one.answer for name, one in models.items()},
                    "aliases": {
                        name: dict(one.aliases) for name, one in models.items() if one.aliases
                    },
                    "default_model": renewed.default_name,
                },
            )

    def _report(self, before: Repository, after: Repository) -> None:
        for problem in after.problems:
            if problem not in before.problems:
                self._count_failure(problem)
        for problem in before.problems:
            if problem not in after.problems:
                log.info("no longer failing", extra={"reason": problem})
        report_warnings(after, before)

    def _count_failure(self, reason: str) -> None:
        log.error("not adopted", extra={"reason": reason})
        self._metrics.adoptions.labels("failed").inc()

    def _show(self) -> None:
        current = self._serving.repository
        n_failing = len(current.problems) + (self.not_adopted is not None)
        self._metrics.adoptions_failing.set(n_failing)
        self._metrics.versions_held.set(len(current.held))

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
                self._metrics.adoptions_failing.set(len(self._serving.repository.problems) + 1)

    async def _in_thread(self, call: Callable[[], Result]) -> Result:
        return await asyncio.wrap_future(self._thread.submit(call))


def report_start(repository: Repository) -> None:
    """Logs what a service that starts cannot serve."""
    for problem in repository.problems:
        log.error("not served", extra={"reason": problem})
    report_warnings(repository)


def report_warnings(repository: Repository, before: Repository | None = None) -> None:
    known = (*before.held, *before.decision.warnings) if before else ()
    for held in repository.held:
        if held not in known:
            log.warning("held back", extra={"reason": held})
    for warning in repository.decision.warnings:
        if warning not in known:
            log.warning("the model repository needs attention", extra={"reason": warning})


def _names(versions: Iterable[LoadedVersion]) -> list[str]:
    return [f"{name}/{number}" for name, number in (one.key for one in versions)]


def _answers(repository: Repository) -> dict[str | None, object]:
    decision: Decision = repository.decision
    found: dict[str | None, object] = {
        name: (one.answer, dict(one.aliases)) for name, one in decision.models.items()
    }
    return {**found, None: repository.default_name}
