"""Which pictures a report shows, and what the network guessed for them.

Shapes: N pictures, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from contract.images import decode
from contract.predictions import top_k
from training.data.samples import Sample

TOP_K: Final = 5
THUMBNAIL_PX: Final = 160


@dataclass(frozen=True, slots=True, eq=False)
class Guess:
    """One picture with the most probable classes.

    Attributes:
        name: the sample's.
        index: the true class.
        guesses: (class index, probability 0..1) pairs, most probable first, TOP_K at most.
        thumbnail: mode RGB, longer side THUMBNAIL_PX at most.
    """

    name: str
    index: int
    guesses: tuple[tuple[int, float], ...]
    thumbnail: Image.Image


def pick_mistakes(
    probabilities: NDArray[np.float32], indexes: NDArray[np.int64], n: int = 18
) -> list[int]:
    """Returns the rows answered wrongly, those with the most probable wrong class first.

    Args:
        probabilities: float32, shape (N, C).
        indexes: int64, shape (N,): the true classes.
        n: how many at most.
    """
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != indexes)
    order = np.argsort(-probabilities[wrong].max(axis=1), kind="stable")
    return [int(row) for row in wrong[order][:n]]


def pick_drawn(n_pictures: int, n: int = 6, seed: int = 0) -> list[int]:
    """Returns rows drawn at random."""
    return [int(row) for row in np.random.default_rng(seed).permutation(n_pictures)[:n]]


def pick_unsure(
    probabilities: NDArray[np.float32], *, without: Sequence[int] = (), n: int = 6
) -> list[int]:
    """Returns the rows whose first class is the least probable, least sure first.

    Where a network is nearly always right, drawn pictures alone would show nothing but certainty.

    Args:
        probabilities: float32, shape (N, C).
        without: rows that are shown already.
        n: how many at most.
    """
    order = np.argsort(probabilities.max(axis=1), kind="stable")
    return [int(row) for row in order if row not in without][:n]


def show_guess(sample: Sample, probabilities: NDArray[np.float32]) -> Guess:
    """Reads a picture and names its most probable classes.

    Args:
        sample: the picture.
        probabilities: float32, shape (C,): its answer.
    """
    thumbnail = decode(sample.read())
    thumbnail.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))  # never enlarges
    return Guess(sample.name, sample.index, tuple(top_k(probabilities, TOP_K)), thumbnail)
