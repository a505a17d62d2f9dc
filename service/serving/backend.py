"""What a service answers with: the lanes of this process, or worker processes.

A backend serves one repository. For another one it makes its successor, which takes over what has not
changed; the two are alive side by side until nobody uses the older.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from contract.images.decoding import ImageLimits
from service.batching.batcher import Batcher, BatchLimits
from service.batching.preparing import LocalAnswerer
from service.models.providers import PROVIDERS
from service.models.repository import LoadedVersion, Repository, RunPlan, load_version
from service.serving.answering import Answerer
from service.settings import Settings
from service.tuning import Candidates, Tuner, Tuning, sizes_up_to

Key = tuple[str, int]
"""Name and number of a version."""


@dataclass(frozen=True, slots=True)
class Observers:
    """Whom a backend tells what it did.

    Attributes:
        on_run: a model's name, pictures in the run, its seconds.
        on_work: a model's name, seconds that a lane was at work.
    """

    on_run: Callable[[str, int, float], None] = lambda *_: None
    on_work: Callable[[str, float], None] = lambda *_: None


class Backend(Protocol):
    """Answers for one repository."""

    @property
    def repository(self) -> Repository:
        """The versions that it answers with."""
        ...

    @property
    def answerers(self) -> Mapping[Key, Answerer]:
        """One for each version."""
        ...

    @property
    def alive(self) -> bool:
        """False where only a new process would help."""
        ...

    @property
    def at_rest(self) -> bool:
        """True while nothing of this process is inside the runtime."""
        ...

    def trouble(self) -> str | None:
        """Returns why nothing can be answered now, or None."""
        ...

    def waiting(self, name: str) -> float:
        """Returns how many pictures for a model wait."""
        ...

    def lanes(self, name: str) -> float:
        """Returns how many runs of a model can be made at the same time."""
        ...

    def tuning(self, key: Key) -> Tuning | None:
        """Returns what is known about running a version, None where workers run it."""
        ...

    def load(self, models_dir: Path, name: str, number: int, plan: RunPlan) -> LoadedVersion:
        """Loads and proves one version for a successor; as `repository.load_version`."""
        ...

    def start(self) -> None:
        """Starts on the running event loop."""
        ...

    async def renewed(self, repository: Repository) -> Backend:
        """Returns the successor for another repository, ready to be started.

        Args:
            repository: shares the objects of unchanged versions with this one's.

        Raises:
            ModelError, ProviderUnavailable: there is none, and this one goes on as before.
        """
        ...

    async def stop(self, timeout_s: float) -> bool:
        """Ends, but for what a successor took over, when everything accepted has been answered.

        Returns:
            True if that was so within the time.
        """
        ...


class LocalLanes:
    """The lanes of this process, a batcher for each version; a `Backend`."""

    def __init__(
        self,
        repository: Repository,
        settings: Settings,
        cpus: int,
        apart: Executor,
        observers: Observers | None = None,
        predecessor: LocalLanes | None = None,
    ) -> None:
        """Makes the lanes; `start` starts them.

        Args:
            repository: loaded in this process.
            settings: of the service.
            cpus: cores that the lanes may use.
            apart: threads that prepare what the lanes do not; whoever made them ends them.
            observers: see `Observers`.
            predecessor: the lanes of versions that are unchanged since are taken over.
        """
        self.repository = repository
        self._settings = settings
        self._cpus = cpus
        self._apart = apart
        self._observers = observers or Observers()
        self._started = False
        kept = predecessor.give_up(repository) if predecessor else {}
        self.answerers = {
            one.key: kept.get(one.key) or self._answerer(one) for one in repository.versions()
        }
        self._tunings = {one.key: self._tuning(one) for one in repository.versions()}
        if predecessor:
            self._tunings.update({key: predecessor._tunings[key] for key in kept})
        self._tuner = Tuner(self._is_quiet)
        self._tuning_task: asyncio.Task[None] | None = None
        self._own = [one.batcher for one in self.answerers.values()]
        self._running = {id(one.batcher) for one in kept.values()}

    @property
    def alive(self) -> bool:
        """True while every lane runs and none is stuck; also before the start."""
        return not self._started or all(one.batcher.alive for one in self.answerers.values())

    @property
    def at_rest(self) -> bool:
        """True while no lane is inside the runtime."""
        return all(batcher.at_rest for batcher in self._own)

    def trouble(self) -> str | None:
        """Says whether a lane is dead or stuck; see `Backend.trouble`."""
        return None if self.alive else "a lane is dead or stuck"

    def waiting(self, name: str) -> float:
        """Returns how many pictures for a model wait for a lane."""
        return sum(batcher.waiting for batcher in self._batchers(name))

    def lanes(self, name: str) -> float:
        """Returns how many lanes a model has."""
        return sum(batcher.limits.lanes for batcher in self._batchers(name))

    def tuning(self, key: Key) -> Tuning:
        """Returns what is known about running a version."""
        return self._tunings[key]

    def load(self, models_dir: Path, name: str, number: int, plan: RunPlan) -> LoadedVersion:
        """Loads a version in this process; see `Backend.load`."""
        return load_version(models_dir, name, number, plan)

    def start(self) -> None:
        """Starts the lanes that no predecessor has started."""
        self._started = True
        for batcher in self._own:
            if id(batcher) not in self._running:
                batcher.start()
        self._tuning_task = asyncio.create_task(self._tune(), name="tune")

    async def renewed(self, repository: Repository) -> LocalLanes:
        """Returns the successor, which takes over the lanes of unchanged versions."""
        return LocalLanes(
            repository, self._settings, self._cpus, self._apart, self._observers, self
        )

    def give_up(self, repository: Repository) -> dict[Key, LocalAnswerer]:
        """Returns the answerers of the versions that both have; they are the successor's now."""
        unchanged = {id(one) for one in self.repository.versions()}
        kept = {
            one.key: self.answerers[one.key]
            for one in repository.versions()
            if id(one) in unchanged
        }
        taken = {id(one.batcher) for one in kept.values()}
        self._own = [batcher for batcher in self._own if id(batcher) not in taken]
        return kept

    async def stop(self, timeout_s: float) -> bool:
        """Ends the lanes; see `Backend.stop`."""
        if self._tuning_task is not None:
            self._tuning_task.cancel()
        self._tuner.close()
        return all(await asyncio.gather(*(batcher.stop(timeout_s) for batcher in self._own)))

    def _batchers(self, name: str) -> list[Batcher]:
        return [one.batcher for key, one in self.answerers.items() if key[0] == name]

    def _is_quiet(self) -> bool:
        return all(one.batcher.idle for one in self.answerers.values())

    def _tuning(self, version: LoadedVersion) -> Tuning:
        limits = batch_limits(version, self._settings, self._cpus)
        found = candidates(version, self._settings, limits.lanes, self._cpus)
        choice = len(found.sizes) > 1 or len(found.lanes) > 1
        state: Literal["waiting", "off"] = "waiting" if self._settings.tune and choice else "off"
        return Tuning(state, found, limits.lanes, limits.max_batch_size)

    async def _tune(self) -> None:
        for version in self.repository.versions():
            graph_input = version.manifest.graph.input
            row = np.zeros(graph_input.shape[1:], graph_input.dtype)
            batcher = self.answerers[version.key].batcher
            await self._tuner.tune(self._tunings[version.key], batcher, version.engine, row)

    def _answerer(self, version: LoadedVersion) -> LocalAnswerer:
        name = version.manifest.name
        batcher = Batcher(
            version.engine,
            batch_limits(version, self._settings, self._cpus),
            on_run=partial(self._observers.on_run, name),
            on_work=partial(self._observers.on_work, name),
        )
        return LocalAnswerer(
            batcher,
            version.manifest,
            image_limits(self._settings),
            self._apart,
            on_lanes=PROVIDERS[version.provider].runs_on_cores,
        )


def batch_limits(version: LoadedVersion, settings: Settings, cpus: int) -> BatchLimits:
    """Returns the limits of a version's batcher on so many cores."""
    default_lanes = PROVIDERS[version.provider].default_lanes
    at_first = settings.max_batch_size or (version.max_batch_size if default_lanes else 1)
    return BatchLimits(
        max_batch_size=version.manifest.graph.fixed_batch_size or at_first,
        max_wait_s=settings.max_wait_ms / 1e3,
        max_queue=settings.max_in_flight,
        lanes=settings.lanes or default_lanes or max(1, cpus // settings.threads_per_lane),
        stuck_after_s=settings.stuck_after_s,
    )


def candidates(
    version: LoadedVersion, settings: Settings, default_lanes: int, cpus: int
) -> Candidates:
    """Returns what may be chosen for a version: all that the settings leave open."""
    on_cores = PROVIDERS[version.provider].runs_on_cores
    sizes = sizes_up_to(version.max_batch_size)
    if settings.max_batch_size or version.manifest.graph.fixed_batch_size:
        sizes = (version.max_batch_size,)
    lanes = {default_lanes} if settings.lanes else {1, default_lanes if on_cores else 2}
    threads = settings.threads_per_lane
    wide_threads = max(threads, cpus) if on_cores else threads
    return Candidates(sizes, tuple(sorted(lanes)), threads, wide_threads)


def prepare_threads(repository: Repository, settings: Settings, cpus: int) -> int:
    """Returns how many threads prepare pictures apart from the lanes."""
    on_cores = all(PROVIDERS[one.provider].runs_on_cores for one in repository.versions())
    return settings.prepare_threads or max(1, cpus // (2 if on_cores else 1))


def run_plan(settings: Settings, cpus: int) -> RunPlan:
    """Returns how versions are run on so many cores."""
    return RunPlan(
        settings.provider,
        threads=settings.threads_per_lane,
        wide_threads=cpus,
        max_batch_size=settings.max_batch_size,
    )


def image_limits(settings: Settings) -> ImageLimits:
    """Returns what one picture may cost."""
    return ImageLimits(
        max_pixels=settings.max_image_pixels,
        max_webp_pixels=settings.max_webp_pixels,
        min_side_px=settings.min_side_px,
        max_aspect=settings.max_aspect,
        max_jpeg_scans=settings.max_jpeg_scans,
    )
