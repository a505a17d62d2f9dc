"""Pictures and hostile files for tests, all generated.

The first half makes valid files of every format, colour mode and EXIF orientation. The second half
is `HOSTILE`, a table of files that are broken, oversized, disguised or expensive to decode, each
with its acceptable outcomes. No file is larger than 4 MB.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

RED = (220, 30, 40)
ACCEPTED = "ok"
FORMATS = ("jpeg", "png", "webp", "gif", "bmp")

Pixels = Image.Image | NDArray[np.uint8] | tuple[int, int, int]


def picture(pixels: Pixels = RED, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """Returns an image of an array (H, W, 3) or of one colour. An image is returned as it is."""
    if isinstance(pixels, Image.Image):
        return pixels
    if isinstance(pixels, np.ndarray):
        return Image.fromarray(pixels)
    return Image.new("RGB", size, pixels)


def photo(size: tuple[int, int] = (64, 48), seed: int = 0) -> Image.Image:
    """Returns an RGB picture with coarse random shapes, no black row and no symmetry."""
    noise = np.random.default_rng(seed).integers(40, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def encode(image: Pixels, format_name: str, **options: Any) -> bytes:
    """Returns the picture as a file of a Pillow format name such as "PNG"."""
    buffer = io.BytesIO()
    picture(image).save(buffer, format_name, **options)
    return buffer.getvalue()


def jpeg(image: Pixels = RED, **options: Any) -> bytes:
    return encode(image, "JPEG", **{"quality": 90, **options})


def png(image: Pixels = RED, **options: Any) -> bytes:
    return encode(image, "PNG", **options)


def webp(image: Pixels = RED, **options: Any) -> bytes:
    """Returns a WebP file, lossy by default."""
    return encode(image, "WEBP", **{"quality": 90, **options})


def gif(image: Pixels = RED, **options: Any) -> bytes:
    return encode(image, "GIF", **options)


def bmp(image: Pixels = RED, **options: Any) -> bytes:
    return encode(image, "BMP", **options)


def of_format(name: str, image: Pixels = RED) -> bytes:
    """Returns the picture in one of `FORMATS`."""
    return {"jpeg": jpeg, "png": png, "webp": webp, "gif": gif, "bmp": bmp}[name](image)


def mpo() -> bytes:
    """Returns a multi-picture JPEG as 3D cameras and phones write it."""
    return encode(photo(), "MPO", save_all=True, append_images=[picture()])


# Transforms an upright picture into the stored one that the orientation tag turns back.
_STORED_AS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
ORIENTATIONS = tuple(_STORED_AS)


def stored_as(upright: Image.Image, orientation: int) -> Image.Image:
    """Returns the picture transformed as a file stores it that has this EXIF orientation."""
    operation = _STORED_AS[orientation]
    return upright if operation is None else upright.transpose(operation)


def oriented(upright: Image.Image, orientation: int, format_name: str = "JPEG") -> bytes:
    """Returns a file that stores the picture transformed, with the EXIF orientation to undo it."""
    options = {"quality": 95} if format_name == "JPEG" else {"lossless": True}
    exif = exif_block([(0x0112, 3, 1, orientation)])
    return encode(stored_as(upright, orientation), format_name, exif=exif, **options)


def exif_block(entries: Iterable[tuple[int, int, int, int]], order: str = "<") -> bytes:
    """Returns an EXIF block of (tag, type, count, value) entries, values left-aligned as SHORTs."""
    entries = list(entries)
    header = b"II*\0" if order == "<" else b"MM\0*"
    packed = b"".join(
        struct.pack(f"{order}HHI", tag, kind, count)
        + (struct.pack(f"{order}HH", value, 0) if kind == 3 else struct.pack(f"{order}I", value))
        for tag, kind, count, value in entries
    )
    directory = struct.pack(f"{order}H", len(entries)) + packed + bytes(4)
    return b"Exif\0\0" + header + struct.pack(f"{order}I", 8) + directory


# --- containers -----------------------------------------------------------------------------------

Chunk = tuple[bytes, bytes]


def png_of(*chunks: Chunk) -> bytes:
    """Returns a PNG file of (type, content) chunks with correct lengths and checksums."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def ihdr(width: int, height: int, depth: int = 8, colour: int = 2, interlace: int = 0) -> Chunk:
    """Returns a PNG header chunk; colour 0 grey, 2 RGB, 3 palette, 4 grey + alpha, 6 RGBA."""
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)


def idat(raw: bytes) -> Chunk:
    """Returns a PNG chunk of compressed image data."""
    return b"IDAT", zlib.compress(raw, 9)


IEND: Chunk = (b"IEND", b"")
_ROW = b"\0" + bytes(RED) * 16  # one row of a 16 px wide RGB PNG, after its filter byte


def small_png(*extra: Chunk, after: Iterable[Chunk] = ()) -> bytes:
    """Returns a red 16 x 16 PNG with extra chunks before or after the image data."""
    return png_of(ihdr(16, 16), *extra, idat(_ROW * 16), *after, IEND)


def jpeg_segment(marker: int, content: bytes) -> bytes:
    """Returns one JPEG segment with its length field."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def jpeg_with(*segments: bytes) -> bytes:
    """Returns a JPEG with extra bytes right after the start-of-image marker."""
    file = jpeg(photo())
    return file[:2] + b"".join(segments) + file[2:]


def jpeg_with_exif(block: bytes) -> bytes:
    """Returns a JPEG whose first segment is an EXIF block."""
    return jpeg_with(jpeg_segment(0xE1, block))


def jpeg_without(marker: int) -> bytes:
    """Returns a JPEG that lacks all segments of one kind."""
    file, kept, position = jpeg(photo()), b"\xff\xd8", 2
    while file[position + 1] != 0xDA:
        end = position + 2 + int.from_bytes(file[position + 2 : position + 4], "big")
        kept += b"" if file[position + 1] == marker else file[position:end]
        position = end
    return kept + file[position:]


def jpeg_header(width: int, height: int) -> bytes:
    """Returns the start of a JPEG that declares a size and then ends."""
    frame = struct.pack(">BHHB", 8, height, width, 3) + b"\1\x22\0\2\x11\1\3\x11\1"
    return (
        b"\xff\xd8" + jpeg_segment(0xC0, frame) + jpeg_segment(0xDA, b"\3\1\0\2\x11\3\x11\0\x3f\0")
    )


def many_scans(count: int, size: tuple[int, int] = (32, 32)) -> bytes:
    """Returns a valid progressive JPEG of `count` scans, the last one repeated."""
    file = jpeg(picture(RED, size), progressive=True)
    last = file.rfind(b"\xff\xda")
    return file[:-2] + file[last:-2] * (count - file.count(b"\xff\xda")) + b"\xff\xd9"


def riff(*chunks: Chunk) -> bytes:
    """Returns a WebP file of (type, content) chunks."""
    body = b"".join(
        kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
        for kind, content in chunks
    )
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def vp8l(width: int, height: int) -> Chunk:
    """Returns the smallest lossless picture of any size: 12 bytes, all pixels black."""
    size = (width - 1) | ((height - 1) << 14)
    return b"VP8L", b"\x2f" + size.to_bytes(4, "little") + b"\x88\x88\x08\0\0\0\0"


def vp8x(width: int, height: int, flags: int = 0) -> Chunk:
    """Returns the header of an extended WebP file; flag 2 announces an animation, 8 EXIF."""
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"VP8X", bytes([flags, 0, 0, 0]) + sides


def bmp_header(width: int, height: int, compression: int = 0, depth: int = 24) -> bytes:
    """Returns the headers of a BMP of any declared size, without palette or pixels."""
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, depth, compression, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info


def bmp_run_length(width: int, height: int, codes: bytes) -> bytes:
    """Returns an 8-bit run-length encoded BMP with a colourful palette."""
    palette = bytes(value for i in range(256) for value in (i, 255 - i, 128, 0))
    header = bytearray(bmp_header(width, height, 1, 8))
    header[10:14] = struct.pack("<I", 54 + len(palette))
    return bytes(header) + palette + codes


def gif_of(*blocks: bytes, screen: tuple[int, int] = (2, 2)) -> bytes:
    """Returns a GIF of a two-colour table and the given blocks."""
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", *screen, 0x80, 0, 0)
        + b"\xff\0\0\0\0\xff"
        + b"".join(blocks)
    )


def gif_frame(left: int = 0, top: int = 0, width: int = 2, height: int = 2) -> bytes:
    """Returns a frame whose data is complete for 2 x 2 pixels: red, blue, blue, red."""
    return b"," + struct.pack("<HHHHB", left, top, width, height, 0) + b"\2\3\x44\x02\x05\0"


# --- colour modes ---------------------------------------------------------------------------------


def _ramp(mode: str) -> Image.Image:
    """Returns a 16 x 16 picture of a mode, with a different gradient in each channel."""
    x, y = np.meshgrid(np.arange(16, dtype=np.uint8), np.arange(16, dtype=np.uint8))
    channels = [x * 17, y * 17, (x ^ y) * 17, 255 - x * 8]
    n = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    bands = [Image.fromarray(channel) for channel in channels[:n]]
    return bands[0] if n == 1 else Image.merge(mode, bands)


def _palette(transparency: bytes | int | None = None) -> bytes:
    image = _ramp("RGB").quantize(16, method=Image.Quantize.MEDIANCUT)
    return png(image) if transparency is None else png(image, transparency=transparency)


def _deep_grey(*extra: Chunk) -> bytes:
    values = np.arange(256, dtype=">u2").reshape(16, 16) * 257
    raw = b"".join(b"\0" + row.tobytes() for row in values)
    return png_of(ihdr(16, 16, 16, 0), *extra, idat(raw), IEND)


def adobe_cmyk() -> bytes:
    """Returns a CMYK JPEG marked as inverted, as Adobe's programs write it."""
    return jpeg(_ramp("CMYK"), quality=100)


def plain_cmyk() -> bytes:
    """Returns the same without the Adobe marker."""
    file = adobe_cmyk()
    start = file.index(b"\xff\xee")
    return file[:start] + file[start + 2 + int.from_bytes(file[start + 2 : start + 4], "big") :]


MODES: dict[str, Callable[[], bytes]] = {
    "png-1": lambda: png(_ramp("L").convert("1", dither=Image.Dither.NONE)),
    "png-L": lambda: png(_ramp("L")),
    "png-L-tRNS": lambda: png(_ramp("L"), transparency=17),
    "png-1-tRNS": lambda: png(_ramp("L").convert("1"), transparency=0),
    "png-LA": lambda: png(_ramp("LA")),
    "png-P": lambda: _palette(),
    "png-P-tRNS-index": lambda: _palette(3),
    "png-P-tRNS-alphas": lambda: _palette(bytes(range(0, 256, 16))),
    "png-RGB": lambda: png(_ramp("RGB")),
    "png-RGB-tRNS": lambda: png(_ramp("RGB"), transparency=(17, 17, 0)),
    "png-RGBA": lambda: png(_ramp("RGBA")),
    "png-I;16": lambda: _deep_grey(),
    "png-I;16-tRNS": lambda: _deep_grey((b"tRNS", b"\x01\x01")),
    "png-RGB-48": lambda: png_of(
        ihdr(16, 16, 16, 2), idat((b"\0" + b"\xc0\x11\x40\x22\x80\x33" * 16) * 16), IEND
    ),
    "png-interlaced": lambda: png_of(ihdr(1, 1, 8, 2, 1), idat(b"\0" + bytes(RED)), IEND),
    "webp-lossless-RGB": lambda: webp(_ramp("RGB"), lossless=True),
    "webp-lossless-RGBA": lambda: webp(_ramp("RGBA"), lossless=True, exact=True),
    "gif-P": lambda: gif(_ramp("L")),
    "gif-transparent": lambda: gif(_ramp("L"), transparency=17),
    "bmp-1": lambda: bmp(_ramp("L").convert("1", dither=Image.Dither.NONE)),
    "bmp-L": lambda: bmp(_ramp("L")),
    "bmp-P": lambda: bmp(_ramp("RGB").quantize(16)),
    "bmp-RGB": lambda: bmp(_ramp("RGB")),
    "bmp-RGBA": lambda: bmp(_ramp("RGBA")),
    "bmp-run-length": lambda: bmp_run_length(4, 2, b"\4\7\0\0\4\x09\0\1"),
    "jpeg-L": lambda: jpeg(_ramp("L")),
    "jpeg-RGB": lambda: jpeg(_ramp("RGB")),
    "jpeg-RGB-progressive": lambda: jpeg(_ramp("RGB"), progressive=True),
    "jpeg-CMYK": plain_cmyk,
    "jpeg-CMYK-adobe": adobe_cmyk,
}
"""One file for each colour mode."""


# --- hostile files --------------------------------------------------------------------------------


@dataclass(frozen=True)
class HostileFile:
    """A file that must end in one of the allowed outcomes.

    Attributes:
        content: the bytes, or a function that builds them.
        allowed: error codes, and `ACCEPTED` if an RGB picture is fine too.
    """

    content: bytes | Callable[[], bytes]
    allowed: frozenset[str]

    @cached_property
    def data(self) -> bytes:
        """The bytes, built on first use."""
        return self.content if isinstance(self.content, bytes) else self.content()


HOSTILE: dict[str, HostileFile] = {}

_OK = frozenset({ACCEPTED})
_OTHER = frozenset({"unsupported_media_type"})
_PIXELS = frozenset({"image_too_many_pixels"})
_SIDES = frozenset({"image_bad_dimensions"})
_BROKEN = frozenset({"image_undecodable", "image_truncated"})
_COMPLEX = frozenset({"image_too_complex"})


def _add(allowed: frozenset[str], files: dict[str, bytes | Callable[[], bytes]]) -> None:
    for name, content in files.items():
        if name in HOSTILE:
            raise ValueError(f"{name} is there already")
        HOSTILE[name] = HostileFile(content, allowed)


@cache
def _bomb() -> bytes:
    """Returns 100 kB that inflate to 100 MB."""
    return zlib.compress(bytes(100_000_000), 9)


@cache
def _wide_text() -> bytes:
    """Returns 1 kB that inflates to 1 MB, and to 4 MB as a Python string."""
    return zlib.compress(b"a" * 1_000_000 + "\U0001f600".encode(), 9)


class _Canary:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("touch canary-was-unpickled",)


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("picture.jpg"), jpeg())
    return buffer.getvalue()


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("picture.jpg"), io.BytesIO())
    return buffer.getvalue()


def _npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((4, 4, 3), np.uint8))
    return buffer.getvalue()


_SVG = (
    b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><image href="file:///"/></svg>'
)

_add(
    _OTHER | _BROKEN,  # with and without their decoders
    {
        "avif": b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miaf" + bytes(32),
        "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(32),
    },
)
_add(
    _OTHER,
    {
        "empty": b"",
        "one-byte": b"\xff",
        "text": b"Just some words.\n",
        "html": b"<!DOCTYPE html><html><body><img src=x></body></html>",
        "svg": _SVG,
        "svg-gzipped": lambda: gzip.compress(_SVG, mtime=0),
        "xml-entities": b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "bb">]><a>&b;&b;</a>',
        "json": lambda: json.dumps({"image": "x"}).encode(),
        "json-tensor": lambda: json.dumps({"inputs": [[[0.0] * 8] * 8]}).encode(),
        "base64": lambda: base64.b64encode(jpeg()),
        "data-url": lambda: b"data:image/jpeg;base64," + base64.b64encode(jpeg()),
        "hex": lambda: jpeg().hex().encode(),
        "utf16-text": lambda: "picture".encode("utf-16"),
        "nul-bytes": bytes(4096),
        "ff-bytes": b"\xff" * 4096,
        "noise": lambda: np.random.default_rng(5).bytes(4096),
        "zip": _zip,
        "gzip": lambda: gzip.compress(jpeg(), mtime=0),
        "tar": _tar,
        "zlib": lambda: zlib.compress(jpeg()),
        "bzip2": b"BZh91AY&SY" + bytes(20),
        "xz": b"\xfd7zXZ\0" + bytes(20),
        "7z": b"7z\xbc\xaf\x27\x1c" + bytes(20),
        "elf": b"\x7fELF\x02\x01\x01" + bytes(57),
        "windows-program": b"MZ\x90\0" + bytes(60),
        "java-class": b"\xca\xfe\xba\xbe\0\0\0\x34",
        "shell-script": b"#!/bin/sh\necho picture\n",
        "pickle": lambda: pickle.dumps(_Canary()),
        "npy": _npy,
        "onnx": b"\x08\x0a\x12\x07pytorch" + bytes(40),
        "sqlite": b"SQLite format 3\0" + bytes(80),
        "mp4": b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(64),
        "webm": b"\x1a\x45\xdf\xa3" + bytes(64),
        "wav": b"RIFF\x24\0\0\0WAVEfmt " + bytes(24),
        "avi": b"RIFF\x24\0\0\0AVI LIST" + bytes(24),
        "mp3": b"ID3\x04\0\0" + bytes(24),
        "pdf": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "eps-binary": b"\xc5\xd0\xd3\xc6" + bytes(28),
        "tiff-little": lambda: encode(picture(), "TIFF"),
        "tiff-big": b"MM\0*\0\0\0\x08" + bytes(32),
        "bigtiff": b"II+\0\x08\0\0\0" + bytes(32),
        "psd": b"8BPS\0\1" + bytes(40),
        "ico": lambda: encode(picture(), "ICO"),
        "cur": b"\0\0\2\0\1\0" + bytes(32),
        "icns": b"icns\0\0\0\x10" + bytes(32),
        "jpeg2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(32),
        "jpeg2000-stream": b"\xff\x4f\xff\x51" + bytes(40),
        "jpeg-xl": b"\xff\x0a" + bytes(32),
        "jpeg-xl-box": b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(32),
        "jpeg-ls-start-only": b"\xff\xd8",
        "tga": lambda: encode(picture(), "TGA"),
        "pcx": lambda: encode(picture(), "PCX"),
        "ppm": lambda: encode(picture(), "PPM"),
        "sgi": lambda: encode(picture(), "SGI"),
        "dds": b"DDS \x7c\0\0\0" + bytes(120),
        "fits": b"SIMPLE  =                    T" + b" " * 50,
        "xbm": b"#define x_width 8\n#define x_height 8\nstatic char x_bits[] = {0};\n",
        "fli": b"\0\0\0\0\x11\xaf" + bytes(122),
        "mng": b"\x8aMNG\r\n\x1a\n" + bytes(40),
        "png-text-mode": lambda: png().replace(b"\r\n", b"\n"),
        "png-magic-short": b"\x89PNG",
        "gif-version-99": b"GIF99a" + bytes(32),
        "riff-short": b"RIFF\0\0\0\0WEB",
        "newline-in-front": lambda: b"\n" + jpeg(),
        "byte-order-mark-in-front": lambda: b"\xef\xbb\xbf" + png(),
        "multipart": lambda: b"--x\r\nContent-Type: image/jpeg\r\n\r\n" + jpeg() + b"\r\n--x--\r\n",
    },
)

_PHP = b"<?php system($_GET['c']); ?>"

_add(
    _OK,
    {
        "jpeg+zip": lambda: jpeg() + _zip(),
        "jpeg+html-comment": lambda: jpeg_with(jpeg_segment(0xFE, b"<script>alert(1)</script>")),
        "jpeg+php-exif": lambda: jpeg_with_exif(_PHP),
        "png+html-text": lambda: small_png((b"tEXt", b"Comment\0<script>alert(1)</script>")),
        "png+tail": lambda: png() + _zip(),
        "gif+php-comment": lambda: gif_of(b"!\xfe\x1c" + _PHP + b"\0", gif_frame(), b";"),
        "gif+tail": lambda: gif() + _PHP,
        "webp+tail": lambda: webp() + _zip(),
        "bmp+tail": lambda: bmp() + _zip(),
        "multi-picture": mpo,
        "jpeg-padding": lambda: jpeg_with(b"\xff" * 50),
        "jpeg-junk-between-segments": lambda: jpeg_with(
            jpeg_segment(0xFE, b"x"), b"junk", jpeg_segment(0xFE, b"y")
        ),
        "jpeg-100-scans": lambda: many_scans(100),
        "jpeg-progressive": lambda: jpeg(photo(), progressive=True),
        "jpeg-huge-profile": lambda: jpeg_with(
            *(
                jpeg_segment(0xE2, b"ICC_PROFILE\0" + bytes([i + 1, 40]) + b"x" * 60000)
                for i in range(40)
            )
        ),
        "jpeg-profile-out-of-order": lambda: jpeg_with(
            jpeg_segment(0xE2, b"ICC_PROFILE\0\x09\x02x")
        ),
        "jpeg-photoshop-loop": lambda: jpeg_with(
            jpeg_segment(0xED, b"Photoshop 3.0\0" + b"8BIM\x03\xed\0\0\xff\xff\xff\xff" * 99)
        ),
        "jpeg-mpf-garbage": lambda: jpeg_with(jpeg_segment(0xE2, b"MPF\0II*\0\xff\xff\xff\xff")),
        "jpeg-xmp-bomb": lambda: jpeg_with(
            jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + b"<a>" * 9000)
        ),
        "png-crc-wrong-idat": lambda: (
            png_of(ihdr(16, 16), idat(_ROW * 16), IEND)[:-16] + bytes(4) + b"\0\0\0\0IEND\xaeB`\x82"
        ),
        "png-crc-wrong-text": lambda: small_png((b"tEXt", b"k\0v")).replace(b"k\0v", b"k\0w"),
        "png-without-end": lambda: png_of(ihdr(16, 16), idat(_ROW * 16)),
        "png-split-idat": lambda: png_of(
            ihdr(16, 16),
            *(
                (b"IDAT", zlib.compress(_ROW * 16)[i : i + 1])
                for i in range(len(zlib.compress(_ROW * 16)))
            ),
            IEND,
        ),
        "png-empty-idats": lambda: png_of(
            ihdr(16, 16), *[(b"IDAT", b"")] * 50, idat(_ROW * 16), IEND
        ),
        "png-zlib-tail": lambda: png_of(ihdr(16, 16), idat(_ROW * 16 + bytes(50_000_000)), IEND),
        "png-zTXt-bomb": lambda: small_png((b"zTXt", b"k\0\0" + _bomb())),
        "png-iTXt-bomb": lambda: small_png((b"iTXt", b"k\0\1\0\0\0" + _bomb())),
        "png-iCCP-bomb": lambda: small_png((b"iCCP", b"k\0\0" + _bomb())),
        "png-text-bomb-after": lambda: small_png(after=[(b"zTXt", b"k\0\0" + _bomb())]),
        "png-wide-text-bombs": lambda: small_png(
            *((b"iTXt", b"k%d\0\1\0\0\0" % i + _wide_text()) for i in range(63))
        ),
        "png-25000-texts": lambda: small_png(*((b"tEXt", b"k%d\0v" % i) for i in range(25_000))),
        "png-profile-garbage": lambda: small_png((b"iCCP", b"k\0\0" + bytes(100))),
        "png-profile-unknown-method": lambda: small_png((b"iCCP", b"k\0\7" + bytes(100))),
        "png-short-ancillary": lambda: small_png(
            *(
                (kind, b"")
                for kind in (b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"acTL", b"fcTL", b"eXIf")
            )
        ),
        "png-second-header": lambda: small_png(ihdr(30_000, 30_000)),
        "png-private-critical": lambda: small_png((b"ABCD", b"what is this")),
        "apng": lambda: encode(photo(), "PNG", save_all=True, append_images=[picture()]),
        "apng-no-frames": lambda: small_png((b"acTL", bytes(8))),
        "apng-two-controls": lambda: small_png(*[(b"acTL", b"\0\0\0\2\0\0\0\0")] * 2),
        "apng-wrong-sequence": lambda: small_png((b"fcTL", b"\0\0\0\7" + bytes(22))),
        "apng-frame-outside": lambda: small_png(
            (b"fcTL", struct.pack(">IIIIIHHBB", 0, 99, 99, 9, 9, 0, 0, 0, 0))
        ),
        "gif-5000-frames": lambda: gif_of(*[gif_frame()] * 5000, b";"),
        "gif-frame-larger-than-screen": lambda: gif_of(gif_frame(40, 30), b";"),
        "gif-without-trailer": lambda: gif_of(gif_frame()),
        "gif-1000-comments": lambda: gif_of(*[b"!\xfe\1x\0"] * 1000, gif_frame(), b";"),
        "gif-no-colour-table": lambda: gif_of(gif_frame(), b";").replace(
            b"\x80\0\0\xff\0\0\0\0\xff", b"\0\0\0", 1
        ),
        "webp-animated": lambda: encode(photo(), "WEBP", save_all=True, append_images=[picture()]),
        "webp-exif-garbage": lambda: riff(vp8x(16, 16, 8), vp8l(16, 16), (b"EXIF", b"\xff" * 99)),
        "webp-10000-chunks": lambda: riff(vp8x(16, 16), *[(b"abcd", b"")] * 10_000, vp8l(16, 16)),
        "bmp-core-header": lambda: (
            b"BM"
            + struct.pack("<IHHIIHHHH", 38, 0, 0, 26, 12, 2, 1, 1, 24)
            + bytes(RED) * 2
            + b"\0\0"
        ),
        "bmp-top-down": lambda: bmp_header(1, -1) + bytes(RED) + b"\0",
        "bmp-size-field-wrong": lambda: bmp()[:2] + b"\xff\xff\xff\xff" + bmp()[6:],
        "1x1": lambda: png(picture(RED, (1, 1))),
        "1x100": lambda: png(picture(RED, (1, 100))),
        "exif-thumbnail": lambda: jpeg_with_exif(exif_block([(0x0201, 4, 1, 40)]) + jpeg()),
    },
)


def _exif_files() -> dict[str, bytes | Callable[[], bytes]]:
    blocks = {
        "loop": b"Exif\0\0II*\0\x08\0\0\0\0\0\x08\0\0\0",
        "offset-past-end": b"Exif\0\0II*\0\xff\xff\xff\x7f",
        "no-directory": b"Exif\0\0MM\0*",
        "bad-order": b"Exif\0\0XX*\0\x08\0\0\0",
        "empty": b"Exif\0\0",
        "65535-entries": b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
        "huge-count": exif_block([(0x0110, 2, 2**31 - 1, 8), (0x010F, 12, 2**32 - 1, 0)]),
        "unknown-types": exif_block([(tag, 99, 1, 0) for tag in range(0x100, 0x110)]),
        "5000-tags": exif_block([(tag, 4, 1, 0) for tag in range(5000)]),
        "shared-value": exif_block([(tag, 7, 30_000, 40) for tag in range(1000, 3700)])
        + bytes(30_000),
        "ascii-orientation": exif_block([(0x0112, 2, 2, 0x36)]),
        "rational-orientation": exif_block([(0x0112, 5, 1, 0xFFFFFFFF)]),
        "orientation-0": exif_block([(0x0112, 3, 1, 0)]),
        "orientation-9": exif_block([(0x0112, 3, 1, 9)]),
        "orientation-65535": exif_block([(0x0112, 3, 1, 65535)]),
        "zero-resolution": exif_block([(0x0128, 3, 1, 2), (0x011A, 5, 1, 0)]),
    }
    files: dict[str, bytes | Callable[[], bytes]] = {}
    for name, block in blocks.items():
        files[f"exif-{name}"] = jpeg_with_exif(block)
        files[f"png-exif-{name}"] = small_png((b"eXIf", block.removeprefix(b"Exif\0\0")))
    return files


_add(_OK, _exif_files())

_add(
    _PIXELS,
    {
        "png-bomb-169MP": lambda: png_of(ihdr(13000, 13000, 1, 0), idat(bytes(13000 * 1626)), IEND),
        "png-bomb-interlaced": lambda: png_of(ihdr(13000, 13000, 8, 6, 1), idat(b""), IEND),
        "png-bomb-2^62": lambda: png_of(ihdr(2**31 - 1, 2**31 - 1), IEND),
        "png-bomb-sign-bit": lambda: png_of(ihdr(2**32 - 1, 2**32 - 1), IEND),
        "webp-bomb-32-bytes": lambda: riff(vp8l(9400, 9400)),
        "webp-bomb-17MP": lambda: riff(vp8l(4130, 4130)),
        "webp-bomb-extended": lambda: riff(vp8x(2**24, 2**7), vp8l(16, 16)),
        "webp-bomb-animated": lambda: riff(vp8x(16383, 16383, 2), (b"ANIM", bytes(6))),
        "webp-bomb-lossy": lambda: riff((b"VP8 ", b"\x10\0\0\x9d\x01\x2a\xff\x3f\xff\x3f")),
        "gif-bomb-screen": lambda: gif_of(gif_frame(), b";", screen=(65535, 65535)),
        "gif-bomb-frame": lambda: gif_of(gif_frame(9000, 9000), b";"),
        "gif-bomb-frame-100MP": lambda: gif_of(gif_frame(0, 0, 10_000, 10_000), b";"),
        "gif-bomb-header-only": b"GIF89a\xff\xff\xff\xff\0\0\0",
        "bmp-bomb": lambda: bmp_header(2**30, 2**30),
        "bmp-bomb-top-down": lambda: bmp_header(20_000, -20_000),
        "bmp-bomb-run-length": lambda: bmp_run_length(60_000, 60_000, b"\0\1"),
        "bmp-run-length-slow": lambda: bmp_run_length(7000, 7000, b"\1\5\0\0" * 7000 + b"\0\1"),
        "bmp-bomb-core": lambda: (
            b"BM" + struct.pack("<IHHIIHHHH", 38, 0, 0, 26, 12, 65535, 65535, 1, 24) + bytes(32)
        ),
        "jpeg-bomb": lambda: jpeg_header(65500, 65500),
        "jpeg-bomb-90MP": lambda: jpeg_header(9490, 9490),
        "jpeg-bomb-behind-comments": lambda: (
            b"\xff\xd8" + jpeg_segment(0xFE, bytes(65000)) * 20 + jpeg_header(30_000, 30_000)[2:]
        ),
    },
)

_add(
    _SIDES,
    {
        "png-zero-width": lambda: png_of(ihdr(0, 16), idat(b""), IEND),
        "png-zero-height": lambda: png_of(ihdr(16, 0), idat(b""), IEND),
        "gif-zero": lambda: gif_of(gif_frame(0, 0, 0, 0), b";", screen=(0, 0)),
        "bmp-zero": lambda: bmp_header(0, 0),
        "jpeg-zero": lambda: jpeg_header(0, 0),
        "jpeg-zero-height": lambda: jpeg_header(16, 0),
        "webp-lossy-zero": lambda: riff((b"VP8 ", b"\x10\0\0\x9d\x01\x2a\0\0\0\0")),
        "gif-frame-beyond-format": lambda: gif_of(gif_frame(65535, 0, 65535, 2), b";"),
        "1x20000": lambda: png(picture(RED, (1, 20_000))),
        "1x101": lambda: png(picture(RED, (1, 101))),
        "65500x10": lambda: jpeg(picture(RED, (65500, 10))),
        "16383x16": lambda: webp(picture(RED, (16383, 16))),
        "gif-65535x1": lambda: gif_of(gif_frame(), b";", screen=(65535, 1)),
    },
)

_add(
    _COMPLEX,
    {
        "jpeg-101-scans": lambda: many_scans(101),
        "jpeg-20000-scans": lambda: many_scans(20_000),
        "jpeg-21-scans-49MP": lambda: _declare(many_scans(21), 7000, 7000),
        "jpeg-100000-comments": lambda: jpeg_with(jpeg_segment(0xFE, b"") * 100_000),
        "jpeg-100000-exif": lambda: jpeg_with(jpeg_segment(0xE1, b"Exif\0\0x") * 100_000),
        "jpeg-100000-standalone": lambda: jpeg_with(b"\xff\x01" * 100_000),
        "jpeg-1MB-of-tables": lambda: jpeg_with(
            jpeg_segment(0xDB, (b"\0" + b"\1" * 64) * 1000) * 16
        ),
        "jpeg-fill-in-front": lambda: jpeg_with(b"\xff" * 200_000),
        "jpeg-fill-in-scan": lambda: jpeg(photo())[:-2] + b"\xff" * 100_000 + b"\xff\xd9",
        "jpeg-fill-then-stuffing": lambda: jpeg(photo())[:-2] + b"\xff" * 100_000 + b"\0\xff\xd9",
        "png-200000-chunks": lambda: small_png(*[(b"abCd", b"")] * 200_000),
        "gif-200000-comments": lambda: gif_of(b"!\xfe\1x\0" * 200_000, gif_frame(), b";"),
        "gif-200000-sub-blocks": lambda: gif_of(
            b"!\xfe" + b"\1x" * 200_000 + b"\0", gif_frame(), b";"
        ),
    },
)


def _declare(file: bytes, width: int, height: int) -> bytes:
    """Overwrites the size in the frame header of a progressive JPEG."""
    at = file.index(b"\xff\xc2") + 5
    return file[:at] + struct.pack(">HH", height, width) + file[at + 4 :]


_add(
    _BROKEN,
    {
        "jpeg-start-only": b"\xff\xd8\xff",
        "jpeg-start-end": b"\xff\xd8\xff\xd9",
        "jpeg-no-quantization": lambda: jpeg_without(0xDB),
        "jpeg-no-frame": lambda: jpeg_without(0xC0),
        "jpeg-two-frames": lambda: jpeg_with(
            jpeg_segment(0xC0, struct.pack(">BHHB", 8, 16, 16, 1) + b"\1\x11\0")
        ),
        "jpeg-20-components": lambda: (
            b"\xff\xd8"
            + jpeg_segment(0xC0, struct.pack(">BHHB", 8, 16, 16, 20) + b"\1\x11\0" * 20)
            + jpeg_segment(0xDA, b"\1\1\0\0\x3f\0")
        ),
        "jpeg-12-bit": lambda: jpeg().replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"),
        "jpeg-lossless": lambda: jpeg().replace(b"\xff\xc0", b"\xff\xc3"),
        "jpeg-quantization-short": lambda: jpeg_with(jpeg_segment(0xDB, b"\0\1\2")),
        "jpeg-long-junk": lambda: jpeg_with(jpeg_segment(0xFE, b"x"), b"junk" * 50_000),
        "jpeg-sampling-zero": lambda: jpeg().replace(b"\x01\x22\x00\x02", b"\x01\x00\x00\x02"),
        "jpeg-header-cut": lambda: jpeg_header(16, 16)[:9],
        "png-magic-only": b"\x89PNG\r\n\x1a\n",
        "png-header-only": lambda: png_of(ihdr(16, 16)),
        "png-no-data": lambda: png_of(ihdr(16, 16), IEND),
        "png-not-zlib": lambda: png_of(ihdr(16, 16), (b"IDAT", b"this is not zlib" * 9), IEND),
        "png-lost-rows": lambda: png_of(ihdr(16, 16), idat(_ROW * 9), IEND),
        "png-lost-all-rows": lambda: png_of(ihdr(16, 16), idat(b""), IEND),
        "png-lost-pass": lambda: png_of(ihdr(16, 16, 8, 2, 1), idat(_ROW * 9), IEND),
        "png-wrong-filter": lambda: png_of(ihdr(16, 16), idat((b"\x09" + _ROW[1:]) * 16), IEND),
        "png-crc-wrong-header": lambda: small_png()[:29] + bytes(4) + small_png()[33:],
        "png-header-short": lambda: png_of(
            (b"IHDR", b"\0\0\0\x10\0\0\0\x10\x08"), idat(_ROW * 16), IEND
        ),
        "png-header-not-first": lambda: png_of((b"tEXt", b"k\0v"), idat(_ROW * 16), IEND),
        "png-depth-3": lambda: png_of(ihdr(16, 16, 3, 2), idat(_ROW * 16), IEND),
        "png-colour-5": lambda: png_of(ihdr(16, 16, 8, 5), idat(_ROW * 16), IEND),
        "png-chunk-name-odd": lambda: png_of(ihdr(16, 16), (b"1234", b""), idat(_ROW * 16), IEND),
        "png-length-huge": lambda: png_of(ihdr(16, 16)) + b"\xff\xff\xff\xffIDAT" + bytes(50),
        "png-palette-huge": lambda: png_of(
            ihdr(4, 4, 8, 3), (b"PLTE", bytes(3_000_000)), idat((b"\0" + b"\1" * 4) * 4), IEND
        ),
        "png-apple": lambda: png_of(
            (b"CgBI", bytes(4)), ihdr(16, 16), (b"IDAT", zlib.compress(_ROW * 16)[2:-4]), IEND
        ),
        "png-split-by-text": lambda: png_of(
            ihdr(16, 16), idat(_ROW), (b"tEXt", b"k\0v"), idat(_ROW), IEND
        ),
        "apng-frame-only": lambda: png_of(
            ihdr(16, 16),
            (b"acTL", b"\0\0\0\1\0\0\0\0"),
            (b"fcTL", struct.pack(">IIIIIHHBB", 0, 16, 16, 0, 0, 0, 0, 0, 0)),
            (b"fdAT", b"\0\0\0\1" + zlib.compress(_ROW * 16)),
            IEND,
        ),
        "gif-magic-only": b"GIF89a",
        "gif-header-only": lambda: gif_of(),
        "gif-no-frames": lambda: gif_of(b";"),
        "gif-comment-only": lambda: gif_of(b"!\xfe\1x\0;"),
        "gif-comment-endless": lambda: gif_of(b"!\xfe" + b"\xff" * 1000),
        "gif-garbage-block": lambda: gif_of(b"what", gif_frame(), b";"),
        "gif-lost-rows": lambda: gif_of(gif_frame(0, 0, 40, 40), b";", screen=(40, 40)),
        "gif-code-size-200": lambda: gif_of(gif_frame()[:10] + b"\xc8" + gif_frame()[11:], b";"),
        "webp-header-only": b"RIFF\x04\0\0\0WEBP",
        "webp-unknown-kind": lambda: riff((b"ABCD", bytes(32))),
        "webp-declares-more": lambda: webp()[:4] + b"\xff\xff\xff\x7f" + webp()[8:],
        "webp-padding-missing": lambda: riff(vp8l(16, 16), (b"abcd", b"x"))[:-1],
        "webp-no-picture": lambda: riff(vp8x(16, 16)),
        "webp-animation-without-frames": lambda: riff(vp8x(16, 16, 2), (b"ANIM", bytes(6))),
        "webp-canvas-differs": lambda: riff(vp8x(64, 64), vp8l(16, 16)),
        "webp-lossy-no-start-code": lambda: riff((b"VP8 ", bytes(6) + b"\x10\0\x10\0" + bytes(30))),
        "webp-lossless-no-signature": lambda: riff((b"VP8L", b"\0\x0f\xc0\x03\0" + bytes(20))),
        "bmp-magic-only": b"BM",
        "bmp-header-only": lambda: bmp_header(16, 16),
        "bmp-header-size-odd": lambda: bmp()[:14] + b"\x07" + bmp()[15:],
        "bmp-header-size-huge": lambda: bmp()[:14] + b"\xff\xff\xff\x7f" + bmp()[18:],
        "bmp-depth-7": lambda: bmp_header(16, 16, 0, 7) + bytes(999),
        "bmp-jpeg-inside": lambda: bmp_header(16, 16, 4) + jpeg(),
        "bmp-png-inside": lambda: bmp_header(16, 16, 5) + png(),
        "bmp-run-length-short": lambda: bmp_run_length(16, 16, b"\4\7\0\1"),
        "bmp-run-length-cut": lambda: bmp_run_length(16, 16, b"\4\7\4"),
        "bmp-palette-cut": lambda: bmp(picture().convert("P"))[:70],
        "bmp-offset-past-end": lambda: bmp()[:10] + b"\xff\xff\xff\x7f" + bmp()[14:],
    },
)
_add(
    _PIXELS | _SIDES | _BROKEN,
    {
        "bmp-negative-width": lambda: bmp_header(-16, 16) + bytes(999),
        "bmp+javascript": b"BM=1;alert(1);//" + bytes(99),
    },
)


def cut(data: bytes, percent: int) -> bytes:
    """Returns the first `percent` of a file."""
    return data[: len(data) * percent // 100]


def flip_bit(data: bytes, position: int) -> bytes:
    """Returns the file with one bit inverted; positions count bits and wrap around."""
    byte, bit = divmod(position % (len(data) * 8), 8)
    return data[:byte] + bytes([data[byte] ^ (1 << bit)]) + data[byte + 1 :]
