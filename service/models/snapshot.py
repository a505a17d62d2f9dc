"""What can be seen of a model repository without reading a file, to notice changes."""

from __future__ import annotations

import os
import stat
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
    # A ConfigMap's file is a link, which stays the same when its target is replaced.
    found.add(("repository.toml: target", _facts(repository_file, follow=True)))
    for model in _entries(models_dir, "", found):
        if model.name.startswith(".") or not _may_be_folder(model):
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
    # Not recursive: folders may be nested more deeply than calls.
    waiting = [(models_dir / name / str(number), f"{name}/{number}")]
    while waiting:
        path, relative = waiting.pop()
        facts = _facts(path)
        found.add((relative, facts))
        if facts[0] >= 0 and stat.S_ISDIR(facts[0]):
            waiting += [
                (Path(entry), f"{relative}/{entry.name}")
                for entry in _entries(path, relative, found)
            ]
    return frozenset(found)


def _may_be_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that cannot be followed
        return True


def _entries(
    folder: Path, relative: str, found: set[tuple[str, tuple[int, ...]]]
) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError as error:
        found.add((relative, (-1, error.errno or 0)))


def _facts(path: Path, *, follow: bool = False) -> tuple[int, ...]:
    try:
        facts = path.stat(follow_symlinks=follow)
    except OSError as error:
        return -1, error.errno or 0
    return facts.st_mode, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns
