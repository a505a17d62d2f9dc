"""What is in a model repository, as far as folders and manifests tell.

Nothing that cannot be read counts as absent: it is listed, with the reason.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from contract.errors import ModelError, RepositoryUnreadable
from contract.manifest import MANIFEST_FILE, NAME_PATTERN, Manifest
from contract.repository.file import REPOSITORY_FILE
from contract.versions import is_version_number, read_manifest


@dataclass(frozen=True, slots=True)
class Listed:
    """A version on disk.

    Attributes:
        manifest: None if it cannot be read or is not valid.
        manifest_sha256: digest of the manifest file, 64 hexadecimal digits; None as `manifest`.
        problem: why it cannot be used, None if nothing is known against it.
    """

    manifest: Manifest | None = None
    manifest_sha256: str | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """The versions of each model by number, and the models whose folder cannot be listed."""

    models: Mapping[str, Mapping[int, Listed]] = field(default_factory=dict)
    unreadable: Mapping[str, str] = field(default_factory=dict)  # reason by model

    @property
    def names(self) -> list[str]:
        """Every model, readable or not, in alphabetical order."""
        return sorted({*self.models, *self.unreadable})


ListVersion = Callable[[Path, str, int], Listed | None]


def list_repository(models_dir: Path, list_one: ListVersion | None = None) -> Listing:
    """Lists every version and reads its manifest; the other files are not read.

    Empty folders are no versions, and names that begin with a dot are publishing in progress; both are
    left out.

    Args:
        models_dir: the model repository.
        list_one: replaces `list_version`, for example to remember what it returned.

    Raises:
        RepositoryUnreadable: the folder itself is missing or cannot be listed.
    """
    try:
        names = sorted(one.name for one in os.scandir(models_dir) if _may_hold_versions(one))
    except OSError as error:
        raise RepositoryUnreadable(f"{models_dir}: {error.strerror}") from error

    models: dict[str, dict[int, Listed]] = {}
    unreadable: dict[str, str] = {}
    for name in names:
        try:
            entries = [one.name for one in (models_dir / name).iterdir()]
        except OSError as error:
            if not _is_absent(models_dir / name, error):
                unreadable[name] = f"{models_dir / name}: {error.strerror}"
            continue
        numbers = sorted(int(one) for one in entries if is_version_number(one))
        listed = {
            number: (list_one or list_version)(models_dir, name, number) for number in numbers
        }
        found = {number: one for number, one in listed.items() if one is not None}
        if found:
            models[name] = found
    return Listing(models, unreadable)


def holds_versions(models_dir: Path) -> bool:
    """Returns whether there is a version, readable or not; reads no manifest.

    Raises:
        RepositoryUnreadable: the folder itself is missing or cannot be listed.
    """

    def list_one(models_dir: Path, name: str, number: int) -> Listed | None:
        return _without_manifest(models_dir / name / str(number), name)

    return bool(list_repository(models_dir, list_one).names)


def _may_hold_versions(entry: os.DirEntry[str]) -> bool:
    if entry.name.startswith(".") or entry.name == REPOSITORY_FILE:
        return False
    if any("\ud800" <= one <= "\udfff" for one in entry.name):  # bytes that are no UTF-8
        return False
    try:
        return entry.is_dir() or _leads_nowhere(Path(entry))
    except OSError:  # a link that cannot be followed
        return True


def _is_absent(folder: Path, error: OSError) -> bool:
    if isinstance(error, FileNotFoundError):
        return not folder.is_symlink()
    # Such as lost+found of a file system, which only root may list.
    return re.fullmatch(NAME_PATTERN, folder.name) is None


def _leads_nowhere(link: Path) -> bool:
    # Such as a link to a volume that is not mounted. A link of another name was never a model.
    named_so = re.fullmatch(NAME_PATTERN, link.name) is not None
    return named_so and link.is_symlink() and not link.exists()


def list_version(models_dir: Path, name: str, number: int) -> Listed | None:
    """Reads the manifest of a version; returns None for an empty folder."""
    folder = models_dir / name / str(number)
    try:
        (folder / MANIFEST_FILE).lstat()
    except (FileNotFoundError, NotADirectoryError):
        return _without_manifest(folder, f"{name}/{number}")
    except OSError as error:
        return Listed(problem=f"{name}/{number}: {error.strerror}")
    try:
        manifest, digest = read_manifest(models_dir, name, number)
    except ModelError as error:
        return Listed(problem=str(error))
    return Listed(manifest, digest)


def _without_manifest(folder: Path, where: str) -> Listed | None:
    try:
        half = folder.is_symlink() or any(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return Listed(problem=f"{where}: {error.strerror}")
    return Listed(problem=f"{where}: {MANIFEST_FILE} is missing") if half else None
