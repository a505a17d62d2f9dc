"""Finds the pictures of a data set, in whatever form it comes, without decoding a file."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from training.data.sources.builtin import DIGITS, find_digits, find_torchvision
from training.data.sources.catalogue import SourceContents
from training.data.sources.csv_list import find_listed
from training.data.sources.folders import find_in_folder
from training.errors import DataRefused

TORCHVISION: Final = "torchvision:"
_ARCHIVES: Final = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")


def find(source: str, *, cache_dir: Path) -> SourceContents:
    """Finds all pictures of a source.

    Args:
        source: a folder, a path ending in `.csv` or `.tsv`, `digits`, or `torchvision:` and a name.
        cache_dir: keeps torchvision's downloads.

    Raises:
        DataRefused: there is no such source, or it cannot be read.
    """
    if source == DIGITS:
        return find_digits()
    if source.startswith(TORCHVISION):
        return find_torchvision(source.removeprefix(TORCHVISION), cache_dir)

    path = local_path(source)
    if path.suffix.lower() in (".csv", ".tsv") and not path.is_dir():
        return find_listed(path)
    if path.is_dir():
        return find_in_folder(path)
    if re.match("(https?|s3|gs)://", source):
        raise DataRefused(
            f"{source}: URLs are not fetched; download the pictures and give the folder"
        )
    if path.name.lower().endswith(_ARCHIVES):
        raise DataRefused(f"{source}: archives are not read; unpack it and give the folder")
    found = "not a folder" if path.exists() else "no such folder"
    raise DataRefused(
        f"{source}: {found}; give a folder of class folders, a .csv list, "
        f"`{DIGITS}` or `{TORCHVISION}CIFAR10`"
    )


def local_path(source: str) -> Path:
    """The path of a folder or list; `~` is the home folder, as in a shell."""
    return Path(os.path.expanduser(source))  # noqa: PTH111 - Path.expanduser raises for ~nobody
