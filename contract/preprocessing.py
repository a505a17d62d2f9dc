"""From an image file to the input tensor of a graph, as timm's evaluation transform makes it.

timm (`timm.data.create_transform`, is_training=False, crop_mode "center" or "squash") decodes with
Pillow, resizes the whole picture and cuts out the middle. There are two ways to do the same here:

- `reference_input` gives exactly timm's pixels on every machine. Parity uses it.
- `read_input` answers requests and is faster. It decodes a JPEG at a reduced size if that leaves
  four times the pixels needed (`contract.images.jpeg`), and resizes only the part inside the crop
  (`contract.images.resampling`). docs/decisions/0040 says what this saves and what it changes.

Golden examples are checked in both ways.

Shapes: S = crop_size_px, N = batch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from contract.errors import GoldenMismatch
from contract.images import ImageFile, ImageLimits, Picture, decode, decode_reduced, inspect
from contract.images.resampling import Span, as_image, resize_part, size_of

if TYPE_CHECKING:
    from contract.manifest import Interface, Preprocessing

Tensor = NDArray[np.uint8] | NDArray[np.float32]

INTERPOLATIONS: Final = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

# Pillow resizes columns first, then rows. Pillow 13 may do the rows first if a picture is at least
# twice as high as wide, or if its sides are scaled differently.
_MAX_COLUMNS_FIRST: Final = 1.75

# A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if the shorter side is still this many times
# resize_size_px. With 2, 3.8% of the pictures that are reduced change a probability by more than 0.02,
# with 4 only 0.9% (docs/decisions/0040).
_REDUCED_MARGIN: Final = 4.0

MAX_SHORTCUT_DIFFERENCE: Final = 8.0
"""Largest mean difference, in steps of 255, between `read_input` and the reference for one picture.

Photographs differ by 0.004, or by 0.2 if they are decoded at a reduced size. Swapped channels or a
shifted crop differ by 20 or more.
"""


def read_input(data: bytes, manifest: Interface, limits: ImageLimits | None = None) -> Tensor:
    """Prepares an image file as one row of the graph's input, the fast way.

    Args:
        data: the whole file.
        manifest: its `preprocessing` and the dtype and layout of `graph.input` decide the result.
        limits: limits on the picture; the defaults of `ImageLimits` if not given.

    Returns:
        One row, as from `to_input`.

    Raises:
        ImageError: the file cannot be accepted, for the reasons that `contract.images.decode` lists.
    """
    return to_row(read_pixels(data, manifest.preprocessing, limits), manifest)


def reference_input(data: bytes, manifest: Interface, limits: ImageLimits | None = None) -> Tensor:
    """Does what `read_input` does with Pillow alone and gives exactly timm's pixels."""
    return to_row(reference_pixels(decode(data, limits), manifest.preprocessing), manifest)


def golden_inputs(data: bytes, manifest: Interface) -> tuple[Tensor, Tensor]:
    """Prepares a golden picture in both ways.

    Returns:
        Two rows: one as from `reference_input`, one as from `read_input`.

    Raises:
        ImageError: the file cannot be accepted.
        GoldenMismatch: the pixels of the two differ by more than `MAX_SHORTCUT_DIFFERENCE`.
    """
    spec = manifest.preprocessing
    exact = reference_pixels(decode(data), spec)  # (S, S, 3)
    served = read_pixels(data, spec)  # (S, S, 3)
    difference = float(np.abs(served.astype(np.float32) - exact).mean())
    if difference > MAX_SHORTCUT_DIFFERENCE:
        raise GoldenMismatch(
            f"prepared pixels differ from the reference by {difference:.1f} of 255, "
            f"the limit is {MAX_SHORTCUT_DIFFERENCE:g}"
        )
    return to_row(exact, manifest), to_row(served, manifest)


def read_pixels(
    data: bytes, spec: Preprocessing, limits: ImageLimits | None = None
) -> NDArray[np.uint8]:
    """Decodes an image file, resizes it and crops it: `read_input` without the last step, `to_row`.

    Returns:
        uint8, shape (S, S, 3), 0..255.

    Raises:
        ImageError: the file cannot be accepted.
    """
    return resize_and_crop(decode_for(data, spec, limits), spec)


def decode_for(data: bytes, spec: Preprocessing, limits: ImageLimits | None = None) -> Picture:
    """Inspects an image file and decodes it with `decode_file`."""
    return decode_file(inspect(data, limits), spec)


def decode_file(file: ImageFile, spec: Preprocessing) -> Picture:
    """Decodes an image file, at a reduced size if that is enough for `spec`.

    Args:
        file: from `contract.images.inspect`.
        spec: its `resize_size_px` decides how much a JPEG is reduced.

    Raises:
        ImageError: the file cannot be accepted, for the reasons that
            `contract.images.decode_reduced` lists.
    """
    return decode_reduced(file, math.ceil(_REDUCED_MARGIN * spec.resize_size_px))


def to_input(picture: Picture | Image.Image, manifest: Interface) -> Tensor:
    """Prepares one decoded picture as one row of the graph's input.

    Args:
        picture: mode RGB, any size.
        manifest: its `preprocessing` and the dtype and layout of `graph.input` decide the result.

    Returns:
        Shape (S, S, 3) for NHWC, (3, S, S) for NCHW. If the graph normalises, uint8, 0..255;
        otherwise float32, (value / 255 - mean) / std.
    """
    return to_row(resize_and_crop(picture, manifest.preprocessing), manifest)


def to_row(pixels: NDArray[np.uint8], manifest: Interface) -> Tensor:
    """Converts pixels, uint8 (S, S, 3), to a row as from `to_input`."""
    spec, channels_first = manifest.preprocessing, manifest.graph.input.layout == "NCHW"
    if channels_first:
        pixels = np.ascontiguousarray(pixels.transpose(2, 0, 1))  # (3, S, S)
    return pixels if spec.in_graph else _normalise(pixels, spec, channels_first=channels_first)


def resize_and_crop(picture: Picture | Image.Image, spec: Preprocessing) -> NDArray[np.uint8]:
    """Resizes a picture and cuts out the middle.

    Args:
        picture: mode RGB, any size.
        spec: resize mode and size, crop size and interpolation.

    Returns:
        uint8, shape (S, S, 3), 0..255. Equal to timm's evaluation transform except for rounding and
        the effect of decoding at a reduced size.
    """
    if isinstance(picture, Image.Image):
        picture = Picture(picture, picture.size)
    size, crop_px = resized_size(picture.size, spec), spec.crop_size_px

    # `resize_part` works columns first and cannot do "nearest". Pillow does the rest.
    if not _columns_first(size_of(picture.pixels), spec) or spec.interpolation == "nearest":
        left, top = picture.corner
        width, height = (side / picture.reduction for side in picture.size)
        whole = (left, top, left + width, top + height)
        return _resize_whole(as_image(picture.pixels), size, spec, whole)

    across, down = (_crop_span(picture, size, axis, crop_px) for axis in (0, 1))
    return resize_part(picture.pixels, across, down, crop_px, spec.interpolation)


def reference_pixels(image: Image.Image, spec: Preprocessing) -> NDArray[np.uint8]:
    """Does what `resize_and_crop` does, with exactly the pixels of timm's transform."""
    width, height = resized_size(image.size, spec)
    if not _columns_first(image.size, spec):
        return _resize_whole(image, (width, height), spec)

    # Pillow resizes in two passes, columns first. Cropping between them saves work in the second
    # pass and changes no pixel.
    crop, method = spec.crop_size_px, INTERPOLATIONS[spec.interpolation]
    left, top = _crop_offset(width, crop), _crop_offset(height, crop)
    columns = image.resize((width, image.height), method).crop((left, 0, left + crop, image.height))
    return np.asarray(columns.resize((crop, height), method).crop((0, top, crop, top + crop)))


def _columns_first(size: tuple[int, int], spec: Preprocessing) -> bool:
    width, height = size
    return spec.resize_mode == "shortest_side" and height <= _MAX_COLUMNS_FIRST * width


def _resize_whole(
    image: Image.Image,
    size: tuple[int, int],
    spec: Preprocessing,
    box: tuple[float, float, float, float] | None = None,
) -> NDArray[np.uint8]:
    crop = spec.crop_size_px
    left, top = (_crop_offset(side, crop) for side in size)
    resized = image.resize(size, INTERPOLATIONS[spec.interpolation], box=box)
    return np.asarray(resized.crop((left, top, left + crop, top + crop)))  # (S, S, 3)


def _crop_span(picture: Picture, resized: tuple[int, int], axis: int, crop_px: int) -> Span:
    # The crop on one axis, in decoded pixels: a step is one pixel of the resized picture.
    step = picture.size[axis] / (resized[axis] * picture.reduction)
    start = picture.corner[axis] + _crop_offset(resized[axis], crop_px) * step
    return Span(start, min(start + crop_px * step, size_of(picture.pixels)[axis]))


def resized_size(size: tuple[int, int], spec: Preprocessing) -> tuple[int, int]:
    """Returns (width, height) in pixels after resizing, before the crop.

    "shortest_side": the shorter side becomes resize_size_px; the longer one is scaled and truncated
    to a whole number (torchvision's `Resize`). "squash": both sides become resize_size_px.
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


def _normalise(
    pixels: NDArray[np.uint8], spec: Preprocessing, *, channels_first: bool
) -> NDArray[np.float32]:
    # One multiplication and one addition per value: (x / 255 - mean) / std = x * scale + shift.
    # NumPy is 13 times as fast with a long run of equal factors, or with one factor for each value,
    # as when it repeats three factors along the last axis.
    std = np.array(spec.std)
    scale = (1.0 / (255.0 * std)).astype(np.float32)  # (3,)
    shift = (-np.array(spec.mean) / std).astype(np.float32)  # (3,)
    values: NDArray[np.float32] = pixels.astype(np.float32)
    if channels_first:
        values *= scale[:, None, None]
        values += shift[:, None, None]
    else:
        rows = values.reshape(len(values), -1)  # (S, 3 * S), the same memory
        rows *= np.tile(scale, values.shape[1])
        rows += np.tile(shift, values.shape[1])
    return values
