"""Cuts an image file down to what makes pixels, before a decoder sees it.

Decoders spend time and memory on comments, profiles and extensions that a classifier never looks
at, and some of that grows with the square of their number: 2 MB of small EXIF segments held Pillow
for 5 s, and 64 kB of compressed PNG text became 250 MB. Each function here takes a whole file and
returns the same picture without them, together with the EXIF block, from which
`contract.images.headers.exif_orientation` reads the one field that matters.

Damage is left for the decoder to find, in the bytes that are kept.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final

from contract.errors import ImageBadDimensions, ImageTooComplex, ImageUndecodable
from contract.images import headers
from contract.images.headers import JpegHeader

MAX_GIF_BLOCKS: Final = 100_000
"""Sub-blocks walked in front of a GIF's first frame at most; the largest real metadata has 10,000."""

MAX_JPEG_TABLE_BYTES: Final = 256 * 1024
"""Segments kept in front of a JPEG's first scan at most; real ones have about 1 kB."""


@dataclass(frozen=True, slots=True)
class StrippedFile:
    """What is left of a file.

    Attributes:
        data: a file of the same format and with the same pixels.
        exif: the EXIF block, empty where there is none or where the decoder hands it out.
    """

    data: bytes
    exif: bytes = b""


def strip_jpeg(data: bytes, header: JpegHeader) -> StrippedFile:
    """Keeps colour markers, tables, the frame header and everything from the first scan on.

    A multi-picture file becomes its first picture, because the index goes with the other segments.

    Args:
        data: the whole file.
        header: of this file.

    Raises:
        ImageTooComplex: more tables than any camera or program writes.
        ImageUndecodable: two frame headers, of which decoders might trust either.
    """
    if header.n_frames > 1:
        raise ImageUndecodable("the JPEG has more than one frame header")
    *tables, rest = (stop - start for start, stop in header.parts)
    if sum(tables) > MAX_JPEG_TABLE_BYTES:
        raise ImageTooComplex(f"the JPEG has more than {MAX_JPEG_TABLE_BYTES >> 10} KiB of tables")
    if sum(tables) + rest == len(data):  # nothing to drop, so nothing to copy
        return StrippedFile(data, header.exif)
    view = memoryview(data)
    return StrippedFile(b"".join(view[start:stop] for start, stop in header.parts), header.exif)


def strip_png(data: bytes) -> StrippedFile:
    """Keeps the first IHDR, PLTE and tRNS chunk, the first run of IDAT chunks and the end.

    An animated PNG becomes the still picture that it shows where animation is not supported.

    Raises:
        ImageTooComplex: more chunks than any program writes.
    """
    view = memoryview(data)
    kept, exif, seen, last = [view[:8]], b"", set(), b""
    for kind, start, length in headers.png_chunks(data):
        chunk = view[start - 8 : start + length + 4]
        if kind == b"IDAT":
            if last == b"IDAT" or kind not in seen:
                kept.append(chunk)
        elif kind in (b"IHDR", b"PLTE", b"tRNS", b"IEND") and kind not in seen:
            kept.append(chunk)
        elif kind == b"eXIf" and kind not in seen:
            exif = data[start : start + length]
        seen.add(kind)
        last = kind
    return StrippedFile(b"".join(kept), exif)


def png_has_all_rows(data: bytes) -> bool:
    """Says whether a PNG's compressed data is as long as its header demands.

    Decoders treat an early end of the zlib stream as the end of the picture and leave the rest
    black. Costs as much as decoding, in memory only a buffer.
    """
    missing = headers.png_raw_bytes(data)
    inflater = zlib.decompressobj()
    try:
        for kind, start, length in headers.png_chunks(data):
            rest = data[start : start + length] if kind == b"IDAT" else b""
            while rest and missing > 0:
                missing -= len(inflater.decompress(rest, 1 << 18))
                rest = inflater.unconsumed_tail
    except zlib.error:
        return False
    return missing <= 0


def strip_gif(data: bytes) -> StrippedFile:
    """Keeps the colour table, the last graphic control (transparency) and the frames.

    The screen is enlarged to hold the first frame, as decoders do.

    Raises:
        ImageTooComplex: more sub-blocks in front of the first frame than any program writes.
        ImageUndecodable: no frame.
        ImageBadDimensions: the first frame ends beyond the largest screen that can be declared.
    """
    try:
        frame, control = _first_gif_frame(data)
        left, top, width, height = struct.unpack_from("<HHHH", data, frame + 1)
    except (IndexError, struct.error):
        raise ImageUndecodable("the GIF ends before its first frame") from None
    screen = struct.unpack_from("<HH", data, 6)
    size = max(screen[0], left + width), max(screen[1], top + height)
    if max(size) > 0xFFFF:
        raise ImageBadDimensions(f"the first frame reaches {max(size)} pixels, GIF allows 65535")
    table = data[10 : headers.gif_blocks_start(data)]
    return StrippedFile(
        b"".join((data[:6], struct.pack("<HH", *size), table, control, data[frame:]))
    )


def _first_gif_frame(data: bytes) -> tuple[int, bytes]:
    """Returns the offset of the first image descriptor and the graphic control in front of it."""
    position, control, blocks = headers.gif_blocks_start(data), b"", 0
    while data[position] != ord(","):
        if data[position] != ord("!"):
            raise ImageUndecodable("the GIF has no frame")
        if data[position + 1] == 0xF9 and data[position + 2] == 4:
            control = data[position : position + 7] + b"\0"
        position += 2
        while data[position]:
            position += 1 + data[position]
            blocks += 1
        position += 1
        blocks += 1
        if blocks > MAX_GIF_BLOCKS:
            raise ImageTooComplex(f"the GIF has more than {MAX_GIF_BLOCKS} blocks before its frame")
    return position, control
