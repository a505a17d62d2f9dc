"""The layers of a quantized graph that hold weights: reading them, and writing new weights back.

A layer is a Conv, Gemm or MatMul whose weights come from a DequantizeLinear. Its weights are ordered
as the kernels sum them: for a convolution height, width, input channel.

Shapes: G groups of a convolution (1 for a dense layer), O output channels of a group, K weights of an
output channel, C = G * O.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from training.errors import QuantizationFailed


class Constants:
    """The initializers of a graph, by name, that can be read and replaced."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __getitem__(self, name: str) -> NDArray[Any]:
        return numpy_helper.to_array(self._tensors[name])

    def __setitem__(self, name: str, values: NDArray[Any]) -> None:
        self._tensors[name].CopyFrom(numpy_helper.from_array(values, name))


@dataclass(frozen=True, slots=True)
class Quantized:
    """The names of a quantized tensor's parts: values, scale and zero point."""

    values: str
    scale: str
    zero_point: str


@dataclass(frozen=True, slots=True)
class Layer:
    """A node with quantized weights.

    Attributes:
        node: of the quantized graph; the float graph has one of the same name.
        source: the quantized input.
        weights: int8, in the node's own layout.
        bias: int32 with scale `source scale * weight scale`; None if there is none or it stayed float.
    """

    node: onnx.NodeProto
    source: Quantized
    weights: Quantized
    bias: Quantized | None

    @property
    def attributes(self) -> dict[str, Any]:
        return {one.name: helper.get_attribute_value(one) for one in self.node.attribute}

    @property
    def groups(self) -> int:
        return int(self.attributes.get("group", 1))

    def to_rows(self, weights: NDArray[Any]) -> NDArray[Any]:
        """Returns the weights of the node's layout as (G, O, K)."""
        if self.node.op_type == "Conv":
            by_position = np.moveaxis(weights, 1, -1)  # (C, height, width, channels of a group)
            rows: NDArray[Any] = by_position.reshape(self.groups, len(weights) // self.groups, -1)
            return rows
        return (weights if self._rows_first else weights.T)[None]

    def from_rows(self, rows: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """Undoes `to_rows`; `shape` is that of the node's layout."""
        if self.node.op_type == "Conv":
            channels, n_inputs, *kernel = shape
            weights: NDArray[Any] = np.moveaxis(rows.reshape(channels, *kernel, n_inputs), -1, 1)
            return weights
        dense: NDArray[Any] = rows[0] if self._rows_first else rows[0].T
        return dense

    @property
    def _rows_first(self) -> bool:
        return self.node.op_type == "Gemm" and bool(self.attributes.get("transB", 0))


def find_layers(graph: onnx.GraphProto) -> list[Layer]:
    """Returns the layers of a quantized graph in the order of its nodes.

    Raises:
        QuantizationFailed: a convolution is not two-dimensional.
    """
    sources = {
        node.output[0]: Quantized(*node.input)
        for node in graph.node
        if node.op_type == "DequantizeLinear" and len(node.input) == 3
    }
    constants = Constants(graph)

    layers = []
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        source, weights = (sources.get(name) for name in node.input[:2])
        if source is None or weights is None or weights.values not in constants:
            continue  # a layer that stayed float, or a product of two activations
        if node.op_type == "Conv" and constants[weights.values].ndim != 4:
            raise QuantizationFailed(
                f"{node.name}: only two-dimensional convolutions are supported"
            )
        bias = sources.get(node.input[2]) if len(node.input) > 2 else None
        layers.append(Layer(node, source, weights, bias))
    return layers
