import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from contract.errors import GoldenMismatch, ImageTooManyPixels, ImageTruncated
from contract.images.decoding import ImageLimits, Picture
from contract.manifest import Preprocessing, parse_manifest
from contract.preprocessing import (
    INTERPOLATIONS,
    golden_inputs,
    read_input,
    reference_input,
    reference_pixels,
    resize_and_crop,
    resize_size_for,
    resized_size,
    to_input,
)
from tests import pictures
from tests.contract.manifests import changed
from tests.pictures import photo

SIDES = st.integers(1, 3000)
SIZES = st.tuples(SIDES, SIDES).filter(lambda size: max(size) <= 100 * min(size))
SPECS = st.sampled_from([(256, 224), (36, 32), (32, 32), (73, 64), (64, 17)])


def spec(sizes=(36, 32), mode="shortest_side", interpolation="bicubic"):
    resize, crop = sizes
    return Preprocessing(
        resize_mode=mode,
        resize_size_px=resize,
        crop_size_px=crop,
        interpolation=interpolation,
        mean=(0.5, 0.4, 0.3),
        std=(0.5, 0.25, 0.2),
        in_graph=True,
    )


def two_steps(image, chosen):
    """Resizes the whole picture, then cuts out the middle: slow but obviously correct."""
    width, height = resized_size(image.size, chosen)
    resized = image.resize((width, height), INTERPOLATIONS[chosen.interpolation])
    left, top = (round((side - chosen.crop_size_px) / 2) for side in (width, height))
    crop = chosen.crop_size_px
    return np.asarray(resized.crop((left, top, left + crop, top + crop)))


def manifest(dtype="uint8", layout="NHWC"):
    shape = [None, 32, 32, 3] if layout == "NHWC" else [None, 3, 32, 32]
    graph_input = {"name": "x", "dtype": dtype, "layout": layout, "shape": shape}
    data = changed("graph.input", graph_input)
    data["preprocessing"]["in_graph"] = dtype == "uint8"
    return parse_manifest(json.dumps(data))


@settings(max_examples=60, deadline=None)
@given(SIZES, SPECS, st.sampled_from(["shortest_side", "squash"]))
def test_resize_and_crop_any_size_gives_the_crop(size, sizes, mode):
    pixels = resize_and_crop(Image.new("RGB", size), spec(sizes, mode))

    assert pixels.shape == (sizes[1], sizes[1], 3)
    assert pixels.dtype == np.uint8


@settings(max_examples=60, deadline=None)
@given(
    SIZES,
    SPECS,
    st.sampled_from(["bilinear", "bicubic", "lanczos"]),
    st.sampled_from(["shortest_side", "squash"]),
)
@example((30, 1), (36, 32), "bilinear", "shortest_side")  # 6% of the values differ
@example((24, 34), (36, 32), "bilinear", "shortest_side")  # 22%, the most that was found
@example((1536, 1536), (256, 224), "bilinear", "shortest_side")  # 17%
def test_resize_and_crop_is_resize_then_crop_up_to_rounding(size, sizes, interpolation, mode):
    image, chosen = photo(size), spec(sizes, mode, interpolation)

    difference = np.abs(resize_and_crop(image, chosen).astype(int) - two_steps(image, chosen))

    # A value that the first pass rounds the other way shifts results of the second pass. At simple
    # ratios, such as 24 px to 36 px, many values lie halfway between two levels.
    assert difference.max() <= 2
    assert (difference > 0).mean() < 0.3


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(500, 375), (640, 427), (1280, 960), (2592, 1944)])
def test_resize_and_crop_of_photographs_differs_in_few_values(size, interpolation):
    image, chosen = photo(size), spec((256, 224), interpolation=interpolation)

    differs = resize_and_crop(image, chosen) != two_steps(image, chosen)

    assert differs.mean() < 0.05


@settings(max_examples=60, deadline=None)
@given(
    SIZES,
    SPECS,
    st.sampled_from(list(INTERPOLATIONS)),
    st.sampled_from(["shortest_side", "squash"]),
)
def test_reference_pixels_equal_resize_then_crop(size, sizes, interpolation, mode):
    image, chosen = photo(size), spec(sizes, mode, interpolation)

    assert np.array_equal(reference_pixels(image, chosen), two_steps(image, chosen))


@pytest.mark.parametrize(
    "size",
    [(500, 375), (375, 500), (224, 224), (640, 427), (1, 1), (31, 900), (300, 525), (300, 526)],
)
def test_resize_and_crop_nearest_equals_resize_then_crop(size):
    image, chosen = photo(size), spec((256, 224), interpolation="nearest")

    assert np.array_equal(resize_and_crop(image, chosen), two_steps(image, chosen))


@pytest.mark.parametrize("size", [(20, 2000), (20_000, 200), (1, 100), (65_500, 655)])
def test_resize_and_crop_longest_accepted_aspect_stays_small(size, monkeypatch):
    # Sides of 1 and 20,000 px would need gigabytes, which is why `decode` limits the aspect ratio.
    asked, resize = [], Image.Image.resize

    def record(image, new_size, *args, **options):
        asked.append(new_size[0] * new_size[1])
        return resize(image, new_size, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", record)

    for way in (resize_and_crop, reference_pixels):
        assert way(Image.new("RGB", size), spec((256, 224))).shape == (224, 224, 3)

    assert max(asked) <= 100 * max(256 * 256, 256 * min(size))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((500, 375), (341, 256)),
        ((375, 500), (256, 341)),
        ((10, 10), (256, 256)),
        ((1, 3), (256, 768)),
    ],
)
def test_resized_size_truncates_the_longer_side(size, expected):
    assert resized_size(size, spec((256, 224))) == expected


def test_resized_size_squash_ignores_the_aspect():
    assert resized_size((500, 10), spec((256, 224), "squash")) == (256, 256)


@given(SIDES, SIDES, SPECS)
def test_resized_size_is_never_smaller_than_the_crop(width, height, sizes):
    assert min(resized_size((width, height), spec(sizes))) >= sizes[1]


@pytest.mark.parametrize(
    ("crop", "percent", "expected"), [(224, 0.875, 256), (224, 0.9, 248), (288, 1.0, 288)]
)
def test_resize_size_for_equals_timm(crop, percent, expected):
    assert resize_size_for(crop, percent) == expected


def test_to_input_for_a_normalising_graph_is_the_pixels():
    image = photo()

    row = to_input(image, manifest())

    assert np.array_equal(row, resize_and_crop(image, manifest().preprocessing))


def test_to_input_float_is_the_formula():
    image, chosen = photo(), manifest("float32")
    pixels = resize_and_crop(image, chosen.preprocessing).astype(np.float64)

    row = to_input(image, chosen)

    expected = (pixels / 255 - [0.5, 0.4, 0.3]) / [0.5, 0.25, 0.2]
    assert row.dtype == np.float32
    np.testing.assert_allclose(row, expected, atol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_to_input_channels_first_is_the_transpose(dtype):
    image = photo()

    row = to_input(image, manifest(dtype, "NCHW"))

    assert row.shape == (3, 32, 32)
    assert row.flags.c_contiguous
    assert np.array_equal(row.transpose(1, 2, 0), to_input(image, manifest(dtype)))


def test_to_input_does_not_change_the_picture():
    image = photo()
    before = image.tobytes()

    to_input(image, manifest("float32"))

    assert image.tobytes() == before


# --- from bytes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(60, 45), (45, 60), (20, 30), (40, 100)])
@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP"])
def test_read_input_is_the_reference_up_to_rounding(format_name, size):
    data = pictures.encode(photo(size), format_name)

    difference = np.abs(
        read_input(data, manifest()).astype(int) - reference_input(data, manifest())
    )

    assert difference.max() <= 2


@pytest.mark.parametrize("size", [(600, 450), (451, 603), (1001, 777), (2000, 3999)])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_read_input_of_a_large_jpeg_is_close_to_the_reference(size, orientation):
    data = pictures.oriented(photo(size), orientation)

    difference = np.abs(
        read_input(data, manifest()).astype(int) - reference_input(data, manifest())
    )

    assert difference.mean() < 0.6
    assert difference.max() <= 8


def test_resize_and_crop_of_a_reduced_picture_keeps_the_whole_pictures_geometry():
    # If the reduction does not divide a side, its last pixel covers less of the picture.
    whole = photo((161, 121))
    odd = Picture(np.asarray(whole.reduce(8)), whole.size, 8)

    difference = np.abs(
        resize_and_crop(odd, spec((16, 12))).astype(int) - resize_and_crop(whole, spec((16, 12)))
    )

    assert difference.mean() < 4


@pytest.mark.parametrize("prepare", [read_input, reference_input])
def test_read_input_of_a_refused_file_raises(prepare):
    with pytest.raises(ImageTruncated):
        prepare(pictures.jpeg(photo())[:-20], manifest())
    with pytest.raises(ImageTooManyPixels):
        prepare(pictures.jpeg(photo()), manifest(), ImageLimits(max_pixels=10))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_golden_inputs_are_the_reference_and_the_row_of_a_request(dtype):
    data, chosen = pictures.jpeg(photo((60, 45))), manifest(dtype)

    exact, served = golden_inputs(data, chosen)

    assert np.array_equal(exact, reference_input(data, chosen))
    assert np.array_equal(served, read_input(data, chosen))


def test_golden_inputs_too_far_apart_are_refused(monkeypatch):
    monkeypatch.setattr(
        "contract.preprocessing.resize_part", lambda *_: np.zeros((32, 32, 3), np.uint8)
    )

    with pytest.raises(GoldenMismatch, match="differ from the reference"):
        golden_inputs(pictures.jpeg(photo()), manifest())
