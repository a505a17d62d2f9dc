"""How the names of image files end, for commands that search folders.

Only a search goes by the name. A file that is named or uploaded is read by its magic bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Final

# By the format's name in `DECODERS`, also of formats whose decoder is not installed: a folder of
# such files is not an empty one. Browsers save JPEG files as .jfif or .pjp, some cameras
# write .jpe and .mpo (a JPEG with more pictures behind it).
SUFFIXES_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "jpeg": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".pjpeg", ".pjp", ".mpo"),
    "png": (".png", ".apng"),
    "webp": (".webp",),
    "gif": (".gif",),
    "bmp": (".bmp", ".dib"),
    "heic": (".heic", ".heif", ".hif"),
    "avif": (".avif",),
}
SUFFIXES: Final = tuple(suffix for suffixes in SUFFIXES_OF.values() for suffix in suffixes)


def is_image_name(path: PurePath | str) -> bool:
    """Tells whether a file's name ends like that of an image, in upper or lower case."""
    return PurePath(path).suffix.lower() in SUFFIXES
