"""How many lanes and threads there are, from the settings, the provider and the cores."""

from __future__ import annotations

from service.batching.batcher import BatchLimits
from service.models.providers import PROVIDERS
from service.models.repository import EngineConfig, LoadedVersion, Repository
from service.settings import Settings

STUCK_AFTER_S = 30.0
"""A run that takes longer is interrupted. No network that answers over HTTP takes a tenth of it."""


def engine_config(settings: Settings, cpus: int) -> EngineConfig:
    """Returns how versions are run: with one thread beside others, with all cores when alone."""
    return EngineConfig(
        settings.provider, wide_threads=cpus, max_batch_size=settings.max_batch_size
    )


def batch_limits(repository: Repository, settings: Settings, cpus: int) -> BatchLimits:
    """Returns the limits of the batcher on so many cores.

    One lane a core makes the most requests a second on a CPU: two runs with one thread each beat one
    with two by 14% (float) to 41% (int8).
    """
    lanes = settings.workers or settings.lanes
    if not lanes:
        lanes = max(_default_lanes(version, cpus) for version in repository.versions())
    return BatchLimits(
        max_wait_s=settings.max_wait_ms / 1e3,
        max_queue=settings.max_in_flight,
        lanes=lanes,
        stuck_after_s=STUCK_AFTER_S,
    )


def prepare_threads(repository: Repository, cpus: int) -> int:
    """Returns how many threads prepare large pictures, or all pictures for a GPU."""
    return max(1, cpus // (2 if all(map(runs_on_cores, repository.versions())) else 1))


def runs_on_cores(version: LoadedVersion) -> bool:
    """Says whether a version's runs compete with decoding for the processor's cores."""
    return PROVIDERS[version.provider].runs_on_cores


def _default_lanes(version: LoadedVersion, cpus: int) -> int:
    return PROVIDERS[version.provider].default_lanes or cpus
