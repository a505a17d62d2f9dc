"""Graphs with layers of every kind, from the quantizer to chosen weights."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from training.evaluation.session import open_session, run_rows
from training.export.int8 import quantize
from training.export.weights.layers import Constants, find_layers
from training.export.weights.pairs import pairs_hold

SIDE_PX = 16


def _graph(batch=None):
    """Returns a graph of float32 pictures (N, 3, 16, 16) with logits (N, 5)."""
    generator = np.random.default_rng(0)
    shapes = {
        "stem": (8, 3, 3, 3),
        "stem_bias": (8,),
        "depthwise": (8, 1, 3, 3),
        "depthwise_bias": (8,),
        "grouped": (8, 4, 3, 3),
        "shared": (8, 8, 1, 1),
        "shared_bias": (8,),
        "other_bias": (8,),
        "dense": (8, 5),
    }
    weights = [
        numpy_helper.from_array(
            generator.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32), name
        )
        for name, shape in shapes.items()
    ]
    limits = [numpy_helper.from_array(np.array(v, np.float32), n) for n, v in (("0", 0), ("6", 6))]
    same: dict[str, Any] = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["image", "stem", "stem_bias"], ["a"], strides=[2, 2], **same),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "depthwise", "depthwise_bias"], ["c"], group=8, **same),
        helper.make_node("Clip", ["c", "0", "6"], ["d"]),
        helper.make_node("Conv", ["d", "grouped"], ["e"], group=2, **same),  # without a bias
        helper.make_node("Conv", ["e", "shared", "shared_bias"], ["f"]),
        helper.make_node("Relu", ["f"], ["g"]),
        helper.make_node("Conv", ["g", "shared", "other_bias"], ["h"]),
        helper.make_node("Add", ["d", "h"], ["i"]),
        helper.make_node("GlobalAveragePool", ["i"], ["j"]),
        helper.make_node("Flatten", ["j"], ["k"]),
        helper.make_node("MatMul", ["k", "dense"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, SIDE_PX, SIDE_PX])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 5])],
        [*weights, *limits],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString()


@pytest.fixture(scope="module")
def rows():
    generator = np.random.default_rng(1)
    return list(generator.normal(size=(40, 3, SIDE_PX, SIDE_PX)).astype(np.float32))


@pytest.mark.parametrize("batch", [None, 1], ids=["any batch", "batch of 1"])
def test_layers_of_every_kind_stay_close_to_float(batch, rows):
    exact = _graph(batch)

    quantized = quantize(exact, rows)

    size = batch or 8
    expected = run_rows(open_session(exact), rows, "logits", size)
    answers = run_rows(open_session(quantized), rows, "logits", size)
    assert np.abs(answers - expected).max() < 0.05 * np.ptp(expected)


def test_every_layer_is_chosen_and_keeps_the_bound(rows):
    graph = onnx.load_model_from_string(quantize(_graph(), rows)).graph

    layers, constants = find_layers(graph), Constants(graph)
    dense = [layer for layer in layers if layer.groups != 8]
    assert (len(layers), len(dense)) == (6, 5)
    for layer in dense:
        assert pairs_hold(layer.to_rows(constants[layer.weights.values]))


def test_biases_have_the_scale_of_their_layer(rows):
    graph = onnx.load_model_from_string(quantize(_graph(), rows)).graph

    constants = Constants(graph)
    biases = [(layer.bias, layer) for layer in find_layers(graph) if layer.bias]
    assert len(biases) == 4
    for bias, layer in biases:
        product = constants[layer.source.scale] * constants[layer.weights.scale]
        np.testing.assert_allclose(constants[bias.scale], product, rtol=1e-6)
