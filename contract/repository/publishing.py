"""Puts a finished version into the model repository, completely or not at all.

The files go into a hidden folder beside the final one and are flushed to disk. There the version is
checked as if it were published already. One rename publishes it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from contract.manifest import Manifest
from contract.repository.file import HEADER, REPOSITORY_FILE
from contract.repository.listing import holds_versions
from contract.repository.numbers import check_not_removed, record_number
from contract.repository.writing import create_file, flush_folder
from contract.versions import manifest_files

STAGING_PREFIX: Final = ".publishing-"
_REPLACED: Final = "replaced"


def place_version(
    models_dir: Path,
    manifest: Manifest,
    files: Mapping[str, bytes],
    check: Callable[[Path], object],
    *,
    replace: bool = False,
) -> Path:
    """Writes, checks and publishes a version.

    The first version of an empty model repository makes its model the default one.

    Args:
        models_dir: the model repository; created if it is missing.
        manifest: of the version.
        files: path -> content, for every file the manifest lists.
        check: gets a model repository with this version only, and raises if it is not good.
        replace: swap out a version of the same number.

    Returns:
        The version's folder.

    Raises:
        FileExistsError: the version is already published, and `replace` is false.
        VersionRemoved: a version of this number was removed.
        NumbersInvalid: it cannot be known which numbers were given.
        Exception: whatever `check` raises; nothing is published then.
    """
    name, number = manifest.name, str(manifest.version)
    home = models_dir / name
    target = home / number

    check_not_removed(models_dir, name, manifest.version)
    home.mkdir(parents=True, exist_ok=True)
    is_first = not holds_versions(models_dir)
    staging = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=home))
    try:
        folder = staging / name / number
        _write(folder, {**files, **manifest_files(manifest)})
        check(staging)
        if target.exists() and not replace:  # another process may have published it meanwhile
            raise FileExistsError(f"{name}/{number} already exists")
        check_not_removed(models_dir, name, manifest.version)
        _swap_in(folder, target, staging / _REPLACED)
        flush_folder(home)
        record_number(models_dir, name, manifest.version)
        if is_first:  # a file that is there says what its owner wants, even if it is empty
            create_file(models_dir / REPOSITORY_FILE, _first_file(name))
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if not any(home.iterdir()):
            home.rmdir()
    return target


def _first_file(name: str) -> bytes:
    return f'# {HEADER}\ndefault = "{name}"\n'.encode()


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
