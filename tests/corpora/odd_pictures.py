"""About 950 odd and hostile picture files, generated and identical in every run."""

from __future__ import annotations

import base64
import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import cycle, islice

import numpy as np
from PIL import Image

from tests import pictures
from tests.corpora.odd_heif import HEIF
from tests.pictures import (
    IEND,
    RED,
    bmp,
    bmp_header,
    cut,
    encode,
    exif_block,
    flip_bit,
    gif,
    gif_frame,
    gif_of,
    idat,
    ihdr,
    jpeg,
    jpeg_header,
    jpeg_segment,
    jpeg_with,
    photo,
    picture,
    png,
    png_of,
    riff,
    vp8l,
    vp8x,
    webp,
)

Build = Callable[[], bytes]

CUTS_PERCENT = (1, 3, 10, 25, 40, 50, 60, 75, 90, 95, 98, 99)
ZEROED_PERCENT = (5, 20, 50, 80)
FLIPPED_SEEDS = range(8)
GREEN, BLUE = (30, 200, 60), (20, 40, 210)


def odd_pictures() -> dict[str, Build]:
    """Returns the builders by name. The names are keys of the table and must not change."""
    cases: dict[str, Build] = {}
    for name, build in _all():
        if name in cases:
            raise ValueError(f"{name} is there already")
        cases[name] = build
    return cases


def _all() -> Iterator[tuple[str, Build]]:
    for name, file in pictures.HOSTILE.items():
        yield f"hostile-{name}", partial(getattr, file, "data")
    for name, build in pictures.MODES.items():
        yield f"mode-{name}", build
    yield from _orientations()
    yield from _damaged()
    for family, table in (
        ("good", GOOD),
        ("jpeg", JPEG),
        ("png", PNG),
        ("gif", GIF),
        ("webp", WEBP),
        ("bmp", BMP),
        ("size", SIZES),
        ("heif", HEIF),
        ("mixed", MIXED),
        ("other", OTHER),
    ):
        for name, build in table.items():
            yield f"{family}-{name}", build


def _patches() -> Image.Image:
    """Returns a picture whose eight orientations get answers at least 0.07 apart."""
    image = Image.new("RGB", (48, 32), BLUE)
    image.paste(RED, (20, 16, 44, 32))
    image.paste(GREEN, (4, 0, 28, 28))
    return image


def _orientations() -> Iterator[tuple[str, Build]]:
    for name in ("JPEG", "PNG", "WEBP"):
        for orientation in pictures.ORIENTATIONS:
            build = partial(pictures.oriented, _patches(), orientation, name)
            yield f"orientation-{name.lower()}-{orientation}", build


def _whole() -> dict[str, Build]:
    return {
        "jpeg": lambda: jpeg(photo()),
        "jpeg-progressive": lambda: jpeg(photo(), progressive=True),
        "jpeg-restarts": lambda: jpeg(photo(), restart_marker_blocks=2),
        "png": lambda: png(photo()),
        "png-palette": lambda: png(photo().quantize(32)),
        "png-interlaced": lambda: _adam7(photo((32, 24))),
        "webp": lambda: webp(photo()),
        "webp-lossless": lambda: webp(photo(), lossless=True),
        "gif": lambda: gif(photo().quantize(64)),
        "bmp": lambda: bmp(photo()),
    }


def _damaged() -> Iterator[tuple[str, Build]]:
    for name, whole in _whole().items():
        for percent in CUTS_PERCENT:
            yield f"cut-{name}-at-{percent:02}-percent", partial(_cut, whole, percent)
        for percent in ZEROED_PERCENT:
            yield f"zeroed-{name}-last-{percent:02}-percent", partial(_zeroed, whole, percent)
        for seed in FLIPPED_SEEDS:
            yield f"flipped-{name}-bit-{seed}", partial(_flipped, whole, seed)


def _cut(whole: Build, percent: int) -> bytes:
    return cut(whole(), percent)


def _cut_then(percent: int, tail: bytes) -> bytes:
    return cut(jpeg(photo((320, 240))), percent) + tail


def _zeroed(whole: Build, percent: int) -> bytes:
    data = whole()
    kept = cut(data, 100 - percent)
    return kept + bytes(len(data) - len(kept))


def _flipped(whole: Build, seed: int) -> bytes:
    data = whole()
    return flip_bit(data, int(np.random.default_rng(seed).integers(len(data) * 8)))


# --- builders -------------------------------------------------------------------------------------


def _adam7(image: Image.Image) -> bytes:
    """Returns an interlaced PNG, which Pillow can read but not write."""
    pixels, raw = np.asarray(image), b""
    for top, left, down, right in (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ):
        step = pixels[top::down, left::right]
        if step.shape[1]:  # a pass without a column has no filter bytes either
            raw += b"".join(b"\0" + row.tobytes() for row in step)
    height, width = pixels.shape[:2]
    return png_of(ihdr(width, height, 8, 2, 1), idat(raw), IEND)


def _packed_png(depth: int, colour: int, *extra: tuple[bytes, bytes]) -> bytes:
    """Returns a 16 x 16 PNG with less than one byte per pixel and all bits set."""
    return png_of(
        ihdr(16, 16, depth, colour), *extra, idat((b"\0" + b"\xff" * 2 * depth) * 16), IEND
    )


def _icc(space: bytes, size: int = 132) -> bytes:
    """Returns the header of a colour profile that names its space and has no tags."""
    head = struct.pack(">I4sI4s4s4s", size, b"test", 0x04000000, b"mntr", space, b"XYZ ")
    return head.ljust(36, b"\0") + b"acsp" + bytes(92)


def _component_ids(ids: bytes) -> bytes:
    """Renames the three components of a JPEG. Some writers mark RGB this way."""
    file = bytearray(pictures.jpeg_without(0xE0))
    frame, scan = file.index(b"\xff\xc0"), file.index(b"\xff\xda")
    for i, one in enumerate(ids):
        file[frame + 10 + 3 * i] = one
        file[scan + 5 + 2 * i] = one
    return bytes(file)


def _adobe(transform: int, file: bytes | None = None) -> bytes:
    """Returns a JPEG whose Adobe marker names a colour transform."""
    segment = jpeg_segment(0xEE, b"Adobe\0\x64\0\0\0\0" + bytes([transform]))
    plain = file or jpeg(photo())
    return plain[:2] + segment + plain[2:]


def _bit_fields(masks: tuple[int, ...], depth: int, pixel: bytes, header: int = 40) -> bytes:
    """Returns a 4 x 4 BMP of one pixel value whose channels are bit fields."""
    fields = struct.pack(f"<{len(masks)}I", *masks)
    inside = fields if header > 40 else b""
    info = struct.pack("<IiiHHIIiiII", header, 4, 4, 1, depth, 3, 0, 0, 0, 0, 0)
    info = (info + inside).ljust(header, b"\0") + (b"" if header > 40 else fields)
    start = struct.pack("<IHHI", 14 + len(info) + 16 * len(pixel), 0, 0, 14 + len(info))
    return b"BM" + start + info + pixel * 16


def _frames(format_name: str, *images: Image.Image, **options: object) -> bytes:
    first, *others = images
    return encode(first, format_name, save_all=True, append_images=others, **options)


def _with_alpha(alpha: int) -> Image.Image:
    return Image.new("RGBA", (32, 24), (*RED, alpha))


def _zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def _deep_png(colour: int, values: Iterable[int], *extra: tuple[bytes, bytes]) -> bytes:
    """Returns a 16-bit 16 x 16 PNG whose rows all repeat these values."""
    n_values = 16 * {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    row = b"\0" + struct.pack(f">{n_values}H", *islice(cycle(values), n_values))
    return png_of(ihdr(16, 16, 16, colour), *extra, idat(row * 16), IEND)


def _reorder(file: bytes, marker: int) -> bytes:
    """Moves the first segment of a kind to the end of a JPEG's headers."""
    start = file.index(bytes([0xFF, marker]))
    end = start + 2 + int.from_bytes(file[start + 2 : start + 4], "big")
    scan = file.index(b"\xff\xda")
    return file[:start] + file[end:scan] + file[start:end] + file[scan:]


# --- tables ---------------------------------------------------------------------------------------

GOOD: dict[str, Build] = {
    **{
        f"{name}-{colour}": partial(pictures.of_format, name, Image.new("RGB", (40, 30), value))
        for name in pictures.FORMATS
        for colour, value in (("red", RED), ("green", GREEN), ("blue", BLUE))
    },
    **{
        f"{name}-patches": partial(pictures.of_format, name, _patches())
        for name in pictures.FORMATS
    },
    "jpeg-black": lambda: jpeg((0, 0, 0)),
    "png-white": lambda: png((255, 255, 255)),
}

JPEG: dict[str, Build] = {
    "quality-1": lambda: jpeg(photo(), quality=1),
    "quality-100": lambda: jpeg(photo(), quality=100),
    "subsampling-444": lambda: jpeg(photo(), subsampling=0),
    "subsampling-422": lambda: jpeg(photo(), subsampling=1),
    "subsampling-420": lambda: jpeg(photo(), subsampling=2),
    "subsampling-420-odd-size": lambda: jpeg(photo((33, 17)), subsampling=2),
    "restart-each-block": lambda: jpeg(photo(), restart_marker_blocks=1),
    "restart-each-row": lambda: jpeg(photo(), restart_marker_rows=1),
    "restart-marker-wrong": lambda: jpeg(photo(), restart_marker_blocks=1).replace(
        b"\xff\xd3", b"\xff\xd6"
    ),
    "restart-markers-lost": lambda: jpeg(photo(), restart_marker_blocks=1).replace(
        b"\xff\xd3", b""
    ),
    "progressive-grey": lambda: jpeg(photo().convert("L"), progressive=True),
    "progressive-first-scan-only": lambda: (
        (file := jpeg(photo(), progressive=True))[
            : file.index(b"\xff\xda", file.index(b"\xff\xda") + 2)
        ]
        + b"\xff\xd9"
    ),
    "optimized": lambda: jpeg(photo(), optimize=True),
    "cmyk-progressive": lambda: jpeg(photo().convert("CMYK"), progressive=True),
    "adobe-transform-0": lambda: _adobe(0),
    "adobe-transform-1": lambda: _adobe(1),
    "adobe-transform-2": lambda: _adobe(2),
    "adobe-transform-200": lambda: _adobe(200),
    "adobe-ycck": lambda: _adobe(2, pictures.plain_cmyk()),
    "adobe-marker-short": lambda: jpeg_with(jpeg_segment(0xEE, b"Adobe")),
    "component-ids-rgb": lambda: _component_ids(b"RGB"),
    "component-ids-zero": lambda: _component_ids(b"\0\1\2"),
    "component-ids-equal": lambda: _component_ids(b"\1\1\1"),
    "comment-huge": lambda: jpeg_with(jpeg_segment(0xFE, bytes(65_000))),
    "segment-length-zero": lambda: jpeg_with(b"\xff\xfe\0\0"),
    "segment-length-one": lambda: jpeg_with(b"\xff\xfe\0\1"),
    "segment-length-past-end": lambda: jpeg_with(b"\xff\xfe\xff\xff"),
    "no-jfif": lambda: pictures.jpeg_without(0xE0),
    "no-huffman": lambda: pictures.jpeg_without(0xC4),
    "huffman-behind-all": lambda: _reorder(jpeg(photo()), 0xC4),
    "quantization-behind-frame": lambda: _reorder(jpeg(photo()), 0xDB),
    "no-end-marker": lambda: jpeg(photo())[:-2],
    "two-in-a-row": lambda: jpeg(RED) + jpeg(BLUE),
    "end-marker-twice": lambda: jpeg(photo()) + b"\xff\xd9",
    "tail-zeros": lambda: jpeg(photo()) + bytes(100_000),
    "tail-gain-map": lambda: jpeg(photo()) + jpeg(photo((16, 12)).convert("L")),
    "no-end-marker-then-zeros": lambda: jpeg(photo())[:-2] + bytes(65_536),
    "no-end-marker-then-jpeg": lambda: jpeg(RED)[:-2] + jpeg(BLUE),
    "progressive-no-end-marker": lambda: jpeg(photo(), progressive=True)[:-2],
    "cmyk-no-end-marker": lambda: jpeg(photo().convert("CMYK"))[:-2],
    **{
        f"cut-at-{percent}-percent-then-{name}": partial(_cut_then, percent, tail)
        for percent in (50, 90)
        for name, tail in (
            ("zeros", bytes(65_536)),
            ("ones", b"\xff" * 3000),
            ("end-marker", b"\xff\xd9"),
            ("zeros-and-jpeg", bytes(4096) + jpeg(BLUE)),
        )
    },
    "tail-of-start-markers": lambda: jpeg(photo()) + b"\xff\xd8" * 1000,
    "arithmetic": lambda: jpeg(photo()).replace(b"\xff\xc0", b"\xff\xc9", 1),
    "hierarchical": lambda: jpeg(photo()).replace(b"\xff\xc0", b"\xff\xc5", 1),
    "extended-sequential": lambda: jpeg(photo()).replace(b"\xff\xc0", b"\xff\xc1", 1),
    "baseline-says-progressive": lambda: jpeg(photo()).replace(b"\xff\xc0", b"\xff\xc2", 1),
    "height-declared-double": lambda: (
        (file := jpeg(photo()))[: (at := file.index(b"\xff\xc0") + 5)]
        + struct.pack(">H", 96)
        + file[at + 2 :]
    ),
    "thumbnail-larger-than-picture": lambda: pictures.jpeg_with_exif(
        exif_block([(0x0201, 4, 1, 40), (0x0202, 4, 1, 9000)]) + jpeg(photo((640, 480)))
    ),
    "exif-big-endian-turned": lambda: pictures.jpeg_with_exif(exif_block([(0x0112, 3, 1, 6)], ">")),
    "exif-twice": lambda: jpeg_with(
        jpeg_segment(0xE1, exif_block([(0x0112, 3, 1, 6)])),
        jpeg_segment(0xE1, exif_block([(0x0112, 3, 1, 3)])),
    ),
    "exif-behind-scan": lambda: (
        jpeg(photo())[:-2] + jpeg_segment(0xE1, exif_block([(0x0112, 3, 1, 6)])) + b"\xff\xd9"
    ),
    "profile-rgb": lambda: jpeg(photo(), icc_profile=_icc(b"RGB ")),
    "profile-lab": lambda: jpeg(photo(), icc_profile=_icc(b"Lab ")),
    "profile-cmyk-in-rgb": lambda: jpeg(photo(), icc_profile=_icc(b"CMYK")),
    "profile-grey": lambda: jpeg(photo().convert("L"), icc_profile=_icc(b"GRAY")),
    "profile-garbage": lambda: jpeg(photo(), icc_profile=b"\xff" * 500),
    "20-scans": lambda: pictures.many_scans(20),
    "99-scans": lambda: pictures.many_scans(99),
    "102-scans": lambda: pictures.many_scans(102),
    "1000-scans": lambda: pictures.many_scans(1000),
}

PNG: dict[str, Build] = {
    "grey-1-bit": lambda: _packed_png(1, 0),
    "grey-2-bit": lambda: _packed_png(2, 0),
    "grey-4-bit": lambda: _packed_png(4, 0),
    "palette-1-bit": lambda: _packed_png(1, 3, (b"PLTE", bytes(GREEN + BLUE))),
    "palette-2-bit": lambda: _packed_png(2, 3, (b"PLTE", bytes(GREEN + BLUE + GREEN + RED))),
    "palette-4-bit": lambda: _packed_png(4, 3, (b"PLTE", bytes(GREEN * 15 + BLUE))),
    "palette-too-short": lambda: _packed_png(4, 3, (b"PLTE", bytes(GREEN + BLUE))),
    "palette-missing": lambda: _packed_png(4, 3),
    "palette-not-of-three": lambda: _packed_png(1, 3, (b"PLTE", bytes(7))),
    "palette-empty": lambda: _packed_png(1, 3, (b"PLTE", b"")),
    "palette-in-rgb": lambda: pictures.small_png((b"PLTE", bytes(30))),
    "palette-transparency-too-long": lambda: _packed_png(
        1, 3, (b"PLTE", bytes(GREEN + BLUE)), (b"tRNS", bytes(300))
    ),
    "palette-all-transparent": lambda: _packed_png(
        1, 3, (b"PLTE", bytes(GREEN + BLUE)), (b"tRNS", bytes(2))
    ),
    "transparency-short": lambda: pictures.small_png((b"tRNS", b"\0")),
    "transparency-empty": lambda: pictures.small_png((b"tRNS", b"")),
    "16-bit-grey-dark": lambda: _deep_png(0, range(0, 0x0400, 0x40)),
    "16-bit-grey-bright": lambda: _deep_png(0, range(0x8000, 0x10000, 0x0800)),
    "16-bit-grey-alpha": lambda: _deep_png(4, range(0, 0x10000, 0x0800)),
    "16-bit-rgb": lambda: _deep_png(2, [0x2000, 0xF000, 0x1000]),
    "16-bit-rgba": lambda: _deep_png(6, [0x2000, 0x1000, 0xF000, 0xC000]),
    "16-bit-rgb-transparency": lambda: _deep_png(
        2, [0x2000, 0xF000, 0x1000], (b"tRNS", b"\x20\0\xf0\0\x10\0")
    ),
    "16-bit-cut": lambda: cut(_deep_png(2, [0x2000, 0xF000, 0x1000]), 60),
    "rgba-opaque": lambda: png(_with_alpha(255)),
    "rgba-half": lambda: png(_with_alpha(128)),
    "rgba-clear": lambda: png(_with_alpha(0)),
    "grey-alpha-half": lambda: png(Image.merge("LA", [Image.linear_gradient("L")] * 2)),
    "interlaced": lambda: _adam7(_patches()),
    "interlaced-1x1": lambda: _adam7(picture(RED, (1, 1))),
    "interlaced-5x3": lambda: _adam7(picture(GREEN, (5, 3))),
    "interlace-method-2": lambda: png_of(ihdr(16, 16, 8, 2, 2), idat(bytes(49 * 16)), IEND),
    "uncompressed": lambda: png(photo(), compress_level=0),
    "best-compressed": lambda: png(photo(), compress_level=9),
    "compression-method-1": lambda: png_of(
        (b"IHDR", struct.pack(">IIBBBBB", 16, 16, 8, 2, 1, 0, 0)), idat(bytes(49 * 16)), IEND
    ),
    "zlib-checksum-wrong": lambda: png_of(
        ihdr(16, 16), (b"IDAT", zlib.compress((b"\0" + bytes(RED) * 16) * 16)[:-4] + bytes(4)), IEND
    ),
    "zlib-dictionary": lambda: png_of(ihdr(16, 16), (b"IDAT", b"\x78\xbb" + bytes(40)), IEND),
    "one-row-short": lambda: png_of(ihdr(16, 16), idat((b"\0" + bytes(RED) * 16) * 15), IEND),
    "one-row-too-many": lambda: png_of(ihdr(16, 16), idat((b"\0" + bytes(RED) * 16) * 17), IEND),
    "each-filter": lambda: png_of(
        ihdr(16, 5), idat(b"".join(bytes([i]) + bytes(RED) * 16 for i in range(5))), IEND
    ),
    "header-twice": lambda: pictures.small_png(ihdr(16, 16)),
    "end-first": lambda: png_of(ihdr(16, 16), IEND, idat((b"\0" + bytes(RED) * 16) * 16), IEND),
    "end-with-content": lambda: png_of(
        ihdr(16, 16), idat((b"\0" + bytes(RED) * 16) * 16), (b"IEND", b"what")
    ),
    "two-in-a-row": lambda: png(RED) + png(BLUE),
    "profile-lab": lambda: png(photo(), icc_profile=_icc(b"Lab ")),
    "gamma-zero": lambda: pictures.small_png((b"gAMA", bytes(4))),
    "gamma-huge": lambda: pictures.small_png((b"gAMA", b"\xff" * 4)),
    "crc-wrong-everywhere": lambda: (
        pictures.small_png()[:29] + b"\1\2\3\4" + pictures.small_png()[33:-4] + bytes(4)
    ),
    "crc-wrong-end": lambda: pictures.small_png()[:-4] + bytes(4),
    "crc-wrong-palette": lambda: (
        (file := _packed_png(1, 3, (b"PLTE", bytes(GREEN + BLUE))))[
            : (at := file.index(b"PLTE") + 10)
        ]
        + bytes(4)
        + file[at + 4 :]
    ),
    "chunk-length-past-end": lambda: (
        pictures.small_png()[:33] + b"\0\xff\xff\xfftEXt" + pictures.small_png()[33:]
    ),
    "apng-3-frames": lambda: _frames("PNG", picture(GREEN), picture(RED), picture(BLUE)),
    "apng-default-image-apart": lambda: _frames(
        "PNG", picture(BLUE), picture(RED), picture(GREEN), default_image=True
    ),
    "apng-million-frames-declared": lambda: pictures.small_png(
        (b"acTL", struct.pack(">II", 1_000_000, 0))
    ),
}

GIF: dict[str, Build] = {
    "version-87a": lambda: gif(RED).replace(b"GIF89a", b"GIF87a"),
    "interlaced": lambda: gif(_patches().quantize(8), interlace=1),
    "not-interlaced": lambda: gif(_patches().quantize(8), interlace=0),
    "interlaced-cut": lambda: cut(gif(photo().quantize(64), interlace=1), 70),
    "256-colours": lambda: gif(photo().quantize(256)),
    "2-colours": lambda: gif(photo().convert("1")),
    "animated": lambda: _frames("GIF", picture(GREEN), picture(RED), picture(BLUE), duration=50),
    "animated-loop": lambda: _frames("GIF", picture(BLUE), picture(RED), loop=0, duration=10),
    "animated-cut-in-second-frame": lambda: cut(
        _frames("GIF", photo(), photo(seed=1), duration=10), 80
    ),
    "20000-frames": lambda: gif_of(*[gif_frame()] * 20_000, b";"),
    "frame-off-corner": lambda: gif_of(gif_frame(3, 3), b";", screen=(8, 8)),
    "frame-size-zero": lambda: gif_of(gif_frame(0, 0, 0, 0), b";", screen=(8, 8)),
    "screen-zero-frame-good": lambda: gif_of(gif_frame(), b";", screen=(0, 0)),
    "transparent-all": lambda: gif_of(b"!\xf9\4\1\0\0\0\0", gif_frame(), b";"),
    "transparency-past-table": lambda: gif_of(b"!\xf9\4\1\0\0\xff\0", gif_frame(), b";"),
    "control-short": lambda: gif_of(b"!\xf9\1\1\0", gif_frame(), b";"),
    "application-unknown": lambda: gif_of(b"!\xff\x0bwhat is it?\3abc\0", gif_frame(), b";"),
    "application-endless": lambda: gif_of(b"!\xff\x0bNETSCAPE2.0" + b"\xff" * 500),
    "code-size-1": lambda: gif_of(gif_frame()[:10] + b"\1" + gif_frame()[11:], b";"),
    "code-size-12": lambda: gif_of(gif_frame()[:10] + b"\x0c" + gif_frame()[11:], b";"),
    "data-missing": lambda: gif_of(gif_frame()[:10] + b"\2\0", b";"),
    "data-too-long": lambda: gif_of(gif_frame()[:-1] + b"\xff" + b"\x44" * 255 + b"\0", b";"),
    "trailer-only-in-front": lambda: gif_of(b";", gif_frame(), b";"),
    "two-in-a-row": lambda: gif(RED) + gif(BLUE),
    "tail-zeros": lambda: gif(RED) + bytes(50_000),
}

WEBP: dict[str, Build] = {
    "quality-0": lambda: webp(photo(), quality=0),
    "alpha-lossy": lambda: webp(_with_alpha(128)),
    "alpha-lossless-clear": lambda: webp(_with_alpha(0), lossless=True, exact=True),
    "animated": lambda: _frames("WEBP", picture(GREEN), picture(RED), picture(BLUE), duration=50),
    "animated-lossless": lambda: _frames("WEBP", picture(BLUE), picture(RED), lossless=True),
    "animated-cut": lambda: cut(_frames("WEBP", photo(), photo(seed=1), duration=10), 70),
    "profile-lab": lambda: webp(photo(), icc_profile=_icc(b"Lab ")),
    "exif-turned": lambda: webp(photo(), exif=exif_block([(0x0112, 3, 1, 6)])),
    "exif-without-flag": lambda: riff(vp8x(16, 16), vp8l(16, 16), (b"EXIF", b"II*\0")),
    "xmp-garbage": lambda: riff(vp8x(16, 16, 4), vp8l(16, 16), (b"XMP ", b"<" * 5000)),
    "one-pixel": lambda: riff(vp8l(1, 1)),
    "two-pictures": lambda: riff(vp8l(16, 16), vp8l(16, 16)),
    "flat-ends-in-zeros": lambda: webp(picture((0, 0, 0), (640, 480)), quality=100, method=2),
    "zeros-in-picture-chunk": lambda: riff((vp8l(16, 16)[0], vp8l(16, 16)[1] + bytes(600))),
    "101-chunks-in-front": lambda: riff(*[(b"JUNK", b"")] * 101, vp8l(16, 16)),
    "alpha-chunk-garbage": lambda: riff(vp8x(16, 16, 16), (b"ALPH", b"\xff" * 9), vp8l(16, 16)),
    "size-field-zero": lambda: webp()[:4] + bytes(4) + webp()[8:],
    "size-field-short": lambda: webp()[:4] + struct.pack("<I", 40) + webp()[8:],
    "size-field-odd": lambda: webp()[:4] + struct.pack("<I", len(webp()) - 7) + webp()[8:],
    "chunk-length-past-end": lambda: webp()[:16] + b"\xff\xff\xff\x7f" + webp()[20:],
    "reserved-flags": lambda: riff(vp8x(16, 16, 0xC1), vp8l(16, 16)),
    "lossless-version-1": lambda: riff((b"VP8L", b"\x2f\x0f\xc0\x03\x20\x88\x88\x08\0\0\0\0")),
    "two-in-a-row": lambda: webp(RED) + webp(BLUE),
    "exactly-16MP": lambda: riff(vp8l(4000, 4000)),
    "one-row-over-16MP": lambda: riff(vp8l(4000, 4001)),
}

BMP: dict[str, Build] = {
    "555": lambda: _bit_fields((0x7C00, 0x3E0, 0x1F), 16, b"\x1f\0"),
    "565": lambda: _bit_fields((0xF800, 0x7E0, 0x1F), 16, b"\xe0\x07"),
    "8888": lambda: _bit_fields((0xFF0000, 0xFF00, 0xFF), 32, bytes((210, 40, 20, 0))),
    "bit-fields-odd": lambda: _bit_fields((0xF0, 0xF, 0xF00), 16, b"\xff\x0f"),
    "bit-fields-zero": lambda: _bit_fields((0, 0, 0), 32, b"\xff" * 4),
    "header-v2": lambda: _bit_fields((0xFF0000, 0xFF00, 0xFF), 32, bytes((0, 0, 255, 0)), 52),
    "header-v3-alpha": lambda: _bit_fields(
        (0xFF0000, 0xFF00, 0xFF, 0xFF000000), 32, bytes((0, 0, 255, 64)), 56
    ),
    "header-v4": lambda: _bit_fields(
        (0xFF0000, 0xFF00, 0xFF, 0xFF000000), 32, bytes((0, 255, 0, 255)), 108
    ),
    "header-v5-alpha-zero": lambda: _bit_fields(
        (0xFF0000, 0xFF00, 0xFF, 0xFF000000), 32, bytes((255, 0, 0, 0)), 124
    ),
    "header-v5": lambda: _bit_fields(
        (0xFF0000, 0xFF00, 0xFF, 0xFF000000), 32, bytes((255, 0, 0, 255)), 124
    ),
    "16-bit-plain": lambda: bmp_header(4, 4, 0, 16) + b"\0\x7c" * 16,
    "32-bit-plain": lambda: bmp_header(4, 4, 0, 32) + bytes((0, 0, 255, 0)) * 16,
    "palette-4-bit": lambda: bmp(_patches().quantize(8)),
    "palette-index-past-end": lambda: (
        bmp_header(4, 1, 0, 8)[:10]
        + struct.pack("<I", 62)
        + bmp_header(4, 1, 0, 8)[14:46]
        + struct.pack("<II", 2, 0)
        + bytes((0, 0, 255, 0, 0, 255, 0, 0, 0, 1, 2, 255))
    ),
    "top-down-patches": lambda: (
        bmp_header(2, -2) + bytes((0, 0, 255)) * 2 + b"\0\0" + bytes((255, 0, 0)) * 2 + b"\0\0"
    ),
    "run-length-4-bit": lambda: bmp_header(4, 4, 2, 4) + bytes(64) + b"\4\x12\0\0" * 4 + b"\0\1",
    "run-length-delta": lambda: pictures.bmp_run_length(8, 8, b"\0\2\2\2\4\7\0\1"),
    "run-length-past-width": lambda: pictures.bmp_run_length(4, 2, b"\xff\7\0\0\xff\7\0\1"),
    "run-length-absolute": lambda: pictures.bmp_run_length(4, 1, b"\0\4\1\2\3\4\0\1"),
    "run-length-endless-delta": lambda: pictures.bmp_run_length(8, 8, b"\0\2\0\0" * 5000),
    "planes-zero": lambda: bmp()[:26] + b"\0\0" + bmp()[28:],
    "compression-9": lambda: bmp_header(4, 4, 9) + bytes(48),
    "offset-zero": lambda: bmp()[:10] + bytes(4) + bmp()[14:],
    "row-padding-missing": lambda: bmp_header(3, 3) + bytes(27),
    "height-int-min": lambda: bmp_header(4, -(2**31)) + bytes(48),
    "last-byte-missing": lambda: bmp(photo())[:-1],
    "two-in-a-row": lambda: bmp(RED) + bmp(BLUE),
    "os2-bitmap-array": lambda: b"BA" + bmp()[2:],
}

SIZES: dict[str, Build] = {
    **{
        f"{name}-1x1": partial(pictures.of_format, name, Image.new("RGB", (1, 1), BLUE))
        for name in pictures.FORMATS
    },
    **{
        f"{name}-7x13": partial(pictures.of_format, name, photo((7, 13)))
        for name in pictures.FORMATS
    },
    **{
        f"{name}-100x1": partial(pictures.of_format, name, Image.new("RGB", (100, 1), GREEN))
        for name in pictures.FORMATS
    },
    **{
        f"{name}-101x1": partial(pictures.of_format, name, Image.new("RGB", (101, 1), GREEN))
        for name in pictures.FORMATS
    },
    "jpeg-2000x20": lambda: jpeg(photo((2000, 20))),
    "png-20x2000": lambda: png(photo((20, 2000))),
    "png-3000x29": lambda: png(photo((3000, 29))),
    "jpeg-12MP": lambda: jpeg(photo((4000, 3000))),
    "jpeg-12MP-progressive": lambda: jpeg(photo((4000, 3000)), progressive=True),
    "jpeg-48MP": lambda: jpeg(picture(RED, (8000, 6000)), quality=50),
    "png-12MP": lambda: png(picture(BLUE, (4000, 3000)), compress_level=1),
    "gif-12MP": lambda: gif(Image.new("P", (4000, 3000))),
    "bmp-1-bit-16MP": lambda: bmp(Image.new("1", (4000, 4000), 1)),
    "jpeg-header-50MP": lambda: jpeg_header(10_000, 5_000),
    "jpeg-header-50MP-and-a-row": lambda: jpeg_header(10_000, 5_001),
    "png-header-50MP": lambda: png_of(ihdr(10_000, 5_000), idat(b""), IEND),
    "png-header-50MP-and-a-row": lambda: png_of(ihdr(10_000, 5_001), idat(b""), IEND),
    "gif-screen-50MP-and-a-row": lambda: gif_of(gif_frame(), b";", screen=(10_000, 5_001)),
    "bmp-header-50MP": lambda: bmp_header(10_000, 5_000),
    "bmp-header-50MP-and-a-row": lambda: bmp_header(10_000, 5_001),
}

MIXED: dict[str, Build] = {
    "png-behind-jpeg-magic": lambda: b"\xff\xd8\xff" + png(),
    "jpeg-behind-png-magic": lambda: b"\x89PNG\r\n\x1a\n" + jpeg(),
    "jpeg-behind-gif-magic": lambda: b"GIF89a" + jpeg(),
    "jpeg-behind-bmp-magic": lambda: b"BM" + jpeg(),
    "gif-behind-riff": lambda: b"RIFF" + gif(),
    "png-behind-html": lambda: b"<html>" + png(),
    "png-behind-pdf": lambda: b"%PDF-1.4\n" + png(),
    "jpeg-behind-space": lambda: b" " + jpeg(),
    "jpeg-behind-512-zeros": lambda: bytes(512) + jpeg(),
    "jpeg-then-png": lambda: jpeg(RED) + png(BLUE),
    "png-then-jpeg": lambda: png(BLUE) + jpeg(RED),
    "png-in-jpeg-comment": lambda: jpeg_with(jpeg_segment(0xFE, png(BLUE))),
    "jpeg-in-png-text": lambda: pictures.small_png((b"tEXt", b"k\0" + jpeg(BLUE))),
    "gif-with-javascript": lambda: b"GIF89a=1;alert(1)//" + bytes(40),
    "jpeg-with-javascript": lambda: jpeg_with(jpeg_segment(0xFE, b"*/=alert(1);/*")),
    "jpeg-then-pdf": lambda: jpeg() + b"%PDF-1.7\n%%EOF",
    "jpeg-then-rar": lambda: jpeg() + b"Rar!\x1a\7\0" + bytes(90),
    "jpeg-then-html": lambda: jpeg() + b"<html><script>alert(1)</script>",
    "png-then-php": lambda: png() + b"<?php phpinfo(); ?>",
    "bmp-then-elf": lambda: bmp() + b"\x7fELF" + bytes(60),
    "webp-then-pickle": lambda: webp() + b"\x80\4N.",
    "mpo-three": lambda: _frames("MPO", picture(GREEN), picture(RED), picture(BLUE)),
    "mpo-cut-in-second": lambda: cut(pictures.mpo(), 90),
    "jpeg-as-utf8": lambda: jpeg().decode("latin-1").encode(),
    "jpeg-newlines-converted": lambda: jpeg(photo()).replace(b"\n", b"\r\n"),
    "png-as-utf8": lambda: png().decode("latin-1").encode(),
    "jpeg-high-bits-lost": lambda: bytes(byte & 0x7F for byte in jpeg()),
    "jpeg-reversed": lambda: jpeg()[::-1],
    "jpeg-zeroed-whole": lambda: bytes(len(jpeg())),
    "jpeg-in-http-answer": lambda: b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n\r\n" + jpeg(),
    "jpeg-in-mail": lambda: b"From: a@b\nContent-Type: image/jpeg\n\n" + base64.b64encode(jpeg()),
}


def _constant(content: bytes) -> Build:
    return lambda: content


OTHER: dict[str, Build] = {
    **{
        name: _constant(content)
        for name, content in {
            "space": b" ",
            "newlines": b"\r\n" * 40,
            "html-upper-case": b"<HTML><BODY>404 Not Found</BODY></HTML>",
            "html-behind-mark": b"\xef\xbb\xbf<!doctype html><title>x</title>",
            "svg-plain": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
            "svg-script": b"<svg><script>alert(1)</script></svg>",
            "svg-utf16": '<?xml version="1.0"?><svg/>'.encode("utf-16"),
            "xml-billion-laughs": b'<!DOCTYPE l [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]><l>&b;</l>',
            "json-null": b"null",
            "json-deep": b"[" * 100_000,
            "yaml": b"!!python/object/apply:os.system ['true']\n",
            "csv": b"a,b\n1,2\n",
            "pem": b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
            "base64-png-start": b"iVBORw0KGgoAAAANSUhEUg",
            "base64-jpeg-start": b"/9j/4AAQSkZJRgABAQ",
            "url": b"http://169.254.169.254/latest/meta-data/",
            "file-url": b"file:///etc/passwd",
            "path": b"../../../../etc/passwd\0.png",
            "pickle-protocol-0": b"cos\nsystem\n(S'true'\ntR.",
            "pickle-protocol-4": b"\x80\4\x95\3\0\0\0\0\0\0\0K\1.",
            "numpy-object-array": b"\x93NUMPY\1\0\x46\0{'descr': '|O', 'fortran_order': False}",
            "safetensors": b"\2\0\0\0\0\0\0\0{}",
            "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(60),
            "parquet": b"PAR1" + bytes(40) + b"PAR1",
            "wasm": b"\0asm\1\0\0\0",
            "mach-o": b"\xcf\xfa\xed\xfe" + bytes(60),
            "python-bytecode": b"\xa7\r\r\n" + bytes(40),
            "rar": b"Rar!\x1a\7\1\0" + bytes(40),
            "zstd": b"\x28\xb5\x2f\xfd" + bytes(20),
            "lz4": b"\4\x22\x4d\x18" + bytes(20),
            "brotli": b"\x8b\2\x80picture\3",
            "cab": b"MSCF" + bytes(40),
            "deb": b"!<arch>\ndebian-binary   ",
            "iso-media-avis": b"\0\0\0\x20ftypavis" + bytes(40),
            "quicktime": b"\0\0\0\x14ftypqt  " + bytes(40),
            "mp4-moov": b"\0\0\0\x08moov" + bytes(40),
            "flv": b"FLV\1\5\0\0\0\x09",
            "ogg": b"OggS" + bytes(40),
            "flac": b"fLaC" + bytes(40),
            "swf": b"FWS\x09" + bytes(40),
            "woff2": b"wOF2" + bytes(40),
            "truetype": b"\0\1\0\0\0\x0c" + bytes(40),
            "djvu": b"AT&TFORM" + bytes(40),
            "openexr": b"\x76\x2f\x31\1" + bytes(40),
            "radiance": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 1 +X 1\n",
            "qoi": b"qoif\0\0\0\1\0\0\0\1\3\0" + bytes(12),
            "dicom": bytes(128) + b"DICM" + bytes(40),
            "jbig2": b"\x97JB2\r\n\x1a\n" + bytes(20),
            "wmf": b"\xd7\xcd\xc6\x9a" + bytes(40),
            "emf": b"\1\0\0\0" + bytes(36) + b" EMF" + bytes(40),
            "xcf": b"gimp xcf v011\0" + bytes(40),
            "blp": b"BLP2" + bytes(160),
            "ftex": b"FTEX" + bytes(40),
            "gbr": b"\0\0\0\x1c\0\0\0\2\0\0\0\1\0\0\0\1\0\0\0\4GIMP",
            "mcidas": b"\0\0\0\0\0\0\0\4" + bytes(248),
            "mpeg": b"\0\0\1\xb3" + bytes(40),
            "msp": b"DanM" + bytes(28),
            "pcd": bytes(2048) + b"PCD_IPI" + bytes(40),
            "pixar": b"\x80\xe8\0\0" + bytes(508),
            "sun-raster": b"\x59\xa6\x6a\x95" + bytes(28),
            "spider": struct.pack(">27f", *[1.0] * 27),
            "imt": b"*imtfile\nwidth 1\n\x0c",
            "im": b"Image type: RGB image\r\nImage size (x*y): 1*1\r\n",
            "xpm": b'/* XPM */\nstatic char *x[] = {"1 1 1 1", "a c #ff0000", "a"};\n',
            "xv-thumbnail": b"P7 332\n#END_OF_COMMENTS\n1 1 255\n\0",
            "pam": b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n\0\0\0",
            "pfm": b"PF\n1 1\n-1.0\n" + b"\0\0\xc0\x7f" * 3,
            "hdf4": b"\x0e\x03\x13\x01" + bytes(40),
            "grib": b"GRIB\0\0\0\1",
            "bufr": b"BUFR\0\0\0\1",
            "fpx": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504),
            "tiff-directory-loop": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
            "dng-like": b"II*\0\x10\0\0\0CR\2\0" + bytes(40),
        }.items()
    },
    "tiff-pages": lambda: _frames("TIFF", picture(), picture()),
    "tiff-float": lambda: encode(Image.new("F", (4, 4), float("nan")), "TIFF"),
    "tiff-lzw": lambda: encode(photo(), "TIFF", compression="tiff_lzw"),
    "tiff-jpeg": lambda: encode(photo(), "TIFF", compression="jpeg"),
    "ico-bmp": lambda: encode(photo((32, 32)), "ICO", bitmap_format="bmp"),
    "tga-run-length": lambda: encode(photo(), "TGA", compression="tga_rle"),
    "pgm": lambda: encode(photo().convert("L"), "PPM"),
    "xbm-file": lambda: encode(photo().convert("1"), "XBM"),
    "msp-file": lambda: encode(photo().convert("1"), "MSP"),
    "dds-file": lambda: encode(photo(), "DDS"),
    "eps-file": lambda: encode(photo(), "EPS"),
    "jpeg-gzipped": lambda: gzip.compress(jpeg(photo()), mtime=0),
    "jpeg-deflated": lambda: zlib.compress(jpeg(photo()))[2:-4],
    "zip-of-pictures": lambda: _zipped(a=jpeg(RED), b=png(BLUE)),
    "office-document": lambda: _zipped(**{"[Content_Types].xml": b"<Types/>"}),
    "torch-checkpoint": lambda: _zipped(**{"archive/data.pkl": b"\x80\2}q\0."}),
    "base64-png": lambda: base64.b64encode(png()),
    "base64-url-safe": lambda: base64.urlsafe_b64encode(jpeg(photo())),
    "base64-wrapped": lambda: base64.encodebytes(jpeg(photo())),
    "base64-twice": lambda: base64.b64encode(base64.b64encode(jpeg())),
    "raw-pixels": lambda: photo().tobytes(),
    "noise-1MB": lambda: np.random.default_rng(11).bytes(1_000_000),
}
