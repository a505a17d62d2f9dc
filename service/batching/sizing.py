"""How many lanes and threads there are, from the settings, the provider and the cores."""

from __future__ import annotations

from service.batching.batcher import BatchLimits
from service.models.providers import PROVIDERS
from service.models.repository import EngineConfig, LoadedVersion, Repository
from service.settings import Settings


def engine_config(settings: Settings, cpus: int) -> EngineConfig:
    # A run has one thread beside other runs, and all cores when it is alone.
    return EngineConfig(
        settings.provider, lone_run_threads=cpus, max_batch_size=settings.max_batch_size
    )


def batch_limits(repository: Repository, settings: Settings, cpus: int) -> BatchLimits:
    """Returns the limits of a batcher for these versions on `cpus` cores."""
    lanes = settings.workers or settings.lanes
    if not lanes:
        # One lane per core gives the most requests per second on a CPU: two runs with one thread
        # each beat one run with two threads by 14% (float) to 41% (int8).
        lanes = max(
            PROVIDERS[version.provider].default_lanes or cpus for version in repository.versions()
        )
    return BatchLimits(
        max_wait_s=settings.max_wait_ms / 1e3, max_queue=settings.max_in_flight, lanes=lanes
    )


def prepare_threads(repository: Repository, cpus: int) -> int:
    """Returns the number of threads that prepare large pictures, or all pictures for a GPU."""
    # Runs on the CPU need cores too.
    return max(1, cpus // (2 if all(map(runs_on_cores, repository.versions())) else 1))


def runs_on_cores(version: LoadedVersion) -> bool:
    """Says whether a version's runs compete with decoding for the CPU."""
    return PROVIDERS[version.provider].runs_on_cores
