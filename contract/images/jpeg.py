"""The pixels of a JPEG straight from libjpeg-turbo, at a reduced size where that is enough.

A JPEG stores blocks of 8 x 8 frequencies, from which a picture of 1/2, 1/4 or 1/8 of its size can
be computed right away. simplejpeg decodes into an array, with the same transform and upsampling as
Pillow and so to the same pixels; Pillow spreads them over four bytes each, which then have to be
packed again.

This is a short cut for files without a fault and never the judge of one: whatever libjpeg-turbo
warns of, such as an early end, and every colour space but two is left to Pillow.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from contract.images.headers import Size

_REDUCTIONS: Final = (8, 4, 2)  # others have no vector code and take longer than the whole picture
_COLOUR_SPACES: Final = frozenset({"YCbCr", "Gray"})


def reduction_for(size: Size, shorter_side_px: int) -> int:
    """Returns 1, 2, 4 or 8: the strongest that leaves the shorter side `shorter_side_px` long."""
    return next((by for by in _REDUCTIONS if min(size) >= by * shorter_side_px), 1)


def decode_jpeg(data: bytes, size: Size, reduction: int) -> NDArray[np.uint8] | None:
    """Decodes a JPEG of which everything that can be judged beforehand has been.

    Args:
        data: the whole file.
        size: (width, height) of the picture, as its header says.
        reduction: 1, 2, 4 or 8.

    Returns:
        uint8 RGB, shape (H, W, 3), 0..255, where H and W are the sides divided by `reduction` and
        rounded up; None where Pillow must decide.
    """
    width, height = (-(-side // reduction) for side in size)
    try:
        if simplejpeg.decode_jpeg_header(data)[2] not in _COLOUR_SPACES:
            return None
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data, "RGB", min_height=height, min_width=width, strict=True
        )
    except ValueError:  # an error, or with `strict` a warning
        return None
    return pixels if pixels.shape == (height, width, 3) else None
