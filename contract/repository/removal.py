"""Removes versions that nobody needs: by number, or all old ones."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from contract.errors import ChangeRefused
from contract.repository.changes import RepositoryState, read_state
from contract.repository.numbers import record_number
from contract.repository.publishing import STAGING_PREFIX
from contract.repository.writing import flush_folder, locked

_REMOVED_PREFIX: Final = ".removing-"
_LEFTOVER_AGE_S: Final = 24 * 3600  # publishing takes minutes


def check_removable(state: RepositoryState, name: str, number: int) -> None:
    """Raises ChangeRefused if a version is not there, is loaded, or is named in the file."""
    if name not in state.listing.names:
        names = ", ".join(state.listing.names) or "none"
        raise ChangeRefused(f"there is no model {name!r}; the models are: {names}")
    if name in state.listing.unreadable:
        raise ChangeRefused(state.listing.unreadable[name])
    found = state.listing.models[name]
    if number not in found:
        numbers = ", ".join(map(str, found))
        raise ChangeRefused(f"there is no version {number} of {name}; the versions are: {numbers}")
    reason = _needed_for(state, name, number)
    if reason is not None:
        raise ChangeRefused(f"{name}/{number} {reason}")


def removable_versions(state: RepositoryState, name: str, keep: int) -> list[int]:
    """Returns the versions of a model that are neither needed nor among the newest.

    The newest versions without a known problem are kept as well.
    """
    found = state.listing.models.get(name, {})
    failed = state.decision.models[name].failed
    newest = set(sorted(found)[-keep:])
    newest |= set([number for number in sorted(found) if number not in failed][-keep:])
    return [
        number
        for number in sorted(found)
        if number not in newest and _needed_for(state, name, number) is None
    ]


def remove_version(models_dir: Path, file: Path, name: str, number: int) -> None:
    """Deletes a version, and records that its number was given.

    The folder is renamed first, so that nobody sees half a version.

    Raises:
        ChangeRefused: the version is not there, is loaded, or is named in the file.
        RepositoryError: the repository, the file or the record of numbers cannot be read.
        OSError: the version cannot be renamed or not completely deleted.
    """
    with locked(file.parent):  # nobody names the version in the file meanwhile
        check_removable(read_state(models_dir, file), name, number)
        record_number(models_dir, name, number)
        home = models_dir / name
        aside = Path(tempfile.mkdtemp(prefix=f"{_REMOVED_PREFIX}{number}-", dir=home))
        try:
            (home / str(number)).rename(aside / str(number))
        except OSError:
            aside.rmdir()
            raise
        flush_folder(home)
    shutil.rmtree(aside)


def find_leftovers(models_dir: Path) -> list[Path]:
    """Returns what publishing and removing left behind when they were killed, older than a day."""
    oldest_s = time.time() - _LEFTOVER_AGE_S
    return sorted(path for path in _hidden_folders(models_dir) if _changed_s(path) < oldest_s)


def _hidden_folders(models_dir: Path) -> Iterator[Path]:
    for prefix in (STAGING_PREFIX, _REMOVED_PREFIX):
        yield from models_dir.glob(f"*/{prefix}*")


def _changed_s(folder: Path) -> float:
    # The newest change of anything in it: a large version may be written for long.
    times = [folder.lstat().st_mtime, *(path.lstat().st_mtime for path in folder.rglob("*"))]
    return max(times)


def _needed_for(state: RepositoryState, name: str, number: int) -> str | None:
    decided, policy = state.decision.models[name], state.policy(name)
    if number == decided.answer:
        return f"answers; promote another version before, as in `convserve models promote {name} N`"
    aliases = [alias for alias, of in policy.aliases.items() if of == number]
    if aliases:
        return f"has the alias {aliases[0]}; move or remove the alias before"
    if number in policy.named():
        return "is named in repository.toml; change that before"
    if number in decided.load:
        return f"is loaded; {state.file.path} says so in models.{name}.load"
    if decided.answer is None and policy.load != "none" and number not in decided.failed:
        return f"may be what a service still answers with, as nothing else can: {decided.trouble}"
    if number == policy.previous:
        return f"is what `convserve models rollback {name}` returns to"
    return None
