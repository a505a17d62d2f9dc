import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from contract.manifest import LayerOutput
from tests.training.helpers import tinynet
from training.errors import ExportFailed
from training.evaluation.session import open_session
from training.export.export import INPUT
from training.export.layers import FILE, layers_graph, with_layers


def pixels(n=3):
    shape = (n, tinynet.SIDE_PX, tinynet.SIDE_PX, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_layers_of_the_tiny_network_are_described_from_input_to_scores(tiny_graph):
    _, outputs = layers_graph(tiny_graph)

    found = [(output.operator, output.module, output.layout) for output in outputs]
    assert found[0] == ("Conv", "conv", "NCHW")
    assert found[1] == ("Clip", None, "NCHW")
    assert found[-2:] == [("Gemm", "classifier", None), ("Softmax", None, None)]


def test_layers_graph_gives_every_layer_and_the_same_answers(tiny_graph):
    graph, outputs = layers_graph(tiny_graph)

    values = open_session(graph).run([output.name for output in outputs], {INPUT: pixels()})

    named = dict(zip([output.name for output in outputs], values, strict=True))
    expected = open_session(tiny_graph).run(["probabilities", "feature_map"], {INPUT: pixels()})
    np.testing.assert_allclose(named["probabilities"], expected[0], atol=1e-6)
    np.testing.assert_allclose(named["feature_map"], expected[1], atol=1e-5)
    assert all(len(value) == 3 for value in values)
    assert [value.ndim for value in values] == [4 if o.layout else 2 for o in outputs]


def test_layers_follow_the_axes_through_a_transposition():
    """Conv, transposed to NHWC, one operator there, transposed back, one more, flattened."""
    steps = [
        helper.make_node("Conv", ["x", "w"], ["conv"], kernel_shape=[1, 1]),
        helper.make_node("Transpose", ["conv"], ["last"], perm=[0, 2, 3, 1]),
        helper.make_node("Relu", ["last"], ["relu"]),
        helper.make_node("Transpose", ["relu"], ["first"], perm=[0, 3, 1, 2]),
        helper.make_node("Sigmoid", ["first"], ["sigmoid"]),
        helper.make_node("Transpose", ["sigmoid"], ["odd"], perm=[0, 1, 3, 2]),
        helper.make_node("Tanh", ["odd"], ["tanh"]),
        helper.make_node("Flatten", ["tanh"], ["flat"]),
        helper.make_node("Softmax", ["flat"], ["probabilities"]),
    ]
    value, float32 = helper.make_tensor_value_info, TensorProto.FLOAT
    graph = helper.make_graph(
        steps,
        "g",
        [value("x", float32, ["N", 3, 4, 4])],
        [value("probabilities", float32, ["N", 32])],
        [helper.make_tensor("w", float32, [2, 3, 1, 1], np.ones(6))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)

    _, outputs = layers_graph(model.SerializeToString())

    assert {output.name: output.layout for output in outputs} == {
        "conv": "NCHW",
        "relu": "NHWC",
        "sigmoid": "NCHW",
        "tanh": None,
        "probabilities": None,
    }


def test_with_layers_adds_a_file_and_its_description(tiny_graph):
    draft = tinynet.draft(tiny_graph)

    found = with_layers(draft)

    assert found.model == draft.model
    assert found.layers
    assert found.layers.file == FILE
    assert isinstance(found.layers.outputs[0], LayerOutput)
    names = {output.name for output in onnx.load_model_from_string(found.files[FILE]).graph.output}
    assert names >= {output.name for output in found.layers.outputs}


def test_with_layers_that_fails_says_so(tiny_graph, monkeypatch):
    def fail(_: bytes) -> None:
        raise ValueError("made up")

    monkeypatch.setattr("training.export.layers.open_session", fail)

    with pytest.raises(ExportFailed, match="the graph of the layers cannot be made: made up"):
        with_layers(tinynet.draft(tiny_graph))
