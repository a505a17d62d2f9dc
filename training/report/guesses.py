"""Selects the pictures that a report shows, with the most probable classes of each.

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
    """One picture with its most probable classes.

    Attributes:
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
    """Returns at most n rows with a wrong first class, the most confident first.

    `probabilities` has shape (N, C), `indexes` holds the N true classes.
    """
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != indexes)
    order = np.argsort(-probabilities[wrong].max(axis=1), kind="stable")
    return [int(row) for row in wrong[order][:n]]


def pick_drawn(n_pictures: int, n: int = 6, seed: int = 0) -> list[int]:
    return [int(row) for row in np.random.default_rng(seed).permutation(n_pictures)[:n]]


def pick_unsure(
    probabilities: NDArray[np.float32], *, without: Sequence[int] = (), n: int = 6
) -> list[int]:
    """Returns at most n rows, those with the lowest probability of the first class first."""
    # A random sample of a very accurate network would only show confident predictions.
    order = np.argsort(probabilities.max(axis=1), kind="stable")
    return [int(row) for row in order if row not in without][:n]


def show_guess(sample: Sample, probabilities: NDArray[np.float32]) -> Guess:
    thumbnail = decode(sample.read())
    thumbnail.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))  # never enlarges
    return Guess(sample.name, sample.index, tuple(top_k(probabilities, TOP_K)), thumbnail)
