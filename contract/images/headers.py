"""Reads the header fields of an image file that must be known before a decoder runs.

Each `*_size` function takes the first bytes of a file and returns (width, height) in pixels, or None
if the header does not say. A JPEG has no fixed place for its size, so `read_jpeg` walks to the first
scan once and returns everything that is needed. The memory used does not depend on the declared size,
and every walk is bounded.

Layouts: PNG (W3C, 11.2.2 IHDR), GIF89a (section 18), BMP (BITMAPCOREHEADER, BITMAPINFOHEADER),
WebP (RFC 9649, section 2), JPEG (ITU-T T.81, annex B), EXIF 2.32 (section 4.6).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from contract.errors import ImageTooComplex

Size = tuple[int, int]

CheckSize = Callable[[Size], None]
"""Raises an `ImageError` if a picture of this size is not accepted."""

MAX_JPEG_MARKERS: Final = 10_000
"""Most markers in a JPEG. A progressive picture with 100 scans has about 500."""

MAX_PNG_CHUNKS: Final = 100_000
"""Most chunks in a PNG. 20 MB in the 8 kB chunks that libpng writes are 2,500."""

# Inside entropy-coded data 0xFF is followed by 0x00 (stuffing) or a restart marker. Anything else,
# except a fill byte, starts the next segment (T.81, B.1.1.5).
_NEXT_MARKER: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_STANDALONE: Final = frozenset({0x01, *range(0xD0, 0xD8)})
_START_OF_FRAME: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL_HUFFMAN: Final = frozenset({0xC0, 0xC1})
_START_OF_SCAN: Final = 0xDA
_END_OF_IMAGE: Final = 0xD9
_EXIF_SEGMENT: Final = 0xE1
_COMMENT: Final = 0xFE
# JFIF (E0) and Adobe (EE) say which colours are stored. The other APPn segments make no pixels.
_JPEG_DROPPED: Final = (frozenset(range(0xE0, 0xF0)) | {_COMMENT}) - {0xE0, 0xEE}
_MAX_JPEG_GAP_BYTES: Final = 1 << 16  # padding between two segments; Pillow reads it byte by byte
_JPEG_FILL: Final = b"\xff" * 4096
_SEARCH_STEP_BYTES: Final = 1 << 20
_MAX_WEBP_CHUNKS: Final = 100

_PNG_CHANNELS: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
# Adam7 (W3C, 8.1): first column, first row, column step, row step of each pass.
_PNG_PASSES: Final = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)

_ORIENTATION_TAG: Final = 0x0112
_EXIF_FORMATS: Final = {3: "H", 4: "I"}  # SHORT, or LONG as some programs write


@dataclass(frozen=True, slots=True)
class Header:
    """The header of an image file.

    Attributes:
        size: the declared (width, height); None if the header is cut short or does not say.
    """

    size: Size | None

    @property
    def declared_pixels(self) -> int:
        """Width x height, 0 if the size is unknown."""
        return 0 if self.size is None else self.size[0] * self.size[1]


@dataclass(frozen=True, slots=True)
class JpegHeader(Header):
    """A JPEG up to its first scan.

    Attributes:
        n_frames: number of frame headers. A valid file has one.
        parts: (start, stop) of the parts that make pixels, in order: the file's first two bytes,
            colour markers, tables, frame headers and, last, everything from the first scan on.
        exif: the first EXIF block; empty if there is none.
        whole_scan: offset of the first scan's header if the picture is sequential and this scan
            has all components, otherwise None. Decoders then read only this scan, in one pass, and
            ignore what follows (T.81, B.2.3).
    """

    n_frames: int
    parts: tuple[tuple[int, int], ...]
    exif: bytes
    whole_scan: int | None

    @property
    def last_part(self) -> int:
        """Offset of the first scan's marker; of an earlier one if there is no scan."""
        return max(2, self.parts[-1][0])


def png_size(data: bytes) -> Size | None:
    """Returns the size in the IHDR chunk."""
    if len(data) < 24 or data[12:16] != b"IHDR":
        return None
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def png_is_interlaced(data: bytes) -> bool:
    """Returns whether the IHDR chunk declares Adam7 interlacing."""
    return data[28:29] == b"\x01"


def png_raw_bytes(data: bytes) -> int:
    """Returns the length of the inflated image data in bytes, 0 if IHDR is incomplete or unknown."""
    size = png_size(data)
    if size is None or len(data) < 29 or data[25] not in _PNG_CHANNELS:
        return 0

    (width, height), bits = size, data[24] * _PNG_CHANNELS[data[25]]
    total = 0
    for left, top, dx, dy in _PNG_PASSES if png_is_interlaced(data) else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // dx), -(-(height - top) // dy)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)  # a filter byte, then the pixels
    return total


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields (type, offset of the content, declared length) up to IEND or the first damaged chunk.

    Raises:
        ImageTooComplex: there are more than `MAX_PNG_CHUNKS`.
    """
    position = 8
    for _ in range(MAX_PNG_CHUNKS):
        kind = data[position + 4 : position + 8]
        if len(kind) < 4 or not kind.isalpha():
            return
        length = int.from_bytes(data[position : position + 4], "big")
        yield kind, position + 8, length
        if kind == b"IEND":
            return
        position += 12 + length
    raise ImageTooComplex(f"the PNG has more than {MAX_PNG_CHUNKS:,} chunks")


def gif_blocks_start(data: bytes) -> int:
    """Returns the offset of the first block, after the global colour table.

    Raises:
        IndexError: the file is shorter than its header.
    """
    flags = data[10]
    return 13 + (3 * (2 << (flags & 7)) if flags & 0x80 else 0)


def gif_size(data: bytes) -> Size | None:
    """Returns the size of the logical screen."""
    if len(data) < 10:
        return None
    width, height = struct.unpack_from("<HH", data, 6)
    return width, height


def bmp_size(data: bytes) -> Size | None:
    """Returns the size in the bitmap header."""
    if len(data) < 26:
        return None
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    if header_bytes == 12:
        width, height = struct.unpack_from("<HH", data, 18)
    else:
        width, height = struct.unpack_from("<ii", data, 18)
    return abs(width), abs(height)  # a negative height means that rows are stored top down


def bmp_is_run_length_encoded(data: bytes) -> bool:
    """Returns whether the bitmap header declares RLE8 or RLE4."""
    return data[14:18] != b"\x0c\0\0\0" and data[30:34] in (b"\1\0\0\0", b"\2\0\0\0")


def webp_size(data: bytes) -> Size | None:
    """Returns the canvas size of an extended file, or the size of a simple file's picture."""
    if len(data) < 30:
        # A lossless header is complete after 25 bytes. Padding avoids a second code path for it.
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


def webp_picture(data: bytes) -> tuple[bytes, int, int] | None:
    """Returns (chunk type, offset, declared length) of the first compressed picture.

    None if it does not come within the first 100 chunks. Real files have up to 4 before it.
    """
    position = 12
    for _ in range(_MAX_WEBP_CHUNKS):
        kind, start = data[position : position + 4], position + 8
        length = int.from_bytes(data[position + 4 : start], "little")
        if kind in (b"VP8 ", b"VP8L"):
            return kind, start, length
        # The chunks of an animation's frame follow 16 bytes about the frame.
        position = start + (16 if kind == b"ANMF" else length + length % 2)
    return None


def read_jpeg(data: bytes, check_size: CheckSize) -> JpegHeader:
    """Walks a JPEG up to its first scan.

    Args:
        data: the whole file.
        check_size: called as soon as the size is known; it can raise to end the walk.

    Raises:
        ImageTooComplex: there are too many markers or too much padding, as in `jpeg_segments`.
    """
    size, components, n_frames, exif, whole_scan = None, b"", 0, b"", None
    parts = [(0, 2)]

    for marker, start, stop in jpeg_segments(data):
        if marker == _START_OF_SCAN:
            parts.append((start - 2, len(data)))
            if components and data[start + 2 : start + 3] == components:
                whole_scan = start
            break
        if marker not in _JPEG_DROPPED:
            parts.append((start - 2, min(stop, len(data))))
        elif marker == _EXIF_SEGMENT and not exif and data.startswith(b"Exif\0\0", start + 2):
            exif = data[start + 2 : stop]

        if marker in _START_OF_FRAME:
            n_frames += 1
            if n_frames == 1 and (size := _frame_size(data, start)) is not None:
                check_size(size)
            sequential = n_frames == 1 and marker in _SEQUENTIAL_HUFFMAN
            components = data[start + 7 : start + 8] if sequential else b""

    return JpegHeader(size, n_frames, tuple(parts), exif, whole_scan)


def late_jpeg_size(data: bytes, header: JpegHeader) -> Size | None:
    """Returns the size in a frame header that comes after a scan."""
    rest = jpeg_segments(data, header.last_part)
    frames = (start for marker, start, _ in rest if marker in _START_OF_FRAME)
    start = next(frames, None)
    return None if start is None else _frame_size(data, start)


def _frame_size(data: bytes, start: int) -> Size | None:
    if start + 7 > len(data):
        return None
    height, width = struct.unpack_from(">HH", data, start + 3)
    return width, height


def jpeg_is_one_scan(data: bytes, header: JpegHeader) -> bool:
    """Returns whether decoders read only the first scan.

    Searches the rest of the file and returns False if it has padding that `jpeg_segments` refuses.
    """
    return header.whole_scan is not None and data.find(_JPEG_FILL, header.whole_scan) < 0


def jpeg_scan_stop(data: bytes, start: int) -> int:
    """Returns the offset of the first marker after a scan's data; the file's length without one.

    Args:
        data: the whole file.
        start: an offset in the scan.
    """
    after = _find_marker(data, start, len(data))
    return len(data) if after is None else after - 2


def count_jpeg_scans(data: bytes, header: JpegHeader, stop_after: int) -> int:
    """Returns the number of scans of the first picture, counting up to `stop_after` + 1.

    Goes on where `read_jpeg` stopped.

    Every scan of a progressive picture visits every block, and a running decoder cannot be stopped.
    The count bounds its work beforehand.
    """
    scans = 0
    for marker, _, _ in jpeg_segments(data, header.last_part):
        if marker == _START_OF_SCAN:
            scans += 1
            if scans > stop_after:
                break
    return scans


def jpeg_segments(data: bytes, position: int = 2) -> Iterator[tuple[int, int, int]]:
    """Yields (marker, offset of its length field, declared end) up to the end of the first picture.

    Args:
        data: the whole file.
        position: offset of the marker to begin with.

    Raises:
        ImageTooComplex: there are more than `MAX_JPEG_MARKERS` markers, or 4,096 fill bytes in a row.
    """
    reach = _MAX_JPEG_GAP_BYTES
    for _ in range(MAX_JPEG_MARKERS):
        if _NEXT_MARKER.match(data, position):  # except after a scan or padding
            after: int | None = position + 2
        else:
            after = _find_marker(data, position, position + reach)
            # A decoder that gets a file in pieces starts again at the first fill byte each time.
            if data.find(_JPEG_FILL, position, after) >= 0:
                raise ImageTooComplex(f"the JPEG has {len(_JPEG_FILL)} fill bytes in a row")
        if after is None:
            return

        marker, position = data[after - 1], after
        if marker == _END_OF_IMAGE:
            return
        if marker in _STANDALONE:
            continue
        if marker == _START_OF_SCAN:
            reach = len(data)

        stop = position + int.from_bytes(data[position : position + 2], "big")
        yield marker, position, stop
        if position + 2 > len(data):
            return
        position = stop
    raise ImageTooComplex(f"the JPEG has more than {MAX_JPEG_MARKERS:,} markers")


def _find_marker(data: bytes, start: int, end: int) -> int | None:
    # Returns the offset after the marker. A search holds the interpreter lock, so it goes in steps.
    for step in range(start, min(end, len(data)), _SEARCH_STEP_BYTES):
        found = _NEXT_MARKER.search(data, step, min(step + _SEARCH_STEP_BYTES, end) + 1)
        if found is not None:
            return found.end()
    return None


def exif_orientation(exif: bytes) -> int | None:
    """Returns the orientation in the first directory of an EXIF block.

    Args:
        exif: the TIFF structure, with or without the "Exif" prefix.

    Returns:
        The stored number; only 1 to 8 have a meaning. None if there is none or the block is
        malformed: the pixels are usable without it.
    """
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return None

    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (n_entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(directory + 2, directory + 2 + 12 * n_entries, 12):
            tag, kind = struct.unpack_from(f"{order}HH", tiff, entry)
            if tag == _ORIENTATION_TAG and kind in _EXIF_FORMATS:
                (orientation,) = struct.unpack_from(order + _EXIF_FORMATS[kind], tiff, entry + 8)
                return int(orientation)
    except struct.error:
        return None
    return None
