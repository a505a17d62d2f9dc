import numpy as np
import pytest
from PIL import Image

from contract.images.colours import BACKGROUND, to_rgb
from tests import pictures


@pytest.mark.parametrize("mode", ["La", "RGBa"])
def test_to_rgb_premultiplied_alpha_is_composed(mode):
    image = Image.new(mode[:-1] + "A", (3, 3), 0).convert(mode)

    assert to_rgb(image).getpixel((1, 1)) == BACKGROUND


@pytest.mark.parametrize("mode", ["I", "F"])
def test_to_rgb_wide_grey_is_clipped_to_sixteen_bits(mode):
    image = Image.new(mode, (2, 2), 1_000_000)

    assert to_rgb(image).getpixel((1, 1)) == (255, 255, 255)


def test_to_rgb_not_a_number_is_black_and_infinity_white():
    image = Image.fromarray(np.array([[np.nan, np.inf, -np.inf]], np.float32))

    assert list(np.asarray(to_rgb(image))[0, :, 0]) == [0, 255, 0]


def test_to_rgb_rgb_is_returned_as_it_is():
    image = pictures.picture()

    assert to_rgb(image) is image


def test_to_rgb_in_strips_equals_the_whole_picture(monkeypatch):
    image = pictures.photo((64, 48)).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    whole = to_rgb(image).tobytes()
    monkeypatch.setattr("contract.images.colours._STRIP_PIXELS", 64 * 7)

    strips = to_rgb(image).tobytes()

    assert strips == whole
