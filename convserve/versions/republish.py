"""Publishes a version again, with another manifest and the same graph."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from contract.manifest import Manifest
from contract.repository.numbers import next_number
from contract.repository.publishing import place_version
from contract.versions import Version, read_layers
from service.models.repository import EngineConfig, load_version


def republish(
    models_dir: Path,
    old: Version,
    changes: Mapping[str, Any],
    config: EngineConfig,
    files: Mapping[str, bytes] | None = None,
) -> Manifest:
    """Publishes a version under the next number of its model. The old one stays.

    The new version is verified as the service verifies it.

    Args:
        models_dir: the model repository.
        old: the version.
        changes: members of the manifest to replace, besides `version` and `created_at`.
        config: how the new version is run to verify it.
        files: path -> content of the files to replace. `changes` must hold their digests.

    Raises:
        ModelError: the new version is not valid.
        ProviderUnavailable: the provider does not work here.
        OSError: the model repository cannot be written.
    """
    name = old.manifest.name
    manifest = old.manifest.model_copy(
        update={
            "version": next_number(models_dir, name),
            "created_at": datetime.now(UTC).replace(microsecond=0),
            **changes,
        }
    )
    contents = {**old.contents, **(files or {})}
    layers = read_layers(models_dir, old.manifest)
    if manifest.layers is not None and layers is not None:
        contents[manifest.layers.file] = layers

    place_version(
        models_dir,
        manifest,
        contents,
        check=lambda staging: load_version(staging, name, manifest.version, config),
    )
    return manifest
