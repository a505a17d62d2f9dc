"""Makes many different pictures out of the free photographs in scikit-image's wheel.

They calibrate quantization and serve as parity files where no data set is at hand. Random crops,
flips, hues and exposures of a dozen photographs are varied enough for both (numbers:
docs/decisions/0042-int8-weights.md).
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

# Files in scikit-image's data folder that are CC0, public domain or without known restrictions.
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

SOURCE: Final = "seeded crops of the free photographs in scikit-image"

_MIN_AREA: Final = 0.1  # share of the photograph
_MAX_ASPECT: Final = 4 / 3
_ATTEMPTS: Final = 20  # to find a crop that fits, then the largest square
_EXPOSURE: Final = (0.6, 1.4)  # factors of brightness, contrast and colour


def read_photographs() -> list[Image.Image]:
    """Returns `PHOTOGRAPHS`, mode RGB. Raises PicturesMissing if scikit-image is not installed."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise PicturesMissing(
            "scikit-image, which contains the free photographs, is not installed; "
            "run pip install scikit-image, or give a folder with --calibration"
        )
    folder = Path(spec.origin).parent / "data"
    return [decode((folder / name).read_bytes()) for name in PHOTOGRAPHS]


def varied_crops(
    photographs: Sequence[Image.Image], n: int, size_px: int, *, seed: int
) -> list[Image.Image]:
    """Returns n RGB pictures of size_px squared, cut from each of the RGB photographs in turn."""
    generator = np.random.default_rng(seed)
    return [
        _vary(photographs[i % len(photographs)], (size_px, size_px), generator) for i in range(n)
    ]


def picture_files(photographs: Sequence[Image.Image], n: int, *, seed: int) -> Iterator[Picture]:
    """Yields n pictures as JPEG and PNG files of many sizes, tall and wide.

    The same seed gives the same files only with the same version of Pillow.
    """
    generator = np.random.default_rng(seed)
    for i in range(n):
        size = (int(generator.integers(96, 640)), int(generator.integers(96, 640)))
        image = _vary(photographs[i % len(photographs)], size, generator)

        kind = ("JPEG", "PNG")[i % 4 == 3]  # every fourth is a PNG
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
    return _shift_hue(image, generator) if generator.random() < 0.5 else image


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


def _shift_hue(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    shift = int(generator.integers(0, 256))
    shifted = hue.point([(level + shift) % 256 for level in range(256)])
    return Image.merge("HSV", (shifted, saturation, value)).convert("RGB")
