"""The contract's pixels are timm's, over odd sizes, modes and filters.

The reference is exactly equal, because both resize with Pillow and crop whole pixels. The faster way,
which answers requests, rounds a few values differently (docs/decisions/0033).
"""

from __future__ import annotations

import numpy as np
import pytest

from contract.manifest import Preprocessing
from contract.preprocessing import reference_pixels, resize_and_crop, resize_size_for
from tests.pictures import photo
from training.networks.architectures import preprocessing_of
from training.system.torch_compat import timm

ODD_SIZES = (1, 2, 3, 7, 31, 63, 64, 65, 127, 223, 224, 225, 255, 256, 257, 333, 375, 500, 641)
SHAPES = [(w, h) for w in ODD_SIZES for h in ODD_SIZES if max(w, h) <= 20 * min(w, h)]


def transform(spec, crop_pct, crop_mode):
    return timm().data.create_transform(
        input_size=(3, spec.crop_size_px, spec.crop_size_px),
        is_training=False,
        interpolation=spec.interpolation,
        mean=spec.mean,
        std=spec.std,
        crop_pct=crop_pct,
        crop_mode=crop_mode,
        normalize=False,
    )


def spec_of(crop_size_px, crop_pct, interpolation, resize_mode):
    return Preprocessing(
        resize_mode=resize_mode,
        resize_size_px=resize_size_for(crop_size_px, crop_pct),
        crop_size_px=crop_size_px,
        interpolation=interpolation,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        in_graph=True,
    )


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("crop_mode", "resize_mode"),
    [
        pytest.param("center", "shortest_side", id="shortest-side"),
        pytest.param("squash", "squash", id="squash"),
    ],
)
@pytest.mark.parametrize(
    ("crop_size_px", "crop_pct"),
    [
        pytest.param(224, 0.875, id="224-of-256"),
        pytest.param(160, 0.95, id="160-of-168"),
        pytest.param(65, 0.9, id="odd"),
        pytest.param(64, 1.0, id="no-crop"),
    ],
)
def test_contract_pixels_equal_timms_transform(
    crop_size_px, crop_pct, crop_mode, resize_mode, interpolation
):
    spec = spec_of(crop_size_px, crop_pct, interpolation, resize_mode)
    reference = transform(spec, crop_pct, crop_mode)

    for i, size in enumerate(SHAPES[crop_size_px % 3 :: 3]):
        image = photo(size, seed=i)

        exact, pixels = reference_pixels(image, spec), resize_and_crop(image, spec)

        expected = np.asarray(reference(image)).transpose(1, 2, 0)
        np.testing.assert_array_equal(exact, expected, err_msg=f"{size}")
        difference = np.abs(pixels.astype(int) - expected)
        assert difference.max() <= 2, size
        # If a picture is enlarged by a simple ratio, many values lie halfway between two levels.
        assert (difference > 0).mean() < 0.1, size


@pytest.mark.parametrize(
    ("mode", "resize_mode"), [("center", "shortest_side"), ("squash", "squash")]
)
def test_preprocessing_of_a_network_comes_from_its_config(mode, resize_mode):
    class Network:
        pretrained_cfg = {  # noqa: RUF012 - timm reads it as it is
            "input_size": (3, 64, 64),
            "interpolation": "bilinear",
            "mean": (0.1, 0.2, 0.3),
            "std": (0.4, 0.5, 0.6),
            "crop_pct": 0.9,
            "crop_mode": mode,
        }

    spec = preprocessing_of(Network())  # type: ignore[arg-type]

    assert spec.resize_mode == resize_mode
    assert (spec.resize_size_px, spec.crop_size_px) == (71, 64)
    assert (spec.mean, spec.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert spec.in_graph
