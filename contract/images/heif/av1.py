"""Reads what bounds the decoding of an AV1 still picture, and keeps only that.

AV1 specification, 5.3 to 5.9: compressed data consists of units (OBU). A sequence header describes
the picture, frames hold it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from contract.errors import ImageTooComplex, ImageTruncated, ImageUndecodable, UnsupportedMediaType
from contract.images.heif.bits import Bits

Size = tuple[int, int]

MAX_UNITS: Final = 1_000
"""Most units in one item. Real pictures have 2 to 70."""

_MAX_HEADER_BYTES: Final = 1024
_MAX_LENGTH_BYTES: Final = 8
_DOUBTFUL_ZEROS: Final = 16  # at the end; encoders write the bytes that a decoder needs
_HAS_EXTENSION, _HAS_LENGTH = 4, 2
_SEQUENCE_HEADER, _FRAME_HEADER, _TILES, _FRAME, _TILE_LIST = 1, 3, 4, 6, 8
_FRAMES: Final = frozenset({_FRAME_HEADER, _FRAME})


def read_av1_picture(data: bytes) -> tuple[bytes, Size]:
    """Keeps the description and the frame of an item.

    Returns:
        (the units that make pixels, each with its length; the largest size of a frame).

    Raises:
        ImageTooComplex: there are more units than encoders write.
        ImageTruncated: the last unit is not complete.
        ImageUndecodable: there is no picture, or a second description that differs.
        UnsupportedMediaType: there are several frames, as in a progressive picture.
    """
    described = b""
    n_frames = 0
    kept: list[bytes] = []
    for kind, content in _units(data):
        if kind == _SEQUENCE_HEADER:
            if described and content != described:
                raise ImageUndecodable("the picture is described twice, and differently")
            if described:
                continue
            described = content
        elif kind in _FRAMES:
            n_frames += 1
        elif kind == _TILE_LIST:
            raise ImageUndecodable("the picture is coded for large screens of tiles")
        elif kind != _TILES:
            continue  # notes, padding and copies of the frame header
        if not described:
            raise ImageUndecodable("the picture has no description in front of it")
        kept += (bytes([kind << 3 | _HAS_LENGTH]), _leb128(len(content)), content)
    if data.endswith(bytes(_DOUBTFUL_ZEROS)):
        raise ImageTruncated("the picture ends in zeros before it is complete")
    if n_frames > 1:
        raise UnsupportedMediaType("the AVIF has several layers or frames in one picture")
    if not n_frames:
        raise ImageUndecodable("the picture has no content")
    return b"".join(kept), _largest_frame(described)


def _units(data: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    for _ in range(MAX_UNITS):
        if position == len(data):
            return
        head = data[position]
        position += 2 if head & _HAS_EXTENSION else 1
        if head & 0x80:
            raise ImageUndecodable("a unit of the picture is malformed")
        length = len(data) - position
        if head & _HAS_LENGTH:
            length, position = _read_leb128(data, position)
        if position + length > len(data):
            raise ImageTruncated("the file ends before the picture is complete")
        yield head >> 3 & 15, data[position : position + length]
        position += length
    raise ImageTooComplex(f"the picture has more than {MAX_UNITS:,} units")


def _read_leb128(data: bytes, position: int) -> tuple[int, int]:
    # 4.10.5: seven bits in each byte, the lowest first; the top bit says that there are more.
    value = 0
    for index, byte in enumerate(data[position : position + _MAX_LENGTH_BYTES]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, position + index + 1
    raise ImageTruncated("the file ends before the picture is complete")


def _leb128(value: int) -> bytes:
    low = bytearray()
    while value > 0x7F:
        low.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*low, value])


def _largest_frame(header: bytes) -> Size:
    # 5.5.1, sequence_header_obu
    bits = Bits(header[:_MAX_HEADER_BYTES])
    bits.take(3 + 1)
    if bits.flag():  # reduced_still_picture_header
        bits.take(5)
    else:
        _skip_operating_points(bits)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    return bits.take(width_bits) + 1, bits.take(height_bits) + 1


def _skip_operating_points(bits: Bits) -> None:
    delay_bits = 0
    if bits.flag():  # timing_info_present_flag
        bits.take(64)
        if bits.flag():
            bits.variable()
        if bits.flag():  # decoder_model_info_present_flag
            delay_bits = bits.take(5) + 1
            bits.take(32 + 5 + 5)
    has_display_delay = bits.flag()
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:
            bits.take(1)
        if delay_bits and bits.flag():
            bits.take(2 * delay_bits + 1)
        if has_display_delay and bits.flag():
            bits.take(4)
