"""Reads what bounds the decoding of an AV1 still picture, and keeps only that.

AV1 specification, 5.3 to 5.9: compressed data consists of units (OBU). A sequence header describes
the picture, frames hold it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from contract.errors import ImageTooComplex, ImageTruncated, ImageUndecodable, UnsupportedMediaType
from contract.images.headers import Size
from contract.images.heif.bits import Bits

MAX_UNITS: Final = 250
"""Most units in one item. Real pictures have 2 to 70; a grid can have 512 items."""

_MAX_HEADER_BYTES: Final = 1024
_MAX_LENGTH_BYTES: Final = 8
_DOUBTFUL_ZEROS: Final = 16  # at the end; encoders write the bytes that a decoder needs
_HAS_EXTENSION, _HAS_LENGTH = 4, 2
_SEQUENCE_HEADER, _FRAME_HEADER, _TILE_GROUP, _FRAME, _TILE_LIST = 1, 3, 4, 6, 8
_FRAMES: Final = frozenset({_FRAME_HEADER, _FRAME})
_EACH_FRAME_SAYS: Final = 2  # SELECT_SCREEN_CONTENT_TOOLS, SELECT_INTEGER_MV
_SHOWN_KEY_FRAME: Final = 0b0_00_1  # show_existing_frame, frame_type, show_frame


def read_av1_picture(data: bytes) -> tuple[bytes, Size]:
    """Keeps the description and the frame of an item.

    Returns:
        (the units that make pixels, each with its length; the size of the frame).

    Raises:
        ImageTooComplex: there are more units than encoders write.
        ImageTruncated: the last unit is not complete.
        ImageUndecodable: there is no picture, a second description that differs, or a frame that has
            another size or needs other frames.
        UnsupportedMediaType: there are several frames, as in a progressive picture.
    """
    sequence_header = frame_header = b""
    n_frames = 0
    kept: list[bytes] = []
    for kind, content in _units(data):
        if kind == _SEQUENCE_HEADER:
            if content == sequence_header:
                continue
            if sequence_header:
                raise ImageUndecodable("the picture is described twice, and differently")
            sequence_header = content
        elif kind in _FRAMES:
            n_frames += 1
            frame_header = content
        elif kind == _TILE_LIST:
            raise ImageUndecodable("the picture is coded for large screens of tiles")
        elif kind != _TILE_GROUP:
            continue  # notes, padding and copies of the frame header
        if not sequence_header:
            raise ImageUndecodable("the picture has no description in front of it")
        kept += (bytes([kind << 3 | _HAS_LENGTH]), _leb128(len(content)), content)
    if data.endswith(bytes(_DOUBTFUL_ZEROS)):
        raise ImageTruncated("the picture ends in zeros before it is complete")
    if n_frames > 1:
        raise UnsupportedMediaType("the AVIF has several layers or frames in one picture")
    if not n_frames:
        raise ImageUndecodable("the picture has no content")
    return b"".join(kept), _frame_size(sequence_header, frame_header)


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
        if length < 0 or position + length > len(data):
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


def _frame_size(sequence_header: bytes, frame_header: bytes) -> Size:
    # 5.5.1, sequence_header_obu
    sequence = Bits(sequence_header[:_MAX_HEADER_BYTES])
    sequence.take(3 + 1)
    is_reduced, time_bits = sequence.flag(), 0
    if is_reduced:  # reduced_still_picture_header; the frame then has no size of its own
        sequence.take(5)
    else:
        time_bits = _skip_operating_points(sequence)
    width_bits, height_bits = sequence.take(4) + 1, sequence.take(4) + 1
    size = sequence.take(width_bits) + 1, sequence.take(height_bits) + 1
    if not is_reduced:
        _check_frame(sequence, Bits(frame_header[:_MAX_HEADER_BYTES]), time_bits)
    return size


def _skip_operating_points(sequence: Bits) -> int:
    # Returns the number of bits that each frame uses for its time.
    delay_bits = time_bits = 0
    if sequence.flag():  # timing_info_present_flag
        sequence.take(64)
        has_equal_intervals = sequence.flag()
        if has_equal_intervals:
            sequence.variable()
        if sequence.flag():  # decoder_model_info_present_flag
            delay_bits = sequence.take(5) + 1
            sequence.take(32 + 5)
            time_bits = sequence.take(5) + 1
            if has_equal_intervals:
                time_bits = 0
    has_display_delay = sequence.flag()
    for _ in range(sequence.take(5) + 1):
        sequence.take(12)
        if sequence.take(5) > 7:
            sequence.take(1)
        if delay_bits and sequence.flag():
            sequence.take(2 * delay_bits + 1)
        if has_display_delay and sequence.flag():
            sequence.take(4)
    return time_bits


def _check_frame(sequence: Bits, frame: Bits, time_bits: int) -> None:
    # 5.9.2, uncompressed_header, up to frame_size_override_flag. What is read of the rest of the
    # sequence header says which bits come before it. A decoder does not compare the two sizes.
    id_bits = sequence.take(4) + 2 + sequence.take(3) + 1 if sequence.flag() else 0
    sequence.take(3 + 4)  # use_128x128_superblock to enable_dual_filter
    if sequence.flag():  # enable_order_hint
        sequence.take(2)
    screen_content = _EACH_FRAME_SAYS if sequence.flag() else sequence.take(1)
    integer_mv = _EACH_FRAME_SAYS
    if screen_content and not sequence.flag():
        integer_mv = sequence.take(1)

    if frame.take(1 + 2 + 1) != _SHOWN_KEY_FRAME:
        raise ImageUndecodable("the picture needs other pictures to be decoded")
    frame.take(time_bits + 1)  # and disable_cdf_update
    if screen_content == _EACH_FRAME_SAYS:
        screen_content = frame.take(1)
    if screen_content and integer_mv == _EACH_FRAME_SAYS:
        frame.take(1)
    frame.take(id_bits)
    if frame.flag():
        raise ImageUndecodable("the picture is coded in another size than it is described with")
