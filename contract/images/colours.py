"""Turns a decoded image of any mode into RGB.

- Grey and 1-bit: the value is repeated in three channels. 16-bit is scaled by 1/257, not clipped.
- Palette and alpha: composed over `BACKGROUND`.
- CMYK: converted by Pillow, with Adobe's inversion if the file declares it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from PIL import Image

BACKGROUND: Final = (255, 255, 255)
"""Colour behind transparent pixels. Product photos and documents assume white."""

_STRIP_PIXELS: Final = 1 << 20  # converted at a time, to avoid a second full-size copy


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts a loaded image of any mode to RGB by the rules above.

    Returns:
        Mode RGB, uint8, the same size. An image that is already RGB is returned unchanged.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if not image.has_transparency_data and not _is_deep_grey(image):
        return image.convert("RGB")
    canvas = Image.new("RGB", image.size, BACKGROUND)
    for top, strip in _strips(image):
        canvas.paste(_strip_to_rgb(strip), (0, top))
    return canvas


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _strip_to_rgb(strip: Image.Image) -> Image.Image:
    if _is_deep_grey(strip):
        return _from_deep_grey(strip).convert("RGB")
    if strip.mode in ("La", "RGBa"):  # premultiplied alpha
        strip = strip.convert("LA" if strip.mode == "La" else "RGBA")
    background = Image.new("RGBA", strip.size, (*BACKGROUND, 255))
    return Image.alpha_composite(background, strip.convert("RGBA")).convert("RGB")


def _is_deep_grey(image: Image.Image) -> bool:
    return image.mode.startswith("I") or image.mode == "F"


def _from_deep_grey(image: Image.Image) -> Image.Image:
    # `Image.convert` would clip everything above 255.
    values = np.asarray(image, dtype=np.float64)
    values = np.nan_to_num(values, nan=0.0, posinf=65535.0, neginf=0.0)
    grey = np.clip(values / 257.0 + 0.5, 0, 255).astype(np.uint8)
    if "transparency" in image.info:  # one grey value that means the background
        grey[values == image.info["transparency"]] = BACKGROUND[0]
    return Image.fromarray(grey)
