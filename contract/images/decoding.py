"""Turns the bytes of an image file into upright RGB pixels, or raises an `ImageError`.

The magic bytes decide the format; names and media types are never trusted. Size and aspect ratio are
checked with the header, other costs just before decoding, when nothing is allocated yet. A decoder
gets only the parts of the file that make pixels (`contract.images.stripping`).

The result is the first frame, with the EXIF orientation applied and ICC profiles ignored, in RGB
(`contract.images.colours`).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, Generic, TypeVar

# Pillow would load all its plugins, 38 more, to find this one at the first WebP.
from PIL import Image, WebPImagePlugin  # noqa: F401

from contract.errors import (
    ImageBadDimensions,
    ImageError,
    ImageTooComplex,
    ImageTooManyPixels,
    ImageTruncated,
    ImageUndecodable,
    UnsupportedMediaType,
)
from contract.images import headers, heif
from contract.images.colours import to_rgb
from contract.images.headers import CheckSize, Header, JpegHeader, Size
from contract.images.heif.decoders import OPENERS
from contract.images.jpeg import ENDS_EARLY, decode_jpeg, first_warning, reduction_for
from contract.images.refused import describe_refused
from contract.images.resampling import Pixels, size_of
from contract.images.stripping import (
    StrippedFile,
    end_jpeg,
    png_has_all_rows,
    strip_gif,
    strip_jpeg,
    strip_png,
    webp_without_last_zeros,
)

# EXIF 2.32, 4.6.4: the operation that undoes each stored orientation.
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# The values of a JPEG's channels where it has no data. Pillow inverts CMYK.
_JPEG_MISSING: Final = ({128}, {127})
_TURNED: Final = frozenset({5, 6, 7, 8})  # orientations that swap width and height
_MIRRORED_ACROSS: Final = frozenset(
    {2, 3, 6, 7}
)  # these move the last stored column or row to the left
_MIRRORED_DOWN: Final = frozenset({3, 4, 7, 8})  # these move it to the top

_HEIF_COST: Final = 4  # 30 to 80 ns per pixel


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Limits on one picture.

    Attributes:
        max_pixels: width x height of the stored picture. 50 million allows 48-megapixel phones.
        max_webp_pixels: the same for WebP. Its decoder needs 16 bytes per pixel (250 MB for 16
            megapixels), and copying its pixels holds the interpreter lock for about 2 ms per
            megapixel, on a busy machine for up to 20.
        max_heic_pixels: the same for HEIC, which takes 8 times as long as JPEG. 25 million allow what
            phones make unless told otherwise.
        max_avif_pixels: the same for AVIF, which holds the interpreter lock as WebP does.
        max_slice_pixels: largest sum of slices x width x height over the parts of a HEIC. Each slice
            can go through the whole part.
        max_rle_pixels: the same for run-length encoded BMP, which Pillow decodes in Python.
        min_side_px: smallest length of the shorter side, in pixels.
        max_aspect: largest ratio of the longer side to the shorter one.
        max_jpeg_scans: most scans of a progressive JPEG. Real ones have 10 to 20.
        max_jpeg_scan_pixels: largest scans x width x height. Decoding time is proportional to it,
            about 2 s for a billion. 48 megapixels in 20 scans are just allowed.
        formats: names of the formats that are accepted, of those in `DECODERS`; None for all.
    """

    max_pixels: int = 50_000_000
    max_webp_pixels: int = 16_000_000
    max_heic_pixels: int = 25_000_000
    max_avif_pixels: int = 16_000_000
    max_slice_pixels: int = 64_000_000
    max_rle_pixels: int = 500_000
    min_side_px: int = 1
    max_aspect: float = 100.0
    max_jpeg_scans: int = 100
    max_jpeg_scan_pixels: int = 1_000_000_000
    formats: Collection[str] | None = None


H = TypeVar("H", bound=Header)


@dataclass(frozen=True, slots=True)
class Decoder(Generic[H]):
    """One accepted format: how to recognise it, read its header and decode it.

    Attributes:
        name: the format in messages and metrics, such as "jpeg".
        media_type: the format in HTTP, such as "image/jpeg".
        magic: whether a file starts with the magic bytes of this format.
        read: reads the header of a file; calls back as soon as it knows the size.
        plugins: the Pillow plugins that may read the file.
        cost: how many times as long a pixel takes as in a JPEG of a usual photo size, roughly. Larger
            pictures are kept away from others while they are decoded.
        opener: opens the stripped file; None for Pillow with `plugins`.
        check: raises if decoding would cost too much.
        strip: keeps only the parts that make pixels; None if Pillow skips the rest cheaply.
        finish: gets the stripped file and its decoded picture. Raises if rows are missing although
            the decoder reported no error; otherwise returns the picture.
    """

    name: str
    media_type: str
    magic: Callable[[bytes], bool]
    read: Callable[[bytes, CheckSize], H]
    plugins: tuple[str, ...]
    check: Callable[[bytes, H, ImageLimits], None] | None = None
    strip: Callable[[bytes, H, ImageLimits], StrippedFile] | None = None
    finish: Callable[[bytes, Image.Image], Image.Image] | None = None
    opener: Callable[[bytes], Image.Image] | None = None
    cost: int = 1

    def opened(self, stripped: bytes) -> Image.Image:
        """Opens a stripped file. Nothing but its header is read until it is loaded."""
        if self.opener is not None:
            return self.opener(stripped)
        return Image.open(io.BytesIO(stripped), formats=self.plugins)


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file of an accepted format whose declared size is within the limits.

    `inspect` returns it and `decode_reduced` takes it. Bytes, header and limits stay together, so
    nothing can be decoded with another file's header or without the checks.
    """

    data: bytes = field(repr=False)
    limits: ImageLimits
    decoder: Decoder[Any] = field(repr=False)
    header: Header

    @property
    def work_pixels(self) -> int:
        """The number of pixels of a JPEG that takes as long, roughly; 0 if the size is unknown."""
        return self.header.declared_pixels * self.decoder.cost

    def stripped(self) -> StrippedFile:
        """Returns the part of the file that a decoder gets.

        Raises:
            ImageError: `contract.images.stripping` refuses the file.
        """
        if self.decoder.strip is None:
            return StrippedFile(self.data)
        return self.decoder.strip(self.data, self.header, self.limits)


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture, at full or reduced size.

    Attributes:
        pixels: upright RGB.
        size: upright (width, height) at full size, in pixels.
        reduction: 1, 2, 4 or 8: the full size divided by the size of `pixels`. Sides that are not
            divisible are rounded up.
        corner: (x, y) in `pixels` where the picture starts. Rounding up pads a side at its end, and
            undoing the orientation can move that end to the left or to the top.
    """

    pixels: Pixels
    size: Size
    reduction: int = 1
    corner: tuple[float, float] = (0.0, 0.0)


def _size_reader(size_in: Callable[[bytes], Size | None]) -> Callable[[bytes, CheckSize], Header]:
    def read(data: bytes, check_size: CheckSize) -> Header:
        size = size_in(data)
        if size is not None:
            check_size(size)
        return Header(size)

    return read


def _check_jpeg(data: bytes, header: JpegHeader, limits: ImageLimits) -> None:
    size = header.size
    if size is None and (size := headers.late_jpeg_size(data, header)) is not None:
        _check_size(size, limits)

    width, height = size or (1, 1)
    affordable = max(1, limits.max_jpeg_scan_pixels // (width * height))
    allowed = min(limits.max_jpeg_scans, affordable)
    if headers.count_jpeg_scans(data, header, stop_after=allowed) > allowed:
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


def _finish_jpeg(data: bytes, image: Image.Image) -> Image.Image:
    # libjpeg makes blocks grey that come after an end marker that is too early, and Pillow reports
    # nothing. To find out is as expensive as decoding, so only a grey last row is a reason.
    if set(_last_row(image).tobytes()) in _JPEG_MISSING and ENDS_EARLY in first_warning(data):
        raise ImageTruncated("the JPEG has fewer rows than its header declares")
    return image


def _finish_webp(data: bytes, image: Image.Image) -> Image.Image:
    # Zeros are valid codes here too, but encoders write no more bytes than a decoder needs. If a
    # decoder can do without the last ones, they are the empty rest of a buffer.
    shorter = webp_without_last_zeros(data)
    if shorter is not None and _can_load(shorter, "WEBP"):
        raise ImageTruncated("the WebP file ends in zeros before its picture is complete")
    return image


def _can_load(data: bytes, plugin: str) -> bool:
    try:
        with Image.open(io.BytesIO(data), formats=(plugin,)) as image:
            image.load()
    except (OSError, ValueError, EOFError):
        return False
    return True


def _finish_bmp(_: bytes, image: Image.Image) -> Image.Image:
    # Programs that declare an alpha channel but never write it leave zeros. Windows and browsers
    # show such a picture as opaque.
    if image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        return image.convert("RGB")
    return image


def _last_row(image: Image.Image) -> Image.Image:
    return image.crop((0, image.height - 1, image.width, image.height))


def _finish_png(data: bytes, image: Image.Image) -> Image.Image:
    # Pillow leaves missing rows at zero, so a last row with any bit set came from the file. With
    # Adam7 other rows come later in the file. Counting all rows is too expensive to do it always.
    doubtful = headers.png_is_interlaced(data) or not any(_last_row(image).tobytes())
    if doubtful and not png_has_all_rows(data):
        raise ImageTruncated("the PNG has fewer rows than its header declares")
    return image


def _strip_heif(brand: str, data: bytes, _: Header, limits: ImageLimits) -> StrippedFile:
    most = {"heic": limits.max_heic_pixels, "avif": limits.max_avif_pixels}[brand]
    picture = heif.read_picture(data, brand, heif.HeifLimits(most, limits.max_slice_pixels))
    stripped = heif.write_file(picture, brand)
    return StrippedFile(stripped, b"", picture.orientation, picture.crop)


def _heif_decoder(brand: str) -> Decoder[Any]:
    return Decoder(
        brand,
        f"image/{brand}",
        lambda data: heif.brand_of(data) == brand,
        _size_reader(heif.declared_size),
        (),
        strip=partial(_strip_heif, brand),
        opener=OPENERS[brand],
        cost=_HEIF_COST,
    )


DECODERS: Final[tuple[Decoder[Any], ...]] = (
    Decoder(
        "jpeg",
        "image/jpeg",
        lambda data: data.startswith(b"\xff\xd8\xff"),
        headers.read_jpeg,
        ("JPEG",),  # also multi-picture files (MPO) of phones, because their index is stripped
        _check_jpeg,
        lambda data, header, _: strip_jpeg(data, header),
        _finish_jpeg,
    ),
    Decoder(
        "png",
        "image/png",
        lambda data: data.startswith(b"\x89PNG\r\n\x1a\n"),
        _size_reader(headers.png_size),
        ("PNG",),
        strip=lambda data, *_: strip_png(data),
        finish=_finish_png,
    ),
    Decoder(
        "webp",
        "image/webp",
        lambda data: data.startswith(b"RIFF") and data[8:12] == b"WEBP",
        _size_reader(headers.webp_size),
        ("WEBP",),
        _check_webp,
        finish=_finish_webp,
    ),
    Decoder(
        "gif",
        "image/gif",
        lambda data: data.startswith((b"GIF87a", b"GIF89a")),
        _size_reader(headers.gif_size),
        ("GIF",),
        strip=lambda data, *_: strip_gif(data),
    ),
    Decoder(
        "bmp",
        "image/bmp",
        lambda data: data.startswith(b"BM"),
        _size_reader(headers.bmp_size),
        ("BMP",),
        _check_bmp,
        finish=_finish_bmp,
    ),
    *map(_heif_decoder, OPENERS),
)


def decode(data: bytes, limits: ImageLimits | None = None) -> Image.Image:
    """Decodes one image file into upright RGB pixels.

    Args:
        data: the whole file.
        limits: limits on the picture; the defaults of `ImageLimits` if not given.

    Returns:
        A loaded image of mode RGB, uint8, 0..255; `size` is the upright (width, height).

    Raises:
        UnsupportedMediaType: the magic bytes match no format in `DECODERS`.
        ImageTooManyPixels, ImageBadDimensions, ImageTooComplex: a limit is exceeded. Raised before
            decoding.
        ImageTruncated, ImageUndecodable: the content is broken.
    """
    with _opened(inspect(data, limits)) as opened:
        return opened.load()


def decode_reduced(file: ImageFile, shorter_side_px: int) -> Picture:
    """Decodes one image file, a JPEG at a reduced size if that is enough.

    Args:
        file: from `inspect`.
        shorter_side_px: smallest length of the shorter side of the result, in pixels. A picture
            that is smaller is decoded at its full size.

    Raises:
        ImageTooManyPixels, ImageBadDimensions, ImageTooComplex: a limit is exceeded. Raised before
            decoding.
        ImageTruncated, ImageUndecodable: the content is broken.
    """
    header = file.header
    if isinstance(header, JpegHeader):
        picture = _decode_jpeg(file, header, shorter_side_px)
        if picture is not None:
            return picture

    with _opened(file) as opened:
        if not isinstance(header, JpegHeader):
            upright = opened.load()
            return Picture(upright, upright.size)
        whole = opened.image.size
        opened.image.draft(None, (shorter_side_px, shorter_side_px))
        reduction = reduction_for(whole, shorter_side_px)
        return _picture(opened.load(), whole, reduction, opened.orientation)


def _decode_jpeg(file: ImageFile, header: JpegHeader, shorter_side_px: int) -> Picture | None:
    # Without Pillow. None if Pillow must decode the file.
    size = header.size
    if size is None:
        return None

    # If decoders read only the first scan, there is no need to walk the rest and count scans.
    if not headers.jpeg_is_one_scan(file.data, header):
        _check_jpeg(file.data, header, file.limits)
    stripped = file.stripped()
    reduction = reduction_for(size, shorter_side_px)
    pixels = decode_jpeg(stripped.data, size, reduction)
    if pixels is None:
        return None

    orientation = headers.exif_orientation(stripped.exif)
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
    """A file that passed every check before decoding."""

    decoder: Decoder[Any]
    stripped: StrippedFile
    image: Image.Image

    @property
    def orientation(self) -> int | None:
        if self.stripped.orientation is not None:
            return self.stripped.orientation
        return headers.exif_orientation(self.stripped.exif or self.image.info.get("exif", b""))

    def load(self) -> Image.Image:
        # Call it once: after a failure a second `load` can return black pixels and no error.
        self.image.load()
        image: Image.Image = self.image
        if self.decoder.finish is not None:
            image = self.decoder.finish(self.stripped.data, image)
        if self.stripped.crop is not None:
            image = image.crop(self.stripped.crop)
        return to_rgb(_upright(image, self.orientation))


@contextmanager
def _opened(file: ImageFile) -> Iterator[_Opened]:
    decoder = file.decoder
    if decoder.check is not None:
        decoder.check(file.data, file.header, file.limits)
    stripped = file.stripped()
    if isinstance(file.header, JpegHeader):
        stripped = replace(stripped, data=end_jpeg(stripped.data, file.header))
    check_size = partial(_check_size, limits=file.limits)
    if decoder.name == "gif":  # the first frame can be larger than the screen
        decoder.read(stripped.data, check_size)
    if stripped.crop is not None:
        # One column of a picture would become a billion pixels when it is resized.
        left, top, right, bottom = stripped.crop
        check_size((right - left, bottom - top))

    try:
        with decoder.opened(stripped.data) as image:
            check_size(image.size)
            yield _Opened(decoder, stripped, image)
    except (ImageError, MemoryError, ImportError):  # a broken decoder is not the sender's fault
        raise
    except Exception as error:
        # Pillow raises OSError, ValueError, SyntaxError, TypeError, struct.error and more for broken
        # files. The sender needs no distinction.
        raise _to_image_error(error) from error


def inspect(data: bytes, limits: ImageLimits | None = None) -> ImageFile:
    """Reads the header of an image file. Decodes and copies nothing; takes microseconds.

    Args:
        data: the whole file.
        limits: limits on the picture; the defaults of `ImageLimits` if not given.

    Raises:
        UnsupportedMediaType: the magic bytes match no accepted format.
        ImageTooManyPixels, ImageBadDimensions: the declared size exceeds a limit.
        ImageTooComplex: the header of a JPEG has too many markers or too much padding.
    """
    limits = limits or ImageLimits()
    decoder = sniff(data, limits.formats)
    header = decoder.read(data, partial(_check_size, limits=limits))
    return ImageFile(data, limits, decoder, header)


def sniff(data: bytes, formats: Collection[str] | None = None) -> Decoder[Any]:
    """Returns the decoder whose magic bytes match.

    Args:
        data: the whole file, or its first bytes.
        formats: names of the formats that are accepted; None for all.

    Raises:
        UnsupportedMediaType: no accepted format matches.
    """
    what = ""
    for decoder in DECODERS:
        if decoder.magic(data):
            if formats is None or decoder.name in formats:
                return decoder
            what = f"the picture is {decoder.name.upper()}, which is switched off on the server"
    accepted = (one.name for one in DECODERS if formats is None or one.name in formats)
    names = ", ".join(accepted).upper()
    raise UnsupportedMediaType(f"{what or describe_refused(data)}; accepted are {names}")


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
            f"the shorter side must have at least {max(1, limits.min_side_px)}"
        )
    if longer > limits.max_aspect * shorter:
        raise ImageBadDimensions(
            f"the image is {size[0]} x {size[1]} pixels, "
            f"the longer side must be at most {limits.max_aspect:g} times the shorter one"
        )


def _to_image_error(error: Exception) -> ImageError:
    if isinstance(error, Image.DecompressionBombError):
        return ImageTooManyPixels("the image has more pixels than the decoder accepts")
    if isinstance(error, EOFError) or "truncated" in str(error).lower():
        return ImageTruncated("the file ends before the picture is complete")
    return ImageUndecodable("the picture cannot be decoded; the file is damaged or malformed")
