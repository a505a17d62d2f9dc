"""The pictures of a profile: photographs, without the large ones."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from benchmarks.photos import read_photos

_MAX_BYTES: Final = 300_000
_MAX_PHOTOS: Final = 200


def small_photos(folder: Path) -> list[bytes]:
    """Returns the first 200 JPEG files below 300 kB; raises FileNotFoundError if there is none."""
    photos = [photo for photo in read_photos(folder) if len(photo) < _MAX_BYTES]
    if not photos:
        raise FileNotFoundError(f"{folder} holds no JPEG files below {_MAX_BYTES:,} bytes")
    return photos[:_MAX_PHOTOS]
