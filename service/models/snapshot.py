"""What can be seen of a model repository without reading a file, to notice changes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from contract.versions import is_version_number

# For each path: mode, inode, size in bytes, and the times of change of content and of status in ns. The
# last one changes with permissions. For a folder that cannot be listed also the error's number.
VersionFacts = frozenset[tuple[str, tuple[int, ...]]]


def snapshot(models_dir: Path, repository_file: Path) -> VersionFacts:
    """Returns the facts about `repository.toml` and about every file of every version.

    While a version is copied in file by file, they keep changing, so it is tried again until it is
    complete.
    """
    found = {("", _facts(models_dir)[:1]), ("repository.toml", _facts(repository_file))}
    for model in _entries(models_dir, "", found):
        if model.name.startswith(".") or not model.is_dir():
            continue
        # Without times: they change with every hidden file of a version that is being published.
        found.add((model.name, _facts(Path(model))[:1]))
        for version in _entries(Path(model), model.name, found):
            if is_version_number(version.name):
                found |= version_facts(models_dir, model.name, int(version.name))
    return frozenset(found)


def version_facts(models_dir: Path, name: str, number: int) -> VersionFacts:
    """Returns the facts about every file of a version."""
    found: set[tuple[str, tuple[int, ...]]] = set()
    _walk(models_dir / name / str(number), f"{name}/{number}", found)
    return frozenset(found)


def _walk(path: Path, relative: str, found: set[tuple[str, tuple[int, ...]]]) -> None:
    found.add((relative, _facts(path)))
    if path.is_symlink() or not path.is_dir():
        return
    for entry in _entries(path, relative, found):
        _walk(Path(entry), f"{relative}/{entry.name}", found)


def _entries(
    folder: Path, relative: str, found: set[tuple[str, tuple[int, ...]]]
) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        found.add((relative, (-1, error.errno or 0)))


def _facts(path: Path) -> tuple[int, ...]:
    try:
        facts = path.lstat()
    except OSError as error:
        return -1, error.errno or 0
    return facts.st_mode, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns
