"""Robustness: predictions for the same pictures after they are rotated, squashed, darkened or damaged.

Each change is a function from RGB picture to RGB picture, applied to the decoded file. The result then
goes through the service's preprocessing, as a lossless file of it would.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter, ImageStat

from contract.images import decode
from contract.manifest import Interface
from contract.preprocessing import Tensor, to_input
from training.data.samples import Sample
from training.errors import PicturesMissing
from training.evaluation.scorer import Scorer, agreement_percent

N_PICTURES: Final = 120  # at most, for every row of the table

# Pictures are first reduced to this multiple of the network's resize size. Blur and noise then mean the
# same on a small photo and on one of 48 megapixels.
MAX_SIDES: Final = 2

_BLUR_FRACTION: Final = 0.01  # standard deviation / shorter side
_MIN_BLUR_PX: Final = 0.5  # so that the smallest pictures are blurred too
_NOISE_SIGMA: Final = 25  # of 255
_MIN_SIDE_PX: Final = 1  # after a change of size

Transform = Callable[[Image.Image, int], Image.Image]  # (RGB picture, seed) -> RGB picture


@dataclass(frozen=True, slots=True)
class Change:
    """A named change of a picture, with its amount in words."""

    name: str
    detail: str
    apply: Transform


def _turned(degrees: float) -> Transform:
    def apply(image: Image.Image, _: int) -> Image.Image:
        # Quarter turns are exact. Other angles leave empty corners, which get the mean colour.
        if degrees % 90 == 0:
            return image.rotate(degrees, expand=True)
        mean = tuple(round(value) for value in ImageStat.Stat(image).mean)
        return image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=mean)

    return apply


def _scaled(across: float, down: float) -> Transform:
    def apply(image: Image.Image, _: int) -> Image.Image:
        width = max(_MIN_SIDE_PX, round(image.width * across))
        height = max(_MIN_SIDE_PX, round(image.height * down))
        return image.resize((width, height), Image.Resampling.BICUBIC)

    return apply


def _brightened(factor: float) -> Transform:
    return lambda image, _: ImageEnhance.Brightness(image).enhance(factor)


def _recompressed(quality: int) -> Transform:
    def apply(image: Image.Image, _: int) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return decode(buffer.getvalue())

    return apply


def _mirrored(image: Image.Image, _: int) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def _blurred(image: Image.Image, _: int) -> Image.Image:
    sigma_px = max(_BLUR_FRACTION * min(image.size), _MIN_BLUR_PX)
    return image.filter(ImageFilter.GaussianBlur(sigma_px))


def _noisy(image: Image.Image, seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).normal(0.0, _NOISE_SIGMA, (image.height, image.width, 3))
    values = np.clip(np.rint(np.asarray(image) + noise), 0, 255)
    return Image.fromarray(values.astype(np.uint8))


def _grey(image: Image.Image, _: int) -> Image.Image:
    return image.convert("L").convert("RGB")


CHANGES: Final[tuple[Change, ...]] = (
    Change("rotated 10", "10 degrees, corners in the mean colour", _turned(10)),
    Change("rotated 30", "30 degrees, corners in the mean colour", _turned(30)),
    Change("rotated 90", "a quarter turn", _turned(90)),
    Change("mirrored", "left and right exchanged", _mirrored),
    Change("squashed 0.75", "width times 0.75", _scaled(0.75, 1.0)),
    Change("squashed 1.33", "width times 1.33", _scaled(4 / 3, 1.0)),
    Change("blurred", "Gaussian, standard deviation 1% of the shorter side", _blurred),
    Change("dark", "every value times 0.5", _brightened(0.5)),
    Change("bright", "every value times 1.5, clipped", _brightened(1.5)),
    Change("noisy", f"Gaussian, standard deviation {_NOISE_SIGMA} of 255", _noisy),
    Change("JPEG 30", "compressed at quality 30", _recompressed(30)),
    Change("JPEG 10", "compressed at quality 10", _recompressed(10)),
    Change("half size", "both sides times 0.5", _scaled(0.5, 0.5)),
    Change("quarter size", "both sides times 0.25", _scaled(0.25, 0.25)),
    Change("grey", "without colour", _grey),
)


@dataclass(frozen=True, slots=True)
class RobustnessRow:
    """The predictions after one change.

    Attributes:
        name, detail: of the change; "unchanged" in the first row.
        n: pictures.
        top1_percent: 0 to 100.
        drop: top-1 of the unchanged pictures minus this top-1, in points; negative if it rose.
        kept_percent: pictures with the same first class as before the change, 0 to 100.
    """

    name: str
    detail: str
    n: int
    top1_percent: float
    drop: float
    kept_percent: float


def stratified(samples: Sequence[Sample], n: int = N_PICTURES, seed: int = 0) -> list[Sample]:
    """Draws up to n samples, as evenly over the classes as they allow; in the order of `samples`."""
    # A shuffled sample's round is the number of samples of its class before it. Taking round after round
    # gives every class its share, or all it has.
    order = np.random.default_rng(seed).permutation(len(samples))
    drawn: dict[int, int] = {}  # by class index
    rounds = []
    for place in order:
        index = samples[place].index
        rounds.append((drawn.get(index, 0), int(place)))
        drawn[index] = drawn.get(index, 0) + 1

    rounds.sort(key=lambda entry: entry[0])  # stable, so a round stays shuffled
    return [samples[place] for place in sorted(place for _, place in rounds[:n])]


def measure_robustness(
    scorer: Scorer, samples: Sequence[Sample], *, changes: Sequence[Change] = CHANGES
) -> tuple[RobustnessRow, ...]:
    """Measures predictions for the same pictures under every change.

    Args:
        scorer: the graph.
        samples: labelled and readable.
        changes: rows of the table.

    Returns:
        The unchanged pictures first, then a row for each change.

    Raises:
        PicturesMissing: there are none.
    """
    if not samples:
        raise PicturesMissing("there are no pictures to change")
    truth = np.array([sample.index for sample in samples])
    table = (Change("unchanged", "as they are", lambda image, _: image), *changes)
    # Every picture is decoded once, so its changes follow each other.
    answers = scorer.probabilities_of_rows(_changed_rows(samples, table, scorer.manifest))
    by_change = answers.reshape(len(samples), len(table), -1).swapaxes(0, 1)  # (changes, N, C)
    return tuple(
        _row(change, changed, by_change[0], truth)
        for change, changed in zip(table, by_change, strict=True)
    )


def _changed_rows(
    samples: Sequence[Sample], changes: Sequence[Change], manifest: Interface
) -> Iterator[Tensor]:
    side = MAX_SIDES * manifest.preprocessing.resize_size_px
    for seed, sample in enumerate(samples):
        image = reduced(decode(sample.read()), side)
        for change in changes:  # the seed is the picture's position
            yield to_input(change.apply(image, seed), manifest)


def _row(
    change: Change,
    answers: NDArray[np.float32],
    unchanged: NDArray[np.float32],
    truth: NDArray[np.int64],
) -> RobustnessRow:
    top1 = 100 * float((answers.argmax(axis=1) == truth).mean())
    before = 100 * float((unchanged.argmax(axis=1) == truth).mean())
    kept = agreement_percent(answers, unchanged)
    return RobustnessRow(change.name, change.detail, len(truth), top1, before - top1, kept)


def reduced(image: Image.Image, side_px: int) -> Image.Image:
    """Returns a picture whose shorter side is at most `side_px`; keeps the aspect and never enlarges."""
    factor = side_px / min(image.size)
    if factor >= 1:
        return image
    width, height = (math.ceil(side * factor) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)
