"""Image files that a command is given, and example pictures for those that are given none."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from PIL import Image, ImageOps

from contract.images import decode

SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"})
"""Of the files that a folder is searched for; a file that is named itself may have any."""

_HOME: Final = Path(__file__).parents[1]
_PHOTO_PX: Final = (500, 375)  # what pictures on the web and in data sets often have
_SHIFTS: Final = 4


def image_files(path: Path) -> Iterator[Path]:
    """Yields a file as it is; of a folder, the image files below it in order."""
    if not path.is_dir():
        yield path
        return
    for folder, below, names in os.walk(path):
        below.sort()
        for name in sorted(names):
            if Path(name).suffix.lower() in SUFFIXES:
                yield Path(folder, name)


def example_folder() -> Path:
    """Returns the source tree's pictures or the wheel's; it is missing where they were removed."""
    ours = _HOME / "examples"
    return ours if ours.is_dir() else _HOME / "training" / "example_pictures"


def varied_examples() -> list[bytes]:
    """Returns JPEG files of a photograph's usual size, several of each example picture."""
    folder = example_folder()
    photos = []
    for path in image_files(folder) if folder.is_dir() else ():
        whole = decode(path.read_bytes())
        for shift in range(_SHIFTS):
            inset = 4 * shift
            part = whole.crop((inset, shift, whole.width - shift, whole.height - inset))
            fitted = ImageOps.fit(part, _PHOTO_PX, Image.Resampling.BICUBIC)
            for photo in (fitted, ImageOps.mirror(fitted)):
                buffer = io.BytesIO()
                photo.save(buffer, "JPEG", quality=92)
                photos.append(buffer.getvalue())
    return photos
