"""The sampled inputs, weights and activations of a layer against onnxruntime's own results."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from training.evaluation.session import open_session
from training.export.weights.activations import find_activation
from training.export.weights.inputs import choose_positions, sample_inputs
from training.export.weights.layers import Layer, Quantized, find_layers

SOURCE, WEIGHTS = Quantized("x", "xs", "xz"), Quantized("w", "ws", "wz")


def _run(node, x, weights):
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None] * x.ndim)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return open_session(model.SerializeToString()).run(None, {"x": x})[0]


@pytest.mark.parametrize(
    ("channels", "weights", "attributes"),
    [
        (6, (4, 6, 1, 1), {}),
        (3, (8, 3, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
        (3, (8, 3, 3, 5), {"strides": [1, 2], "pads": [0, 1, 2, 3]}),
        (6, (6, 1, 3, 3), {"group": 6, "pads": [1, 1, 1, 1]}),
        (6, (12, 1, 5, 5), {"group": 6, "pads": [2, 2, 2, 2]}),
        (8, (4, 4, 3, 3), {"group": 2, "dilations": [2, 2], "pads": [2, 2, 2, 2]}),
        (3, (4, 3, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        (3, (4, 3, 2, 2), {"auto_pad": "SAME_LOWER"}),
        (3, (4, 3, 3, 3), {"auto_pad": "VALID"}),
    ],
)
def test_sampled_inputs_give_the_outputs_of_a_convolution(channels, weights, attributes):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(3, channels, 11, 8)).astype(np.float32)
    values = generator.normal(size=weights).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
    layer = Layer(node, SOURCE, WEIGHTS, None)

    at = choose_positions(layer, x.shape, weights, generator)
    inputs, rows = sample_inputs(layer, x, weights, at), layer.to_rows(values)

    expected = _run(node, x, values)[at.picture, :, at.rows, at.columns]  # (R, C)
    outputs = np.matmul(inputs, rows.transpose(0, 2, 1)).transpose(1, 0, 2)
    np.testing.assert_allclose(outputs.reshape(len(expected), -1), expected, atol=1e-4)
    np.testing.assert_array_equal(layer.from_rows(rows, weights), values)


@pytest.mark.parametrize(
    ("kind", "x_shape", "weights", "attributes"),
    [
        ("Gemm", (4, 6), (6, 3), {}),
        ("Gemm", (4, 6), (3, 6), {"transB": 1}),
        ("MatMul", (4, 6), (6, 3), {}),
        ("MatMul", (4, 5, 6), (6, 3), {}),
    ],
)
def test_sampled_inputs_give_the_outputs_of_a_dense_layer(kind, x_shape, weights, attributes):
    generator = np.random.default_rng(0)
    x = generator.normal(size=x_shape).astype(np.float32)
    values = generator.normal(size=weights).astype(np.float32)
    node = helper.make_node(kind, ["x", "w"], ["y"], **attributes)
    layer = Layer(node, SOURCE, WEIGHTS, None)

    at = choose_positions(layer, x.shape, weights, generator)
    inputs, rows = sample_inputs(layer, x, weights, at), layer.to_rows(values)

    expected = _run(node, x, values).reshape(x_shape[0], -1, 3)[at.picture, at.columns]
    np.testing.assert_allclose(inputs[0] @ rows[0].T, expected, atol=1e-5)
    np.testing.assert_array_equal(layer.from_rows(rows, weights), values)


def test_padding_of_a_quantized_input_is_its_zero_point():
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    layer, x = Layer(node, SOURCE, WEIGHTS, None), np.full((1, 1, 1, 1), 9, dtype=np.uint8)

    at = choose_positions(layer, x.shape, (1, 1, 3, 3), np.random.default_rng(0))

    inputs = sample_inputs(layer, x, (1, 1, 3, 3), at, zero=7)
    assert inputs.dtype == np.uint8
    np.testing.assert_array_equal(inputs, [[[7, 7, 7, 7, 9, 7, 7, 7, 7]]])


X = np.linspace(-8, 8, 33, dtype=np.float32)


@pytest.mark.parametrize(
    "nodes",
    [
        [helper.make_node("Relu", ["x"], ["y"])],
        [helper.make_node("Clip", ["x", "low", "high"], ["y"])],
        [helper.make_node("Clip", ["x", "low"], ["y"])],
        [helper.make_node("LeakyRelu", ["x"], ["y"], alpha=0.1)],
        [helper.make_node("HardSigmoid", ["x"], ["y"], alpha=0.25)],
        [helper.make_node("HardSwish", ["x"], ["y"])],
        [helper.make_node("Sigmoid", ["x"], ["s"]), helper.make_node("Mul", ["x", "s"], ["y"])],
        [helper.make_node("HardSigmoid", ["x"], ["s"]), helper.make_node("Mul", ["s", "x"], ["y"])],
    ],
    ids=lambda nodes: "-".join(node.op_type for node in nodes),
)
def test_activation_is_what_the_nodes_compute(nodes):
    graph = helper.make_graph(
        nodes,
        "activation",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(np.array(v, np.float32), n)
            for n, v in (("low", 0.0), ("high", 6.0))
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    activation = find_activation(graph, "x")
    assert activation
    expected = open_session(model.SerializeToString()).run(None, {"x": X})[0]
    np.testing.assert_allclose(activation(X), expected, atol=1e-6)


@pytest.mark.parametrize(
    "nodes",
    [
        [helper.make_node("Add", ["x", "other"], ["y"])],
        [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Add", ["x", "r"], ["y"])],
        [],
    ],
)
def test_other_readers_are_no_activation(nodes):
    graph = helper.make_graph(nodes, "none", [], [])

    assert find_activation(graph, "x") is None


def test_a_product_of_two_activations_is_no_layer():
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["y"])], "none", [], [])

    assert find_layers(graph) == []
