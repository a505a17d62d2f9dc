"""Decodes a JPEG directly with libjpeg-turbo, at a reduced size if that is enough.

A JPEG stores blocks of 8 x 8 frequencies. A decoder can compute a picture of 1/2, 1/4 or 1/8 of the
size from them directly. simplejpeg decodes into an array and gives the same pixels as Pillow, which
uses the same transform and upsampling. Pillow takes longer because it stores four bytes per pixel
and has to pack them afterwards.

This is a fast path for intact files. It decides nothing about the others: Pillow decodes every file
that libjpeg-turbo warns about, for example because it ends early, and every colour space except two.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from contract.images.headers import Size

ENDS_EARLY: Final = "premature end of data segment"
"""Part of libjpeg's text for JWRN_HIT_MARKER."""

_REDUCTIONS: Final = (
    8,
    4,
    2,
)  # libjpeg-turbo has no vector code for others; they take longer than full size
_FOUR_CHANNELS: Final = frozenset({"CMYK", "YCCK"})
_COLOUR_SPACES: Final = frozenset({"YCbCr", "Gray"})


def reduction_for(size: Size, shorter_side_px: int) -> int:
    """Returns the largest of 1, 2, 4 and 8 that leaves the shorter side `shorter_side_px` or more.

    Returns 1 if the picture is smaller than that.
    """
    return next((by for by in _REDUCTIONS if min(size) >= by * shorter_side_px), 1)


def decode_jpeg(data: bytes, size: Size, reduction: int) -> NDArray[np.uint8] | None:
    """Decodes a JPEG. The caller has checked its size and its number of scans.

    Args:
        data: the whole file.
        size: (width, height) from its header.
        reduction: 1, 2, 4 or 8.

    Returns:
        uint8 RGB, shape (H, W, 3), 0..255, where H and W are the sides divided by `reduction` and
        rounded up. None if Pillow must decode the file.
    """
    width, height = (-(-side // reduction) for side in size)
    try:
        if simplejpeg.decode_jpeg_header(data)[2] not in _COLOUR_SPACES:
            return None
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data, "RGB", min_height=height, min_width=width, strict=True
        )
    except ValueError:  # an error or, because of `strict`, a warning
        return None
    return pixels if pixels.shape == (height, width, 3) else None


def first_warning(data: bytes) -> str:
    """Returns libjpeg-turbo's first warning or error about a JPEG; empty if it decodes without any.

    `ENDS_EARLY` is in the text if the file has an end marker before all of its blocks.
    """
    try:
        colours = simplejpeg.decode_jpeg_header(data)[2]
        target = "CMYK" if colours in _FOUR_CHANNELS else "RGB"
        simplejpeg.decode_jpeg(data, target, min_factor=_REDUCTIONS[0], strict=True)
    except ValueError as error:
        return str(error)
    return ""
