"""Image files that a command is given."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"})
"""Of the files that a folder is searched for; a file that is named itself may have any."""


def image_files(path: Path) -> Iterator[Path]:
    """Yields a file as it is, and the image files below a folder in order; enters no linked folder."""
    if not path.is_dir():
        yield path
        return
    for folder, below, names in os.walk(path):
        below.sort()
        for name in sorted(names):
            if Path(name).suffix.lower() in SUFFIXES:
                yield Path(folder, name)
