"""Turns the bytes of an image file into upright RGB pixels, or into one of our errors.

The magic bytes decide the format; names and media types are never trusted. `inspect` reads the header
once and judges size and aspect; what else a picture would cost is judged when it is to be decoded,
still before a decoder allocates anything. The decoder is given only what makes pixels
(`contract.images.stripping`). Whatever it raises becomes an `ImageError`, and an
image object that raised is never touched again: a second `load()` after a failed one can answer
with black pixels and no error.

What every picture becomes, whatever it was stored as:

- the first frame of an animation; EXIF orientation applied; ICC profiles ignored;
- RGB as `contract.images.colours` says: grey repeated, palette and alpha composed over white.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Generic, TypeVar

from PIL import Image

from contract.errors import (
    ImageBadDimensions,
    ImageError,
    ImageTooComplex,
    ImageTooManyPixels,
    ImageTruncated,
    ImageUndecodable,
    UnsupportedMediaType,
)
from contract.images import headers
from contract.images.colours import to_rgb
from contract.images.headers import CheckSize, Header, JpegHeader, Size
from contract.images.jpeg import decode_jpeg, reduction_for
from contract.images.resampling import Pixels, size_of
from contract.images.stripping import (
    StrippedFile,
    png_has_all_rows,
    strip_gif,
    strip_jpeg,
    strip_png,
)

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
_TURNED: Final = frozenset({5, 6, 7, 8})  # these exchange width and height
_MIRRORED_ACROSS: Final = frozenset({2, 3, 6, 7})  # these put what was stored last at the left
_MIRRORED_DOWN: Final = frozenset({3, 4, 7, 8})  # and these at the top


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """How much one picture may cost.

    Attributes:
        max_pixels: width x height of the stored picture. 50 million admits 48-megapixel phones.
        max_webp_pixels: the same for WebP, whose decoder needs 16 bytes a pixel (250 MB for 16
            megapixels) and holds the interpreter lock for up to 5 ms a megapixel.
        max_rle_pixels: the same for run-length encoded BMP, which Pillow decodes in Python.
        min_side_px: the shorter side at least.
        max_aspect: longer side / shorter side at most.
        max_jpeg_scans: scans of a progressive JPEG at most; real ones have 10 to 20.
        max_jpeg_scan_pixels: scans x width x height at most, which is what a JPEG costs (about 2 s
            for a billion); 48 megapixels in 20 scans are just within.
    """

    max_pixels: int = 50_000_000
    max_webp_pixels: int = 16_000_000
    max_rle_pixels: int = 500_000
    min_side_px: int = 1
    max_aspect: float = 100.0
    max_jpeg_scans: int = 100
    max_jpeg_scan_pixels: int = 1_000_000_000


H = TypeVar("H", bound=Header)


@dataclass(frozen=True, slots=True)
class Decoder(Generic[H]):
    """One accepted format: how to recognise it, read its header and decode it.

    Attributes:
        name: as in messages and metrics.
        media_type: what a client calls it.
        magic: says whether a file begins as this format does.
        read: reads the header of a file; calls back as soon as it knows the size.
        plugins: Pillow's names of the readers that may see the file.
        check: refuses what would cost too much, before anything is decoded.
        strip: leaves only what makes pixels; None where Pillow passes over the rest cheaply.
        verify: refuses a decoded picture that lost rows without the decoder saying so; gets the
            stripped file.
    """

    name: str
    media_type: str
    magic: Callable[[bytes], bool]
    read: Callable[[bytes, CheckSize], H]
    plugins: tuple[str, ...]
    check: Callable[[bytes, H, ImageLimits], None] | None = None
    strip: Callable[[bytes, H], StrippedFile] | None = None
    verify: Callable[[bytes, Image.Image], None] | None = None


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file of an accepted format whose header was read and whose declared size is acceptable.

    Comes from `inspect` and goes to `decode_reduced`. It holds the bytes and the limits, so that no
    other bytes can be decoded by this header and none without having been judged.

    Attributes:
        data: the whole file.
        limits: how much the picture may cost.
        decoder: of its format.
        header: what its header says.
    """

    data: bytes = field(repr=False)
    limits: ImageLimits
    decoder: Decoder[Any] = field(repr=False)
    header: Header

    def essentials(self) -> StrippedFile:
        """Returns what is left of the file for a decoder to see.

        Raises:
            ImageError: as the functions of `contract.images.stripping`.
        """
        if self.decoder.strip is None:
            return StrippedFile(self.data)
        return self.decoder.strip(self.data, self.header)


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture, perhaps a reduced copy.

    Attributes:
        pixels: upright RGB.
        size: (width, height) of the whole picture, upright.
        reduction: 1, 2, 4 or 8: how many pixels of the whole become one of `pixels`. A side that it
            does not divide is rounded up.
        corner: where in `pixels` the whole begins, (x, y): not at (0, 0) where orientation turned a
            side that was rounded up to the front.
    """

    pixels: Pixels
    size: Size
    reduction: int = 1
    corner: tuple[float, float] = (0.0, 0.0)


def _only_size(size_in: Callable[[bytes], Size | None]) -> Callable[[bytes, CheckSize], Header]:
    """Makes a reader of headers whose size has a fixed place."""

    def read(data: bytes, check_size: CheckSize) -> Header:
        size = size_in(data)
        if size is not None:
            check_size(size)
        return Header(size)

    return read


def _check_jpeg(data: bytes, header: JpegHeader, limits: ImageLimits) -> None:
    size = header.size
    if size is None and (size := headers.late_jpeg_size(data)) is not None:
        _check_size(size, limits)
    width, height = size or (1, 1)
    affordable = max(1, limits.max_jpeg_scan_pixels // (width * height))
    allowed = min(limits.max_jpeg_scans, affordable)
    if headers.count_jpeg_scans(data, stop_after=allowed) > allowed:
        raise ImageTooComplex(
            f"the JPEG has more than {allowed} scans, the limit for {width} x {height} pixels"
        )


def _check_webp(data: bytes, header: Header, limits: ImageLimits) -> None:
    if header.size is not None:
        _check_pixels(header.size, limits.max_webp_pixels, "WebP image")
    if headers.webp_declared_bytes(data) > len(data):
        raise ImageTruncated("the WebP file is shorter than its header declares")


def _check_bmp(data: bytes, header: Header, limits: ImageLimits) -> None:
    if header.size is not None and headers.bmp_is_run_length_encoded(data):
        _check_pixels(header.size, limits.max_rle_pixels, "run-length encoded BMP")


def _verify_png(data: bytes, image: Image.Image) -> None:
    last_row = image.crop((0, image.height - 1, image.width, image.height))
    # Memory is zeroed before decoding, so a last row with any bit set was in the file; with Adam7
    # other rows come later in the file. Counting all rows costs too much to do it always.
    if (headers.png_is_interlaced(data) or not any(last_row.tobytes())) and not png_has_all_rows(
        data
    ):
        raise ImageTruncated("the PNG has fewer rows than its header declares")


DECODERS: Final[tuple[Decoder[Any], ...]] = (
    Decoder(
        "jpeg",
        "image/jpeg",
        lambda data: data.startswith(b"\xff\xd8\xff"),
        headers.read_jpeg,
        ("JPEG",),  # also phones' multi-picture files (MPO), whose index is stripped
        _check_jpeg,
        strip_jpeg,
    ),
    Decoder(
        "png",
        "image/png",
        lambda data: data.startswith(b"\x89PNG\r\n\x1a\n"),
        _only_size(headers.png_size),
        ("PNG",),
        strip=lambda data, _: strip_png(data),
        verify=_verify_png,
    ),
    Decoder(
        "webp",
        "image/webp",
        lambda data: data.startswith(b"RIFF") and data[8:12] == b"WEBP",
        _only_size(headers.webp_size),
        ("WEBP",),
        _check_webp,
    ),
    Decoder(
        "gif",
        "image/gif",
        lambda data: data.startswith((b"GIF87a", b"GIF89a")),
        _only_size(headers.gif_size),
        ("GIF",),
        strip=lambda data, _: strip_gif(data),
    ),
    Decoder(
        "bmp",
        "image/bmp",
        lambda data: data.startswith(b"BM"),
        _only_size(headers.bmp_size),
        ("BMP",),
        _check_bmp,
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
    with _opened(inspect(data, limits)) as opened:
        return opened.load()


def decode_reduced(file: ImageFile, shorter_side_px: int) -> Picture:
    """Decodes one image file, a JPEG no larger than is needed and by the shortest way.

    Args:
        file: from `inspect`.
        shorter_side_px: of the result at least, where the whole picture has as many.

    Raises:
        ImageTooManyPixels, ImageBadDimensions, ImageTooComplex: judged before decoding.
        ImageTruncated, ImageUndecodable: the content is broken.
    """
    header = file.header
    if isinstance(header, JpegHeader):
        picture = _decode_jpeg(file, header, shorter_side_px)
        if picture is not None:
            return picture
    with _opened(file) as opened:
        whole = opened.image.size
        reduction = reduction_for(whole, shorter_side_px) if isinstance(header, JpegHeader) else 1
        opened.image.draft(None, (shorter_side_px, shorter_side_px))
        return _picture(opened.load(), whole, reduction, opened.orientation)


def _decode_jpeg(file: ImageFile, header: JpegHeader, shorter_side_px: int) -> Picture | None:
    """Decodes a JPEG without Pillow; None where Pillow must say what it is."""
    size = header.size
    if size is None:
        return None
    # Where one scan is all, the rest of the file need not be walked over to count more of them.
    if not headers.jpeg_is_one_scan(file.data, header):
        _check_jpeg(file.data, header, file.limits)
    essentials = file.essentials()
    reduction = reduction_for(size, shorter_side_px)
    pixels = decode_jpeg(essentials.data, size, reduction)
    if pixels is None:
        return None
    orientation = headers.exif_orientation(essentials.exif)
    if orientation in _UPRIGHT:
        return _picture(
            _upright(Image.fromarray(pixels), orientation), size, reduction, orientation
        )
    return Picture(pixels, size, reduction)


def _picture(upright: Pixels, stored: Size, reduction: int, orientation: int | None) -> Picture:
    size = (stored[1], stored[0]) if orientation in _TURNED else stored
    width, height = size_of(upright)
    x = width - size[0] / reduction if orientation in _MIRRORED_ACROSS else 0.0
    y = height - size[1] / reduction if orientation in _MIRRORED_DOWN else 0.0
    return Picture(upright, size, reduction, (x, y))


@dataclass(frozen=True, slots=True)
class _Opened:
    """A file that passed every check that comes before decoding."""

    decoder: Decoder[Any]
    essentials: StrippedFile
    image: Image.Image

    @property
    def orientation(self) -> int | None:
        return headers.exif_orientation(self.essentials.exif or self.image.info.get("exif", b""))

    def load(self) -> Image.Image:
        self.image.load()
        if self.decoder.verify is not None:
            self.decoder.verify(self.essentials.data, self.image)
        return to_rgb(_upright(self.image, self.orientation))


@contextmanager
def _opened(file: ImageFile) -> Iterator[_Opened]:
    decoder = file.decoder
    if decoder.check is not None:
        decoder.check(file.data, file.header, file.limits)
    essentials = file.essentials()
    check_size = partial(_check_size, limits=file.limits)
    if decoder.name == "gif":  # whose first frame may exceed its screen
        decoder.read(essentials.data, check_size)
    try:
        with Image.open(io.BytesIO(essentials.data), formats=decoder.plugins) as image:
            check_size(image.size)
            yield _Opened(decoder, essentials, image)
    except ImageError:
        raise
    except MemoryError:
        raise
    except Exception as error:
        # Pillow's decoders raise OSError, ValueError, SyntaxError, TypeError, struct.error and
        # more for broken files; each of them means the same to the sender.
        raise _classify(error) from error


def inspect(data: bytes, limits: ImageLimits | None = None) -> ImageFile:
    """Reads the header of an image file, once for all that follows; decodes and copies nothing.

    Takes microseconds for what cameras and programs write.

    Args:
        data: the whole file.
        limits: how much the picture may cost; the defaults of `ImageLimits` if not given.

    Raises:
        UnsupportedMediaType: the magic bytes are of no format in `DECODERS`.
        ImageTooManyPixels, ImageBadDimensions: of the size that the header declares.
        ImageTooComplex: the header of a JPEG has no end.
    """
    limits = limits or ImageLimits()
    decoder = sniff(data)
    header = decoder.read(data, partial(_check_size, limits=limits))
    return ImageFile(data, limits, decoder, header)


def sniff(data: bytes) -> Decoder[Any]:
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


def _upright(image: Image.Image, orientation: int | None) -> Image.Image:
    operation = None if orientation is None else _UPRIGHT.get(orientation)
    return image if operation is None else image.transpose(operation)


def _check_pixels(size: Size, max_pixels: int, what: str) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageTooManyPixels(
            f"the {what} has {width} x {height} = {width * height / 1e6:.1f} megapixels, "
            f"the limit is {max_pixels / 1e6:.1f}"
        )


def _check_size(size: Size, limits: ImageLimits) -> None:
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
