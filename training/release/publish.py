"""Puts a finished version into the model repository, whole or not at all.

The version is written into a hidden folder beside its future place, flushed to the disk, read back
by the contract's own reader and made to answer its golden examples; then one rename publishes it.
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
    """Where a version goes and what it says about itself.

    Attributes:
        models_dir: the model repository.
        name: of the model.
        version: its number.
        replace: an existing version of that number may be replaced.
        license: SPDX identifier of the weights; None where the source knows it.
        command: the command line, without local folders.
    """

    models_dir: Path
    name: str
    version: int
    replace: bool = False
    license: str | None = None
    command: str | None = None

    def license_or(self, found: str | None) -> str:
        """Returns the licence that was given, or else the one the source is known for.

        Raises:
            InputRefused: neither; a version without a licence cannot be passed on.
        """
        license_id = self.license or found
        if license_id is None:
            raise InputRefused("the licence of these weights is unknown; give it with --license")
        return license_id


def next_version(models_dir: Path, name: str) -> int:
    """Returns one more than the highest published version, or 1."""
    return max(find_versions(models_dir).get(name, []), default=0) + 1


def check_free(models_dir: Path, name: str, version: int, *, replace: bool) -> None:
    """Refuses a version that is there already, before any work is done for it.

    Raises:
        VersionExists: it exists and `replace` is not set.
    """
    if not replace and (models_dir / name / str(version)).exists():
        raise VersionExists(f"{name}/{version} exists; take another version or pass --replace")


def publish(
    models_dir: Path, manifest: Manifest, files: Mapping[str, bytes], *, replace: bool = False
) -> Path:
    """Writes, proves and publishes a version.

    Args:
        models_dir: the model repository; created where it is missing.
        manifest: of the version.
        files: the content of every file it lists.
        replace: put the version in the place of one of the same number.

    Returns:
        The version's folder.

    Raises:
        VersionExists: the version is there already.
        VersionUnproven: read back, the version is not what it should be.
    """
    name, number = manifest.name, str(manifest.version)
    home = models_dir / name
    target = home / number
    home.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=home))
    try:
        folder = staging / name / number
        _write(folder, {**files, **manifest_files(manifest)})
        prove(staging, name, manifest.version)
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


def prove(models_dir: Path, name: str, version: int) -> Version:
    """Reads a version as the service does and makes it answer its golden examples.

    Raises:
        VersionUnproven: a digest, the manifest, the graph or a golden answer is wrong.
    """
    try:
        found = read_version(models_dir, name, version)
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
        directory.chmod(0o755)  # mkdtemp's 0700 is not inherited, but an odd umask would be
        flush_folder(directory)


def _swap_in(folder: Path, target: Path, aside: Path) -> None:
    """Renames the folder into place; an older one of that name is moved out first."""
    if not target.exists():
        folder.rename(target)
        return
    target.rename(aside)
    try:
        folder.rename(target)
    except OSError:
        aside.rename(target)
        raise
