from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image

from contract.manifest import Preprocessing
from contract.preprocessing import resize_and_crop
from tests.pictures import photo
from training.config.config import Augment
from training.data.augment import Augmentation, border_colour, mix
from training.data.sampler import share

SIDE = 24
MIXUP = Augment(mixup=0.4)
ALL_CHANGES = Augment(
    crop_scale=(0.3, 1.0),
    flip=0.5,
    rotate_degrees=20,
    translate=0.1,
    zoom=(0.8, 1.2),
    rand_augment_operations=2,
    rand_augment_magnitude=9,
    color_jitter=0.4,
    erasing=0.5,
)
SINGLE_CHANGES = {
    "crop": Augment(crop_scale=(0.2, 0.6)),
    "flip": Augment(flip=1.0),
    "rotate": Augment(rotate_degrees=40),
    "translate": Augment(translate=0.3),
    "zoom": Augment(zoom=(0.4, 0.6)),
    "rand-augment": Augment(rand_augment_operations=3, rand_augment_magnitude=20),
    "color-jitter": Augment(color_jitter=0.8),
    "erasing": Augment(erasing=1.0),
}


def spec_of(interpolation="bicubic", mean=(0.5, 0.4, 0.3)):
    return Preprocessing(
        resize_size_px=28,
        crop_size_px=SIDE,
        interpolation=interpolation,
        mean=mean,
        std=(0.5, 0.5, 0.5),
        in_graph=True,
    )


def evaluation_pixels(image, spec=None):
    return resize_and_crop(image, spec or spec_of()).transpose(2, 0, 1)


def test_augmentation_with_everything_off_is_the_evaluation_preprocessing():
    image = photo((50, 37), seed=1)

    pixels = Augmentation(Augment(), spec_of()).change(image, (0,))

    assert pixels.dtype == torch.uint8
    np.testing.assert_array_equal(pixels.numpy(), evaluation_pixels(image))


@pytest.mark.parametrize("name", SINGLE_CHANGES)
def test_each_change_alters_the_pixels_and_keeps_their_shape(name):
    image = photo((50, 37), seed=1)

    pixels = Augmentation(SINGLE_CHANGES[name], spec_of()).change(image, (3, 1, 4))

    assert pixels.shape == (3, SIDE, SIDE)
    assert pixels.dtype == torch.uint8
    assert (pixels.numpy() != evaluation_pixels(image)).mean() > 0.02


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_augmentation_accepts_every_interpolation_of_the_contract(interpolation):
    pixels = Augmentation(ALL_CHANGES, spec_of(interpolation)).change(photo((40, 30)), (1,))

    assert pixels.shape == (3, SIDE, SIDE)


@pytest.mark.parametrize("size", [(1, 1), (1, 60), (200, 3), (500, 500)])
def test_augmentation_accepts_pictures_of_unusual_sizes(size):
    assert Augmentation(ALL_CHANGES, spec_of()).change(photo(size), (1,)).shape == (3, SIDE, SIDE)


def test_augmentation_is_a_pure_function_of_picture_and_seed():
    image = photo((50, 37), seed=1)
    before = image.tobytes()
    one, other = Augmentation(ALL_CHANGES, spec_of()), Augmentation(ALL_CHANGES, spec_of())

    first = [one.change(image, (0, 1, i)) for i in range(6)]
    again = [other.change(image, (0, 1, i)) for i in reversed(range(6))][::-1]

    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(first[0], pixels) for pixels in first[1:])
    assert image.tobytes() == before


def random_states():
    """Returns the states of all global random generators, comparable with ==."""
    return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()


def test_augmentation_and_mixing_restore_global_random_states():
    before = random_states()

    Augmentation(ALL_CHANGES, spec_of()).change(photo((50, 37)), (0,))
    mix(
        torch.rand(4, 3, 8, 8, generator=torch.Generator()),
        torch.arange(4),
        MIXUP,
        n_classes=4,
        seed=1,
    )

    assert random_states() == before


def test_augmentation_can_be_pickled_for_a_worker_process():
    image, augmentation = photo((50, 37)), Augmentation(ALL_CHANGES, spec_of())
    expected = augmentation.change(image, (0, 1))

    copied = pickle.loads(pickle.dumps(augmentation))  # noqa: S301 - made here

    assert torch.equal(copied.change(image, (0, 1)), expected)


def test_flip_is_an_exact_mirror_image_half_of_the_time():
    image, flip = photo((50, 37)), Augmentation(Augment(flip=0.5), spec_of())
    straight = torch.from_numpy(evaluation_pixels(image).copy())

    mirrored = []
    for i in range(60):
        pixels = flip.change(image, (i,))
        is_mirrored = torch.equal(pixels, straight.flip(2))
        assert is_mirrored or torch.equal(pixels, straight)
        mirrored.append(is_mirrored)

    assert 15 < sum(mirrored) < 45


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (200, 30, 90)])
@pytest.mark.parametrize("name", ["rotate", "translate", "zoom"])
def test_uncovered_corners_have_the_colour_of_the_pictures_border(name, colour):
    image = Image.new("RGB", (40, 40), colour)
    image.paste((10, 200, 30), (15, 15, 25, 25))

    pixels = Augmentation(SINGLE_CHANGES[name], spec_of("nearest")).change(image, (2,)).numpy()

    found = set(map(tuple, pixels.reshape(3, -1).T.tolist()))
    assert found <= {colour, (10, 200, 30)}


def test_rand_augment_fills_corners_with_the_border_colour_too():
    image = Image.new("RGB", (40, 40), (255, 255, 255))
    shift = Augment(rand_augment_operations=1, rand_augment_magnitude=10)

    corners = [
        Augmentation(shift, spec_of("nearest")).change(image, (i,))[
            :, [0, 0, -1, -1], [0, -1, 0, -1]
        ]
        for i in range(40)
    ]

    # Solarize and brightness darken the whole picture; no corner is black alone.
    assert all((corner == corner[:, :1]).all() for corner in corners)


def test_border_colour_is_the_median_of_the_outermost_pixels():
    image = Image.new("RGB", (9, 7), (250, 240, 230))
    image.paste((1, 2, 3), (1, 1, 8, 6))  # all but the border
    image.paste((0, 0, 0), (0, 0, 4, 1))  # less than half of it

    assert border_colour(image) == [250, 240, 230]


def test_erased_rectangle_is_zero_after_normalisation():
    erasing = Augmentation(SINGLE_CHANGES["erasing"], spec_of(mean=(0.2, 0.4, 0.6)))

    pixels = erasing.change(photo((60, 60)), (1,))

    changed = pixels.numpy() != evaluation_pixels(photo((60, 60)), spec_of(mean=(0.2, 0.4, 0.6)))
    assert np.unique(pixels.numpy()[0][changed[0]]).tolist() == [51]
    assert np.unique(pixels.numpy()[2][changed[2]]).tolist() == [153]


def test_random_crop_keeps_the_configured_share_of_the_area():
    # A horizontal ramp shows which columns were kept.
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8), (256, 256))
    image = Image.fromarray(np.stack([ramp, ramp.T, ramp], axis=2))
    crop = Augmentation(Augment(crop_scale=(0.25, 0.25), crop_ratio=(1.0, 1.0)), spec_of("nearest"))

    for i in range(10):
        pixels = crop.change(image, (i,)).numpy().astype(int)
        assert np.ptp(pixels[0]) == pytest.approx(128, abs=8)
        assert np.ptp(pixels[1]) == pytest.approx(128, abs=8)


def constant_pictures(n):
    """Returns n pictures and their classes. Every value of picture i is i + 1."""
    values = torch.arange(1.0, n + 1)
    return values.view(n, 1, 1, 1).expand(n, 3, 8, 8).clone(), torch.arange(n)


@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_mixup_blends_pictures_and_targets_with_one_ratio(n):
    images, indexes = constant_pictures(n)

    mixed, targets = mix(images, indexes, MIXUP, n_classes=n, seed=3)

    assert mixed.shape == (n, 3, 8, 8)
    assert targets.shape == (n, n)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(n))
    # The targets give the same ratio as the pixels.
    expected = targets @ torch.arange(1.0, n + 1)
    torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), expected)
    if n > 1:
        assert 0 < targets[0, n - 1] < 1


@pytest.mark.parametrize("n", [2, 5])
def test_cutmix_blends_targets_by_the_area_that_was_pasted(n):
    images, indexes = constant_pictures(n)

    mixed, targets = mix(images, indexes, Augment(cutmix=1.0), n_classes=n, seed=5)

    pasted = (mixed[0] == n).float().mean().item()
    assert 0 < pasted < 1
    assert targets[0].tolist() == pytest.approx([1 - pasted, *[0] * (n - 2), pasted])
    assert set(mixed[0].unique().tolist()) == {1.0, float(n)}


def test_mix_without_mixup_and_cutmix_smooths_targets_only():
    images, indexes = constant_pictures(3)

    mixed, targets = mix(images, indexes, Augment(), n_classes=4, label_smoothing=0.2, seed=1)

    assert torch.equal(mixed, constant_pictures(3)[0])
    torch.testing.assert_close(targets[1], torch.tensor([0.05, 0.85, 0.05, 0.05]))


def test_mix_of_an_empty_batch_is_empty():
    mixed, targets = mix(
        torch.empty(0, 3, 8, 8), torch.empty(0, dtype=torch.int64), MIXUP, n_classes=4, seed=1
    )

    assert mixed.shape == (0, 3, 8, 8)
    assert targets.shape == (0, 4)


@pytest.mark.parametrize("changes", [MIXUP, Augment(cutmix=1.0), Augment(mixup=0.4, cutmix=1.0)])
@pytest.mark.parametrize(("n", "world"), [(8, 2), (9, 2), (12, 3), (7, 3)])
def test_processes_together_mix_as_one_process_does(changes, n, world):
    images, indexes = constant_pictures(n)
    whole, targets = mix(images.clone(), indexes, changes, n_classes=n, seed=11)

    for rank in range(world):
        own = torch.from_numpy(share(n, rank, world))
        part, part_targets = mix(images[own], indexes[own], changes, n_classes=n, seed=11)

        torch.testing.assert_close(part, whole[own])
        torch.testing.assert_close(part_targets, targets[own])
