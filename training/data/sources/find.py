"""Finds the pictures of a data set, wherever they are, without decoding one of them.

A source is a folder (`training.data.sources.folders`), a list in a CSV file
(`training.data.sources.csv_list`), the digits that come with scikit-learn, or a set that torchvision
downloads (`training.data.sources.builtin`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from training.data.sources.builtin import DIGITS, find_digits, find_torchvision
from training.data.sources.catalogue import SourceContents
from training.data.sources.csv_list import find_listed
from training.data.sources.folders import find_in_folder
from training.errors import DataRefused

TORCHVISION: Final = "torchvision:"


def find(source: str, *, cache_dir: Path) -> SourceContents:
    """Finds all pictures of a source.

    Args:
        source: a folder, a path ending in `.csv`, `digits`, or `torchvision:` and a name.
        cache_dir: where torchvision keeps what it downloads.

    Raises:
        DataRefused: there is no such source, or it cannot be understood.
    """
    if source == DIGITS:
        return find_digits()
    if source.startswith(TORCHVISION):
        return find_torchvision(source.removeprefix(TORCHVISION), cache_dir)
    path = Path(source)
    if path.suffix.lower() == ".csv" and not path.is_dir():
        return find_listed(path)
    if not path.is_dir():
        raise DataRefused(
            f"{source}: no such folder; give a folder of class folders, a .csv list, "
            f"`{DIGITS}` or `{TORCHVISION}CIFAR10`"
        )
    return find_in_folder(path)
