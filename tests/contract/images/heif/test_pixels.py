"""Right pixels: the files' picture is known, and its codings lose little."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from contract.errors import (
    ImageBadDimensions,
    ImageTooManyPixels,
    ImageTruncated,
    UnsupportedMediaType,
)
from contract.images import DECODERS, ImageLimits, decode, decode_reduced, decoding, inspect, sniff
from contract.images.heif import read_picture, write_file
from contract.images.heif.pictures import Grid, HeifPicture
from tests import pictures
from tests.contract.images.heif import FILES
from tests.contract.images.heif.builder import (
    WIDE,
    avif,
    box,
    coded,
    coded_avif,
    heif,
    item_of,
    needs_heic,
    number,
)

TOLERANCE = 6.0  # mean of 255; 4:2:0 blurs colours that change within a few pixels


def file(name: str) -> bytes:
    return (FILES / name).read_bytes()


def error(image: Image.Image, expected: Image.Image) -> float:
    assert (image.mode, image.size) == ("RGB", expected.size)
    return float(np.abs(np.asarray(image).astype(int) - np.asarray(expected)).mean())


def over_white(image: Image.Image) -> Image.Image:
    """Returns the picture behind a ramp of transparency from left to right, over white."""
    alpha = np.linspace(0, 255, image.width).astype(np.uint8)[None, :, None] / 255.0
    mixed: NDArray[np.float64] = np.asarray(image) * alpha + 255 * (1 - alpha)
    return Image.fromarray(mixed.astype(np.uint8))


@needs_heic
@pytest.mark.parametrize(
    "name", ["plain", "444", "422", "10-bit", "two", *(f"turned-{n}" for n in range(2, 9))]
)
def test_heic_has_the_right_pixels(name):
    assert error(decode(file(f"{name}.heic")), pictures.photo()) < TOLERANCE


@needs_heic
def test_heic_of_odd_size_is_cropped():
    assert error(decode(file("odd.heic")), pictures.photo((37, 21))) < 2 * TOLERANCE


@needs_heic
def test_grey_heic_is_rgb():
    expected = pictures.photo().convert("L").convert("RGB")

    assert error(decode(file("grey.heic")), expected) < 1


@needs_heic
@pytest.mark.parametrize("name", ["grid", "thumbnail"])
def test_heic_of_tiles_or_with_a_thumbnail_is_the_whole_picture(name):
    assert error(decode(file(f"{name}.heic")), pictures.photo((150, 100))) < TOLERANCE


@needs_heic
@pytest.mark.parametrize("name", ["alpha", "premultiplied"])
def test_transparent_heic_is_shown_on_white(name):
    assert error(decode(file(f"{name}.heic")), over_white(pictures.photo())) < TOLERANCE


@needs_heic
@pytest.mark.parametrize("path", sorted(FILES.glob("*.heic")), ids=lambda path: path.stem)
def test_heic_has_the_pixels_that_its_decoder_reads_in_the_original_file(path):
    import pi_heif

    original = pi_heif.open_heif(path).to_pillow()  # with rotation and crop
    if original.mode in ("RGBA", "RGBa"):
        white = Image.new("RGBA", original.size, "white")
        original = Image.alpha_composite(white, original.convert("RGBA"))

    assert error(decode(path.read_bytes()), original.convert("RGB")) == 0


@needs_heic
def test_decode_reduced_gives_heic_upright_with_its_size():
    picture = decode_reduced(inspect(file("turned-6.heic")), 16)

    assert (picture.size, picture.reduction, picture.corner) == ((64, 48), 1, (0.0, 0.0))
    assert isinstance(picture.pixels, Image.Image)
    assert error(picture.pixels, pictures.photo()) < TOLERANCE


@pytest.mark.parametrize("orientation", pictures.ORIENTATIONS)
def test_avif_orientation_is_undone_exactly_once(orientation):
    stored = pictures.stored_as(pictures.photo(), orientation)
    exif = pictures.exif_block([(0x0112, 3, 1, orientation)])

    image = decode(pictures.encode(stored, "AVIF", quality=95, exif=exif))

    assert error(image, pictures.photo()) < TOLERANCE


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_avif_has_the_right_pixels(subsampling):
    data = pictures.encode(pictures.photo((37, 21)), "AVIF", quality=95, subsampling=subsampling)

    assert error(decode(data), pictures.photo((37, 21))) < 2 * TOLERANCE


def test_avif_of_10_bits_has_the_right_pixels():
    assert error(decode(file("10-bit.avif")), pictures.photo()) < 2


def test_grey_avif_is_rgb():
    data = pictures.encode(pictures.photo(), "AVIF", quality=95, subsampling="4:0:0")

    assert error(decode(data), pictures.photo().convert("L").convert("RGB")) < 3


def test_transparent_avif_is_shown_on_white():
    image = pictures.photo().convert("RGBA")
    ramp = np.linspace(0, 255, image.width).astype(np.uint8)
    image.putalpha(Image.fromarray(np.tile(ramp, (image.height, 1))))

    decoded = decode(pictures.encode(image, "AVIF", quality=95))

    assert error(decoded, over_white(pictures.photo())) < TOLERANCE


def test_animated_avif_gives_the_first_frame():
    frames = [pictures.picture((0, 0, 255))]

    image = decode(pictures.encode(pictures.RED, "AVIF", save_all=True, append_images=frames))

    assert error(image, pictures.picture()) < 3


def test_avif_of_tiles_is_the_whole_picture():
    whole = pictures.photo((128, 64))
    halves = [whole.crop((x, 0, x + 64, 64)) for x in (0, 64)]
    tiles = tuple(_coded_avif_of(half) for half in halves)
    picture = HeifPicture(Grid((128, 64), 2, tiles, b""), None, False, None, 1)

    assert error(decode(write_file(picture, "avif")), whole) < TOLERANCE


def _coded_avif_of(image: Image.Image):
    return read_picture(pictures.encode(image, "AVIF", quality=95), "avif", WIDE).colours


@pytest.mark.parametrize(
    ("moves", "operations"),
    [
        ((("irot", 1),), ["ROTATE_90"]),
        ((("imir", 0),), ["FLIP_TOP_BOTTOM"]),
        ((("imir", 1),), ["FLIP_LEFT_RIGHT"]),
        ((("irot", 3), ("imir", 1)), ["ROTATE_270", "FLIP_LEFT_RIGHT"]),
        ((("imir", 1), ("irot", 3)), ["FLIP_LEFT_RIGHT", "ROTATE_270"]),
        ((("imir", 0), ("irot", 1)), ["FLIP_TOP_BOTTOM", "ROTATE_90"]),
    ],
    ids=lambda value: "-".join(f"{k}{v}" for k, v in value) if isinstance(value, tuple) else "",
)
def test_rotations_and_mirrors_apply_in_their_order(moves, operations):
    part = coded_avif()
    boxes = [box(kind.encode(), number(value, 1)) for kind, value in moves]
    expected = decode(avif(item_of(part)))
    for operation in operations:
        expected = expected.transpose(Image.Transpose[operation])

    image = decode(avif(item_of(part, *boxes)))

    assert error(image, expected) == 0


def test_crop_applies_before_the_rotation():
    part = coded_avif()
    numbers = (32, 1, 16, 1, 8, 1, (1 << 32) - 4, 1)  # 32 x 16 around (+8, -4) of the centre
    crop = box(b"clap", *(number(n, 4) for n in numbers))

    image = decode(avif(item_of(part, crop, box(b"irot", b"\2"))))

    whole = decode(avif(item_of(part)))
    assert error(image, whole.crop((24, 20, 56, 36)).transpose(Image.Transpose.ROTATE_180)) == 0


def test_crop_must_have_an_accepted_shape():
    # 1 x 15,000 of 150 x 15,000 pixels took 4 GB to resize.
    crop = box(b"clap", *(number(n, 4) for n in (1, 1, 48, 1, 0, 1, 0, 1)))
    data = avif(item_of(coded_avif((64, 48)), crop))

    assert decode(data, ImageLimits(max_aspect=48)).size == (1, 48)
    with pytest.raises(ImageBadDimensions, match="1 x 48 pixels"):
        decode(data, ImageLimits(max_aspect=47))
    with pytest.raises(ImageBadDimensions, match="1 x 48 pixels"):
        decode(data, ImageLimits(min_side_px=2))


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("zeros", [False, True], ids=["cut", "zeroed"])
@pytest.mark.parametrize("name", ["avif", pytest.param("heic", marks=needs_heic)])
def test_half_a_file_is_truncated(name, zeros, kept):
    whole = file("plain.heic") if name == "heic" else pictures.encode(pictures.photo(), "AVIF")
    start = whole.index(b"mdat") + 8
    n = start + int(kept * (len(whole) - start))

    with pytest.raises(ImageTruncated):
        decode(whole[:n] + (bytes(len(whole) - n) if zeros else b""))


@pytest.mark.parametrize("name", ["avif", pytest.param("heic", marks=needs_heic)])
def test_pixels_are_limited_for_each_format(name):
    data = heif(item_of(coded_avif() if name == "avif" else coded()), brand=name.encode())

    def limits(n: int) -> ImageLimits:
        return ImageLimits(max_avif_pixels=n) if name == "avif" else ImageLimits(max_heic_pixels=n)

    assert decode(data, limits(64 * 64)).size == (64, 64)
    with pytest.raises(ImageTooManyPixels):
        decode(data, limits(64 * 64 - 1))
    with pytest.raises(ImageTooManyPixels):
        inspect(data, ImageLimits(max_pixels=64 * 64 - 1))


@needs_heic
@pytest.mark.parametrize("name", ["444", "10-bit", "alpha"])
def test_costly_heic_counts_twice(name):
    data = file(f"{name}.heic")

    assert decode(data, ImageLimits(max_heic_pixels=2 * 64 * 64)).size == (64, 48)
    with pytest.raises(ImageTooManyPixels):
        decode(data, ImageLimits(max_heic_pixels=2 * 64 * 64 - 1))


@pytest.mark.parametrize("name", ["avif", pytest.param("heic", marks=needs_heic)])
def test_sniff_and_inspect_know_the_format(name):
    data = file("10-bit.avif") if name == "avif" else file("grid.heic")
    size = (64, 48) if name == "avif" else (150, 100)

    assert (sniff(data).name, sniff(data).media_type) == (name, f"image/{name}")
    assert inspect(data).header.size == size


@pytest.mark.parametrize(
    ("name", "way"),
    [("plain.heic", r"pip install 'convserve\[heif\]'"), ("10-bit.avif", "libavif")],
)
def test_without_a_decoder_the_way_to_it_is_named(monkeypatch, name, way):
    monkeypatch.setattr(decoding, "DECODERS", DECODERS[:5])

    with pytest.raises(UnsupportedMediaType, match=f"{way}.*convert it to JPEG.*accepted are JPEG"):
        decode(file(name))


def test_broken_installation_does_not_blame_the_picture(monkeypatch):
    def missing(_: bytes) -> Image.Image:
        raise ImportError("libde265.so.0: cannot open shared object file")

    monkeypatch.setattr(decoding, "DECODERS", (replace(DECODERS[-1], opener=missing),))

    with pytest.raises(ImportError, match="libde265"):
        decode(file("10-bit.avif"))


def test_decoder_gets_no_profile_no_exif_and_no_thumbnail():
    data = pictures.encode(
        pictures.photo(), "AVIF", exif=pictures.exif_block([]), icc_profile=b"icc" * 100
    )

    with Image.open(io.BytesIO(inspect(data).stripped().data)) as image:
        assert not {"exif", "icc_profile", "xmp"} & set(image.info)
