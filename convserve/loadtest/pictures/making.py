"""Photographs made on the spot from the example pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor
from random import Random
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from contract.images import decode
from convserve.loadtest.pictures.reading import NoPictures, Picture
from convserve.pictures import example_folder, image_files

_ASPECTS: Final = (4 / 3, 4 / 3, 3 / 2, 1.0, 16 / 9)  # width / height before turning upright
_ORIENTATION: Final = 0x0112  # EXIF
# How a camera stores a picture whose EXIF orientation is this.
_STORED: Final = {
    1: None,
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}
_GRAIN_PX: Final = 512  # the side of a patch of noise, which is repeated


@dataclass(frozen=True, slots=True)
class _Kind:
    """One row of the mix.

    `sides_px` and `qualities` are ranges, both ends included, of the longer side and of the
    encoder's quality. `grain` is the standard deviation of the added noise, of 255.
    """

    share_percent: int
    sides_px: tuple[int, int]
    qualities: tuple[int, int]
    grain: float
    suffix: str = "jpg"
    orientations: tuple[int, ...] = (1,)


_MIX: Final = (
    _Kind(30, (240, 400), (75, 90), 7),  # thumbnails
    _Kind(45, (500, 1024), (75, 95), 7),  # photographs on web pages
    _Kind(12, (1280, 2048), (80, 90), 7),  # reduced by an app before the upload
    _Kind(5, (4000, 4000), (85, 92), 7, orientations=(1, 1, 3, 6, 6, 8)),  # a phone's camera
    _Kind(3, (500, 1024), (80, 90), 7, orientations=(3, 6, 8)),
    _Kind(3, (240, 640), (0, 0), 0, suffix="png"),
    _Kind(2, (500, 1024), (75, 90), 5, suffix="webp"),
)


def make_pictures(n: int, seed: int = 0) -> list[Picture]:
    """Makes `n` photographs of different sizes and qualities from the example pictures.

    Each is a part of an example, mirrored or not, resized, with grain as of a camera's sensor: a
    picture that is only enlarged has less than half of the bytes, and is decoded too quickly.

    The mix is a choice, not a survey: 30% thumbnails (240 to 400 px), 45% photographs of web pages
    (500 to 1024 px), 12% reduced by an app (1280 to 2048 px), 5% straight from a phone (12
    megapixels, most of them turned by EXIF), 3% others turned by EXIF, 3% PNG and 2% WebP. Pictures
    reach a classifier mostly from pages and apps, which have reduced them; the few from phones cost
    the most. Every seed gets the same shares, so that seeds differ in pictures and not in load.

    The same seed gives the same bytes with the same versions of NumPy and Pillow.

    Raises:
        NoPictures: the example pictures were removed.
    """
    folder = example_folder()
    sources = [decode(file.read_bytes()) for file in image_files(folder)] if folder.is_dir() else []
    if not sources:
        raise NoPictures(f"the example pictures are not in {folder}; give files or folders")

    random = Random(seed)  # noqa: S311 - repeatable
    noise = np.random.default_rng(seed).standard_normal((_GRAIN_PX, _GRAIN_PX), np.float32)
    kinds = _shares(n)
    random.shuffle(kinds)
    return [_make(number, kind, sources, noise, random) for number, kind in enumerate(kinds, 1)]


def _shares(n: int) -> list[_Kind]:
    # Exact shares, rounded by largest remainder.
    exact = [n * kind.share_percent / 100 for kind in _MIX]
    counts = [floor(one) for one in exact]
    by_remainder = sorted(range(len(_MIX)), key=lambda at: counts[at] - exact[at])
    for at in by_remainder[: n - sum(counts)]:
        counts[at] += 1
    return [kind for kind, count in zip(_MIX, counts, strict=True) for _ in range(count)]


def _make(
    number: int,
    kind: _Kind,
    sources: Sequence[Image.Image],
    noise: NDArray[np.float32],
    random: Random,
) -> Picture:
    size = _size(kind, random)
    image = _part(random.choice(sources), size, random)
    image = _with_grain(image, noise, kind.grain)
    quality, orientation = random.randint(*kind.qualities), random.choice(kind.orientations)

    # The name tells the upright size.
    words = [f"photo-{number:04}", f"{size[0]}x{size[1]}"]
    words += [f"q{quality}"] if quality else []
    words += [f"exif{orientation}"] if orientation != 1 else []
    content = _encode(image, kind.suffix, quality, orientation)
    return Picture(f"{'-'.join(words)}.{kind.suffix}", content)


def _size(kind: _Kind, random: Random) -> tuple[int, int]:
    longer = random.randint(*kind.sides_px)
    shorter = round(longer / random.choice(_ASPECTS if longer < 4000 else (4 / 3,)))
    return (longer, shorter) if random.random() < 0.6 else (shorter, longer)


def _part(source: Image.Image, size: tuple[int, int], random: Random) -> Image.Image:
    # The largest part of this shape, or down to 0.7 of it, from anywhere in the source.
    scale = min(source.width / size[0], source.height / size[1]) * random.uniform(0.7, 1.0)
    width, height = scale * size[0], scale * size[1]
    left = random.uniform(0, source.width - width)
    top = random.uniform(0, source.height - height)

    part = source.resize(
        size, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height)
    )
    return ImageOps.mirror(part) if random.random() < 0.5 else part


def _with_grain(image: Image.Image, noise: NDArray[np.float32], grain: float) -> Image.Image:
    if not grain:
        return image
    height, width = image.height, image.width
    repeats = (-(-height // _GRAIN_PX), -(-width // _GRAIN_PX))
    patch = np.rint(noise * grain).astype(np.int16)
    added = np.tile(patch, repeats)[:height, :width, None]  # (H, W, 1): grey
    return Image.fromarray(np.clip(np.asarray(image) + added, 0, 255).astype(np.uint8))


def _encode(image: Image.Image, suffix: str, quality: int, orientation: int) -> bytes:
    options: Mapping[str, object] = {"quality": quality} if quality else {}
    stored = _STORED[orientation]
    if stored is not None:
        exif = Image.Exif()
        exif[_ORIENTATION] = orientation
        image, options = image.transpose(stored), {**options, "exif": exif}

    buffer = io.BytesIO()
    image.save(buffer, {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[suffix], **options)
    return buffer.getvalue()
