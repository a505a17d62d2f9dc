"""Pictures to send, from files and folders."""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Final

import click

from contract.images import SUFFIXES
from convserve.pictures import image_files

# All pictures stay in memory, and each sender process makes requests of them. At a usual 100 kB
# this is 10,000 photographs, more than needed for a stable answer.
MAX_TOTAL_BYTES: Final = 1_000_000_000

_warn: Final = partial(click.echo, err=True)


class NoPictures(ValueError):
    """There is nothing to send."""


class UnreadablePicture(ValueError):
    """A picture file cannot be read."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A file to send.

    Attributes:
        name: what reports call it, different for each picture: its path below the folder that was
            given, or its path as given if another picture has that name too.
        content: the whole file.
    """

    name: str
    content: bytes = field(repr=False)


def read_pictures(
    paths: Sequence[Path],
    max_total_bytes: int = MAX_TOTAL_BYTES,
    warn: Callable[[str], object] = _warn,
) -> list[Picture]:
    """Reads files, and the image files below folders, in the order of `image_files`.

    If they have more bytes than allowed together, as many as fit are chosen at random, the same in
    each run, and `warn` is told. The first ones would be of one class where folders are classes.

    Raises:
        NoPictures: no path, or a folder without image files.
        UnreadablePicture: a file cannot be read.
    """
    named = dict(_named(paths))
    if not named:
        raise NoPictures("no picture files were given")

    try:
        sizes = {name: file.stat().st_size for name, file in named.items()}
        chosen = _that_fit(sizes, max_total_bytes)
        pictures = [
            Picture(name, file.read_bytes()) for name, file in named.items() if name in chosen
        ]
    except OSError as error:
        raise UnreadablePicture(f"{error.filename}: {error.strerror}") from error

    if not pictures:
        raise NoPictures(f"every file is larger than {max_total_bytes / 1e6:,.0f} MB")
    if len(pictures) < len(named):
        warn(
            f"The pictures have {sum(sizes.values()) / 1e6:,.0f} MB, the limit is "
            f"{max_total_bytes / 1e6:,.0f} MB. {len(pictures):,} of {len(named):,} are sent, chosen "
            "at random."
        )
    return pictures


def _named(paths: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    found: list[tuple[str, Path]] = []
    for path in paths:
        if path.is_dir():
            # Folders hold dead links, pipes and empty files that nobody meant to send.
            files = (file for file in image_files(path) if _is_full_file(file))
            below = [(file.relative_to(path).as_posix(), file) for file in files]
        else:
            if path.exists() and not _is_full_file(path):
                raise UnreadablePicture(f"{path}: empty, or no file")
            below = [(path.name, path)]
        if not below:
            raise NoPictures(f"{path}: no {', '.join(SUFFIXES)} files in this folder")
        found += below

    uses = Counter(name for name, _ in found)
    for name, file in found:
        yield (name if uses[name] == 1 else file.as_posix()), file


def _is_full_file(file: Path) -> bool:
    try:
        facts = file.stat()
    except OSError:
        return False
    return stat.S_ISREG(facts.st_mode) and facts.st_size > 0


def _that_fit(sizes: dict[str, int], max_total_bytes: int) -> set[str]:
    if sum(sizes.values()) <= max_total_bytes:
        return set(sizes)

    names = list(sizes)
    Random(0).shuffle(names)  # noqa: S311 - repeatable
    chosen, total = set(), 0
    for name in names:
        if total + sizes[name] <= max_total_bytes:
            chosen.add(name)
            total += sizes[name]
    return chosen
