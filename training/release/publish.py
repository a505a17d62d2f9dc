"""Puts a finished version into the model repository, whole or not at all.

The version is written into a hidden folder beside its future place, flushed to the disk, read back
by the contract's own reader and made to answer its golden examples; then one rename publishes it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from contract.errors import ContractError
from contract.manifest import (
    Graph,
    Label,
    Manifest,
    Preprocessing,
)
from contract.predictions import check_golden
from contract.preprocessing import golden_input
from contract.versions import Version, find_versions, manifest_files, read_version, sha256
from training.data.pictures import Picture
from training.errors import VersionExists, VersionUnproven
from training.evaluation.scorer import Scorer
from training.export.plan import Destination
from training.system.files import flush_folder

STAGING_PREFIX: Final = ".publishing-"
_REPLACED: Final = "replaced"


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


def draft_manifest(
    to: Destination,
    architecture: str,
    *,
    graph: Graph,
    preprocessing: Preprocessing,
    labels: tuple[Label, ...],
) -> Manifest:
    """Returns as much of a manifest as answering pictures needs; it is not valid yet.

    The missing parts (golden examples, files, origin) come later; `complete_manifest` adds them and
    validates the whole.
    """
    fields: dict[str, Any] = {
        "name": to.name,
        "version": to.version,
        "architecture": architecture,
        "graph": graph,
        "preprocessing": preprocessing,
        "labels": labels,
        "golden": (),
        "files": {},
    }
    return Manifest.model_construct(**fields)


def complete_manifest(draft: Manifest, files: Mapping[str, bytes], **fields: Any) -> Manifest:
    """Returns the draft with the given fields, the digests of its files and the time, validated.

    Args:
        draft: from `draft_manifest`.
        files: the content of every file but the manifest, by its path in the version's folder.
        **fields: the remaining fields of `Manifest`.

    Raises:
        VersionUnproven: the parts contradict each other.
    """
    whole = dict(draft) | {
        "created_at": datetime.now(UTC).replace(microsecond=0),
        "files": {path: sha256(data) for path, data in sorted(files.items())},
        **fields,
    }
    try:
        return Manifest.model_validate(whole)
    except ValueError as error:
        raise VersionUnproven(f"the manifest contradicts itself: {error}") from error


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
