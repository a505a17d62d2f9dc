"""Samples the inputs of a layer at some of its output positions.

Shapes: N pictures, R samples, G groups of a convolution, K weights of an output channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from training.export.weights.layers import Layer

_MAX_ROWS: Final = 16_384
_MAX_VALUES: Final = 1 << 26  # of one sample: 256 MB of float32


@dataclass(frozen=True, slots=True)
class Positions:
    """R output positions of a layer: the picture, and the row and column where it has some."""

    picture: NDArray[np.int64]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]


def choose_positions(
    layer: Layer, shape: tuple[int, ...], weights: tuple[int, ...], generator: np.random.Generator
) -> Positions:
    """Chooses output positions of a layer at random, as many of each picture.

    Args:
        layer: the layer.
        shape: of its input, (N, channels, height, width) or (N, ..., K).
        weights: the shape of its weights in the node's layout.
        generator: of the positions.
    """
    n = shape[0]
    per_row = shape[1] * weights[2] * weights[3] if layer.node.op_type == "Conv" else shape[-1]
    n_each = max(min(_MAX_ROWS, _MAX_VALUES // per_row) // n, 1)
    height, width = _output_size(layer, shape, weights)
    n_each = min(n_each, height * width)

    places = np.concatenate(
        [generator.choice(height * width, n_each, replace=False) for _ in range(n)]
    )
    return Positions(np.repeat(np.arange(n), n_each), places // width, places % width)


def sample_inputs(
    layer: Layer, tensor: NDArray[Any], weights: tuple[int, ...], at: Positions, zero: int = 0
) -> NDArray[Any]:
    """Returns the inputs that make the outputs at some positions, shape (G, R, K), of the same dtype.

    Args:
        layer: the layer.
        tensor: its input for all pictures.
        weights: the shape of its weights in the node's layout.
        at: the positions.
        zero: the value of padding.
    """
    if layer.node.op_type != "Conv":
        rows = tensor.reshape(len(tensor), -1, tensor.shape[-1])
        return rows[at.picture, at.columns][None]

    kernel, (stride_y, stride_x) = weights[2:], layer.attributes.get("strides", (1, 1))
    dilation_y, dilation_x = layer.attributes.get("dilations", (1, 1))
    top, left = _padding(layer, tensor.shape, weights)[:2]
    height, width = tensor.shape[2:]

    taps = []
    for i, j in np.ndindex(*kernel):
        y = at.rows * stride_y + i * dilation_y - top
        x = at.columns * stride_x + j * dilation_x - left
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        tap = tensor[at.picture, :, np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]
        tap[~inside] = zero
        taps.append(tap)

    patches = np.stack(taps, axis=1)  # (R, taps, channels)
    n_rows, n_taps, channels = patches.shape
    split = patches.reshape(n_rows, n_taps, layer.groups, channels // layer.groups)
    return split.transpose(2, 0, 1, 3).reshape(layer.groups, n_rows, -1)


def _output_size(layer: Layer, shape: tuple[int, ...], weights: tuple[int, ...]) -> tuple[int, int]:
    if layer.node.op_type != "Conv":
        return 1, int(np.prod(shape[1:-1], dtype=np.int64))  # (N, K) has one position

    top, left, bottom, right = _padding(layer, shape, weights)
    strides = layer.attributes.get("strides", (1, 1))
    dilations = layer.attributes.get("dilations", (1, 1))
    padded = (shape[2] + top + bottom, shape[3] + left + right)
    height, width = (
        (size - dilation * (kernel - 1) - 1) // stride + 1
        for size, dilation, kernel, stride in zip(
            padded, dilations, weights[2:], strides, strict=True
        )
    )
    return height, width


def _padding(
    layer: Layer, shape: tuple[int, ...], weights: tuple[int, ...]
) -> tuple[int, int, int, int]:
    """Returns top, left, bottom, right."""
    attributes = layer.attributes
    mode = attributes.get("auto_pad", b"NOTSET")
    if mode in (b"NOTSET", b""):
        top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
        return top, left, bottom, right
    if mode == b"VALID":
        return 0, 0, 0, 0

    # SAME: as many outputs as inputs, divided by the stride.
    before, after = [], []
    for size, kernel, stride, dilation in zip(
        shape[2:],
        weights[2:],
        attributes.get("strides", (1, 1)),
        attributes.get("dilations", (1, 1)),
        strict=True,
    ):
        needed = (-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size
        needed = max(needed, 0)
        small, large = needed // 2, needed - needed // 2
        before.append(large if mode == b"SAME_LOWER" else small)
        after.append(small if mode == b"SAME_LOWER" else large)
    return before[0], before[1], after[0], after[1]
