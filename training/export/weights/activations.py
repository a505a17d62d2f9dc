"""What follows a layer in the float graph, as a function of its output."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from training.export.weights.bias import Activation
from training.export.weights.layers import Constants


def find_activation(graph: onnx.GraphProto, tensor: str) -> Activation | None:
    """Returns the elementwise activation that reads a tensor; None if there is none that is known.

    Knows Relu, Clip (ReLU6), LeakyRelu, Sigmoid, HardSigmoid and HardSwish, and the products of a tensor
    with its own sigmoid (SiLU, hard swish).
    """
    readers = [node for node in graph.node if tensor in node.input]
    constants = Constants(graph)
    if len(readers) == 1:
        return _single(readers[0], constants)

    if len(readers) == 2:
        gate, product = sorted(readers, key=lambda node: node.op_type == "Mul")
        activation = _single(gate, constants)
        if product.op_type == "Mul" and activation and gate.output[0] in product.input:
            return lambda values: values * activation(values)
    return None


def _single(node: onnx.NodeProto, constants: Constants) -> Activation | None:
    values = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    match node.op_type:
        case "Relu":
            return lambda x: np.maximum(x, 0)
        case "Clip":
            return _clip(node, values, constants)
        case "LeakyRelu":
            slope = values.get("alpha", 0.01)
            return lambda x: np.where(x > 0, x, slope * x)
        case "Sigmoid":
            return _sigmoid
        case "HardSigmoid":
            alpha, beta = values.get("alpha", 0.2), values.get("beta", 0.5)
            return lambda x: np.clip(alpha * x + beta, 0, 1)
        case "HardSwish":
            return lambda x: x * np.clip(x / 6 + 0.5, 0, 1)
    return None


def _clip(node: onnx.NodeProto, values: dict[str, Any], constants: Constants) -> Activation:
    names = [*node.input[1:], "", ""]
    low, high = (
        float(constants[name]) if name in constants else values.get(attribute)
        for name, attribute in zip(names, ("min", "max"), strict=False)
    )
    return lambda x: np.clip(x, low, high)


def _sigmoid(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.float32(1) / (np.float32(1) + np.exp(-x))
