"""The bound on neighbouring int8 weights that makes every processor compute the same sums.

Without VNNI, an x86 processor multiplies uint8 inputs with int8 weights by `vpmaddubsw`: it adds the
products of two neighbouring positions in 16 bits, and saturates. Two weights of the same sign
therefore must not exceed 128 together, since 255 * 128 <= 32,767. Weights of opposite signs cannot
saturate.

Shapes: K weights of an output channel, in the order in which the kernels sum them; pairs are the
positions (0, 1), (2, 3), ...
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

MAX_WEIGHT: Final = 127
MAX_PAIR: Final = 128  # the largest |a| + |b| for weights of the same sign

FloatArray = NDArray[np.float64]


def pairs_hold(weights: NDArray[np.int8]) -> bool:
    """Returns whether no pair exceeds the bound. Takes int8, shape (..., K)."""
    wide = weights.astype(np.int16)
    first, second = _pairs(wide)
    too_large = (first * second > 0) & (np.abs(first) + np.abs(second) > MAX_PAIR)
    return not too_large.any() and bool((np.abs(wide) <= MAX_WEIGHT).all())


def bound_pairs(weights: FloatArray) -> FloatArray:
    """Returns the nearest weights within the bound.

    Takes and returns float64 in units of the scale, shape (..., K). Both weights of a pair that is too
    large move towards zero by the same amount.
    """
    bounded = np.clip(weights, -MAX_WEIGHT, MAX_WEIGHT)
    first, second = _pairs(bounded)
    excess = np.maximum(np.abs(first) + np.abs(second) - MAX_PAIR, 0.0) / 2
    excess = np.where(first * second > 0, excess, 0.0)
    first -= np.sign(first) * excess  # views: both change `bounded`
    second -= np.sign(second) * excess
    return bounded


def cap_second(second: FloatArray, first: FloatArray) -> FloatArray:
    """Returns the second weights of pairs, limited by first weights that are rounded already."""
    room = np.where(first * second > 0, MAX_PAIR - np.abs(first), MAX_WEIGHT)
    room = np.minimum(room, MAX_WEIGHT)
    return np.clip(second, -room, room)


def _pairs(weights: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    even = weights.shape[-1] // 2 * 2
    return weights[..., 0:even:2], weights[..., 1:even:2]
