from __future__ import annotations

import io
import re
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from PIL import Image, ImageStat

from contract.images import decode, sniff
from convserve.loadtest.pictures import NoPictures, Picture, make_pictures, making

ORIENTATION = 0x0112
NAME = re.compile(r"photo-(\d{4})-(\d+)x(\d+)(?:-q(\d+))?(?:-exif(\d))?\.(jpg|png|webp)")


@cache
def made(n: int = 40, seed: int = 3) -> list[Picture]:
    return make_pictures(n, seed)


def parts(picture: Picture) -> re.Match[str]:
    found = NAME.fullmatch(picture.name)
    assert found, picture.name
    return found


def test_make_pictures_of_a_seed_are_the_same_bytes():
    assert make_pictures(8, 3) == make_pictures(8, 3)
    assert make_pictures(8, 3) != make_pictures(8, 4)


def test_make_pictures_are_all_different():
    assert len({picture.content for picture in made()}) == 40
    assert [parts(picture)[1] for picture in made()] == [f"{at:04}" for at in range(1, 41)]


@pytest.mark.parametrize("n", [0, 1, 7])
def test_make_pictures_makes_as_many_as_asked_for(n):
    assert len(make_pictures(n, 0)) == n


def test_make_pictures_names_say_what_they_are():
    for picture in made():
        found = parts(picture)
        assert decode(picture.content).size == (int(found[2]), int(found[3]))
        assert sniff(picture.content).name == {"jpg": "jpeg"}.get(found[6], found[6])
        with Image.open(io.BytesIO(picture.content)) as image:
            assert image.getexif().get(ORIENTATION, 1) == int(found[5] or 1)


@pytest.mark.parametrize("seed", [3, 4])
def test_make_pictures_have_the_stated_shares_with_every_seed(seed):
    pictures = made(40, seed)

    longer = [max(int(parts(picture)[2]), int(parts(picture)[3])) for picture in pictures]
    suffixes = Counter(parts(picture)[6] for picture in pictures)
    assert suffixes == {"jpg": 38, "png": 1, "webp": 1}
    assert sum(side == 4000 for side in longer) == 2  # 5% from a phone
    assert sum(1280 <= side <= 2048 for side in longer) == 5  # 12% reduced by an app
    assert sum(bool(parts(picture)[5]) for picture in pictures) >= 1  # turned by EXIF


def test_make_pictures_have_the_bytes_of_photographs():
    for picture in made():
        found = parts(picture)
        if found[6] == "jpg":
            bytes_per_pixel = len(picture.content) / int(found[2]) / int(found[3])
            assert 0.1 < bytes_per_pixel < 1.0, picture.name


def test_make_pictures_turned_by_exif_show_the_same_way_up(monkeypatch, tmp_path):
    # Bright above, dark below: every picture is brighter above, whichever way it is stored.
    example = Image.new("L", (256, 256), 40)
    example.paste(220, (0, 0, 256, 128))
    example.save(tmp_path / "example.png")
    monkeypatch.setattr(making, "example_folder", lambda: tmp_path)
    turned = [kind for kind in making._MIX if 1 not in kind.orientations]
    monkeypatch.setattr(making, "_MIX", [replace(turned[0], share_percent=100)])

    pictures = make_pictures(12, 1)

    assert {parts(picture)[5] for picture in pictures} == {"3", "6", "8"}
    for picture in pictures:
        image = decode(picture.content).convert("L")
        above, below = (
            ImageStat.Stat(image.crop(box)).mean[0]
            for box in (
                (0, 0, image.width, image.height // 4),
                (0, 3 * image.height // 4, *image.size),
            )
        )
        assert above > below, picture.name


@pytest.mark.parametrize("folder", [Path("/nowhere"), None], ids=["missing", "empty"])
def test_make_pictures_without_examples_are_refused(folder, monkeypatch, tmp_path):
    where = folder or tmp_path
    monkeypatch.setattr(making, "example_folder", lambda: where)

    with pytest.raises(NoPictures, match="the example pictures are not in"):
        make_pictures(1, 0)


def test_make_pictures_are_answered_by_the_service(client):
    for picture in made():
        response = client.post("/v1/classify", content=picture.content)

        assert response.status_code == 200, (picture.name, response.text)
