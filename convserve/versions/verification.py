"""Verifies versions as a running service does: in a child process, within its limits.

A version that loops for ever, takes all memory or crashes costs only the child.
"""

from __future__ import annotations

from pathlib import Path

from contract.images import ImageLimits
from service.models.limits import LoadLimits
from service.models.repository import EngineConfig, LoadedVersion
from service.models.selection import RepositoryConfig
from service.workers.factory import WorkerConfig
from service.workers.proving import load_in_child


def verify_version(
    models_dir: Path, name: str, number: int, provider: str, limits: LoadLimits
) -> LoadedVersion:
    """Verifies one version within the limits.

    Raises:
        ModelError: it is broken, crashes, or exceeds the limits.
        ProviderUnavailable: the provider does not work here, or no child could be started.
    """
    engine = EngineConfig(provider)
    config = WorkerConfig(RepositoryConfig(models_dir, engine), ImageLimits(), "error", limits)
    return load_in_child(config, models_dir, name, number, engine)
