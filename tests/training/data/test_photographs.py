import importlib.util

import pytest
from PIL import Image

from contract.images import decode
from tests.pictures import photo
from training.data.photographs import PHOTOGRAPHS, picture_files, read_photographs, varied_crops
from training.errors import PicturesMissing

PHOTOS = [photo((300, 200), seed=1), photo((120, 400), seed=2)]


def test_all_photographs_are_in_the_scikit_image_wheel():
    pytest.importorskip("skimage")

    photographs = read_photographs()

    assert len(photographs) == len(PHOTOGRAPHS)
    assert {image.mode for image in photographs} == {"RGB"}


def test_read_photographs_without_scikit_image_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)

    with pytest.raises(PicturesMissing, match="pip install scikit-image"):
        read_photographs()


def test_varied_crops_repeat_for_a_seed_and_differ_between_seeds():
    one, same, other = (varied_crops(PHOTOS, 6, 32, seed=seed) for seed in (1, 1, 2))

    assert one == same
    assert one != other
    assert {image.size for image in one} == {(32, 32)}


def test_varied_crops_of_a_very_wide_photograph_have_the_asked_size():
    crops = varied_crops([Image.new("RGB", (2000, 10))], 3, 16, seed=0)

    assert [image.size for image in crops] == [(16, 16)] * 3


def test_picture_files_are_of_both_formats_and_many_sizes():
    files = list(picture_files(PHOTOS, 8, seed=3))

    assert {file.data[:2] for file in files} == {b"\xff\xd8", b"\x89P"}
    assert len({decode(file.data).size for file in files}) == 8
    assert files == list(picture_files(PHOTOS, 8, seed=3))
