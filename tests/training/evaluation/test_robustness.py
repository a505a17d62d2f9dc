import io

import numpy as np
import pytest
from PIL import Image

from contract.images.decoding import decode
from contract.preprocessing import read_input
from tests.training.helpers import tinynet
from training.data.samples import Sample
from training.errors import PicturesMissing
from training.evaluation import robustness
from training.evaluation.robustness import CHANGES, Change, measure_robustness, reduced, stratified
from training.evaluation.scorer import Scorer

BY_NAME = {change.name: change for change in CHANGES}


@pytest.fixture
def scorer(tiny_graph) -> Scorer:
    return Scorer(tiny_graph, tinynet.draft(tiny_graph))


@pytest.fixture
def samples(colour_pictures) -> list[Sample]:
    return [Sample(p.name, p.index, data=p.data) for p in colour_pictures]


def photo(width: int = 60, height: int = 40) -> Image.Image:
    """Returns a coloured, chequered picture that differs from its mirror image."""
    across, down = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    pixels = np.stack([200 * across, 150 * down, 100 * across * down + 40], axis=-1)
    squares = np.indices((height, width)).sum(axis=0) % 2
    return Image.fromarray((pixels + 20 * squares[..., None]).astype(np.uint8))


def samples_per_class(*counts: int) -> list[Sample]:
    return [Sample(f"{i}/{j}", i, data=b"") for i, n in enumerate(counts) for j in range(n)]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name)
def test_change_gives_another_rgb_picture_and_leaves_its_input(change):
    image = photo()
    before = image.copy()

    changed = change.apply(image, 1)

    assert changed.mode == "RGB"
    assert changed.tobytes() != before.tobytes()
    assert image == before


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name)
def test_change_of_the_same_seed_gives_the_same_pixels(change):
    assert change.apply(photo(), 5) == change.apply(photo(), 5)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name)
def test_change_accepts_a_single_pixel(change):
    assert min(change.apply(Image.new("RGB", (1, 1)), 0).size) >= 1


def test_changes_have_unique_names():
    assert len(BY_NAME) == len(CHANGES)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("rotated 10", (60, 40)),
        ("rotated 30", (60, 40)),
        ("rotated 90", (40, 60)),
        ("squashed 0.75", (45, 40)),
        ("squashed 1.33", (80, 40)),
        ("half size", (30, 20)),
        ("quarter size", (15, 10)),
        ("JPEG 10", (60, 40)),
    ],
)
def test_change_gives_the_stated_size(name, size):
    assert BY_NAME[name].apply(photo(), 0).size == size


def test_mirrored_twice_is_the_picture():
    mirrored = BY_NAME["mirrored"].apply

    assert mirrored(mirrored(photo(), 0), 0) == photo()


@pytest.mark.parametrize(("name", "factor"), [("dark", 0.5), ("bright", 1.5)])
def test_brightness_multiplies_and_clips(name, factor):
    values = np.asarray(photo())

    changed = np.asarray(BY_NAME[name].apply(photo(), 0))

    np.testing.assert_allclose(changed, np.clip(factor * values, 0, 255), atol=1)


def test_noisy_has_the_stated_deviation_and_differs_by_seed():
    grey = Image.new("RGB", (80, 80), (128, 128, 128))

    one, other = (np.asarray(BY_NAME["noisy"].apply(grey, seed)) for seed in (1, 2))

    assert one.std() == pytest.approx(25, rel=0.03)
    assert (one != other).mean() > 0.9


def test_rotated_corners_have_the_mean_colour():
    image = Image.new("RGB", (40, 40), (200, 100, 50))

    assert BY_NAME["rotated 30"].apply(image, 0).getpixel((0, 0)) == (200, 100, 50)


def test_grey_has_equal_channels():
    red, green, blue = BY_NAME["grey"].apply(photo(), 0).split()

    assert red == green == blue


def test_jpeg_of_a_lower_quality_differs_more():
    noisy = BY_NAME["noisy"].apply(photo(), 0)
    values = np.asarray(noisy, dtype=float)

    errors = [
        np.abs(np.asarray(BY_NAME[name].apply(noisy, 0)) - values).mean()
        for name in ("JPEG 30", "JPEG 10")
    ]

    assert 0 < errors[0] < errors[1]


@pytest.mark.parametrize(
    ("size", "expected"), [((400, 100), (200, 50)), ((50, 80), (50, 80)), ((3, 60), (3, 60))]
)
def test_reduced_limits_the_shorter_side_only(size, expected):
    assert reduced(Image.new("RGB", size), 50).size == expected


def test_stratified_takes_all_of_rare_classes_and_divides_the_rest():
    drawn = stratified(samples_per_class(2, 50, 50), 20)

    assert np.bincount([sample.index for sample in drawn]).tolist() == [2, 9, 9]


def test_stratified_draws_by_seed_and_keeps_the_order():
    samples = samples_per_class(30, 30)

    drawn = stratified(samples, 10, seed=1)

    assert drawn == stratified(samples, 10, seed=1)
    assert drawn != stratified(samples, 10, seed=2)
    assert drawn == sorted(drawn, key=samples.index)


def test_stratified_of_few_pictures_takes_all():
    assert stratified(samples_per_class(1, 2), 10) == samples_per_class(1, 2)


def test_measure_robustness_of_harmless_changes_drops_nothing(scorer, samples):
    rows = measure_robustness(scorer, samples, changes=[BY_NAME["mirrored"], BY_NAME["rotated 90"]])

    assert [row.name for row in rows] == ["unchanged", "mirrored", "rotated 90"]
    assert [(row.top1_percent, row.drop, row.kept_percent) for row in rows] == [(100, 0, 100)] * 3
    assert {row.n for row in rows} == {9}


def test_measure_robustness_of_a_harmful_change_measures_the_drop(scorer, samples):
    """Every picture becomes red, which is right for a third of them."""
    red = Image.open(io.BytesIO(tinynet.picture("red"))).convert("RGB")

    _, row = measure_robustness(scorer, samples, changes=[Change("red", "", lambda *_: red)])

    assert row.top1_percent == pytest.approx(100 / 3)
    assert row.drop == pytest.approx(200 / 3)
    assert row.kept_percent == pytest.approx(100 / 3, abs=1e-3)


def test_changed_rows_equal_those_of_lossless_files(scorer, samples):
    changes = [Change("unchanged", "", lambda image, _: image), BY_NAME["noisy"]]

    rows = list(robustness._changed_rows(samples, changes, scorer.manifest))

    assert len(rows) == 2 * len(samples)
    for place, row in enumerate(rows):
        number, change = place // 2, changes[place % 2]
        file = io.BytesIO()
        change.apply(decode(samples[number].read()), number).save(file, "BMP")
        np.testing.assert_array_equal(row, read_input(file.getvalue(), scorer.manifest))


def test_measure_robustness_decodes_each_picture_once(scorer, samples, monkeypatch):
    decoded: list[bytes] = []

    def record(data: bytes) -> Image.Image:
        decoded.append(data)
        return decode(data)

    monkeypatch.setattr(robustness, "decode", record)

    measure_robustness(scorer, samples, changes=[BY_NAME["mirrored"], BY_NAME["dark"]])

    assert decoded == [sample.read() for sample in samples]


def test_measure_robustness_without_pictures_is_refused(scorer):
    with pytest.raises(PicturesMissing):
        measure_robustness(scorer, [])
