"""Removes everything from an image file that does not make pixels, before a decoder reads it.

Decoders spend time and memory on comments, profiles and extensions that a classifier never uses. Some
of the cost grows with the square of their number: 2 MB of small EXIF segments kept Pillow busy for
5 s, and 64 kB of compressed PNG text became 250 MB. Each function here takes a whole file and returns
the same picture without them, and the EXIF block, which holds the orientation.

Most damage is left to the decoder, which finds it in the bytes that are kept. The exception are files
that end in zeros: decoders take these for pixels.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final

from contract.errors import (
    ImageBadDimensions,
    ImageTooComplex,
    ImageTruncated,
    ImageUndecodable,
)
from contract.images import headers
from contract.images.headers import JpegHeader
from contract.images.jpeg import ENDS_EARLY, first_warning

MAX_GIF_BLOCKS: Final = 100_000
"""Most sub-blocks before a GIF's first frame. The largest real metadata has 10,000."""

MAX_JPEG_TABLE_BYTES: Final = 256 * 1024
"""Most bytes kept before a JPEG's first scan. Real files have about 1 kB."""

_START_OF_IMAGE: Final = b"\xff\xd8"
_MAX_JPEG_ZEROS: Final = 2  # that a scan can end with; plain blocks of colour are zeros
_END_OF_IMAGE: Final = b"\xff\xd9"
_DOUBTFUL_WEBP_ZEROS: Final = 16


@dataclass(frozen=True, slots=True)
class StrippedFile:
    """A file without the parts that make no pixels.

    Attributes:
        data: a file of the same format with the same pixels.
        exif: the EXIF block; empty if there is none or if the decoder returns it.
        orientation: EXIF's number for what undoes the stored one, if the file says it elsewhere.
        crop: (left, top, right, bottom) of what is shown of the decoded picture; None for all.
    """

    data: bytes
    exif: bytes = b""
    orientation: int | None = None
    crop: tuple[int, int, int, int] | None = None


def strip_jpeg(data: bytes, header: JpegHeader) -> StrippedFile:
    """Keeps colour markers, tables, the frame header and everything from the first scan on.

    A multi-picture file becomes its first picture, because its index is removed.

    Raises:
        ImageTooComplex: there are more tables than any camera or program writes.
        ImageUndecodable: there are several frame headers, and decoders differ in which they use.
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


def end_jpeg(stripped: bytes, header: JpegHeader) -> bytes:
    """Adds the end marker that a JPEG of one scan lacks, if the scan is complete.

    Zeros are valid codes. A decoder takes the empty rest of a buffer behind half a file for pixels
    and reports nothing. Without this rest it tells a cut file from one that lacks only its marker.
    If scans can follow, nobody can tell whether one is missing, and the file remains as it is.

    Args:
        stripped: what `strip_jpeg` returned.
        header: of the file before stripping.

    Returns:
        The same bytes if there is an end marker.
    """
    if header.whole_scan is None:
        return stripped
    scan = len(stripped) - (header.parts[-1][1] - header.whole_scan)
    stop = headers.jpeg_scan_stop(stripped, scan)
    if stop < len(stripped) and not stripped.startswith(_START_OF_IMAGE, stop):
        return stripped
    open_end = stripped[:stop].rstrip(b"\0")
    n_zeros = min(_MAX_JPEG_ZEROS, stop - len(open_end))
    for kept in range(n_zeros, -1, -1):
        ended = open_end + bytes(kept) + _END_OF_IMAGE
        warning = first_warning(ended)
        if not warning:
            return ended
        if ENDS_EARLY in warning:
            break
    return open_end


def strip_png(data: bytes) -> StrippedFile:
    """Keeps the first IHDR, PLTE and tRNS chunk, the first run of IDAT chunks and IEND.

    An animated PNG becomes the still picture that programs without animation show.

    Raises:
        ImageTooComplex: there are more chunks than any program writes.
        ImageTruncated: there is no IEND and the last IDAT has a wrong checksum, as in a buffer that
            is filled in part. Decoders do not compare it, and zeros can be valid codes.
    """
    view = memoryview(data)
    kept, exif, seen, last = [view[:8]], b"", set(), b""
    chunk = view[:0]
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

    if b"IEND" not in seen and last == b"IDAT" and not _has_png_checksum(chunk):
        raise ImageTruncated("the file ends before the picture is complete")
    return StrippedFile(b"".join(kept), exif)


def _has_png_checksum(chunk: memoryview) -> bool:
    return zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")


def png_has_all_rows(data: bytes) -> bool:
    """Returns whether a PNG's compressed data holds all the rows that its header declares.

    Decoders take an early end of the zlib stream as the end of the picture and leave the rest
    black. Takes as long as decoding, but only a buffer's memory.
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


def webp_without_last_zeros(data: bytes) -> bytes | None:
    """Returns the first picture of a WebP file without its last bytes, if these are zeros.

    Returns:
        A file of this picture alone, without alpha. None if there are few zeros at its end, which
        encoders write too.
    """
    picture = headers.webp_picture(data)
    if picture is None:
        return None
    kind, start, length = picture
    content = data[start : start + length]
    if not content.endswith(bytes(_DOUBTFUL_WEBP_ZEROS)):
        return None

    content = content[: -_DOUBTFUL_WEBP_ZEROS // 2]
    chunk = kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def strip_gif(data: bytes) -> StrippedFile:
    """Keeps the colour table, the last graphic control (transparency) and the frames.

    Enlarges the screen to hold the first frame, as decoders do.

    Raises:
        ImageTooComplex: there are more sub-blocks before the first frame than any program writes.
        ImageUndecodable: there is no frame.
        ImageBadDimensions: the first frame ends beyond 65,535 pixels, GIF's largest screen.
    """
    try:
        frame, control = _first_gif_frame(data)
        left, top, width, height = struct.unpack_from("<HHHH", data, frame + 1)
    except (IndexError, struct.error):
        raise ImageUndecodable("the GIF ends before its first frame") from None

    screen = struct.unpack_from("<HH", data, 6)
    size = max(screen[0], left + width), max(screen[1], top + height)
    if max(size) > 0xFFFF:
        raise ImageBadDimensions(f"the first frame reaches {max(size):,} pixels, GIF allows 65,535")

    table = data[10 : headers.gif_blocks_start(data)]
    return StrippedFile(
        b"".join((data[:6], struct.pack("<HH", *size), table, control, data[frame:]))
    )


def _first_gif_frame(data: bytes) -> tuple[int, bytes]:
    # Returns the offset of the first image descriptor and the graphic control before it.
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
        blocks += 1  # an extension without sub-blocks counts too
        if blocks > MAX_GIF_BLOCKS:
            raise ImageTooComplex(
                f"the GIF has more than {MAX_GIF_BLOCKS:,} blocks before its frame"
            )

    return position, control
