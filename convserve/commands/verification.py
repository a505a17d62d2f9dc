"""Verifies versions as a running service does: in a child process, within its limits.

A version that loops for ever, takes all memory or crashes costs only the child.
"""

from __future__ import annotations

from pathlib import Path

from contract.images import ImageLimits
from convserve.commands.options import settings_of
from service.models.limits import LoadLimits
from service.models.repository import EngineConfig, LoadedVersion
from service.models.selection import RepositoryConfig
from service.workers.factory import WorkerConfig
from service.workers.proving import load_in_child


def verify_version(models_dir: Path, name: str, number: int, provider: str) -> LoadedVersion:
    """Verifies one version. The limits are those of `convserve serve`, from the environment.

    Raises:
        ModelError: it is broken, crashes, or exceeds the limits.
        ProviderUnavailable: the provider does not work here, or no child could be started.
    """
    settings, engine = settings_of({}), EngineConfig(provider)
    limits = LoadLimits(settings.load_timeout_s, settings.load_max_memory_bytes)
    config = WorkerConfig(RepositoryConfig(models_dir, engine), ImageLimits(), "error", limits)
    return load_in_child(config, models_dir, name, number, engine)
