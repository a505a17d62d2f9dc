"""From upright RGB pixels to the input tensor of a graph, equal to timm's evaluation transform.

timm (`timm.data.create_transform`, is_training=False, crop_mode "center" or "squash") resizes with
Pillow and cuts out the middle. Pillow resizes one axis after the other, so here the columns outside
the crop are dropped between the two passes: the same pixels for two thirds of the work. Pillow's
`resize(box=)` would be cheaper still but is not the same: it keeps the box as float32, and Pillow
13 picks the order of the passes by their cost, which moves pixels by up to 11 of 255.

Shapes: S = crop_size_px, N = batch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from contract.manifest import Manifest, Preprocessing

Tensor = NDArray[np.uint8] | NDArray[np.float32]

INTERPOLATIONS: Final = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

# Pillow resizes columns first, then rows, except that Pillow 13 may turn this round for pictures
# twice as high as wide or more, and for distorting ones.
_MAX_COLUMNS_FIRST: Final = 1.75


def to_input(image: Image.Image, manifest: Manifest) -> Tensor:
    """Prepares one picture as one row of the graph's input.

    Args:
        image: mode RGB, any size.
        manifest: its `preprocessing` and the dtype and layout of `graph.input` decide the result.

    Returns:
        uint8 (S, S, 3) or (3, S, S), 0..255, where the graph normalises by itself; otherwise
        float32 of the same shapes, (value / 255 - mean) / std.
    """
    pixels = resize_and_crop(image, manifest.preprocessing)  # (S, S, 3)
    spec = manifest.preprocessing
    row: NDArray[Any] = pixels if spec.in_graph else _normalise(pixels, spec)
    if manifest.graph.input.layout == "NCHW":
        row = np.ascontiguousarray(row.transpose(2, 0, 1))  # (3, S, S)
    return row


def resize_and_crop(image: Image.Image, spec: Preprocessing) -> NDArray[np.uint8]:
    """Resizes a picture and cuts out the middle.

    Args:
        image: mode RGB, any size.
        spec: resize mode and size, crop size and interpolation.

    Returns:
        uint8, shape (S, S, 3), 0..255: the pixels timm's evaluation transform gives.
    """
    width, height = resized_size(image.size, spec)
    crop = spec.crop_size_px
    left, top = _crop_offset(width, crop), _crop_offset(height, crop)
    method = INTERPOLATIONS[spec.interpolation]
    if spec.resize_mode == "shortest_side" and image.height <= _MAX_COLUMNS_FIRST * image.width:
        columns = image.resize((width, image.height), method).crop(
            (left, 0, left + crop, image.height)
        )
        resized = columns.resize((crop, height), method).crop((0, top, crop, top + crop))
    else:
        resized = image.resize((width, height), method).crop((left, top, left + crop, top + crop))
    return np.asarray(resized)  # (S, S, 3)


def resized_size(size: tuple[int, int], spec: Preprocessing) -> tuple[int, int]:
    """Returns the whole-pixel (width, height) before the crop.

    "shortest_side": the shorter side becomes resize_size_px and the longer one is scaled and
    truncated (torchvision `Resize`); "squash": both sides become resize_size_px.
    """
    target = spec.resize_size_px
    if spec.resize_mode == "squash":
        return target, target
    width, height = size
    if width <= height:
        return target, int(target * height / width)
    return int(target * width / height), target


def resize_size_for(crop_size_px: int, crop_pct: float) -> int:
    """Returns the resize size that timm derives from a crop size and `crop_pct`."""
    return math.floor(crop_size_px / crop_pct)


def _crop_offset(side: int, crop: int) -> int:
    return round((side - crop) / 2.0)  # half to even, as torchvision's center_crop


def _normalise(pixels: NDArray[np.uint8], spec: Preprocessing) -> NDArray[np.float32]:
    # One multiply and one add a value: (x / 255 - mean) / std = x * scale + shift.
    std = np.array(spec.std)
    scale = (1.0 / (255.0 * std)).astype(np.float32)  # (3,)
    shift = (-np.array(spec.mean) / std).astype(np.float32)  # (3,)
    normalised: NDArray[np.float32] = pixels.astype(np.float32) * scale + shift
    return normalised  # (S, S, 3)
