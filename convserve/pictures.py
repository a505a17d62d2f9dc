"""Finds the picture files that a command gets, and example pictures if it gets none."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from PIL import Image, ImageOps

from contract.images import decode, is_image_name

_HOME: Final = Path(__file__).parents[1]
_PHOTO_PX: Final = (500, 375)  # a common size on the web and in data sets
_SHIFTS: Final = 4  # crops per example; each is used mirrored as well


def image_files(path: Path) -> Iterator[Path]:
    """Yields a file itself, whatever its name, or the image files below a folder in a stable order."""
    if not path.is_dir():
        yield path
        return
    for folder, below, names in os.walk(path):
        below.sort()  # os.walk descends in this order
        for name in sorted(names):
            if is_image_name(name):
                yield Path(folder, name)


def example_folder() -> Path:
    # The source tree's folder or the wheel's. It does not exist if the user removed it.
    ours = _HOME / "examples"
    return ours if ours.is_dir() else _HOME / "training" / "example_pictures"


def varied_examples() -> list[bytes]:
    """Returns JPEG files of a usual photo size, several different ones per example picture."""
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
