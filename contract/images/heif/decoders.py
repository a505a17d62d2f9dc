"""The decoders of HEIC and AVIF that are installed.

They read only files that `contract.images.heif.write_file` made. Each uses one thread, because a lane
is one.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from importlib.util import find_spec
from typing import Final

from PIL import AvifImagePlugin, Image, features

Opener = Callable[[bytes], Image.Image]


def _open_heic(data: bytes) -> Image.Image:
    import pi_heif  # 8 ms and 2.7 MB, for nothing in a process that gets no HEIC

    pi_heif.options.DECODE_THREADS = 1
    image: Image.Image = pi_heif.HeifImageFile(io.BytesIO(data))
    return image


def _open_avif(data: bytes) -> Image.Image:
    return AvifImagePlugin.AvifImageFile(io.BytesIO(data))


def _installed() -> dict[str, Opener]:
    found: dict[str, Opener] = {}
    if find_spec("pi_heif") is not None:  # the extra `heif`
        found["heic"] = _open_heic
    if features.check("avif"):
        AvifImagePlugin.DEFAULT_MAX_THREADS = 1
        found["avif"] = _open_avif
    return found


OPENERS: Final = _installed()
"""By brand: opens a file with its decoder."""
