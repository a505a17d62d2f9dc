"""Corrects biases so that rounding does not move the mean of a channel.

Shapes: R sampled positions, C output channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

Activation = Callable[[NDArray[np.float32]], NDArray[np.float32]]

_ITERATIONS: Final = 4


def correct_bias(
    exact: NDArray[np.float32], quantized: NDArray[np.float32], activation: Activation | None
) -> NDArray[np.float64]:
    """Returns what to add to the bias of each channel, float64, shape (C,).

    What must keep its mean is the result of the activation that follows. A clipped channel would be
    moved too far by the mean before it.

    Args:
        exact: outputs of the float layer before its activation, float32, shape (R, C).
        quantized: outputs of the quantized layer at the same positions.
        activation: what follows the layer; None if nothing does.
    """
    if activation is None:
        return _means(exact) - _means(quantized)

    wanted = _means(activation(exact))
    shift = np.zeros(exact.shape[1])
    for _ in range(_ITERATIONS):
        shift += wanted - _means(activation(quantized + shift.astype(np.float32)))
    return shift


def _means(values: NDArray[np.float32]) -> NDArray[np.float64]:
    means: NDArray[np.float64] = values.mean(axis=0, dtype=np.float64)
    return means
