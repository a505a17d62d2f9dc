"""From a model's outputs to predictions: softmax and top-k.

Shapes: N pictures, C classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def softmax(logits: NDArray[np.floating], temperature: float = 1.0) -> NDArray[np.float32]:
    """Returns f_j(z) = exp(z_j / T) / sum_k exp(z_k / T) over the last axis.

    Shifted by the maximum, so that no finite input overflows.

    Args:
        logits: float, shape (..., C), any finite values.
        temperature: > 0; above 1 flattens, below 1 sharpens (Guo et al. 2017, arXiv:1706.04599).

    Returns:
        Probabilities, float32, shape (..., C), each in [0, 1], summing to 1.
    """
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    scaled = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    probabilities: NDArray[np.float64] = scaled / scaled.sum(axis=-1, keepdims=True)
    return probabilities.astype(np.float32)


def top_k(
    probabilities: NDArray[np.float32], k: int, min_probability: float = 0.0
) -> list[tuple[int, float]]:
    """Returns the k most probable classes of one picture, most probable first.

    Args:
        probabilities: float32, shape (C,), finite.
        k: how many at most; values above C mean C.
        min_probability: classes below it are left out, so that the list may be shorter or empty.

    Returns:
        (class index, probability) pairs; equal probabilities in order of their index.
    """
    k = max(k, 0)
    if k < len(probabilities) / 8:  # sorting all of them to use five costs more than the rest
        least = np.partition(probabilities, len(probabilities) - max(k, 1))[-max(k, 1)]
        candidates = np.flatnonzero(probabilities >= least)  # more than k where some are equal
    else:
        candidates = np.arange(len(probabilities))
    order = candidates[np.argsort(-probabilities[candidates], kind="stable")][:k]  # (k,)
    pairs = ((int(index), float(probabilities[index])) for index in order)
    return [(index, value) for index, value in pairs if value >= min_probability]
