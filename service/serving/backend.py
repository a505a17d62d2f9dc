"""Backends run pictures through networks: one batcher over lanes of one kind.

A backend serves one repository, and creates its successor when the repository changes. Both exist until
the last request on the old one is answered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from contract.images import ImageLimits, inspect
from contract.predictions import Ranking, TopK
from contract.preprocessing import Tensor
from service.batching.batcher import BatchCallbacks, Batcher
from service.batching.fairness import FairSlots
from service.batching.lane import LaneFactory, Recipe
from service.batching.sizing import batch_limits, prepare_threads, runs_on_cores
from service.batching.thread_lane import ThreadLaneFactory
from service.batching.work import Preparation, is_large
from service.errors import DeadlineExceeded
from service.models.engine import Batch
from service.models.limits import LoadLimits
from service.models.repository import (
    Load,
    LoadedVersion,
    Repository,
)
from service.models.selection import RepositoryConfig, load_repository
from service.models.starting import StartGuard, load_watched
from service.settings import Settings
from service.workers.factory import ProcessLaneFactory, WorkerConfig, start_children
from service.workers.proving import load_in_child, load_proven


@dataclass(frozen=True, slots=True)
class InferenceResult:
    """One picture's probabilities, and the seconds of each stage."""

    ranking: Ranking
    decode_s: float  # from the file's bytes to pixels
    preprocess_s: float  # from pixels to the graph's input
    queue_s: float  # waiting for a lane
    infer_s: float  # its run
    rank_s: float
    batch_size: int  # pictures in its run


class Backend(Protocol):
    """Runs image files through the versions of one repository."""

    @property
    def repository(self) -> Repository: ...

    async def answer(
        self,
        version: LoadedVersion,
        image: bytes,
        deadline_s: float,
        wanted: TopK,
        peer: str = "",
    ) -> InferenceResult:
        """Runs one image file.

        Args:
            version: one of the repository's.
            image: the whole file.
            deadline_s: monotonic seconds; a picture without an answer by then fails.
            wanted: the classes to return.
            peer: the client; clients take turns.

        Raises:
            ImageError: the picture is not acceptable.
            DeadlineExceeded: the deadline passed.
            ServiceError: the picture could not be answered.
        """
        ...

    def expected_s(self, version: LoadedVersion, peer: str = "") -> float:
        """Returns the seconds until a client's picture submitted now would be answered.

        0 if that is not known or no picture is ahead of it.
        """
        ...


@dataclass(frozen=True, slots=True)
class LaneKind:
    """The differences between lanes that are threads and lanes that are processes."""

    factory: LaneFactory
    # Prepares the pictures that lanes should not; None if this process decodes nothing.
    prepare_pool: Executor | None
    # Loads and verifies a version published while the service runs.
    load: Load
    # The same, without making the version ready to run here.
    prove: Load
    # Returns the same kind for another repository and number of lanes.
    renew: Callable[[Repository, int], Awaitable[LaneKind]]


class LaneBackend:
    """A `Backend` over lanes of one kind."""

    def __init__(
        self,
        repository: Repository,
        kind: LaneKind,
        settings: Settings,
        cpus: int,
        callbacks: BatchCallbacks | None = None,
    ) -> None:
        self.repository = repository
        self.batcher = Batcher(
            kind.factory, batch_limits(repository, settings, cpus), callbacks=callbacks
        )
        self._kind = kind
        self._settings = settings
        self._cpus = cpus
        self._callbacks = callbacks
        self._limits = image_limits(settings)
        # By version: its lanes prepare pictures themselves. A GPU's lane must not wait for decoding.
        self._on_lanes = {one.key: runs_on_cores(one) for one in repository.versions()}
        # The pool is first in, first out, so clients take turns before it. Twice its threads: one that
        # is free must not wait for the event loop.
        self._pool_slots = FairSlots(2 * prepare_threads(repository, cpus))
        self._started = False

    @property
    def load(self) -> Load:
        return self._kind.load

    @property
    def prove(self) -> Load:
        return self._kind.prove

    @property
    def alive(self) -> bool:
        return not self._started or self.batcher.alive

    @property
    def n_lanes(self) -> int:
        return self.batcher.n_ready

    @property
    def pids(self) -> Collection[int]:
        """The ids of the worker processes."""
        return self._kind.factory.pids

    def trouble(self) -> str | None:
        """Returns the reason why this backend is not ready, or None."""
        if not self.alive:
            return "a lane is dead or stuck"
        return None if self.batcher.n_ready else "no lane is ready"

    async def answer(
        self,
        version: LoadedVersion,
        image: bytes,
        deadline_s: float,
        wanted: TopK,
        peer: str = "",
    ) -> InferenceResult:
        file = inspect(image, self._limits)
        recipe = Preparation(file, version.manifest, deadline_s)
        item: Batch | Recipe = recipe

        # A large picture would hold up the others on its lane, so with threads the pool prepares it.
        # A child has to prepare it; the batcher limits how many lanes may do that at once.
        large = is_large(file)
        pool = self._kind.prepare_pool
        if pool is not None and (large or not self._on_lanes[version.key]):
            item = await self._prepare(pool, recipe, deadline_s, peer)
            large = False

        row = await self.batcher.submit(
            version, item, deadline_s, wanted=wanted, large=large, peer=peer
        )
        return InferenceResult(
            row.ranking,
            recipe.decode_s,
            recipe.preprocess_s,
            row.queue_s,
            row.run_s,
            row.rank_s,
            row.batch_size,
        )

    async def _prepare(
        self, pool: Executor, recipe: Preparation, deadline_s: float, peer: str
    ) -> Tensor:
        loop = asyncio.get_running_loop()
        try:
            async with (
                asyncio.timeout(deadline_s - time.monotonic()),
                self._pool_slots.slot(peer),
            ):
                return await loop.run_in_executor(pool, recipe)
        except TimeoutError:
            raise DeadlineExceeded(
                "the request's deadline passed before the picture was prepared"
            ) from None

    def expected_s(self, version: LoadedVersion, peer: str = "") -> float:
        return self.batcher.expected_s(version, peer)

    def start(self) -> None:
        self._started = True
        self.batcher.start()

    async def renewed(self, repository: Repository) -> LaneBackend:
        """Returns a successor for another repository, ready to be started.

        Args:
            repository: unchanged versions are the same objects as in this backend's.

        Raises:
            ModelError, ProviderUnavailable: no successor could be created; this one is unchanged.
        """
        count = batch_limits(repository, self._settings, self._cpus).lanes
        kind = await self._kind.renew(repository, count)
        return LaneBackend(repository, kind, self._settings, self._cpus, self._callbacks)

    def serves(self, repository: Repository) -> bool:
        """Returns whether the repository has this backend's versions, and no others."""
        ours, theirs = self.repository.versions(), repository.versions()
        return len(ours) == len(theirs) and all(a is b for a, b in zip(ours, theirs, strict=True))

    async def stop(self, timeout_s: float) -> bool:
        """Drains, then fails the pictures that are left; returns True if there are none."""
        return await self.batcher.stop(timeout_s)

    def close(self) -> None:
        # Successors share the pool, so this is for the last one only.
        if self._kind.prepare_pool is not None:
            self._kind.prepare_pool.shutdown(wait=False, cancel_futures=True)


def load_backend(
    settings: Settings,
    config: RepositoryConfig,
    cpus: int,
    callbacks: BatchCallbacks | None = None,
    guard: StartGuard | None = None,
) -> LaneBackend:
    """Loads and verifies the versions to serve, in this process or in children; blocks.

    `guard` decides about versions that exceed the limits in this process.

    Raises:
        ModelError: a version cannot be served.
        ProviderUnavailable: the provider cannot be used, or a child does not start.
    """
    limits = LoadLimits(settings.load_timeout_s, settings.load_max_memory_bytes)
    workers = WorkerConfig(config, image_limits(settings), settings.log_level, limits)
    if settings.workers:
        factory, repository = start_children(
            workers,
            settings.workers,
            partial(load_in_child, workers),
            settings.worker_max_memory_bytes,
        )
        kind = _processes(workers, factory)
        return LaneBackend(repository, kind, settings, cpus, callbacks)

    repository = load_repository(config, partial(load_watched, limits, guard or StartGuard()))
    pool = ThreadPoolExecutor(prepare_threads(repository, cpus), "prepare")
    return LaneBackend(repository, _threads(pool, workers), settings, cpus, callbacks)


def _threads(pool: Executor, proving: WorkerConfig) -> LaneKind:
    async def renew(_repository: Repository, _count: int) -> LaneKind:
        return _threads(pool, proving)

    return LaneKind(
        ThreadLaneFactory(),
        pool,
        partial(load_proven, proving),
        partial(load_in_child, proving),
        renew,
    )


def _processes(workers: WorkerConfig, factory: ProcessLaneFactory) -> LaneKind:
    async def renew(repository: Repository, count: int) -> LaneKind:
        return _processes(workers, await factory.renewed(repository, count))

    prove = partial(load_in_child, workers)
    return LaneKind(factory, None, prove, prove, renew)


def image_limits(settings: Settings) -> ImageLimits:
    formats = tuple(settings.image_formats.split(",")) if settings.image_formats else None
    return ImageLimits(max_pixels=settings.max_image_pixels, formats=formats)
