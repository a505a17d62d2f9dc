import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from contract.images import resampling
from contract.images.resampling import Span, as_image, resize_part, size_of
from tests.pictures import photo

INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@pytest.fixture(params=["vectors", "pillow"])
def engine(request, monkeypatch):
    """Runs a test with the vectorised resizer, if it is installed, and without it."""
    if request.param == "pillow":
        monkeypatch.setattr(resampling, "simd", None)
    else:
        pytest.importorskip("cykooz_resizer")


def squeezed(image, side_px, interpolation):
    """Resizes a whole picture to a square, ignoring its aspect ratio."""
    across, down = Span(0, image.width), Span(0, image.height)
    return resize_part(image, across, down, side_px, interpolation)


def noise(size, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("size", [(500, 375), (375, 500), (64, 64), (20, 30), (1, 1), (640, 641)])
def test_resize_part_of_the_whole_is_pillows_two_passes(size, interpolation):
    image, method = noise(size), INTERPOLATIONS[interpolation]
    expected = image.resize((64, size[1]), method).resize((64, 64), method)

    pixels = squeezed(image, 64, interpolation)

    difference = np.abs(pixels.astype(int) - np.asarray(expected))
    assert pixels.shape == (64, 64, 3)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.02


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_resize_part_does_not_depend_on_pixels_far_away(interpolation):
    image = photo((300, 200))
    across, down = Span(100.3, 180.9), Span(51.7, 132.2)
    alone = Image.new("RGB", image.size)
    alone.paste(image.crop((90, 40, 192, 143)), (90, 40))

    pixels = resize_part(image, across, down, 40, interpolation)

    assert np.array_equal(pixels, resize_part(alone, across, down, 40, interpolation))


@pytest.mark.usefixtures("engine")
def test_resize_part_of_an_array_equals_that_of_an_image():
    image = photo((300, 200))
    across, down = Span(10.5, 250.25), Span(0, 199.5)

    from_array = resize_part(np.asarray(image), across, down, 50, "bicubic")

    assert np.array_equal(from_array, resize_part(image, across, down, 50, "bicubic"))


@pytest.mark.usefixtures("engine")
def test_resize_part_in_strips_equals_the_whole(monkeypatch):
    image = photo((300, 200))
    at_once = squeezed(image, 50, "bicubic")
    monkeypatch.setattr(resampling, "_STRIP_PIXELS", 300 * 7)

    assert np.array_equal(squeezed(image, 50, "bicubic"), at_once)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 4000), st.integers(1, 400), st.data())
def test_clamp_span_with_rounded_ends_stays_inside(n_px, side_px, data):
    resized = data.draw(st.integers(side_px, side_px + 5000))
    step = n_px / resized
    start = (resized - side_px) * step

    inside = resampling._clamp(Span(start, start + side_px * step), n_px)

    assert inside.start + (inside.stop - inside.start) <= n_px
    assert inside.stop - inside.start == pytest.approx(side_px * step)


def test_source_range_covers_the_reach_of_the_filter():
    assert Span(100, 148).source_range(1000, 24, 2) == (95, 153)
    assert Span(0, 1000).source_range(1000, 24, 2) == (0, 1000)


def test_size_and_image_of_an_array():
    array = np.asarray(photo((30, 20)))

    assert size_of(array) == size_of(as_image(array)) == (30, 20)
