"""Rounds weights so that their errors cancel on a layer's real inputs (GPTQ).

Rounding a weight changes the layer's output. GPTQ (Frantar et al. 2022, arXiv:2210.17323) rounds one
input position after the other and spreads each error over the positions that are still free, as far
as their inputs go together.

Shapes: G groups of a convolution (1 for a dense layer), O output channels of a group, K weights of
an output channel, R sampled positions.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.export.weights.pairs import MAX_WEIGHT, FloatArray, bound_pairs, cap_second

# Scales to try, relative to the one that just holds the largest weight. More than 1 leaves room in
# pairs; less clips the largest weights to round the others more finely.
_DENSE_FACTORS: Final = np.linspace(0.6, 1.6, 21)
_DEPTHWISE_FACTORS: Final = np.linspace(0.5, 1.02, 14)

_DAMPING: Final = 0.01  # of the mean diagonal; the value of the paper
_SPARSE_DAMPING: Final = 0.1  # where few rows determine many weights
_ENOUGH_ROWS: Final = 4  # rows for each weight
_BLOCK: Final = 128  # columns between two updates of the rest, for the cache only


def input_correlation(inputs: NDArray[np.float32]) -> FloatArray:
    """Returns the damped matrix X^T X / R of each group, float64, shape (G, K, K).

    Takes the layer's quantized inputs, float32, shape (G, R, K).
    """
    n_rows, n_weights = inputs.shape[1:]
    found: FloatArray = np.matmul(inputs.transpose(0, 2, 1), inputs).astype(np.float64) / n_rows
    damping = _DAMPING if n_rows >= _ENOUGH_ROWS * n_weights else _SPARSE_DAMPING
    mean = np.einsum("gkk->g", found) / n_weights
    # An input that is always zero must not make the matrix singular.
    floor = np.where(mean > 0, damping * mean, 1.0)
    found += floor[:, None, None] * np.eye(n_weights)
    return found


def choose_scales(
    weights: FloatArray, correlation: FloatArray, least: FloatArray, *, depthwise: bool
) -> FloatArray:
    """Returns a scale for each output channel, float64, shape (G, O).

    It is the scale of a grid with the least error after rounding, with the inputs' mean squares as
    weights.

    Args:
        weights: float64, shape (G, O, K).
        correlation: from `input_correlation`.
        least: float64, shape (G, O); no scale is below it.
        depthwise: pairs are free.
    """
    squares = np.einsum("gkk->gk", correlation)[:, None, :]  # (G, 1, K)
    largest = np.maximum(np.abs(weights).max(axis=2) / MAX_WEIGHT, np.finfo(np.float32).tiny)
    best: FloatArray = largest
    best_error = np.full(largest.shape, np.inf)

    for factor in _DEPTHWISE_FACTORS if depthwise else _DENSE_FACTORS:
        scales = np.maximum(factor * largest, least)
        steps = weights / scales[..., None]
        limited = np.clip(steps, -MAX_WEIGHT, MAX_WEIGHT) if depthwise else bound_pairs(steps)
        error = (squares * (np.rint(limited) - steps) ** 2).sum(axis=2) * scales**2
        best = np.where(error < best_error, scales, best)
        best_error = np.minimum(error, best_error)
    return best


def round_weights(
    weights: FloatArray, scales: FloatArray, correlation: FloatArray, *, depthwise: bool
) -> NDArray[np.int8]:
    """Returns the rounded weights, int8, shape (G, O, K); pairs hold unless `depthwise`.

    Takes float64 weights (G, O, K) and scales (G, O), and the matrix of `input_correlation`.
    """
    steps = weights / scales[..., None]
    rounded = np.empty_like(steps)
    # Upper triangular U with U^T U = inverse; row j spreads the error of position j.
    spread = np.linalg.cholesky(np.linalg.inv(correlation)).transpose(0, 2, 1)

    n_weights = steps.shape[2]
    for start in range(0, n_weights, _BLOCK):
        end = min(start + _BLOCK, n_weights)
        errors = np.empty((*steps.shape[:2], end - start))
        for j in range(start, end):
            rounded[..., j] = _round_position(steps, rounded, j, depthwise=depthwise)
            error = (steps[..., j] - rounded[..., j]) / spread[:, None, j, j]
            steps[..., j + 1 : end] -= error[..., None] * spread[:, None, j, j + 1 : end]
            errors[..., j - start] = error
        steps[..., end:] -= np.matmul(errors, spread[:, start:end, end:])

    return rounded.astype(np.int8)


def _round_position(
    steps: FloatArray, rounded: FloatArray, j: int, *, depthwise: bool
) -> FloatArray:
    own = steps[..., j]
    if not depthwise:
        if j % 2:
            own = cap_second(own, rounded[..., j - 1])
        elif j + 1 < steps.shape[2]:
            own = bound_pairs(steps[..., j : j + 2])[..., 0]
    return np.clip(np.rint(own), -MAX_WEIGHT, MAX_WEIGHT)
