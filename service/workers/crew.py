"""The workers for one set of versions, as a whole: started, put in another's place, and stopped.

The front opens no session: it reads manifests and digests, and believes what workers say they found.
A version that is published while the service runs is proven in a worker of its own first, so that a
graph that takes its process down takes nothing else with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.manifest import Manifest
from contract.versions import read_version
from service.errors import EngineFailure
from service.models.engine import Batch
from service.models.providers import Fallback
from service.models.repository import LoadedVersion, Repository, RunPlan, Shelf
from service.serving.answering import Answered
from service.serving.backend import Observers, batch_limits
from service.settings import Settings
from service.workers.lanes import Told
from service.workers.launch import Launched, ProcessLauncher
from service.workers.pool import PoolHooks, PoolLimits, WorkerPool
from service.workers.vitals import Reason, Tolerance
from service.workers.wire import Worked


class EngineElsewhere:
    """Stands where a version's engine would be: the workers have it."""

    def run(self, batch: Batch, *_: object) -> NDArray[np.float32]:  # noqa: ARG002
        """Refuses: this process runs nothing."""
        raise EngineFailure("this version is run by worker processes")


@dataclass(frozen=True, slots=True)
class WorkerAnswerer:
    """Answers with one version through a pool; an `Answerer`."""

    pool: WorkerPool
    key: tuple[str, int]

    async def answer(self, image: bytes, deadline_s: float) -> Answered:
        """Answers one image file; see `WorkerPool.answer`."""
        return await self.pool.answer(self.key, image, deadline_s)

    def expected_s(self) -> float:
        """Returns how long a picture that came now would take; see `WorkerPool.expected_s`."""
        return self.pool.expected_s()


class Crew:
    """Workers that are ready to serve a repository; a `Backend`."""

    alive = True
    """A process that supervises need not be restarted, whatever its workers do."""

    at_rest = True
    """This process runs nothing."""

    def __init__(
        self, recruiter: Recruiter, repository: Repository, pool: WorkerPool, ready: list[Launched]
    ) -> None:
        """Puts the parts together; `start` or `abort` must follow."""
        self.repository = repository
        self.answerers = {one.key: WorkerAnswerer(pool, one.key) for one in repository.versions()}
        self._recruiter = recruiter
        self._pool = pool
        self._ready = ready

    def trouble(self) -> str | None:
        """Says whether no worker takes work; see `Backend.trouble`."""
        return None if self._pool.n_live else "no worker process is ready"

    def tuning(self, key: tuple[str, int]) -> None:
        """Returns None; see `Backend.tuning`."""

    def waiting(self, name: str) -> float:
        """Returns how many pictures for a model wait for a worker."""
        return self._pool.waiting(name)

    def lanes(self, name: str) -> float:  # noqa: ARG002 - every worker serves every model
        """Returns how many lanes the workers that take work have for a model."""
        return self._pool.n_lanes

    def workers(self, state: str) -> float:
        """Returns how many workers are starting, live, doubtful or retiring."""
        return self._pool.states()[state]

    def load(self, models_dir: Path, name: str, number: int, plan: RunPlan) -> LoadedVersion:
        """Proves a version in a worker of its own; see `Backend.load`."""
        return self._recruiter.prove(models_dir, name, number, plan)

    async def renewed(self, repository: Repository) -> Crew:
        """Starts as many workers for another repository; see `Backend.renewed`."""
        return await self._recruiter.next(repository)

    def start(self) -> None:
        """Takes the workers over on the running event loop."""
        self._pool.start(self._ready)
        self._ready = []

    def abort(self) -> None:
        """Ends workers that were never started."""
        for launched in self._ready:
            launched.abort()
        self._ready = []

    async def stop(self, timeout_s: float) -> bool:
        """Ends them when they have answered everything, or after a time; see `WorkerPool.stop`."""
        self.abort()
        return await self._pool.stop(timeout_s)


class Recruiter:
    """Makes crews as the settings say."""

    def __init__(
        self,
        settings: Settings,
        shelf: Shelf,
        cpus: int,
        observers: Observers,
        on_replaced: Callable[[Reason], None] = lambda _: None,
    ) -> None:
        """Prepares.

        Args:
            settings: handed to each worker.
            shelf: where versions are.
            cpus: cores of this machine that may be used; each worker gets its share of them.
            observers: told what the workers' lanes did.
            on_replaced: told of every worker that has to be replaced.
        """
        self._settings = settings
        self._shelf = shelf
        self._cpus = max(1, cpus // settings.workers)
        self._observers = observers
        self._hooks = PoolHooks(self._tell, on_replaced)

    def first(self) -> Crew:
        """Starts the crew for what is on the shelf now; blocks until every worker is ready.

        Raises:
            ModelError: a version cannot be served, and why.
            ProviderUnavailable: the provider cannot be used, or a worker does not come up.
        """
        told = [self._read(*key) for key in self._shelf.chosen_or_raise()]
        ready = self._launcher([one for _, one in told]).launch_now(self._settings.workers)
        try:
            versions = [
                _loaded(manifest, one[2], facts)
                for (manifest, one), facts in zip(told, ready[0].facts, strict=True)
            ]
            repository = Repository(versions, self._shelf.default_model)
            return Crew(self, repository, self._pool(repository), ready)
        except BaseException:
            for launched in ready:
                launched.abort()
            raise

    async def next(self, repository: Repository) -> Crew:
        """Starts the crew for versions that have been proven.

        Raises:
            ModelError, ProviderUnavailable: a worker did not come up; the others have been ended.
        """
        launcher = self._launcher(_told(repository))
        jobs = [asyncio.create_task(launcher.launch()) for _ in range(self._settings.workers)]
        try:
            ready = await asyncio.gather(*jobs)
        except BaseException:
            for job in jobs:
                job.cancel()
            for outcome in await asyncio.gather(*jobs, return_exceptions=True):
                if isinstance(outcome, Launched):
                    outcome.abort()
            raise
        return Crew(self, repository, self._pool(repository), ready)

    def prove(self, models_dir: Path, name: str, number: int, _plan: RunPlan) -> LoadedVersion:
        """Proves one version in a worker of its own; in place of `repository.load_version`."""
        version = read_version(models_dir, name, number)
        told = (name, number, version.manifest_sha256)
        (launched,) = self._launcher([told]).launch_now(1)
        launched.abort()
        return _loaded(version.manifest, version.manifest_sha256, launched.facts[0])

    def _tell(self, worked: Worked) -> None:
        for size, run_s in worked.runs:
            self._observers.on_run(worked.name, size, run_s)
        self._observers.on_work(worked.name, worked.work_s)

    def _read(self, name: str, number: int) -> tuple[Manifest, Told]:
        version = read_version(self._shelf.models_dir, name, number)
        return version.manifest, (name, number, version.manifest_sha256)

    def _launcher(self, versions: list[Told]) -> ProcessLauncher:
        plan = {
            "settings": self._settings.model_dump(mode="json"),
            "models_dir": str(self._shelf.models_dir),
            "versions": versions,
            "cpus": self._cpus,
        }
        return ProcessLauncher(plan, self._settings.load_timeout_s)

    def _pool(self, repository: Repository) -> WorkerPool:
        settings = self._settings
        versions = repository.versions()
        lanes = batch_limits(versions[0], settings, self._cpus).lanes
        # What its lanes have in hand, as much again so that they never wait, and one whole batch.
        in_flight = 2 * lanes + max(version.max_batch_size for version in versions)
        tolerance = Tolerance(settings.worker_silent_s, settings.worker_max_memory_bytes)
        return WorkerPool(
            self._launcher(_told(repository)),
            PoolLimits(in_flight, lanes, tolerance),
            self._hooks,
        )


def _told(repository: Repository) -> list[Told]:
    return [(*one.key, one.manifest_sha256) for one in repository.versions()]


def _loaded(manifest: Manifest, manifest_sha256: str, facts: dict[str, Any]) -> LoadedVersion:
    fallback = facts["fallback"]
    return LoadedVersion(
        manifest=manifest,
        manifest_sha256=manifest_sha256,
        engine=EngineElsewhere(),
        provider=facts["provider"],
        fallback=Fallback(**fallback) if fallback else None,
        golden_difference=facts["golden_difference"],
        max_batch_size=facts["max_batch_size"],
        load_s=facts["load_s"],
    )
