"""Lanes that are child processes, for one set of versions: started, proven apart, and replaced.

The front opens no session: it reads manifests and digests, and believes what its children say they
found. A version that is published while the service runs is proven in a child of its own first, so that
a graph that takes its process down takes nothing else with it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.images import ImageLimits
from contract.manifest import Manifest
from contract.versions import read_version
from service.batching.lane import Lane, LaneCallbacks
from service.errors import EngineFailure
from service.models.engine import Batch
from service.models.providers import ProviderFallback
from service.models.repository import EngineConfig, LoadedVersion, Repository, RepositoryConfig
from service.workers.lane import ProcessLane
from service.workers.launch import LaunchedWorker, ProcessLauncher

Told = tuple[str, int, str]
"""Name, number and manifest digest of a version that a child is told to serve."""


class RemoteEngine:
    """Stands where a version's engine would be: the children have it."""

    def run(self, batch: Batch, *_: object) -> NDArray[np.float32]:  # noqa: ARG002
        raise EngineFailure("this version is run by worker processes")


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What every child is told, whatever versions it serves.

    Attributes:
        config: where versions are, and how they are run.
        limits: what one picture may cost.
        log_level: of its log.
        timeout_s: a child that is not ready by then is ended.
    """

    config: RepositoryConfig
    limits: ImageLimits
    log_level: str
    timeout_s: float

    def launcher(self, versions: list[Told]) -> ProcessLauncher:
        """Returns what starts children for these versions."""
        plan = {
            "models_dir": str(self.config.models_dir),
            "run": asdict(self.config.plan),
            "versions": versions,
            "limits": asdict(self.limits),
            "log_level": self.log_level,
        }
        return ProcessLauncher(plan, self.timeout_s)


class ProcessLaneFactory:
    """Makes lanes that are child processes, for one repository; a `LaneFactory`."""

    restarts = True

    def __init__(
        self,
        plan: WorkerConfig,
        repository: Repository,
        ready: list[LaunchedWorker],
        *,
        max_memory_bytes: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Takes children over that are ready; each becomes a lane before others are started.

        Args:
            plan: see `WorkerConfig`.
            repository: what the children serve.
            ready: were started with the launcher for this repository.
            max_memory_bytes: a child that has grown beyond this is replaced; None for never.
            clock: monotonic seconds.
        """
        self.repository = repository
        self._plan = plan
        self._launcher = plan.launcher(_told(repository))
        self._ready = ready
        self._max_memory_bytes = max_memory_bytes
        self._clock = clock
        self._places = {one.key: place for place, one in enumerate(repository.versions())}
        self._lanes: set[ProcessLane] = set()

    def open(self, callbacks: LaneCallbacks) -> Lane:
        lane = ProcessLane(
            self._ready.pop() if self._ready else self._launcher,
            self._places,
            callbacks,
            max_memory_bytes=self._max_memory_bytes,
            clock=self._clock,
        )
        self._lanes.add(lane)
        lane.ended.add_done_callback(lambda _: self._lanes.discard(lane))
        return lane

    def abort(self) -> None:
        """Ends the children that never became lanes."""
        for launched in self._ready:
            launched.abort()
        self._ready.clear()

    async def closed(self) -> None:
        self.abort()
        await asyncio.gather(*(lane.ended for lane in self._lanes), return_exceptions=True)

    async def renewed(self, repository: Repository, count: int) -> ProcessLaneFactory:
        """Starts so many children for another repository, beside those there are.

        Raises:
            ModelError, ProviderUnavailable: one did not come up; the others have been ended.
        """
        launcher = self._plan.launcher(_told(repository))
        jobs = [asyncio.create_task(launcher.launch()) for _ in range(count)]
        try:
            ready = await asyncio.gather(*jobs)
        except BaseException:
            for job in jobs:
                job.cancel()
            for outcome in await asyncio.gather(*jobs, return_exceptions=True):
                if isinstance(outcome, LaunchedWorker):
                    outcome.abort()
            raise
        return ProcessLaneFactory(
            self._plan,
            repository,
            list(ready),
            max_memory_bytes=self._max_memory_bytes,
            clock=self._clock,
        )


def start_children(
    plan: WorkerConfig, count: int, max_memory_bytes: int | None = None
) -> ProcessLaneFactory:
    """Starts so many children for what is on the config now; blocks until every one is ready.

    The thread that calls this must outlive them; see `ProcessLauncher.launch_now`.

    Raises:
        ModelError: a version cannot be served, and why.
        ProviderUnavailable: the provider cannot be used, or a child does not come up.
    """
    config = plan.config
    # In the repository's order: children know versions by their place in the plan.
    read = [read_version(config.models_dir, *key) for key in sorted(config.chosen_or_raise())]
    told = [(one.manifest.name, one.manifest.version, one.manifest_sha256) for one in read]
    ready = plan.launcher(told).launch_now(count)
    try:
        versions = [
            _loaded(one.manifest, one.manifest_sha256, facts)
            for one, facts in zip(read, ready[0].facts, strict=True)
        ]
        repository = Repository(versions, config.default_model)
        return ProcessLaneFactory(plan, repository, ready, max_memory_bytes=max_memory_bytes)
    except BaseException:
        for launched in ready:
            launched.abort()
        raise


def prove_apart(
    plan: WorkerConfig, models_dir: Path, name: str, number: int, _run: EngineConfig
) -> LoadedVersion:
    """Proves one version in a child of its own; in place of `repository.load_version`."""
    version = read_version(models_dir, name, number)
    (launched,) = plan.launcher([(name, number, version.manifest_sha256)]).launch_now(1)
    launched.abort()
    return _loaded(version.manifest, version.manifest_sha256, launched.facts[0])


def _told(repository: Repository) -> list[Told]:
    return [(*one.key, one.manifest_sha256) for one in repository.versions()]


def _loaded(manifest: Manifest, manifest_sha256: str, facts: dict[str, Any]) -> LoadedVersion:
    fallback = facts["fallback"]
    return LoadedVersion(
        manifest=manifest,
        manifest_sha256=manifest_sha256,
        engine=RemoteEngine(),
        provider=facts["provider"],
        fallback=ProviderFallback(**fallback) if fallback else None,
        golden_difference=facts["golden_difference"],
        max_batch_size=facts["max_batch_size"],
        load_s=facts["load_s"],
    )
