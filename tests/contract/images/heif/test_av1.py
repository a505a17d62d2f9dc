"""The size of an AV1 picture, in headers that are written here bit by bit."""

from __future__ import annotations

import pytest

from contract.errors import ImageTruncated, ImageUndecodable
from contract.images.heif.av1 import read_av1_picture

# Parts of sequence_header_obu (AV1 specification, 5.5.1), for 64 x 48 pixels.
HEAD = "000 0 0"  # profile, not a still picture, no reduced header
NO_TIMING = "0 0 00000 000000000000 00000"
SIZE = "0101 0101 111111 101111"
NO_FRAME_ID, FRAME_ID = "0", "1 0011 001"  # 5 + 2 bits
TOOLS = "000 0000 0"  # no order hint
ORDER_HINT = "000 0000 1 00"
SCREEN_CONTENT = {"each": "1 1", "never": "0 0", "always": "0 1 0 1", "always-each": "0 1 1"}

KEY_FRAME = "0 00 1"  # no frame again, type, shown


def packed(*parts: str) -> bytes:
    bits = "".join(parts).replace(" ", "") + "1"
    return int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")


def item(sequence: bytes, frame: bytes) -> bytes:
    return b"\x0a" + bytes([len(sequence)]) + sequence + b"\x32" + bytes([len(frame)]) + frame


def size_of(sequence: tuple[str, ...], frame: tuple[str, ...]) -> tuple[int, int]:
    return read_av1_picture(item(packed(*sequence), packed(*frame)))[1]


CASES = {
    "plain": (NO_TIMING, NO_FRAME_ID, TOOLS, "each", "0 0"),
    "order-hint": (NO_TIMING, NO_FRAME_ID, ORDER_HINT, "each", "0 0"),
    "screen-content": (NO_TIMING, NO_FRAME_ID, TOOLS, "each", "0 1 1"),
    "no-screen-content": (NO_TIMING, NO_FRAME_ID, TOOLS, "never", "0"),
    "always-screen-content": (NO_TIMING, NO_FRAME_ID, TOOLS, "always", "0"),
    "whole-vectors": (NO_TIMING, NO_FRAME_ID, TOOLS, "always-each", "0 0"),
    "numbered": (NO_TIMING, FRAME_ID, TOOLS, "each", "0 0 1010101"),
    "two-operating-points": (
        "0 1 00001" + "000000000000 01000 1 1 1010" + "000000000001 00000 0",
        NO_FRAME_ID,
        TOOLS,
        "each",
        "0 0",
    ),
    "timing": (
        "1" + "0" * 64 + "1 00100 0 0 00000 000000000000 00000",
        NO_FRAME_ID,
        TOOLS,
        "each",
        "0 0",
    ),
    "frame-times": (
        "1" + "0" * 64 + "0 1 00011" + "1" * 32 + "00000 00010"
        "0 00000 000000000000 00000 1 1111 0000 1",
        NO_FRAME_ID,
        TOOLS,
        "each",
        "111 0 0",
    ),
    "equal-frame-times": (
        "1" + "0" * 64 + "1 1 1 00011" + "1" * 32 + "00000 00010 0 00000 000000000000 00000 0",
        NO_FRAME_ID,
        TOOLS,
        "each",
        "0 0",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_frame_of_another_size_than_the_sequence_is_refused(case):
    # A decoder compares neither: 40 kB that declare 64 x 64 pixels decoded 12 million.
    timing, frame_id, tools, screen_content, before = case
    sequence = (HEAD, timing, SIZE, frame_id, tools, SCREEN_CONTENT[screen_content])

    assert size_of(sequence, (KEY_FRAME, before, "0")) == (64, 48)
    with pytest.raises(ImageUndecodable, match="another size"):
        size_of(sequence, (KEY_FRAME, before, "1"))


def test_reduced_header_has_the_size_of_the_sequence():
    assert size_of(("000 1 1 00000", SIZE), ("1" * 16,)) == (64, 48)


@pytest.mark.parametrize("frame", ["1 00 1", "0 01 1", "0 11 1", "0 00 0"])
def test_frame_that_needs_others_or_is_not_shown_is_refused(frame):
    with pytest.raises(ImageUndecodable, match="other pictures"):
        size_of((HEAD, NO_TIMING, SIZE, NO_FRAME_ID, TOOLS, "0 0"), (frame, "0" * 16))


def test_frame_without_a_header_is_refused():
    sequence = packed(HEAD, NO_TIMING, SIZE, NO_FRAME_ID, TOOLS, "0 0")

    with pytest.raises(ImageUndecodable, match="too early"):
        read_av1_picture(item(sequence, b""))


@pytest.mark.parametrize("last", [b"\x34", b"\x36", b"\x32", b"\x32\x80"])
def test_unit_that_ends_in_its_own_head_is_truncated(last):
    with pytest.raises(ImageTruncated):
        read_av1_picture(item(packed("000 1 1 00000", SIZE), b"x")[:-3] + last)
