import numpy as np
import pytest
from PIL import Image

from tests.pictures import jpeg
from tests.training.helpers.picture_sets import CHANGES
from training.data.checks import duplicates
from training.data.checks.duplicates import find_duplicates
from training.data.checks.facts import picture_facts, thumbnails
from training.data.checks.similarity import (
    coarse_thumbnails,
    detail_correlation,
    has_detail,
    hashes,
    tangent_bases,
    tangent_rows,
)
from training.data.samples import Sample

RNG = np.random.default_rng(0)


def thumbnails_of(*images):
    return thumbnails([picture_facts(Sample("x", 0, data=jpeg(image))) for image in images])


def distinct_digests(n):
    return [i.to_bytes(4, "big") for i in range(n)]


def duplicates_among(*images):
    n = len(images)
    return find_duplicates(distinct_digests(n), thumbnails_of(*images), np.ones(n, np.bool_))


def scene(seed, size=(240, 200)):
    """A detailed picture: coarse shapes with finer ones on top."""
    noise = np.random.default_rng(seed)
    image = Image.fromarray(noise.integers(0, 256, (6, 7, 3), dtype=np.uint8))
    fine = Image.fromarray(noise.integers(0, 256, (30, 36, 3), dtype=np.uint8))
    bicubic = Image.Resampling.BICUBIC
    return Image.blend(image.resize(size, bicubic), fine.resize(size, bicubic), 0.4)


def shirt(colour, creases, ground=(245, 245, 245)):
    """A shirt on a plain background; two of one colour differ only in their creases."""
    pixels = np.full((240, 240, 3), ground, np.float64)
    pixels[60:220, 70:170] = colour
    pixels[60:100, 30:210] = colour
    noise = np.random.default_rng(creases).normal(0, 12, (20, 20))
    fine = np.asarray(Image.fromarray(noise).resize((240, 240), Image.Resampling.BICUBIC))
    inside = (pixels != np.array(ground)).any(axis=2)
    pixels[inside] += fine[inside][:, None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_find_duplicates_finds_a_changed_copy_among_others(change):
    images = [scene(i) for i in range(12)]

    found = duplicates_among(*images, change(images[7]))

    assert found.near.tolist() == [*range(12), 7]
    assert found.exact.tolist() == list(range(13))


def test_find_duplicates_finds_mirrored_copies():
    image = scene(3)

    found = duplicates_among(image, scene(4), image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))

    assert found.near.tolist() == [0, 1, 0]


def test_find_duplicates_separates_similar_objects_on_a_plain_background():
    white = [shirt((225, 225, 230), creases) for creases in range(8)]

    assert duplicates_among(*white).near.tolist() == list(range(8))


def test_find_duplicates_finds_a_copy_of_an_object_on_a_plain_background():
    white = [shirt((225, 225, 230), creases) for creases in range(4)]

    found = duplicates_among(*white, CHANGES["recompressed"](white[2]))

    assert found.near.tolist() == [0, 1, 2, 3, 2]


def test_find_duplicates_groups_all_copies_of_one_picture():
    image = scene(1)

    found = duplicates_among(scene(2), *(change(image) for change in CHANGES.values()))

    assert found.near.tolist() == [0] + [1] * len(CHANGES)


def test_find_duplicates_adds_exact_copies_to_the_group_of_a_near_one():
    images = [scene(1), CHANGES["brighter"](scene(1)), scene(1), scene(2)]
    digests = [b"one", b"brighter", b"one", b"two"]

    found = find_duplicates(digests, thumbnails_of(*images), np.ones(4, np.bool_))

    assert found.exact.tolist() == [0, 1, 0, 3]
    assert found.near.tolist() == [0, 0, 0, 3]


def test_find_duplicates_finds_only_exact_copies_of_incomparable_pictures():
    images = [scene(1), CHANGES["brighter"](scene(1)), scene(1)]

    found = find_duplicates([b"a", b"b", b"a"], thumbnails_of(*images), np.zeros(3, np.bool_))

    assert found.near.tolist() == [0, 1, 0]


FLAT = {
    "one-colour": lambda i: np.full((32, 32), 3 * i),
    "noise-of-a-camera": lambda i: 100 + i + RNG.normal(0, 1, (32, 32)),
    "soft-gradient": lambda i: np.linspace(100, 140, 32)[None] + i * np.ones((32, 1)),
}


@pytest.mark.parametrize("make", FLAT.values(), ids=FLAT.keys())
def test_find_duplicates_finds_no_near_copies_among_flat_pictures(make):
    flat = np.stack([make(i) for i in range(40)]).clip(0, 255).astype(np.uint8)

    found = find_duplicates(distinct_digests(40), flat, np.ones(40, np.bool_))

    assert found.near.tolist() == list(range(40))


@pytest.mark.parametrize("n", [0, 1])
def test_find_duplicates_of_less_than_two_pictures_finds_none(n):
    found = find_duplicates(
        distinct_digests(n), np.zeros((n, 32, 32), np.uint8), np.ones(n, np.bool_)
    )

    assert found.exact.tolist() == found.near.tolist() == list(range(n))


def test_find_duplicates_is_the_same_in_small_blocks(monkeypatch):
    images = thumbnails_of(*(scene(i % 9, (120 + i, 100)) for i in range(18)))
    whole = find_duplicates(distinct_digests(18), images, np.ones(18, np.bool_))
    monkeypatch.setattr(duplicates, "_BLOCK", 4)
    monkeypatch.setattr(duplicates, "_CHUNK", 3)
    done = []

    blocks = find_duplicates(
        distinct_digests(18), images, np.ones(18, np.bool_), lambda *one: done.append(one)
    )

    assert blocks.near.tolist() == whole.near.tolist() == [*range(9), *range(9)]
    assert done == [(4, 18), (8, 18), (12, 18), (16, 18), (18, 18)]


def test_find_duplicates_of_similar_frames_compares_a_bounded_number_of_pairs(monkeypatch):
    # As in frames from a fixed camera, every pair passes the first two filters.
    frame = scene(0)
    images = [frame.copy() for _ in range(40)]
    for i, image in enumerate(images):
        image.paste((255, 255 * (i % 2), 0), (5 * i, 4 * i, 5 * i + 40, 4 * i + 40))
    seen = []

    def count(first, second):
        seen.append(len(first))
        return detail_correlation(first, second)

    monkeypatch.setattr(duplicates, "detail_correlation", count)

    duplicates_among(*images)

    assert 0 < sum(seen) <= 2 * 8 * 40


def test_hashes_differ_in_few_bits_for_a_changed_copy_and_in_many_for_another_picture():
    same, changed, other = hashes(
        thumbnails_of(scene(0), CHANGES["recompressed"](scene(0)), scene(1))
    )

    assert np.bitwise_count(same ^ changed) <= 4
    assert np.bitwise_count(same ^ other) > 18


def test_tangents_explain_a_small_shift_and_not_another_picture():
    coarse = coarse_thumbnails(thumbnails_of(scene(0), CHANGES["cropped"](scene(0)), scene(1)))

    explained = np.square(tangent_rows(coarse) @ tangent_bases(coarse)[0]).sum(axis=1)

    assert explained[0] == pytest.approx(1)
    assert explained[1] > 0.97
    assert explained[2] < 0.8


def test_detail_correlation_does_not_depend_on_brightness_and_contrast():
    images = thumbnails_of(scene(0), scene(1)).astype(np.float32)

    same = detail_correlation(images, images * 0.5 + 20)

    assert same == pytest.approx([1, 1], abs=1e-5)


def test_detail_correlation_sees_a_crop_from_either_side():
    images = thumbnails_of(scene(0), CHANGES["cropped"](scene(0))).astype(np.float32)

    both = detail_correlation(images, images[::-1].copy())

    assert both.min() > 0.94


def test_has_detail_is_true_for_text_but_not_for_blank_paper():
    paper = np.full((2, 32, 32), 250, np.uint8)
    paper[1, 8:24:4, 4:28] = 120

    assert has_detail(paper).tolist() == [False, True]
