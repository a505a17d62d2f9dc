"""What happens to the answers when the same pictures are turned, squashed, darkened or damaged.

Each change is a function from RGB picture to RGB picture, applied to the decoded file. The result goes
into the graph as the service prepares it; it is what a lossless file of it would give.
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

N_PICTURES: Final = 120
"""That every row of the table answers, at most."""

MAX_SIDES: Final = 2
"""Pictures are first reduced to this many times the size the network resizes to, so that blur and
noise mean the same on a small photo and on one of 48 megapixels."""

_BLUR_FRACTION: Final = 0.01  # standard deviation, of the shorter side
_MIN_BLUR_PX: Final = 0.5  # so that the smallest pictures are blurred too
_NOISE_SIGMA: Final = 25  # of 255
_SIDE_PX: Final = 1  # no change makes a picture smaller than that

Transform = Callable[[Image.Image, int], Image.Image]
"""Takes a picture, mode RGB, and a seed of its own; returns another picture, mode RGB."""


@dataclass(frozen=True, slots=True)
class Change:
    """One way to change a picture.

    Attributes:
        name: as in the table.
        detail: how much, in words.
        apply: the change.
    """

    name: str
    detail: str
    apply: Transform


def _turned(degrees: float) -> Transform:
    def apply(image: Image.Image, _: int) -> Image.Image:
        if degrees % 90 == 0:
            return image.rotate(degrees, expand=True)
        mean = tuple(round(value) for value in ImageStat.Stat(image).mean)
        return image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=mean)

    return apply


def _scaled(across: float, down: float) -> Transform:
    def apply(image: Image.Image, _: int) -> Image.Image:
        width = max(_SIDE_PX, round(image.width * across))
        height = max(_SIDE_PX, round(image.height * down))
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
    Change("blurred", "Gaussian, standard deviation 1 % of the shorter side", _blurred),
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
    """The answers to the pictures after one change.

    Attributes:
        name: "unchanged" or the change's.
        detail: how much it changes.
        n: pictures.
        top1_percent: first class right, 0..100.
        drop: top-1 of the unchanged pictures less this one, in points; negative where it is better.
        kept_percent: pictures whose first class is that of the unchanged picture, 0..100.
    """

    name: str
    detail: str
    n: int
    top1_percent: float
    drop: float
    kept_percent: float


def stratified(samples: Sequence[Sample], n: int = N_PICTURES, seed: int = 0) -> list[Sample]:
    """Draws pictures class by class in turn, so that every class has its share or all it has.

    Args:
        samples: to draw from.
        n: how many at most.
        seed: of the draw.

    Returns:
        In the order of `samples`.
    """
    order = np.random.default_rng(seed).permutation(len(samples))
    drawn: dict[int, int] = {}  # class index: pictures drawn before
    turns = []
    for place in order:
        index = samples[place].index
        turns.append((drawn.get(index, 0), int(place)))
        drawn[index] = drawn.get(index, 0) + 1
    turns.sort(key=lambda turn: turn[0])  # stable: within a turn in the drawn order
    return [samples[place] for place in sorted(place for _, place in turns[:n])]


def measure_robustness(
    scorer: Scorer, samples: Sequence[Sample], *, changes: Sequence[Change] = CHANGES
) -> tuple[RobustnessRow, ...]:
    """Answers the same pictures under every change.

    Args:
        scorer: the graph.
        samples: labelled and readable, such as those of `stratified`.
        changes: rows of the table.

    Returns:
        The unchanged pictures first, then one row a change.

    Raises:
        PicturesMissing: there are none.
    """
    if not samples:
        raise PicturesMissing("there are no pictures to change")
    truth = np.array([sample.index for sample in samples])
    table = (Change("unchanged", "as they are", lambda image, _: image), *changes)
    answers = scorer.probabilities_of_rows(_changed_rows(samples, table, scorer.manifest))
    by_change = answers.reshape(len(samples), len(table), -1).swapaxes(0, 1)  # (changes, N, C)
    return tuple(
        _row(change, changed, by_change[0], truth)
        for change, changed in zip(table, by_change, strict=True)
    )


def _changed_rows(
    samples: Sequence[Sample], changes: Sequence[Change], manifest: Interface
) -> Iterator[Tensor]:
    """Yields input rows, all changes of a picture in turn; the seed is the picture's place."""
    side = MAX_SIDES * manifest.preprocessing.resize_size_px
    for seed, sample in enumerate(samples):
        image = reduced(decode(sample.read()), side)
        for change in changes:
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
    """Returns a picture whose shorter side has `side_px` at most; aspect kept, never enlarged."""
    factor = side_px / min(image.size)
    if factor >= 1:
        return image
    width, height = (math.ceil(side * factor) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)
