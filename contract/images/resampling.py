"""Resizes the part of a picture that a crop shows, as Pillow resizes the whole.

Pillow resizes each row, rounds to whole numbers, and then each column; so does this. `cykooz_resizer`
does the work with vector instructions where it is installed: of a thousand values about four differ
from Pillow's, by 1 of 255. Elsewhere Pillow does it, with a box, which it keeps as float32.

Shapes: S = side_px of the result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

try:
    import cykooz_resizer
except ImportError:  # pragma: no cover - the tests replace it; there is no wheel for this platform
    simd: Any = None
else:
    simd = cykooz_resizer

Pixels = Image.Image | NDArray[np.uint8]
"""A picture of mode RGB, or an array of shape (H, W, 3)."""


@dataclass(frozen=True, slots=True)
class _Filter:
    """A way to interpolate: its name here and there, and how many input pixels it reaches to."""

    pillow: Image.Resampling
    simd: str
    reach: int


_FILTERS: Final = {
    "bilinear": _Filter(Image.Resampling.BILINEAR, "bilinear", 1),
    "bicubic": _Filter(Image.Resampling.BICUBIC, "catmull_rom", 2),
    "lanczos": _Filter(Image.Resampling.LANCZOS, "lanczos3", 3),
}

_STRIP_PIXELS: Final = 1 << 20  # copied at once, so that no second full-size copy exists


@dataclass(frozen=True, slots=True)
class Span:
    """What the crop shows of one side of a picture, in its pixels; it may begin inside of one."""

    start: float
    stop: float

    def needed(self, n_px: int, side_px: int, reach: int) -> tuple[int, int]:
        """Returns the first pixel that any of `side_px` values depends on, and the one past all."""
        margin = reach * max((self.stop - self.start) / side_px, 1.0) + 1
        return max(0, math.floor(self.start - margin)), min(n_px, math.ceil(self.stop + margin))

    def moved(self, by: int) -> Span:
        """Returns the same part, counted from pixel `by` on."""
        return Span(self.start - by, self.stop - by)


def size_of(pixels: Pixels) -> tuple[int, int]:
    """Returns (width, height)."""
    if isinstance(pixels, Image.Image):
        return pixels.size
    return pixels.shape[1], pixels.shape[0]


def as_image(pixels: Pixels) -> Image.Image:
    """Returns the picture as Pillow holds it."""
    return pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)


def resize_part(
    pixels: Pixels, across: Span, down: Span, side_px: int, interpolation: str
) -> NDArray[np.uint8]:
    """Resizes a part of a picture to a square.

    Args:
        pixels: any size.
        across: the columns of the part.
        down: its rows.
        side_px: S.
        interpolation: "bilinear", "bicubic" or "lanczos".

    Returns:
        uint8, shape (S, S, 3), 0..255.
    """
    chosen = _FILTERS[interpolation]
    width, height = size_of(pixels)
    left, right = across.needed(width, side_px, chosen.reach)
    top, bottom = down.needed(height, side_px, chosen.reach)
    part = _Part((left, top, right, bottom), across.moved(left), down.moved(top), side_px)
    return _by_pillow(pixels, part, chosen) if simd is None else _by_simd(pixels, part, chosen)


@dataclass(frozen=True, slots=True)
class _Part:
    """The pixels that are needed, (left, top, right, bottom), and the spans counted from there."""

    box: tuple[int, int, int, int]
    across: Span
    down: Span
    side_px: int


def _by_pillow(pixels: Pixels, part: _Part, chosen: _Filter) -> NDArray[np.uint8]:
    image, side_px = as_image(pixels).crop(part.box), part.side_px
    across, down = part.across, part.down
    narrow = image.resize(
        (side_px, image.height), chosen.pillow, box=(across.start, 0, across.stop, image.height)
    )
    box = (0, down.start, side_px, down.stop)
    return np.asarray(narrow.resize((side_px, side_px), chosen.pillow, box=box))


def _by_simd(pixels: Pixels, part: _Part, chosen: _Filter) -> NDArray[np.uint8]:
    side_px = part.side_px
    resizer = simd.Resizer()  # has a buffer of its own, so threads do not share one
    strips = []
    for width, height, strip in _strips(pixels, part.box):
        narrow = simd.ImageData(side_px, height, simd.PixelType.U8x3)
        options = _options(chosen, _within(part.across, width), Span(0, height))
        resizer.resize(_image_data(width, height, strip), narrow, options)
        strips.append(narrow)
    height = part.box[3] - part.box[1]
    if len(strips) == 1:
        (narrow,) = strips
    else:
        narrow = _image_data(side_px, height, b"".join(strip.get_buffer() for strip in strips))
    square = simd.ImageData(side_px, side_px, simd.PixelType.U8x3)
    options = _options(chosen, Span(0, side_px), _within(part.down, height))
    resizer.resize(narrow, square, options)
    return np.frombuffer(square.get_buffer(), np.uint8).reshape(side_px, side_px, 3)


def _strips(pixels: Pixels, box: tuple[int, int, int, int]) -> Iterator[tuple[int, int, bytes]]:
    """Yields (width, height, RGB bytes) of a part of a picture, from the top down."""
    left, top, right, bottom = box
    rows = max(1, _STRIP_PIXELS // (right - left))
    for first in range(top, bottom, rows):
        last = min(first + rows, bottom)
        if isinstance(pixels, Image.Image):
            strip = pixels.crop((left, first, right, last)).tobytes()
        else:
            strip = pixels[first:last, left:right].tobytes()
        yield right - left, last - first, strip


def _image_data(width: int, height: int, rgb: bytes) -> Any:
    return simd.ImageData(width, height, simd.PixelType.U8x3, rgb)


def _within(span: Span, n_px: int) -> Span:
    """Returns the span without what rounding may have added beyond the last pixel."""
    start, length = span.start, min(span.stop, n_px) - span.start
    while start + length > n_px:
        length = math.nextafter(length, 0)
    return Span(start, start + length)


def _options(chosen: _Filter, across: Span, down: Span) -> Any:
    box = simd.CropBox(across.start, down.start, across.stop - across.start, down.stop - down.start)
    kind = simd.ResizeAlg.convolution(simd.FilterType[chosen.simd])
    return simd.ResizeOptions(kind, crop_box=box)
