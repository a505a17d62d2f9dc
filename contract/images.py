"""Turns the bytes of an image file into upright RGB pixels, or into one of our errors.

The magic bytes decide the format; names and media types are never trusted. Size, aspect and
complexity are judged from the header, before a decoder allocates anything. Whatever a decoder
raises becomes an `ImageError`, and an image object that raised is never touched again: a second
`load()` after a failed one can answer with black pixels and no error.

What every picture becomes, whatever it was stored as:

- the first frame of an animation; EXIF orientation applied; ICC profiles ignored;
- grey and 1-bit: the value repeated in three channels; 16-bit: scaled by 1/257, not clipped;
- palette and alpha: composed over `BACKGROUND`;
- CMYK: converted by Pillow, with Adobe's inversion where the file declares it.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image

from contract import headers
from contract.errors import (
    ImageBadDimensions,
    ImageError,
    ImageTooComplex,
    ImageTooManyPixels,
    ImageTruncated,
    ImageUndecodable,
    UnsupportedMediaType,
)

BACKGROUND: Final = (255, 255, 255)
"""Colour behind transparent pixels: white, as product photos and documents assume."""

_ORIENTATION_TAG: Final = 0x0112
# EXIF 2.32, 4.6.4: what undoes each stored orientation.
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """How much one picture may cost.

    Attributes:
        max_pixels: width x height of the stored picture. 50 million admits 48-megapixel phones.
        max_webp_pixels: the same for WebP, whose decoder holds the interpreter lock throughout
            (about 13 ms a megapixel), so that one upload cannot freeze the server.
        min_side_px: the shorter side at least.
        max_aspect: longer side / shorter side at most.
        max_jpeg_scans: scans of a progressive JPEG at most; real ones have 10 to 20.
    """

    max_pixels: int = 50_000_000
    max_webp_pixels: int = 16_000_000
    min_side_px: int = 1
    max_aspect: float = 100.0
    max_jpeg_scans: int = 100


@dataclass(frozen=True, slots=True)
class Decoder:
    """One accepted format: how to recognise it, measure it and which Pillow plugins may read it."""

    name: str
    media_type: str
    magic: Callable[[bytes], bool]
    size: Callable[[bytes], headers.Size | None]
    plugins: tuple[str, ...]
    check: Callable[[bytes, ImageLimits], None] | None = None


def _check_jpeg(data: bytes, limits: ImageLimits) -> None:
    if headers.count_jpeg_scans(data, stop_after=limits.max_jpeg_scans) > limits.max_jpeg_scans:
        raise ImageTooComplex(f"the JPEG has more than {limits.max_jpeg_scans} scans")


def _check_webp(data: bytes, limits: ImageLimits) -> None:
    size = headers.webp_size(data)
    if size is not None:
        _check_pixels(size, limits.max_webp_pixels, "WebP image")
    if headers.webp_declared_bytes(data) > len(data) + 1:  # the padding byte may be missing
        raise ImageTruncated("the WebP file is shorter than its header declares")


DECODERS: Final[tuple[Decoder, ...]] = (
    Decoder(
        "jpeg",
        "image/jpeg",
        lambda data: data.startswith(b"\xff\xd8\xff"),
        headers.jpeg_size,
        ("JPEG", "MPO"),  # phones' multi-picture files are JPEGs with an index
        _check_jpeg,
    ),
    Decoder(
        "png",
        "image/png",
        lambda data: data.startswith(b"\x89PNG\r\n\x1a\n"),
        headers.png_size,
        ("PNG",),
    ),
    Decoder(
        "webp",
        "image/webp",
        lambda data: data.startswith(b"RIFF") and data[8:12] == b"WEBP",
        headers.webp_size,
        ("WEBP",),
        _check_webp,
    ),
    Decoder(
        "gif",
        "image/gif",
        lambda data: data.startswith((b"GIF87a", b"GIF89a")),
        headers.gif_size,
        ("GIF",),
    ),
    Decoder(
        "bmp",
        "image/bmp",
        lambda data: data.startswith(b"BM"),
        headers.bmp_size,
        ("BMP",),
    ),
)


def decode(data: bytes, limits: ImageLimits | None = None) -> Image.Image:
    """Decodes one image file into upright RGB pixels.

    Args:
        data: the whole file.
        limits: how much the picture may cost; the defaults of `ImageLimits` if not given.

    Returns:
        A loaded image of mode RGB: uint8, 0..255, `size` = (width, height) after orientation.

    Raises:
        UnsupportedMediaType: the magic bytes are of no format in `DECODERS`.
        ImageTooManyPixels, ImageBadDimensions, ImageTooComplex: judged before decoding.
        ImageTruncated, ImageUndecodable: the content is broken.
    """
    limits = limits or ImageLimits()
    decoder = sniff(data)
    size = decoder.size(data)
    if size is not None:
        _check_size(size, limits)
    if decoder.check is not None:
        decoder.check(data, limits)
    try:
        with Image.open(io.BytesIO(data), formats=decoder.plugins) as image:
            _check_size(image.size, limits)  # a GIF's first frame may exceed its screen
            image.load()
            return to_rgb(_upright(image))
    except ImageError:
        raise
    except MemoryError:
        raise
    except Exception as error:
        # Pillow's decoders raise OSError, ValueError, SyntaxError, TypeError, struct.error and
        # more for broken files; each of them means the same to the sender.
        raise _classify(error) from error


def sniff(data: bytes) -> Decoder:
    """Returns the decoder whose magic bytes the data starts with.

    Raises:
        UnsupportedMediaType: no accepted format matches.
    """
    for decoder in DECODERS:
        if decoder.magic(data):
            return decoder
    accepted = ", ".join(decoder.name.upper() for decoder in DECODERS)
    what = "the body is empty" if not data else "the bytes are not an accepted image format"
    raise UnsupportedMediaType(f"{what}; accepted are {accepted}")


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts a loaded image of any mode to RGB as the module docstring says.

    Returns:
        Mode RGB, uint8, the same size; the image itself where it already is RGB.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep_grey(image).convert("RGB")
    if image.mode in ("La", "RGBa"):  # premultiplied alpha
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        return Image.alpha_composite(canvas, rgba).convert("RGB")
    return image.convert("RGB")


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """Scales 16-bit (or wider) grey to 8 bits; plain `convert` would clip everything above 255."""
    values = np.asarray(image, dtype=np.float64)
    values = np.nan_to_num(values, nan=0.0, posinf=65535.0, neginf=0.0)
    return Image.fromarray(np.clip(values / 257.0 + 0.5, 0, 255).astype(np.uint8))


def _upright(image: Image.Image) -> Image.Image:
    """Undoes the EXIF orientation; broken metadata counts as none, since the pixels are fine."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # noqa: BLE001 - metadata parsers fail in as many ways as decoders do
        return image
    operation = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if operation is None else image.transpose(operation)


def _check_pixels(size: headers.Size, max_pixels: int, what: str) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageTooManyPixels(
            f"the {what} has {width} x {height} = {width * height / 1e6:.1f} megapixels, "
            f"the limit is {max_pixels / 1e6:.1f}"
        )


def _check_size(size: headers.Size, limits: ImageLimits) -> None:
    _check_pixels(size, limits.max_pixels, "image")
    shorter, longer = sorted(size)
    if shorter < max(1, limits.min_side_px):
        raise ImageBadDimensions(
            f"the image is {size[0]} x {size[1]} pixels, "
            f"the shorter side must have {max(1, limits.min_side_px)} at least"
        )
    if longer > limits.max_aspect * shorter:
        raise ImageBadDimensions(
            f"the image is {size[0]} x {size[1]} pixels, "
            f"the longer side may be {limits.max_aspect:g} times the shorter one at most"
        )


def _classify(error: Exception) -> ImageError:
    if isinstance(error, Image.DecompressionBombError):
        return ImageTooManyPixels("the image has more pixels than the decoder accepts")
    if isinstance(error, EOFError) or "truncated" in str(error).lower():
        return ImageTruncated("the file ends before the picture is complete")
    return ImageUndecodable("the picture cannot be decoded; the file is damaged or malformed")
