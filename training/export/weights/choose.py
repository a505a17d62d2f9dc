"""Chooses the weights and biases of all layers of a quantized graph, in the order of the graph.

Shapes: G groups of a convolution (1 for a dense layer), O output channels of a group, K weights of an
output channel, R sampled positions.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from training.export.weights.activations import find_activation
from training.export.weights.bias import correct_bias
from training.export.weights.inputs import choose_positions, sample_inputs
from training.export.weights.layers import Constants, Layer, Quantized, find_layers
from training.export.weights.rounding import choose_scales, input_correlation, round_weights
from training.export.weights.walk import Walk

log = logging.getLogger(__name__)

N_PICTURES: Final = 192  # of the calibration; twice as many gain nothing
_MAX_BYTES: Final = 1 << 30  # of the largest tensor, in float32, for all pictures
_SEED: Final = 0  # of the sampled positions
_MAX_BIAS: Final = 2.0**30  # half of int32, so that sums of products have the other half


def choose_weights(
    exact: onnx.ModelProto, quantized: onnx.ModelProto, rows: Sequence[NDArray[Any]]
) -> None:
    """Replaces the weights and biases of a quantized graph.

    The result has the same nodes and the same activation ranges. In no layer does a pair of weights
    exceed `pairs.MAX_PAIR`, except in depthwise convolutions, whose kernels multiply exactly.

    Args:
        exact: the float graph that `quantized` was made from, with nodes of the same names.
        quantized: a QDQ graph: uint8 activations, int8 weights with a zero point of 0. It is changed.
        rows: calibration pictures, input rows without the batch axis.

    Raises:
        QuantizationFailed: a convolution is not two-dimensional.
    """
    chosen = rows[: _n_rows(exact, len(rows))]
    generator = np.random.default_rng(_SEED)
    layers = find_layers(quantized.graph)
    chooser = _Chooser(exact, quantized, chosen, generator)
    for layer in layers:
        chooser.choose(layer)
    log.info("int8: chose the weights of %d layers on %d pictures", len(layers), len(chosen))


class _Chooser:
    def __init__(
        self,
        exact: onnx.ModelProto,
        quantized: onnx.ModelProto,
        rows: Sequence[NDArray[Any]],
        generator: np.random.Generator,
    ) -> None:
        self._exact, self._generator = exact, generator
        self._float_nodes = {node.name: node for node in exact.graph.node}
        self._float_constants = Constants(exact.graph)
        self._constants = Constants(quantized.graph)
        self._float_walk, self._walk = Walk(exact, rows), Walk(quantized, rows)
        self._chosen: set[str] = set()  # weights, since two layers may share them

    def choose(self, layer: Layer) -> None:
        node = self._float_nodes[layer.node.name]
        weights = self._float_constants[node.input[1]]
        self._float_walk.run_to(node.name)
        self._walk.run_to(node.name)

        inputs, exact_inputs = self._inputs(layer, node, weights.shape)
        rows = layer.to_rows(weights.astype(np.float64))  # (G, O, K)
        if layer.weights.values not in self._chosen:
            self._chosen.add(layer.weights.values)
            self._choose_weights(layer, rows, inputs, weights.shape)

        if layer.bias is not None:
            bias = self._float_bias(node, rows.shape[0] * rows.shape[1])
            if node.op_type == "Conv":  # a classifier's means depend on the classes of the pictures
                bias = bias + self._correction(layer, node, rows, inputs, exact_inputs)
            self._write_bias(layer, layer.bias, bias)

    def _inputs(
        self, layer: Layer, node: onnx.NodeProto, weights: tuple[int, ...]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        # Both (G, R, K), at the same positions.
        values = self._walk.tensor(layer.source.values)
        at = choose_positions(layer, values.shape, weights, self._generator)
        zero_point = int(self._constants[layer.source.zero_point])
        scale = self._constants[layer.source.scale]

        quantized = sample_inputs(layer, values, weights, at, zero_point)
        exact = sample_inputs(layer, self._float_walk.tensor(node.input[0]), weights, at)
        return (quantized.astype(np.float32) - zero_point) * scale, exact

    def _choose_weights(
        self,
        layer: Layer,
        rows: NDArray[np.float64],
        inputs: NDArray[np.float32],
        shape: tuple[int, ...],
    ) -> None:
        n_groups, n_outputs = rows.shape[:2]
        depthwise = n_groups > 1 and n_outputs == 1 and shape[1] == 1
        correlation = input_correlation(inputs)
        scales = choose_scales(
            rows, correlation, self._least_scales(layer, rows), depthwise=depthwise
        )
        # The graph stores scales as float32, so round to those.
        scales = scales.astype(np.float32).astype(np.float64)
        rounded = round_weights(rows, scales, correlation, depthwise=depthwise)

        self._constants[layer.weights.values] = layer.from_rows(rounded, shape)
        self._constants[layer.weights.scale] = scales.reshape(-1).astype(np.float32)

    def _least_scales(self, layer: Layer, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        # Below it the bias would not fit into int32.
        bias = self._float_bias(self._float_nodes[layer.node.name], rows.shape[0] * rows.shape[1])
        source = float(self._constants[layer.source.scale])
        return np.abs(bias).reshape(rows.shape[:2]) / (source * _MAX_BIAS)

    def _correction(
        self,
        layer: Layer,
        node: onnx.NodeProto,
        rows: NDArray[np.float64],
        inputs: NDArray[np.float32],
        exact_inputs: NDArray[np.float32],
    ) -> NDArray[np.float64]:
        bias = self._float_bias(node, rows.shape[0] * rows.shape[1]).astype(np.float32)
        stored = layer.to_rows(self._constants[layer.weights.values].astype(np.float32))
        stored = stored * self._constants[layer.weights.scale].reshape(*rows.shape[:2], 1)

        exact = _outputs(exact_inputs, rows.astype(np.float32)) + bias
        quantized = _outputs(inputs, stored) + bias
        return correct_bias(exact, quantized, find_activation(self._exact.graph, node.output[0]))

    def _float_bias(self, node: onnx.NodeProto, n_channels: int) -> NDArray[np.float64]:
        if len(node.input) < 3:
            return np.zeros(n_channels)
        return self._float_constants[node.input[2]].astype(np.float64)

    def _write_bias(self, layer: Layer, stored: Quantized, bias: NDArray[np.float64]) -> None:
        source = float(self._constants[layer.source.scale])
        scales = source * self._constants[layer.weights.scale].astype(np.float64)
        scales = scales.astype(np.float32)
        largest = np.iinfo(np.int32).max
        steps = np.clip(np.rint(bias / scales), -largest, largest)
        self._constants[stored.values] = steps.astype(np.int32)
        self._constants[stored.scale] = scales


def _outputs(inputs: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    products = np.matmul(inputs, weights.transpose(0, 2, 1))  # (G, R, O)
    channels: NDArray[np.float32] = products.transpose(1, 0, 2).reshape(inputs.shape[1], -1)
    return channels


def _n_rows(exact: onnx.ModelProto, available: int) -> int:
    # Fewer pictures where the tensors are large.
    inferred = onnx.shape_inference.infer_shapes(exact)
    largest = max(
        (
            math.prod(axis.dim_value for axis in value.type.tensor_type.shape.dim[1:])
            for value in inferred.graph.value_info
        ),
        default=1,
    )
    return min(available, N_PICTURES, max(_MAX_BYTES // (4 * max(largest, 1)), 1))
