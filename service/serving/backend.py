"""What answers pictures: one batcher over lanes of one kind, for one set of versions.

A backend serves one repository. For another one it makes its successor; the two are there side by side
until nobody uses the older.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from contract.images import ImageLimits, inspect
from service.batching.batcher import BatchCallbacks, Batcher
from service.batching.lane import LaneFactory
from service.batching.sizing import batch_limits, prepare_threads, runs_on_cores
from service.batching.thread_lane import ThreadLaneFactory
from service.batching.work import Preparation, is_large
from service.models.repository import (
    Load,
    LoadedVersion,
    Repository,
    RepositoryConfig,
    load_repository,
    load_version,
)
from service.settings import Settings
from service.workers.supervisor import ProcessLaneFactory, WorkerConfig, prove_apart, start_children


@dataclass(frozen=True, slots=True)
class InferenceResult:
    """One picture's probabilities and where its time went.

    Attributes:
        probabilities: float32, shape (C,).
        decode_s: seconds from the file's bytes to pixels.
        preprocess_s: seconds from pixels to the graph's input.
        queue_s: seconds of waiting for a lane.
        infer_s: seconds of its run.
        batch_size: pictures in its run.
    """

    probabilities: NDArray[np.float32]
    decode_s: float
    preprocess_s: float
    queue_s: float
    infer_s: float
    batch_size: int


class Backend(Protocol):
    """Answers image files with the versions of one repository."""

    @property
    def repository(self) -> Repository:
        """The versions that it answers with."""
        ...

    async def answer(
        self, version: LoadedVersion, image: bytes, deadline_s: float
    ) -> InferenceResult:
        """Answers one image file.

        Args:
            version: one of the repository's.
            image: the whole file.
            deadline_s: monotonic seconds; later the picture is not worth running.

        Raises:
            ImageError: the picture is not acceptable.
            ServiceError: it was not answered, and why.
        """
        ...

    def expected_s(self, version: LoadedVersion) -> float:
        """Returns in how many seconds a picture that came now would be answered, as far as known.

        0 where nothing is ahead of it, so that an estimate that is too high is corrected.
        """
        ...


@dataclass(frozen=True, slots=True)
class LaneKind:
    """What differs between lanes that are threads and lanes that are processes.

    Attributes:
        source: makes the lanes.
        apart: threads of this process that prepare what lanes should not; None where no upload is
            decoded in this process.
        load: proves a version that was published meanwhile.
        renew: returns the kind for another repository and so many lanes.
    """

    source: LaneFactory
    apart: Executor | None
    load: Load
    renew: Callable[[Repository, int], Awaitable[LaneKind]]


class LaneBackend:
    """Answers with the versions of one repository; an `Backend`."""

    def __init__(
        self,
        repository: Repository,
        kind: LaneKind,
        settings: Settings,
        cpus: int,
        callbacks: BatchCallbacks | None = None,
    ) -> None:
        """Makes the batcher; `start` starts it.

        Args:
            repository: the versions.
            kind: how they are run.
            settings: of the service.
            cpus: cores that may be used.
            callbacks: see `BatchCallbacks`.
        """
        self.repository = repository
        self.batcher = Batcher(
            kind.source, batch_limits(repository, settings, cpus), callbacks=callbacks
        )
        self._kind = kind
        self._settings = settings
        self._cpus = cpus
        self._callbacks = callbacks
        self._limits = image_limits(settings)
        # A GPU's lane should never wait for a decoder.
        self._on_lanes = {one.key: runs_on_cores(one) for one in repository.versions()}
        self._started = False

    @property
    def load(self) -> Load:
        """How a version that is published meanwhile is loaded and proven."""
        return self._kind.load

    @property
    def alive(self) -> bool:
        """False where only a new process would help."""
        return not self._started or self.batcher.alive

    @property
    def n_lanes(self) -> int:
        """Lanes that work, or could."""
        return self.batcher.n_ready

    def trouble(self) -> str | None:
        """Returns why pictures should not be sent here now, or None."""
        if not self.alive:
            return "a lane is dead or stuck"
        return None if self.batcher.n_ready else "no lane is ready"

    async def answer(
        self, version: LoadedVersion, image: bytes, deadline_s: float
    ) -> InferenceResult:
        """Answers one image file; see `Backend.answer`."""
        file = inspect(image, self._limits)
        recipe = Preparation(file, version.manifest, deadline_s)
        submit = partial(self.batcher.submit, version, deadline_s=deadline_s)
        large = is_large(file)
        if self._kind.apart is None:
            row = await submit(recipe, large=large)
        elif large or not self._on_lanes[version.key]:
            loop = asyncio.get_running_loop()
            row = await submit(await loop.run_in_executor(self._kind.apart, recipe))
        else:
            row = await submit(recipe)
        return InferenceResult(
            row.probabilities,
            recipe.decode_s,
            recipe.preprocess_s,
            row.queue_s,
            row.run_s,
            row.batch_size,
        )

    def expected_s(self, version: LoadedVersion) -> float:
        """Returns how long a picture that came now would take; see `Backend.expected_s`."""
        return self.batcher.expected_s(version)

    def start(self) -> None:
        """Starts the lanes on the running event loop."""
        self._started = True
        self.batcher.start()

    async def renewed(self, repository: Repository) -> LaneBackend:
        """Returns the successor for another repository, ready to be started.

        Args:
            repository: shares the objects of unchanged versions with this one's.

        Raises:
            ModelError, ProviderUnavailable: there is none, and this one goes on as before.
        """
        count = batch_limits(repository, self._settings, self._cpus).lanes
        kind = await self._kind.renew(repository, count)
        return LaneBackend(repository, kind, self._settings, self._cpus, self._callbacks)

    async def stop(self, timeout_s: float) -> bool:
        """Ends when everything accepted has been answered.

        Returns:
            True if that was so within the time.
        """
        return await self.batcher.stop(timeout_s)

    def close(self) -> None:
        """Ends the threads that successors share; the last one of them is told."""
        if self._kind.apart is not None:
            self._kind.apart.shutdown(wait=False, cancel_futures=True)


def load_backend(
    settings: Settings, config: RepositoryConfig, cpus: int, callbacks: BatchCallbacks | None = None
) -> LaneBackend:
    """Loads and proves what is on the config, in this process or in children; blocks.

    Raises:
        ModelError: a version cannot be served, and why.
        ProviderUnavailable: the provider cannot be used, or a child does not come up.
    """
    if settings.workers:
        plan = WorkerConfig(
            config, image_limits(settings), settings.log_level, settings.load_timeout_s
        )
        source = start_children(plan, settings.workers, settings.worker_max_memory_bytes)
        return LaneBackend(source.repository, _processes(plan, source), settings, cpus, callbacks)

    repository = load_repository(config)
    pool = ThreadPoolExecutor(prepare_threads(repository, cpus), "prepare")
    return LaneBackend(repository, _threads(pool), settings, cpus, callbacks)


def _threads(pool: Executor) -> LaneKind:
    async def renew(_repository: Repository, _count: int) -> LaneKind:
        return _threads(pool)

    return LaneKind(ThreadLaneFactory(), pool, load_version, renew)


def _processes(plan: WorkerConfig, source: ProcessLaneFactory) -> LaneKind:
    async def renew(repository: Repository, count: int) -> LaneKind:
        return _processes(plan, await source.renewed(repository, count))

    return LaneKind(source, None, partial(prove_apart, plan), renew)


def image_limits(settings: Settings) -> ImageLimits:
    """Returns what one picture may cost."""
    return ImageLimits(max_pixels=settings.max_image_pixels)
