"""Free photographs from the scikit-image wheel, cut into many different pictures.

Quantization needs to see typical activations and parity needs image files; both should work for a
stranger with nothing but PyPI. scikit-image ships a dozen public-domain photographs. Random crops,
flips, colour turns and exposure changes of these cover what the layers of a network see well enough
(docs/decisions/0013-int8-reduced-range.md has the numbers). Everything is seeded.
"""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageEnhance

from contract.images import decode
from training.data.pictures import Picture
from training.errors import PicturesMissing

PHOTOGRAPHS: Final = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "rocket.jpg",
    "hubble_deep_field.jpg",
    "ihc.png",
    "retina.jpg",
    "brick.png",
    "grass.png",
    "gravel.png",
    "camera.png",
    "coins.png",
    "clock_motion.png",
)
"""Files of scikit-image's data folder that are CC0, public domain or without known restrictions."""

SOURCE: Final = "seeded crops of the free photographs in scikit-image"

_MIN_AREA: Final = 0.1
_MAX_ASPECT: Final = 4 / 3
_ATTEMPTS: Final = 20
_EXPOSURE: Final = (0.6, 1.4)


def read_photographs() -> list[Image.Image]:
    """Reads the free photographs, mode RGB.

    Raises:
        PicturesMissing: scikit-image is not installed.
    """
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise PicturesMissing(
            "the free photographs are in scikit-image; run pip install scikit-image, "
            "or name a folder with --calibration"
        )
    folder = Path(spec.origin).parent / "data"
    return [decode((folder / name).read_bytes()) for name in PHOTOGRAPHS]


def varied_crops(
    photographs: Sequence[Image.Image], n: int, size_px: int, *, seed: int
) -> list[Image.Image]:
    """Cuts varied pictures out of photographs.

    Args:
        photographs: mode RGB; taken in turn.
        n: how many pictures.
        size_px: side S of each.
        seed: the same seed gives the same pixels.

    Returns:
        n images, mode RGB, S x S.
    """
    generator = np.random.default_rng(seed)
    return [
        _vary(photographs[i % len(photographs)], (size_px, size_px), generator) for i in range(n)
    ]


def picture_files(photographs: Sequence[Image.Image], n: int, *, seed: int) -> Iterator[Picture]:
    """Yields n varied pictures as JPEG and PNG files of many sizes and both orientations.

    Args:
        photographs: mode RGB; taken in turn.
        n: how many.
        seed: the same seed gives the same files with the same Pillow.
    """
    generator = np.random.default_rng(seed)
    for i in range(n):
        size = (int(generator.integers(96, 640)), int(generator.integers(96, 640)))
        image = _vary(photographs[i % len(photographs)], size, generator)
        kind = ("JPEG", "PNG")[i % 4 == 3]
        buffer = io.BytesIO()
        image.save(buffer, kind, **({"quality": 90} if kind == "JPEG" else {}))
        yield Picture(f"free-{i:03d}.{kind.lower()}", buffer.getvalue())


def _vary(
    photograph: Image.Image, size: tuple[int, int], generator: np.random.Generator
) -> Image.Image:
    box = _random_box(photograph.size, generator)
    image = photograph.resize(size, Image.Resampling.BICUBIC, box=box)
    if generator.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhancer(image).enhance(generator.uniform(*_EXPOSURE))
    return _turn_hue(image, generator) if generator.random() < 0.5 else image


def _random_box(size: tuple[int, int], generator: np.random.Generator) -> tuple[int, int, int, int]:
    width, height = size
    side = min(size)
    crop_width, crop_height = side, side
    for _ in range(_ATTEMPTS):
        area = width * height * generator.uniform(_MIN_AREA, 1.0)
        aspect = math.exp(generator.uniform(-math.log(_MAX_ASPECT), math.log(_MAX_ASPECT)))
        tried = (round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect)))
        if tried[0] <= width and tried[1] <= height:
            crop_width, crop_height = tried
            break
    left = int(generator.integers(0, width - crop_width + 1))
    top = int(generator.integers(0, height - crop_height + 1))
    return left, top, left + crop_width, top + crop_height


def _turn_hue(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    turn = int(generator.integers(0, 256))
    turned = hue.point([(level + turn) % 256 for level in range(256)])
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")
