"""Writes versions with a manifest of an older schema version again, under their next number."""

from __future__ import annotations

from pathlib import Path

from contract.manifest import Migration
from contract.upgrades import SCHEMA_VERSION
from contract.versions import read_version
from convserve.versions.republish import republish
from service.models.repository import EngineConfig


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

    origin = Migration(
        version=old.manifest.version,
        schema_version=old.schema_version,
        manifest_sha256=old.manifest_sha256,
    )
    provenance = old.manifest.provenance.model_copy(update={"migrated_from": origin})
    return republish(models_dir, old, {"provenance": provenance}, config).version
