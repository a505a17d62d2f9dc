"""Publishes a finished version to the model repository, after its golden examples are verified.

The version is written and read back as the service reads it (`contract.repository.publishing`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from contract.arrays import read_classifier
from contract.errors import ContractError, VersionRemoved
from contract.manifest import Manifest
from contract.predictions import check_golden
from contract.preprocessing import golden_inputs
from contract.repository.effects import describe_effect
from contract.repository.numbers import check_not_removed
from contract.repository.publishing import place_version
from contract.versions import Version, read_version
from training.errors import InputRefused, VersionExists, VersionUnproven
from training.evaluation.scorer import Scorer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a version is published, and the facts about it that only the user knows."""

    models_dir: Path
    name: str
    version: int
    replace: bool = False
    license: str | None = None  # SPDX identifier
    command: str | None = None  # without local folders
    layers: bool = False  # publish the graph of the layers too
    allow_worse: bool = False  # than the version it replaces
    allow_label_changes: bool = False  # labels of that version may be gone or renamed

    def license_or(self, found: str | None) -> str:
        # A version without a licence could not be passed on.
        license_id = self.license or found
        if license_id is None:
            raise InputRefused("the licence of these weights is unknown; set --license")
        return license_id


def check_free(
    models_dir: Path, name: str, version: int, *, replace: bool, can_replace: bool = True
) -> None:
    """Raises VersionExists if the version exists and must not be replaced, or was removed.

    Without `can_replace`, the message does not advise to pass `--replace`.
    """
    try:
        check_not_removed(models_dir, name, version)
    except VersionRemoved as error:
        raise VersionExists(str(error)) from error
    if not replace and (models_dir / name / str(version)).exists():
        advice = " or pass --replace" if can_replace else ""
        raise VersionExists(
            f"{name}/{version} already exists; leave out --version for the next free number{advice}"
        )


def publish(
    models_dir: Path, manifest: Manifest, files: Mapping[str, bytes], *, replace: bool = False
) -> Path:
    """Writes, verifies and publishes a version.

    Args:
        models_dir: the model repository; created if it is missing.
        manifest: of the version.
        files: path -> content, for every file the manifest lists.
        replace: overwrite a version of the same number.

    Returns:
        The version's folder.

    Raises:
        VersionExists: the version is already published.
        VersionUnproven: the written version fails verification.
    """
    name, number = manifest.name, manifest.version

    def check(staging: Path) -> None:
        verify_version(staging, name, number)
        # Again: another process may have published this number in the meantime.
        check_free(models_dir, name, number, replace=replace)

    target = place_version(models_dir, manifest, files, check, replace=replace)
    megabytes = len(files[manifest.graph.file]) / 1e6
    log.info("published %s/%s (%.1f MB)", name, number, megabytes)
    log.info("%s", describe_effect(models_dir, name, number))
    return target


def verify_version(models_dir: Path, name: str, version: int) -> Version:
    """Reads a version as the service does and verifies its golden examples.

    Raises:
        VersionUnproven: a digest, the manifest, the graph or a golden prediction is wrong.
    """
    try:
        found = read_version(models_dir, name, version)
        read_classifier(found)
        scorer = Scorer(found.graph, found.manifest)
        for example in found.manifest.golden:
            rows = golden_inputs(found.contents[example.file], found.manifest)
            exact, served = scorer.probabilities_of_rows(rows, 1)
            check_golden(example, exact)
            check_golden(example, served, served=True)
    except ContractError as error:
        raise VersionUnproven(str(error)) from error
    return found
