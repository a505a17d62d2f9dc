"""Reads the few header fields of an image file that must be known before any decoder runs.

Each `*_size` function takes the first bytes of a file of its format and returns (width, height) in
pixels, or None where the header does not say. `count_jpeg_scans` walks a JPEG's markers. None of
them allocates in proportion to what the header claims.

Layouts: PNG (W3C, 11.2.2 IHDR), GIF89a (section 18), BMP (BITMAPCOREHEADER, BITMAPINFOHEADER),
WebP (RFC 9649, section 2), JPEG (ITU-T T.81, annex B).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

Size = tuple[int, int]

# Inside entropy-coded data 0xFF is followed by 0x00 (stuffing) or a restart marker; anything else
# but a fill byte starts the next segment (T.81, B.1.1.5).
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD8)})
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN = 0xDA
_END_OF_IMAGE = 0xD9


def png_size(data: bytes) -> Size | None:
    """Returns the size in the IHDR chunk."""
    if len(data) < 24 or data[12:16] != b"IHDR":
        return None
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def gif_size(data: bytes) -> Size | None:
    """Returns the size of the logical screen."""
    if len(data) < 10:
        return None
    width, height = struct.unpack_from("<HH", data, 6)
    return width, height


def bmp_size(data: bytes) -> Size | None:
    """Returns the size in the bitmap header; a negative height means rows stored top down."""
    if len(data) < 26:
        return None
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    if header_bytes == 12:
        width, height = struct.unpack_from("<HH", data, 18)
    else:
        width, height = struct.unpack_from("<ii", data, 18)
    return abs(width), abs(height)


def webp_size(data: bytes) -> Size | None:
    """Returns the canvas of an extended file, or the size of the one lossy or lossless picture."""
    if len(data) < 30:
        # A lossless header is complete after 25 bytes; pad so that one code path reads them all.
        data = data.ljust(30, b"\0")
    kind = data[12:16]
    if kind == b"VP8X":
        return (
            1 + int.from_bytes(data[24:27], "little"),
            1 + int.from_bytes(data[27:30], "little"),
        )
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + ((bits >> 14) & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def webp_declared_bytes(data: bytes) -> int:
    """Returns the length of the whole file that the RIFF header declares, in bytes."""
    return 8 + int.from_bytes(data[4:8], "little")


def jpeg_size(data: bytes) -> Size | None:
    """Returns the size in the first frame header."""
    for marker, start in _jpeg_segments(data):
        if marker in _START_OF_FRAME:
            if start + 7 > len(data):
                return None
            height, width = struct.unpack_from(">HH", data, start + 3)
            return width, height
    return None


def count_jpeg_scans(data: bytes, stop_after: int) -> int:
    """Returns the number of scans of the first picture, counting no further than `stop_after` + 1.

    A progressive picture costs scans times blocks whatever the scans contain, so the count bounds
    the work before a decoder starts, which could not be stopped.
    """
    scans = 0
    for marker, _ in _jpeg_segments(data):
        if marker == _START_OF_SCAN:
            scans += 1
            if scans > stop_after:
                break
    return scans


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yields (marker, offset of its length field) up to the end of the first picture."""
    position = 2
    while True:
        found = _NEXT_MARKER.search(data, position)
        if found is None:
            return
        marker, position = data[found.end() - 1], found.end()
        if marker == _END_OF_IMAGE:
            return
        if marker in _STANDALONE:
            continue
        yield marker, position
        if position + 2 > len(data):
            return
        position += int.from_bytes(data[position : position + 2], "big")
