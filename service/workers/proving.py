"""Verifies a version in a child process before anything of it is loaded elsewhere.

A graph that loops for ever, takes all memory or crashes its process then costs only the child, which is
killed at the limits. The manifest's digest ties the result to the bytes that were verified.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from contract.manifest import Manifest
from contract.versions import read_manifest, read_version
from service.models.repository import EngineConfig, LoadedVersion, load_version
from service.workers.factory import WorkerConfig, loaded_remotely


def load_proven(
    config: WorkerConfig, models_dir: Path, name: str, number: int, engine_config: EngineConfig
) -> LoadedVersion:
    """Verifies one version in a child process, then loads it in this one; a `Load`.

    Raises:
        ModelError: it cannot be served, crashes the child, or exceeds the limits.
        ProviderUnavailable: the provider does not work here, or the child does not start.
    """
    _, digest, facts = _prove(config, models_dir, name, number)
    return load_version(
        models_dir,
        name,
        number,
        engine_config,
        manifest_sha256=digest,
        golden_difference=facts["golden_difference"],
    )


def load_in_child(
    config: WorkerConfig,
    models_dir: Path,
    name: str,
    number: int,
    engine_config: EngineConfig,  # noqa: ARG001 - the child gets the one of `config`
) -> LoadedVersion:
    """Verifies one version in a child process, for children that will run it; a `Load`.

    Raises:
        ModelError, ProviderUnavailable: as `load_proven`.
    """
    return loaded_remotely(*_prove(config, models_dir, name, number))


def _prove(
    config: WorkerConfig, models_dir: Path, name: str, number: int
) -> tuple[Manifest, str, dict[str, Any]]:
    # Only the manifest is read here: reading the graph is bounded too, but it may take 2 GiB.
    manifest, digest = read_manifest(models_dir, name, number)
    version = name, number, digest
    if version in config.proven:
        read_version(models_dir, name, number)  # its files may have been damaged since
        return manifest, digest, config.proven[version]
    (launched,) = config.launcher([version], background=True).launch_now(1)
    launched.abort()
    config.proven[version] = launched.facts[0]
    return manifest, digest, launched.facts[0]
