"""Reads what bounds the decoding of an HEVC still picture, and keeps only that.

ISO/IEC 23008-2: compressed data consists of units (NAL). Parameter sets describe the picture, slices
hold it. In a HEIF file the parameter sets are in the property `hvcC` and the slices in the item.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from contract.errors import ImageTooComplex, ImageTruncated, ImageUndecodable
from contract.images.headers import Size
from contract.images.heif.bits import Bits
from contract.images.heif.boxes import Fields, check_count

MAX_UNITS: Final = 250
"""Most units in one item. Real pictures have 1 to 70; a grid can have 512 items."""

_MAX_ARRAYS: Final = 16
_MAX_SETS: Final = 16
_MAX_SET_BYTES: Final = 4096
_MAX_BITS: Final = 12  # of a sample; cameras write 8 and 10
_MAX_PADDING_PX: Final = 127  # that encoders add to a side to fill their blocks

_VPS, _SPS, _PPS = 32, 33, 34  # video, sequence and picture parameter set
_PARAMETER_SETS: Final = (_VPS, _SPS, _PPS)
# IDR: pictures that need no other one. BLA and CRA can name 15 others that are missing, and a decoder
# makes each of them, in grey and in full size.
_IDR_SLICES: Final = frozenset({19, 20})
_SLICES: Final = frozenset(range(32))
_CHROMA_STEPS: Final = ((1, 1), (2, 2), (2, 1), (1, 1))  # grey, 4:2:0, 4:2:2, 4:4:4


@dataclass(frozen=True, slots=True)
class HevcConfig:
    """The property `hvcC`, checked.

    Attributes:
        size: (width, height) of the picture, in pixels.
        coded_size: the same with the padding that is decoded but not shown.
        weight: 1 for 8 bits and grey or 4:2:0; 2 for others, which take twice the time and memory.
        box: content of an `hvcC` with the parameter sets alone.
        sets: the parameter sets.
        length_bytes: size of the length in front of each unit of the item.
    """

    size: Size
    coded_size: Size
    weight: int
    box: bytes
    sets: frozenset[bytes]
    length_bytes: int


def read_hevc_config(content: Fields) -> HevcConfig:
    """Reads and checks the property `hvcC`.

    Raises:
        ImageTooComplex: there are more or longer parameter sets than encoders write.
        ImageUndecodable: they are malformed, or there is not exactly one description of the size.
    """
    head = bytearray(content.take(22))
    sets: dict[int, list[bytes]] = {kind: [] for kind in _PARAMETER_SETS}
    n_arrays = content.number(1)
    check_count(n_arrays, _MAX_ARRAYS, "lists of parameter sets")
    for _ in range(n_arrays):
        content.take(1)
        n_units = content.number(2)
        check_count(n_units, _MAX_SETS, "parameter sets")
        for _ in range(n_units):
            unit = content.take(content.number(2))
            kind = _kind(unit)
            if kind in sets:
                sets[kind].append(unit)
                check_count(len(unit), _MAX_SET_BYTES, "bytes in a parameter set")
    if len(sets[_SPS]) != 1 or not sets[_PPS]:
        raise ImageUndecodable("the picture does not have one description of its size")
    check_count(sum(map(len, sets.values())), _MAX_SETS, "parameter sets")

    size, coded_size, (chroma, luma_bits, chroma_bits) = _read_sps(sets[_SPS][0])
    length_bytes = (head[21] & 3) + 1
    # What the box repeats from the parameter sets is written anew, so that both always agree.
    head[16:19] = (0xFC | chroma, 0xF8 | luma_bits - 8, 0xF8 | chroma_bits - 8)
    head[21] |= 3
    box = bytes(head) + bytes([sum(1 for units in sets.values() if units)])
    for kind, units in sets.items():
        if units:
            box += bytes([0x80 | kind]) + len(units).to_bytes(2, "big")
            box += b"".join(len(unit).to_bytes(2, "big") + unit for unit in units)
    known = frozenset(unit for units in sets.values() for unit in units)
    weight = 1 if chroma < 2 and luma_bits == chroma_bits == 8 else 2
    return HevcConfig(size, coded_size, weight, box, known, length_bytes)


def read_hevc_picture(data: bytes, config: HevcConfig) -> tuple[bytes, int]:
    """Keeps the slices of an item.

    Returns:
        (the slices, each after four bytes with its length; the number of slices).

    Raises:
        ImageTooComplex: there are more units than encoders write.
        ImageTruncated: the last unit is not complete.
        ImageUndecodable: there is more than one picture, or a description of another one.
    """
    kept: list[bytes] = []
    for unit in _units(data, config.length_bytes):
        kind = _kind(unit)
        if kind in _PARAMETER_SETS and unit not in config.sets:
            raise ImageUndecodable("the picture is described twice, and differently")
        if kind not in _SLICES or unit[0] & 1 or unit[1] >> 3:  # notes, or another view
            continue
        if kind not in _IDR_SLICES:
            raise ImageUndecodable("the picture needs other pictures to be decoded")
        if not unit[-1]:  # 7.4.2: a unit never ends in a zero; the empty rest of a buffer does
            raise ImageTruncated("the picture ends in zeros before it is complete")
        is_first = unit[2:3] >= b"\x80"  # first_slice_segment_in_pic_flag
        if is_first == bool(kept):
            raise ImageUndecodable("there is not exactly one picture where one is declared")
        kept += (len(unit).to_bytes(4, "big"), unit)
    if not kept:
        raise ImageUndecodable("the picture has no content")
    return b"".join(kept), len(kept) // 2


def _units(data: bytes, length_bytes: int) -> Iterator[bytes]:
    position = 0
    for _ in range(MAX_UNITS):
        if position == len(data):
            return
        start = position + length_bytes
        position = start + int.from_bytes(data[position:start], "big")
        if position > len(data):
            raise ImageTruncated("the file ends before the picture is complete")
        yield data[start:position]
    raise ImageTooComplex(f"the picture has more than {MAX_UNITS:,} units")


def _kind(unit: bytes) -> int:
    # 7.4.2.2: the second byte is never zero, so it is no part of what `_read_sps` replaces.
    if len(unit) < 2 or unit[0] & 0x80 or not unit[1] & 7:
        raise ImageUndecodable("a unit of the picture is malformed")
    return unit[0] >> 1


def _read_sps(unit: bytes) -> tuple[Size, Size, tuple[int, int, int]]:
    # Returns the shown size, the coded one and (chroma format, bits of luma, bits of chroma).
    bits = Bits(unit[2:].replace(b"\0\0\3", b"\0\0"))  # 7.3.1.1: the 3 keeps start codes away
    bits.take(4)
    n_layers = bits.take(3)
    bits.take(1)
    _skip_profile(bits, n_layers)
    bits.variable()
    chroma = bits.variable()
    if chroma > 3 or (chroma == 3 and bits.flag()):
        raise ImageUndecodable("the picture stores its colours in an unknown way")
    coded_size = width, height = bits.variable(), bits.variable()
    size = coded_size
    if bits.flag():
        x, y = _CHROMA_STEPS[chroma]
        left, right, top, bottom = (bits.variable() for _ in range(4))
        size = width - x * (left + right), height - y * (top + bottom)
    for coded, shown in zip(coded_size, size, strict=True):
        if shown < 1 or coded - shown > _MAX_PADDING_PX:
            raise ImageUndecodable("more of the picture is coded than shown")
    formats = chroma, 8 + bits.variable(), 8 + bits.variable()
    if max(formats[1:]) > _MAX_BITS:
        raise ImageUndecodable("the picture has more bits per sample than cameras write")
    return size, coded_size, formats


def _skip_profile(bits: Bits, n_layers: int) -> None:
    # 7.3.3, profile_tier_level
    bits.take(88 + 8)
    present = [(bits.flag(), bits.flag()) for _ in range(n_layers)]
    if n_layers:
        bits.take(2 * (8 - n_layers))
    for profile, level in present:
        bits.take(88 * profile + 8 * level)
