"""The lanes of one worker process, and what it says of its versions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from contract.errors import VersionCorrupt
from service.models.repository import LoadedVersion, Repository, load_version
from service.serving.backend import LocalLanes, Observers, prepare_threads, run_plan
from service.settings import Settings
from service.workers.wire import Worked

Told = tuple[str, int, str]
"""Name, number and manifest digest of a version that a worker is told to serve."""


class Reporter:
    """Puts what a lane did with one batch into one message.

    Attributes:
        send: takes the message.
    """

    def __init__(self) -> None:
        self.send: Callable[[Worked], None] = lambda _: None
        self._runs: list[tuple[int, float]] = []

    @property
    def observers(self) -> Observers:
        """What the lanes report to: the runs of a batch, and then the work on it."""
        return Observers(self._run, self._work)

    def _run(self, _name: str, size: int, run_s: float) -> None:
        self._runs.append((size, run_s))

    def _work(self, name: str, work_s: float) -> None:
        runs, self._runs = tuple(self._runs), []
        self.send(Worked(name, work_s, runs))


def load_lanes(
    settings: Settings, models_dir: Path, told: Sequence[Told], cpus: int, observers: Observers
) -> tuple[LocalLanes, list[dict[str, Any]]]:
    """Loads and proves versions for this worker's share of the cores.

    Returns:
        The lanes, not started, and for each version what `crew` wants to know of it.

    Raises:
        ModelError: a version cannot be served, or is not the one that was meant.
        ProviderUnavailable: the provider asked for cannot be used here.
    """
    plan = run_plan(settings, cpus)
    versions = []
    for name, number, manifest_sha256 in told:
        version = load_version(models_dir, name, number, plan)
        if version.manifest_sha256 != manifest_sha256:
            raise VersionCorrupt(f"{name}/{number}: it was replaced while it was being loaded")
        versions.append(version)
    repository = Repository(versions)
    apart = ThreadPoolExecutor(prepare_threads(repository, settings, cpus), "prepare")
    # A worker cannot tell whether the others leave the cores alone, so it measures nothing.
    settings = settings.model_copy(update={"tune": False})
    return LocalLanes(repository, settings, cpus, apart, observers), [_facts(v) for v in versions]


def _facts(version: LoadedVersion) -> dict[str, Any]:
    return {
        "provider": version.provider,
        "fallback": asdict(version.fallback) if version.fallback else None,
        "golden_difference": version.golden_difference,
        "max_batch_size": version.max_batch_size,
        "load_s": version.load_s,
    }
