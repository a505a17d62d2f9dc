from __future__ import annotations

from pathlib import Path

import pytest

from contract.errors import ImageError, ImageTooManyPixels
from contract.images import ImageLimits, inspect
from contract.manifest import Manifest
from contract.preprocessing import decode_file, to_input
from contract.versions import read_version
from service.batching import work as module
from service.batching.work import LARGE_PIXELS, Preparation, is_large
from service.errors import DeadlineExceeded, Overloaded
from tests import pictures, tinymodel
from tests.fakes import FakeClock

RED = tinymodel.picture("red")
NEVER = float("inf")


@pytest.fixture
def manifest(models_dir: Path) -> Manifest:
    return read_version(models_dir, "tiny", 1).manifest


def test_preparation_returns_one_row_of_the_graphs_input(manifest):
    row = Preparation(inspect(RED), manifest, NEVER)()

    assert (row.shape, row.dtype.name) == ((8, 8, 3), "uint8")
    assert row.tobytes() == bytes([255, 0, 0] * 64)


def test_preparation_times_separate_decoding_and_preprocessing(manifest, monkeypatch):
    clock = FakeClock()

    def decode_slowly(*arguments: object) -> object:
        clock.advance(2)
        return decode_file(*arguments)  # type: ignore[arg-type]

    def resize_slowly(*arguments: object) -> object:
        clock.advance(3)
        return to_input(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "decode_file", decode_slowly)
    monkeypatch.setattr(module, "to_input", resize_slowly)
    recipe = Preparation(inspect(RED), manifest, NEVER, clock)
    before = (recipe.decode_s, recipe.preprocess_s)
    recipe()

    assert (before, (recipe.decode_s, recipe.preprocess_s)) == ((0, 0), (2, 3))


def test_preparation_of_a_truncated_picture_raises_an_image_error(manifest):
    with pytest.raises(ImageError):
        Preparation(inspect(RED[:40]), manifest, NEVER)()


def test_preparation_applies_the_limits_of_the_inspection(manifest):
    with pytest.raises(ImageTooManyPixels):
        Preparation(inspect(RED, ImageLimits(max_pixels=10)), manifest, NEVER)()


def test_preparation_out_of_memory_raises_overloaded(manifest, monkeypatch):
    def decode(*_arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(module, "decode_file", decode)

    with pytest.raises(Overloaded, match="memory") as raised:
        Preparation(inspect(RED), manifest, NEVER)()
    assert raised.value.reason == "memory"


@pytest.mark.parametrize("late_s", [0, 1], ids=["just_now", "long_ago"])
def test_preparation_of_an_expired_picture_decodes_nothing(manifest, late_s):
    clock = FakeClock()

    with pytest.raises(DeadlineExceeded):
        Preparation(inspect(RED[:40]), manifest, clock() - late_s, clock)()


@pytest.mark.parametrize(("more", "large"), [(0, False), (1, True)], ids=["at_limit", "above"])
def test_picture_is_large_above_the_pixel_limit(monkeypatch, more, large):
    monkeypatch.setattr(module, "LARGE_PIXELS", 16 * 16 - more)

    assert is_large(inspect(RED)) is large


def test_avif_is_large_at_a_quarter_of_the_pixels(monkeypatch):
    avif = pictures.encode(pictures.picture(size=(16, 16)), "AVIF")

    monkeypatch.setattr(module, "LARGE_PIXELS", 4 * 16 * 16 - 1)

    assert (is_large(inspect(avif)), is_large(inspect(RED))) == (True, False)


def test_camera_photo_is_large_but_a_screen_sized_picture_is_not():
    assert 1920 * 1080 < LARGE_PIXELS < 12_000_000
