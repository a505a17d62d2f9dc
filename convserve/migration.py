"""Writes versions with a manifest of an older schema version again, under their next number."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from contract.manifest import Manifest, Migration
from contract.publishing import place_version
from contract.upgrades import SCHEMA_VERSION
from contract.versions import Version, find_versions, read_layers, read_version
from service.models.repository import EngineConfig, load_version


def migrate(models_dir: Path, name: str, number: int, config: EngineConfig) -> int | None:
    """Publishes a version with its manifest in the newest schema version, under the next number.

    The graph, the labels and every other file stay the same. The new version is verified as the
    service verifies it. The old one stays.

    Returns:
        The new number; None if the manifest is in the newest schema version already.

    Raises:
        ModelError: the version is not valid, old or new.
        ProviderUnavailable: the provider does not work here.
        OSError: the model repository cannot be written.
    """
    old = read_version(models_dir, name, number)
    if old.schema_version == SCHEMA_VERSION:
        return None

    manifest = _upgraded(old, max(find_versions(models_dir)[name]) + 1)
    files = dict(old.contents)
    layers = read_layers(models_dir, old.manifest)
    if manifest.layers is not None and layers is not None:
        files[manifest.layers.file] = layers

    place_version(
        models_dir,
        manifest,
        files,
        check=lambda staging: load_version(staging, name, manifest.version, config),
    )
    return manifest.version


def _upgraded(old: Version, number: int) -> Manifest:
    origin = Migration(
        version=old.manifest.version,
        schema_version=old.schema_version,
        manifest_sha256=old.manifest_sha256,
    )
    return old.manifest.model_copy(
        update={
            "version": number,
            "created_at": datetime.now(UTC).replace(microsecond=0),
            "provenance": old.manifest.provenance.model_copy(update={"migrated_from": origin}),
        }
    )
