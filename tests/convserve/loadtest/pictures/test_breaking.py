from __future__ import annotations

from collections import Counter

import pytest
from PIL import Image

from convserve.loadtest.pictures import NoPictures, Picture, break_pictures
from tests import pictures
from tests.pictures import bmp, encode, gif, jpeg, photo, png, webp


def animation() -> bytes:
    frames = [photo((64, 48), seed=seed).quantize(64) for seed in range(8)]
    return encode(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50)


# In the first part of some of these is a whole picture.
GOOD = [
    Picture("jpeg.jpg", jpeg(photo((300, 200)))),
    Picture("progressive.jpg", jpeg(photo((300, 200)), progressive=True)),
    Picture("phone.jpg", pictures.mpo()),
    Picture("thumbnail.jpeg", jpeg(Image.new("L", (4000, 3000)), quality=30)),
    Picture("png.png", png(photo())),
    Picture("webp.webp", webp(photo())),
    Picture("gif.gif", gif(photo().quantize(64))),
    Picture("animation.gif", animation()),
    Picture("bmp.bmp", bmp(photo())),
    Picture("picture then text.png", png() + bytes(5000)),
]


def test_break_pictures_of_a_seed_are_the_same_bytes():
    assert break_pictures(GOOD, 10, 1) == break_pictures(GOOD, 10, 1)
    assert break_pictures(GOOD, 10, 1) != break_pictures(GOOD, 10, 2)


def test_break_pictures_has_every_kind_in_turn():
    broken = break_pictures(GOOD[:1], 10, 0)

    assert Counter(picture.name[12:] for picture in broken) == dict.fromkeys(
        ("cut.jpg", "garbage.jpg", "page.jpg", "heic.jpg", "empty.jpg"), 2
    )
    assert len({picture.name for picture in broken}) == 10


def test_break_pictures_of_nothing_are_refused():
    with pytest.raises(NoPictures, match="no pictures to break"):
        break_pictures([], 1, 0)


def test_break_pictures_can_break_what_is_broken():
    broken = break_pictures([Picture("nothing", b""), Picture("text", b"text")], 20, 0)

    assert len(broken) == 20


@pytest.mark.parametrize("seed", range(20))
def test_break_pictures_are_all_refused_by_the_service(client, seed):
    for picture in break_pictures(GOOD, 25, seed):
        response = client.post("/v1/classify", content=picture.content)

        assert 400 <= response.status_code < 500, (picture.name, response.text)
