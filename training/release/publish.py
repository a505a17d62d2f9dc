"""Publishes a finished version to the model repository, completely or not at all.

The files go into a hidden folder beside the final one and are flushed to disk. Then the version is
read back as the service reads it, and its golden examples are verified. One rename publishes it.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from contract.arrays import read_classifier
from contract.errors import ContractError
from contract.manifest import Manifest
from contract.predictions import check_golden
from contract.preprocessing import golden_input
from contract.versions import Version, find_versions, manifest_files, read_version
from training.data.pictures import Picture
from training.errors import InputRefused, VersionExists, VersionUnproven
from training.evaluation.scorer import Scorer
from training.system.files import flush_folder

log = logging.getLogger(__name__)

STAGING_PREFIX: Final = ".publishing-"
_REPLACED: Final = "replaced"


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a version is published, and the facts about it that only the user knows."""

    models_dir: Path
    name: str
    version: int
    replace: bool = False
    license: str | None = None  # SPDX identifier
    command: str | None = None  # without local folders

    def license_or(self, found: str | None) -> str:
        # A version without a licence could not be passed on.
        license_id = self.license or found
        if license_id is None:
            raise InputRefused("the licence of these weights is unknown; set --license")
        return license_id


def next_version(models_dir: Path, name: str) -> int:
    return max(find_versions(models_dir).get(name, []), default=0) + 1


def check_free(models_dir: Path, name: str, version: int, *, replace: bool) -> None:
    """Raises VersionExists if the version exists and must not be replaced."""
    if not replace and (models_dir / name / str(version)).exists():
        raise VersionExists(
            f"{name}/{version} already exists; choose another --version or pass --replace"
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
    name, number = manifest.name, str(manifest.version)
    home = models_dir / name
    target = home / number

    home.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=home))
    try:
        folder = staging / name / number
        _write(folder, {**files, **manifest_files(manifest)})
        verify_version(staging, name, manifest.version)
        # Again: another process may have published this number in the meantime.
        check_free(models_dir, name, manifest.version, replace=replace)
        _swap_in(folder, target, staging / _REPLACED)
        flush_folder(home)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if not any(home.iterdir()):
            home.rmdir()

    megabytes = len(files[manifest.graph.file]) / 1e6
    log.info("published %s/%s (%.1f MB)", name, number, megabytes)
    return target


def verify_version(models_dir: Path, name: str, version: int) -> Version:
    """Reads a version as the service does and verifies its golden examples.

    Raises:
        VersionUnproven: a digest, the manifest, the graph or a golden prediction is wrong.
    """
    try:
        found = read_version(models_dir, name, version)
        read_classifier(found)
        scorer = Scorer(found.graph, found.manifest, prepare=golden_input)
        for example in found.manifest.golden:
            picture = Picture(example.file, found.contents[example.file])
            check_golden(example, scorer.probabilities([picture], 1)[0])
    except ContractError as error:
        raise VersionUnproven(str(error)) from error
    return found


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    for path, data in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    for directory in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        directory.chmod(0o755)  # whatever the umask is, the service must be able to read
        flush_folder(directory)


def _swap_in(folder: Path, target: Path, aside: Path) -> None:
    if not target.exists():
        folder.rename(target)
        return
    target.rename(aside)
    try:
        folder.rename(target)
    except OSError:
        aside.rename(target)  # put the old version back
        raise
