"""The fast path gives the same pixels as Pillow and decodes no file that Pillow refuses."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from contract import images
from contract.errors import ImageError
from contract.images import Picture, decode, inspect
from contract.images.jpeg import decode_jpeg, reduction_for
from contract.images.resampling import as_image
from tests import pictures
from tests.pictures import ACCEPTED, HOSTILE, MODES, ORIENTATIONS

CUTS = range(5, 100, 5)
KINDS: dict[str, dict[str, Any]] = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 2},
    "optimised": {"optimize": True},
}


def noisy(size=(150, 101), mode="RGB"):
    """Returns a picture in which every block has all frequencies."""
    shape = (size[1], size[0], 3)
    noise = np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)
    return Image.blend(pictures.photo(size), Image.fromarray(noise), 0.3).convert(mode)


def decode_reduced(data, shorter_side_px):
    return images.decode_reduced(inspect(data), shorter_side_px)


def array(picture):
    return np.asarray(as_image(picture.pixels))


def outcome(read, data):
    """Returns the error code, or `ACCEPTED`."""
    try:
        read(data)
    except ImageError as error:
        return error.code
    return ACCEPTED


def reduced(data):
    return decode_reduced(data, 16)


@pytest.mark.parametrize(
    ("size", "shorter_side_px", "expected"),
    [
        ((500, 375), 188, 1),
        ((500, 376), 188, 2),
        ((1503, 5000), 188, 4),
        ((1504, 5000), 188, 8),
        ((8000, 6000), 188, 8),
        ((1, 1), 188, 1),
    ],
)
def test_reduction_leaves_the_shorter_side_long_enough(size, shorter_side_px, expected):
    assert reduction_for(size, shorter_side_px) == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_decode_jpeg_gives_the_pixels_of_pillow(kind, mode):
    data = pictures.encode(noisy(mode=mode), "JPEG", quality=92, **KINDS[kind])

    pixels = decode_jpeg(data, (150, 101), 1)

    assert pixels is not None
    assert np.array_equal(pixels, np.asarray(decode(data)))


@pytest.mark.parametrize("reduction", [2, 4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_decode_jpeg_reduced_gives_the_pixels_of_pillows_draft(kind, reduction):
    data = pictures.encode(noisy(), "JPEG", quality=92, **KINDS[kind])
    image = Image.open(io.BytesIO(data))
    image.draft(None, (150 // reduction, 101 // reduction))

    pixels = decode_jpeg(data, (150, 101), reduction)

    assert image.size == (-(-150 // reduction), -(-101 // reduction))
    assert pixels is not None
    assert np.array_equal(pixels, np.asarray(image))


@pytest.mark.parametrize("name", ["jpeg-CMYK", "jpeg-CMYK-Adobe"])
def test_decode_jpeg_of_four_channels_is_left_to_pillow(name):
    data = {"jpeg-CMYK": pictures.plain_cmyk, "jpeg-CMYK-Adobe": pictures.adobe_cmyk}[name]()

    assert decode_jpeg(data, decode(data).size, 1) is None
    assert np.array_equal(array(decode_reduced(data, 4000)), np.asarray(decode(data)))


def test_decode_jpeg_of_rgb_channels_is_left_to_pillow():
    data = pictures.encode(noisy(), "JPEG", keep_rgb=True)

    assert decode_jpeg(data, (150, 101), 1) is None
    assert np.array_equal(array(decode_reduced(data, 4000)), np.asarray(decode(data)))


def test_decode_jpeg_of_undeclared_size_is_left_to_pillow():
    assert decode_jpeg(pictures.jpeg(noisy()), (100, 101), 1) is None


@pytest.mark.parametrize("percent", CUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_decode_reduced_cut_file_is_never_a_picture(kind, percent):
    data = pictures.cut(pictures.encode(noisy(), "JPEG", quality=92, **KINDS[kind]), percent)

    assert outcome(reduced, data) == outcome(decode, data) != ACCEPTED


@pytest.mark.parametrize("lost", [3, 4, 10])
@pytest.mark.parametrize("kind", KINDS)
def test_decode_reduced_file_without_its_last_bytes_is_never_a_picture(kind, lost):
    data = pictures.encode(noisy(), "JPEG", quality=92, **KINDS[kind])[:-lost]

    assert outcome(reduced, data) == outcome(decode, data) != ACCEPTED


@pytest.mark.parametrize("lost", [1, 2])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "progressive"])
def test_decode_reduced_file_of_one_scan_needs_no_end_marker(kind, lost):
    data = pictures.encode(noisy(), "JPEG", quality=92, **KINDS[kind])

    picture = decode_reduced(data[:-lost], 4000)

    assert np.array_equal(array(picture), array(decode_reduced(data, 4000)))


@pytest.mark.parametrize("lost", [1, 2])
def test_decode_reduced_progressive_file_needs_its_end_marker(lost):
    # Without it nobody knows whether the last scan is missing.
    data = pictures.encode(noisy(), "JPEG", progressive=True)[:-lost]

    assert outcome(reduced, data) == outcome(decode, data) == "image_truncated"


@pytest.mark.parametrize("kind", KINDS)
def test_decode_reduced_flipped_bits_end_as_in_decode(kind):
    data = pictures.encode(noisy(), "JPEG", quality=92, **KINDS[kind])
    positions = np.random.default_rng(7).integers(0, len(data) * 8, 150)
    broken = [pictures.flip_bit(data, int(position)) for position in positions]

    assert [outcome(reduced, file) for file in broken] == [outcome(decode, file) for file in broken]


@pytest.mark.parametrize("n_more", [1, 2, 200])
def test_decode_reduced_scan_after_a_complete_one_ends_as_in_decode(n_more):
    # libjpeg refuses more scans (JERR_EOI_EXPECTED), so they need not be counted in advance.
    data = pictures.jpeg(noisy())
    scan = data[data.rfind(b"\xff\xda") : -2]
    file = data[:-2] + n_more * scan + b"\xff\xd9"

    assert outcome(reduced, file) == outcome(decode, file) != ACCEPTED


@pytest.mark.parametrize("name", HOSTILE)
def test_decode_reduced_hostile_file_ends_as_in_decode(name, capfd):
    file = HOSTILE[name]

    assert outcome(reduced, file.data) in file.allowed
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", MODES)
def test_decode_reduced_of_every_colour_mode_equals_decode(name):
    data = MODES[name]()

    picture = decode_reduced(data, 4000)

    assert np.array_equal(array(picture), np.asarray(decode(data)))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP"])
def test_decode_reduced_is_upright(orientation, format_name):
    data = pictures.oriented(pictures.photo((90, 60)), orientation, format_name)

    picture = decode_reduced(data, 60)

    assert (picture.size, picture.reduction) == ((90, 60), 1)
    assert np.array_equal(array(picture), np.asarray(decode(data)))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_decode_reduced_rotated_jpeg_keeps_its_full_size(orientation):
    data = pictures.oriented(pictures.photo((91, 61)), orientation)

    picture = decode_reduced(data, 30)

    assert (picture.size, picture.reduction) == ((91, 61), 2)
    assert as_image(picture.pixels).size == (46, 31)


@pytest.mark.parametrize("kind", ["YCbCr", "CMYK"])
def test_decode_reduced_is_a_smaller_copy(kind):
    upright = pictures.photo((160, 120))
    data = pictures.encode(upright.convert(kind), "JPEG", quality=95)

    picture = decode_reduced(data, 30)

    expected = np.asarray(decode(data).reduce(4)).astype(int)
    assert picture.reduction == 4
    assert np.abs(array(picture).astype(int) - expected).mean() < 2


def test_decode_reduced_of_other_formats_is_the_whole_picture():
    picture = decode_reduced(pictures.png(pictures.photo((160, 120))), 10)

    assert isinstance(picture, Picture)
    assert (as_image(picture.pixels).size, picture.reduction) == ((160, 120), 1)


def test_decode_reduced_multi_picture_jpeg_gives_the_first_picture():
    first = decode_reduced(pictures.mpo(), 4000)

    assert np.array_equal(array(first), np.asarray(decode(pictures.mpo())))
