"""Starts the child processes for a set of versions, and makes lanes of them.

The front never runs a network: it reads manifests, and takes the rest from the READY message of its
children, which verify all files.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract.errors import ModelError
from contract.images import ImageLimits
from contract.manifest import Manifest
from contract.versions import read_manifest
from service.batching.lane import Lane, LaneCallbacks
from service.errors import EngineFailure, ProviderUnavailable
from service.models.engine import Batch
from service.models.limits import LoadLimits, VersionId
from service.models.providers import ProviderFallback
from service.models.repository import Checked, Load, LoadedVersion, Repository
from service.models.selection import RepositoryConfig, check_start, load_repository, look
from service.models.snapshot import version_facts
from service.workers.lane import ProcessLane
from service.workers.launch import LaunchedWorker, ProcessLauncher


class RemoteEngine:
    """Takes the place of a version's engine in the front; the children have the real one."""

    def run(self, batch: Batch, *_: object) -> NDArray[np.float32]:  # noqa: ARG002
        raise EngineFailure("this version is run by worker processes")


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """The configuration of a child, except its versions."""

    repository: RepositoryConfig
    limits: ImageLimits
    log_level: str
    load_limits: LoadLimits  # a child that exceeds them before it is ready is killed
    # What children found out about versions, by the manifests' digests: it does not change.
    proven: dict[VersionId, dict[str, Any]] = field(default_factory=dict, compare=False)

    def launcher(self, versions: list[VersionId], *, background: bool = False) -> ProcessLauncher:
        """Returns a launcher of children that verify and serve these versions."""
        return self._launcher([(*one, None) for one in versions], background=background)

    def launcher_of(self, repository: Repository, *, background: bool = False) -> ProcessLauncher:
        """Returns a launcher of children for versions that have been verified."""
        return self._launcher(
            [
                (*one.key, one.manifest_sha256, one.golden_difference)
                for one in repository.versions()
            ],
            background=background,
        )

    def _launcher(
        self, versions: list[tuple[str, int, str, float | None]], *, background: bool = False
    ) -> ProcessLauncher:
        start_message = {
            "models_dir": str(self.repository.models_dir),
            "run": asdict(self.repository.engine_config),
            "versions": versions,
            "limits": asdict(self.limits),
            "log_level": self.log_level,
        }
        return ProcessLauncher(start_message, self.load_limits, background=background)


class ProcessLaneFactory:
    """Creates lanes that are child processes, for one repository; a `LaneFactory`."""

    restarts = True

    def __init__(
        self,
        config: WorkerConfig,
        repository: Repository,
        ready: list[LaunchedWorker],
        *,
        max_memory_bytes: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Takes over children that are ready; they become the first lanes.

        Args:
            config: for children that are started later.
            repository: the versions the children serve. The factory does not keep it: lanes and
                batcher keep the factory until a full garbage collection.
            ready: children started for this repository.
            max_memory_bytes: a child larger than this is replaced; None for no limit.
            clock: monotonic seconds.
        """
        self._config = config
        self._launcher = config.launcher_of(repository)
        self._ready = ready
        self._max_memory_bytes = max_memory_bytes
        self._clock = clock
        self._version_index = {one.key: at for at, one in enumerate(repository.versions())}
        self._lanes: set[ProcessLane] = set()

    def open(self, callbacks: LaneCallbacks) -> Lane:
        lane = ProcessLane(
            self._ready.pop() if self._ready else self._launcher,
            self._version_index,
            callbacks,
            max_memory_bytes=self._max_memory_bytes,
            clock=self._clock,
        )
        self._lanes.add(lane)
        lane.ended.add_done_callback(lambda _: self._lanes.discard(lane))
        return lane

    @property
    def pids(self) -> list[int]:
        waiting = [launched.process.pid for launched in self._ready]
        return waiting + [lane.pid for lane in self._lanes if lane.pid is not None]

    def abort(self) -> None:
        """Kills the children that have not become lanes."""
        for launched in self._ready:
            launched.abort()
        self._ready.clear()

    async def wait_closed(self) -> None:
        self.abort()
        await asyncio.gather(*(lane.ended for lane in self._lanes), return_exceptions=True)

    async def renewed(self, repository: Repository, count: int) -> ProcessLaneFactory:
        """Starts `count` children for another repository, beside the present ones.

        Raises:
            ModelError, ProviderUnavailable: one of them failed; the others have been killed.
        """
        launcher = self._config.launcher_of(repository, background=True)
        starts = [asyncio.create_task(launcher.launch()) for _ in range(count)]
        try:
            ready = await asyncio.gather(*starts)
        except BaseException:
            # Some may be ready already: those have to be killed.
            for start in starts:
                start.cancel()
            for outcome in await asyncio.gather(*starts, return_exceptions=True):
                if isinstance(outcome, LaunchedWorker):
                    outcome.abort()
            raise

        return ProcessLaneFactory(
            self._config,
            repository,
            list(ready),
            max_memory_bytes=self._max_memory_bytes,
            clock=self._clock,
        )


def start_children(
    config: WorkerConfig, count: int, load: Load, max_memory_bytes: int | None = None
) -> tuple[ProcessLaneFactory, Repository]:
    """Starts `count` children for the versions to serve; blocks until all are ready.

    `load` loads one version in a child of its own, to find out which one is broken.

    The calling thread must outlive them; see `ProcessLauncher.launch_now`.

    Raises:
        RepositoryError: there is nothing to serve.
        ProviderUnavailable: a child does not start.
    """
    try:
        ready, repository = _start_all(config, count)
    except (ModelError, ProviderUnavailable):
        # One of the versions fails. Loaded one by one, it becomes clear which.
        repository = load_repository(config.repository, load)
        ready = config.launcher_of(repository).launch_now(count)
    return ProcessLaneFactory(
        config, repository, ready, max_memory_bytes=max_memory_bytes
    ), repository


def _start_all(config: WorkerConfig, count: int) -> tuple[list[LaunchedWorker], Repository]:
    # Most starts find nothing wrong, so the children load every version at once.
    models_dir = config.repository.models_dir
    start = look(config.repository)
    check_start(config.repository, start.file.parsed, start.decision)

    # In the order of `Repository.versions`: children know a version by its position.
    keys = sorted(start.decision.wanted())
    checked = {key: Checked(version_facts(models_dir, *key)) for key in keys}
    found = [read_manifest(models_dir, *key) for key in keys]
    ids = [(*key, digest) for key, (_, digest) in zip(keys, found, strict=True)]
    ready = config.launcher(ids).launch_now(count)
    versions = [
        loaded_remotely(manifest, digest, facts)
        for (manifest, digest), facts in zip(found, ready[0].facts, strict=True)
    ]
    return ready, Repository(versions, start.decision, file=start.file, checked=checked)


def loaded_remotely(
    manifest: Manifest, manifest_sha256: str, facts: dict[str, Any]
) -> LoadedVersion:
    """Returns a version that only children can run, from the facts of their READY message."""
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
